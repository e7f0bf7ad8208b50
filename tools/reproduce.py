# PYTHON_ARGCOMPLETE_OK
"""`python -m tools.reproduce`: the published figures of the systems that run here beside ours.

Finds the data sets and checkpoints on disk, runs what they allow, each as a command of main.py that is printed first,
and writes the table under experiments/reproduce/. With --plan it only says what it would run and what is missing.
"""

from pathlib import Path

from tools.training.modes import CHECKPOINTS, DATA
from utils.command import Parser, run_command


def main(argv: list[str] | None = None) -> int:
    """Reproduce what can be reproduced; returns 1 if a run failed."""
    parser = Parser(
        prog="python -m tools.reproduce",
        description=__doc__.split("\n\n")[0],
        examples=["python -m tools.reproduce --plan", "python -m tools.reproduce --only I2P-MAE.svm"],
    )
    parser.add_argument("--plan", action="store_true", help="only list the commands and what is missing")
    parser.add_argument("--train", action="store_true", help="train, for days, what no checkpoint is found for")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets (default: %(default)s)")
    parser.add_argument("--ckpts", type=Path, default=CHECKPOINTS, help="of the checkpoints (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="rows whose key contains one, such as I2P-MAE.svm"
    )
    parser.add_argument("--docs", action="store_true", help="only print the tables that docs/RESULTS.md ends with")
    args = parser.parse_args(argv)
    from tools.evaluation.reproduction import run_all  # not at the top: it imports PyTorch, which takes seconds

    return run_all(args)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
