# PYTHON_ARGCOMPLETE_OK
"""`python -m tools.export`: the encoder of a checkpoint as an ONNX file or a program of torch.export.

The program is run beside the encoder, ONNX by onnxruntime, on clouds of other numbers and sizes than it was traced
with; it is written only if the results agree to 1e-4.
"""

from pathlib import Path

from utils.command import Parser, file_there, run_command, weights_file


def main(argv: list[str] | None = None) -> int:
    """Export, check, write."""
    parser = Parser(
        prog="python -m tools.export",
        description=__doc__.partition(": ")[2].split("\n\n")[0],
        examples=["python -m tools.export --ckpts ckpts/pre-train.pth encoder.onnx"],
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="file to write, .onnx or .pt2")
    parser.add_argument("--ckpts", type=weights_file, required=True, metavar="FILE", help="the checkpoint")
    parser.add_argument("--config", type=file_there, metavar="FILE", help="its config, where the file does not say it")
    parser.add_argument(
        "--whole", action="store_true", help="with sampling and search, which are inputs otherwise (docs/LIBRARY.md)"
    )
    args = parser.parse_args(argv)
    if args.output.suffix not in (".onnx", ".pt2"):
        parser.error(f"OUT is {args.output}; its name must end in .onnx or .pt2")
    from models import load_encoder  # not at the top: it imports PyTorch, which takes seconds
    from tools.evaluation.exporting import export, names
    from utils.files import sha256_of

    encoder = load_encoder(args.ckpts, args.config)
    about = {"config": {"model": encoder.config}, "checkpoint_sha256": sha256_of(args.ckpts)}
    difference = export(encoder, args.output, args.whole, about)
    inputs, outputs = names(encoder, args.whole)
    print(f"{args.output}: {', '.join(inputs)} → {', '.join(outputs)}")
    print(f"differs from PyTorch by at most {difference:.1e} of the largest value")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
