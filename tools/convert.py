# PYTHON_ARGCOMPLETE_OK
"""`python -m tools.convert`: a checkpoint as .safetensors or .pth, or as the official code reads it.

Without flags: names without `module.`, no CLIP, with the config where it is known. What serves to resume is left out.
"""

from pathlib import Path

from utils.command import Parser, file_there, run_command, weights_file


def main(argv: list[str] | None = None) -> int:
    """Read, convert, write."""
    parser = Parser(
        prog="python -m tools.convert",
        description=__doc__.partition(": ")[2],
        examples=["python -m tools.convert ckpts/pre-train.pth pre-train.safetensors"],
    )
    parser.add_argument(
        "input", type=weights_file, metavar="IN", help="a .pth or .safetensors file, ours or a released one"
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="file to write, .pth or .safetensors")
    parser.add_argument("--config", type=file_there, metavar="FILE", help="its config, where the file does not say it")
    parser.add_argument("--module_prefix", action="store_true", help="names begin with `module.`, as in released files")
    parser.add_argument(
        "--clip",
        type=file_there,
        metavar="FILE",
        help="put CLIP in, as the official I2P-MAE wants it: OpenAI's .pt of it",
    )
    args = parser.parse_args(argv)
    if args.output.suffix not in (".pth", ".safetensors"):
        parser.error(f"OUT is {args.output}; its name must end in .pth or .safetensors")
    if args.output.exists():
        parser.error(f"OUT is {args.output}, which exists: name another, or remove it")
    from tools.evaluation.conversion import converted, write  # not at the top: it imports PyTorch, which takes seconds
    from utils.checkpoint import read_checkpoint
    from utils.files import make_folder

    content = converted(read_checkpoint(args.input), args.input, args.config, args.module_prefix, args.clip)
    make_folder(args.output.parent)
    write(args.output, content)
    said = ", ".join(key for key in content if key != "base_model") or "nothing"
    print(f"{args.output}: {len(content['base_model'])} tensors; beside them: {said}")
    if "config" not in content:
        print("the config is not known: load_encoder(FILE, config=…), or convert with --config FILE")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
