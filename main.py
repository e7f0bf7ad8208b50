"""Pre-train, probe, fine-tune or test; `python main.py --help` has an example of each."""

import logging
import sys
from argparse import Namespace
from types import ModuleType

from easydict import EasyDict

from tools import (
    environment,
    profiler,
    repeat,
    runner_few_shot,
    runner_finetune,
    runner_part_segmentation,
    runner_pretrain,
    runner_test,
    runner_test_svm,
)
from tools.builder import check_config
from tools.trainer import Stopped
from utils.config import load_config
from utils.distributed import processes
from utils.logger import setup_logger
from utils.parser import parse_args

logger = logging.getLogger(__name__)

RUNNERS = {  # flag → runner; without a flag: pre-training
    "test": runner_test,
    "test_svm": runner_test_svm,
    "finetune_model": runner_finetune,
    "scratch_model": runner_finetune,
    "profile": profiler,
}
TASKS = {  # data set → runner of what trains on it or tests
    "ModelNetFewShot": runner_few_shot,
    "ShapeNetPart": runner_part_segmentation,
}
EXIT_STOPPED = 75  # "try again later": a signal stopped the run, and --resume continues it


def main(argv: list[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: arguments without the program's name, None for those of this process.

    Returns:
        Exit code: 0, 1 after an error that the message explains, 75 when a signal stopped a run that can be resumed,
        130 when interrupted.
    """
    setup_logger(None)
    args = parse_args(argv)
    if args.env:
        print(environment.report())
        return 0
    try:
        config = load_config(args.config)
        runner = choose_runner(args, config)
        check_config(config, args.config, runner.MODE, runner.REQUIRED)
        with processes(args.launcher):
            if args.seeds:
                repeat.run(runner, config, args)
            else:
                runner.run(config, args)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_STOPPED
    except (ValueError, OSError) as error:
        logger.debug("traceback", exc_info=True)
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def choose_runner(args: Namespace, config: EasyDict) -> ModuleType:
    """Return the runner module of the mode flag; where it trains or tests, the data set may call for its own."""
    runner = next((runner for flag, runner in RUNNERS.items() if getattr(args, flag)), runner_pretrain)
    if runner in (runner_finetune, runner_test):
        data = config.dataset.get("train") or config.dataset.get("test") or {}
        runner = TASKS.get(data.get("NAME"), runner)
    if runner is not runner_few_shot and (args.way, args.shot, args.fold) != (None, None, None):
        raise ValueError(
            f"--way, --shot and --fold choose few-shot tasks, and {args.config} in this mode has none; drop them, or "
            "choose a config of cfgs/few-shot/ with --finetune_model, --scratch_model or --test"
        )
    return runner


def describe(error: Exception) -> str:
    """Put the message of an error on one line; of one from a loader's worker, the message without its traceback."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
