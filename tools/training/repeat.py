"""`--seeds`: a training run once per seed, and the mean over them."""

from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tools.training.run import Run, open_run, read_results
from utils.distributed import restarted
from utils.logger import setup_logger
from utils.tables import format_table

FIGURES = ("best_accuracy", "final_accuracy")


def run(runner: ModuleType, config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Repeat a run; each seed has its own folder, `<exp_name>-seed<seed>`, and `<exp_name>` the summary.

    With `--resume`, seeds that are finished are read and the others continued or begun.

    Args:
        runner: of a training mode.
        config: resolved config.
        args: command line; `seeds` are the seeds.

    Returns:
        The protocol, the seeds and, for the best and the final accuracy, the value of each seed, mean, standard
        deviation and best; of a dry run, what one run expects.

    Raises:
        ValueError: if the mode has no single accuracy.
    """
    if not getattr(runner, "REPEATABLE", False):
        raise ValueError(f"{runner.MODE} is not repeated by --seeds; run it once per --seed, with an --exp_name each")
    if args.dry_run:  # one seed stands for all
        return runner.run(config, args)
    runs = []
    with open_run(config, args, f"{runner.MODE}, {len(args.seeds)} seeds", training=False) as summary:
        for seed in args.seeds:
            part = Namespace(**{**vars(args), "seed": seed, "exp_name": f"{args.exp_name}-seed{seed}"})
            folder = summary.folder.with_name(part.exp_name)
            finished = _finished(folder, config) if args.resume or restarted() else None
            if finished is None:
                part.resume = args.resume and bool(Run(folder, runner.MODE, {}).resumable)
                finished = runner.run(config, part)
                setup_logger(summary.log)  # instead of the seed's
            runs.append(finished)
        results: dict[str, Any] = {"protocol": runs[0]["protocol"], "seeds": args.seeds}
        results["best_chosen_on"] = runs[0]["best_chosen_on"]
        for figure in FIGURES:
            values = [finished[figure] for finished in runs]
            mean, std = float(np.mean(values)), float(np.std(values))
            results[figure] = {"values": values, "mean": mean, "std": std, "best": max(values)}
        rows = [[name, *(results[name][key] for key in ("mean", "std", "best"))] for name in FIGURES]
        summary.show(summary.mode, format_table(rows, [results["protocol"], "mean", "std", "best seed"]))
        return summary.finish(results)


def _finished(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The results of a training run that went to its last epoch, None if it did not."""
    found = read_results(folder / "results.json").values()
    return next((results for results in found if results.get("final_epoch", -1) >= config["max_epoch"]), None)
