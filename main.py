# PYTHON_ARGCOMPLETE_OK
"""Pre-train, probe, fine-tune or test; `python main.py --help` has an example of each."""

import importlib
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from easydict import EasyDict

from tools.training.modes import OTHER_MODE, PRE_TRAINING
from utils.command import completes, run_command
from utils.config import FINE_TUNE, PRE_TRAIN, load_config
from utils.parser import parse_args
from utils.usage import only_of

RUNNERS = {  # flag → runner; without a flag: pre-training
    "plug_in": "runner_plug_in",  # of --test
    "test": "runner_test",
    "test_svm": "runner_test_svm",
    "test_bank": "runner_test_bank",
    "finetune_model": "runner_finetune",
    "scratch_model": "runner_finetune",
    "profile": "runner_profile",
}
OF_DATA = {
    "ModelNetFewShot": "runner_few_shot",
    "ShapeNetPart": "runner_part_segmentation",
    "S3DIS": "runner_room_segmentation",
}
TASKS = {  # runner → data set → the runner that takes its place
    "runner_finetune": OF_DATA,
    "runner_test": OF_DATA,
    "runner_test_bank": {"ModelNetFewShot": "runner_few_shot", "ShapeNetPart": "runner_part_prototypes"},
    "runner_plug_in": {"ModelNetFewShot": "runner_few_shot"},
}
MODELS = {  # model → runner of what trains it or tests it
    "DiscreteVAE": "runner_autoencode",
    "ACTPromptedDiscreteVAEwithVIT": "runner_autoencode",
}
EXIT_USAGE = 2
EXIT_STOPPED = 75  # "try again later": a signal stopped the run, and --resume continues it


def main(argv: list[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: arguments without the program's name, None for those of this process.

    Returns:
        Exit code: 0, 1 after an error that the message explains, 2 after a wrong command line or none at all, 75 when a
        signal stopped a run that can be resumed, 130 when interrupted, 141 when nobody reads the output any more.
    """
    return run_command(partial(start, sys.argv[1:] if argv is None else argv))


def start(argv: list[str]) -> int:
    """Do what the command line asks; without one, say what could be done; returns the exit code."""
    if not argv and not completes():
        print(runner("runner_next_steps").report())
        return EXIT_USAGE
    args = parse_args(argv)
    if args.env:
        print(runner("runner_environment").report())
        return 0
    classifies = args.finetune_model or args.scratch_model or args.test
    return run(load_config(args.config, FINE_TUNE if classifies else PRE_TRAIN), args)


def run(config: EasyDict, args: Namespace) -> int:
    """Run the mode that the command line asks for; returns the exit code."""
    mode, run_mode = choose_runner(args, config)
    # Not at the top: PyTorch takes seconds to import, and what is wrong with a command line is said before.
    from tools.training.builder import OTHER_CONFIG, check_config, count_classes, leave_out_bad, limit_workers
    from utils.distributed import processes
    from utils.logger import setup_logger
    from utils.signals import Stopped

    setup_logger(None)
    way_out = OTHER_MODE if args.resume and mode.MODE == PRE_TRAINING else OTHER_CONFIG
    leave_out_bad(config, args.skip_bad)
    count_classes(config)
    check_config(config, args.config, mode.MODE, mode.REQUIRED, way_out)
    try:
        with processes(args.launcher):
            limit_workers(args)
            run_mode(config, args)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_STOPPED
    return 0


def choose_runner(args: Namespace, config: EasyDict) -> tuple[ModuleType, Callable[[EasyDict, Namespace], Any]]:
    """Choose the runner of the mode flag; the data set, or the model, may call for its own.

    Returns:
        The module whose mode it is and what to call: its `run`, once or, with `--seeds`, once a seed.
    """
    name = next((name for flag, name in RUNNERS.items() if getattr(args, flag)), "runner_pretrain")
    splits = ("svm_train", "train", "test") if args.test_bank else ("train", "test")
    data = next(filter(None, map(config.dataset.get, splits)), {})
    task = TASKS.get(name, {}).get(data.get("NAME"), name)
    if name in ("runner_pretrain", "runner_test"):
        task = MODELS.get(config.model.NAME, task)
    if task != "runner_few_shot" and args.given.intersection(only_of("few-shot")):
        raise ValueError(
            f"--way, --shot and --fold choose few-shot tasks, and {args.config} in this mode has none; drop them, or "
            "choose a config of cfgs/few-shot/ with --finetune_model, --scratch_model or --test, or "
            "cfgs/point-nn/few-shot.yaml with --test_bank"
        )
    chosen = runner(task)
    if args.seeds:
        return chosen, partial(importlib.import_module("tools.training.repeat").run, chosen)
    if task != "runner_few_shot":
        return chosen, chosen.run
    of_a_fold = runner(name)
    return of_a_fold if args.test_bank else chosen, partial(chosen.run, run_fold=of_a_fold.run)


def runner(name: str) -> ModuleType:
    """Import a runner, when it is needed."""
    return importlib.import_module(f"tools.{name}")


if __name__ == "__main__":
    sys.exit(main())
