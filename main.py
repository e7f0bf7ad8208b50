"""Pre-train, probe, fine-tune or test; `python main.py --help` has an example of each."""

import logging
import sys
from argparse import Namespace
from types import ModuleType

from tools import runner_finetune, runner_pretrain, runner_test, runner_test_svm
from tools.builder import check_config
from utils.config import load_config
from utils.logger import setup_logger
from utils.parser import parse_args

logger = logging.getLogger(__name__)

RUNNERS = {  # flag → runner; without a flag: pre-training
    "test": runner_test,
    "test_svm": runner_test_svm,
    "finetune_model": runner_finetune,
    "scratch_model": runner_finetune,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: arguments without the program's name, None for those of this process.

    Returns:
        Exit code: 0, 1 after an error that the message explains, 130 when interrupted.
    """
    setup_logger(None)
    args = parse_args(argv)
    try:
        config = load_config(args.config)
        runner = choose_runner(args)
        check_config(config, args.config, runner.MODE, runner.REQUIRED)
        runner.run(config, args)
    except (ValueError, OSError) as error:
        logger.debug("traceback", exc_info=True)
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def choose_runner(args: Namespace) -> ModuleType:
    """Return the runner module of the first mode flag that is set."""
    return next((runner for flag, runner in RUNNERS.items() if getattr(args, flag)), runner_pretrain)


def describe(error: Exception) -> str:
    """Put the message of an error on one line; of one from a loader's worker, the message without its traceback."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
