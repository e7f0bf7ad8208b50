"""`--profile`: what a config's model costs for one cloud."""

from argparse import Namespace
from typing import Any

from tools.evaluation.profiler import NOTE, count, table
from tools.training.modes import PROFILE

MODE = PROFILE
REQUIRED = ("model",)


def run(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Print the parameters and multiply-adds of a model, stage by stage; writes no file.

    Args:
        config: any resolved config with a model.
        args: command line; `config` and `seed` are read.

    Returns:
        What `tools.evaluation.profiler.count` returns.
    """
    counted = count(config, str(args.config), args.seed)
    print(f"{args.config}\n{table(counted)}\n{NOTE}")
    return counted
