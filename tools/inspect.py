# PYTHON_ARGCOMPLETE_OK
"""`python -m tools.inspect`: what a file is, what made and chose it, what it holds, and which commands take it."""

from pathlib import Path

from utils.command import Parser, run_command


def main(argv: list[str] | None = None) -> int:
    """Print what a file is."""
    parser = Parser(
        prog="python -m tools.inspect",
        description=__doc__.partition(": ")[2],
        examples=[
            "python -m tools.inspect ckpts/pre-train.pth",
            "python -m tools.inspect ckpts/demo-teacher.safetensors --tensors",
        ],
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a checkpoint (.pth, .safetensors), features or a bank (.npz, .parquet)"
    )
    parser.add_argument("--tensors", action="store_true", help="list every tensor, not their sums by module")
    args = parser.parse_args(argv)
    from tools.evaluation.contents import describe  # not at the top: it imports PyTorch, which takes seconds

    print("\n".join(describe(args.file, args.tensors)))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
