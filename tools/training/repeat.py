"""`--seeds`: a training run once per seed, and the mean over them."""

from argparse import Namespace
from types import ModuleType
from typing import Any

import numpy as np

from tools.training.record import continue_as
from tools.training.run import Run, open_run, read_results
from utils.distributed import restarted
from utils.logger import setup_logger
from utils.tables import format_table

FIGURES = ("best_accuracy", "final_accuracy")


def run(runner: ModuleType, config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Repeat a run; each seed has its own folder, `<exp_name>-seed<seed>`, and `<exp_name>` the summary.

    With `--resume`, seeds that are finished are read and the others continued or begun. Seeds of one summary share all
    but the seed: what one of them kept, the others get.

    Args:
        runner: of a training mode; its `mode_of` names what a command line does.
        config: resolved config.
        args: command line; `seeds` are the seeds.

    Returns:
        The protocol, the seeds and, for the best and the final accuracy, the value of each seed, mean, standard
        deviation and best; of a dry run, what one run expects.

    Raises:
        ValueError: if the mode has no single accuracy, or a seed to resume began otherwise.
    """
    if not hasattr(runner, "mode_of"):
        raise ValueError(f"{runner.MODE} is not repeated by --seeds; run it once per --seed, with an --exp_name each")
    if args.dry_run:  # one seed stands for all
        return runner.run(config, args)
    mode = runner.mode_of(args)
    with open_run(config, args, f"{mode}, {len(args.seeds)} seeds", training=False) as summary:
        parts = {seed: Run(summary.folder.with_name(f"{args.exp_name}-seed{seed}"), mode, {}) for seed in args.seeds}
        begun = [seed for seed, part in parts.items() if part.resumable] if args.resume or restarted() else []
        for seed in begun:
            record = {key: value for key, value in parts[seed].latest()[1].get("run", {}).items() if key != "seed"}
            continue_as(parts[seed].folder, record, mode, summary.about, args)
        runs, trained = [], False
        unfinished = [seed for seed, part in parts.items() if mode not in read_results(part.results_file)]
        for seed, part in parts.items():
            before = read_results(part.results_file)
            own = {
                "seed": seed,
                "seeds": None,
                "exp_name": part.folder.name,
                "resume": seed in begun,
                "one_of_many": True,
                "following": sum(args.seeds.index(other) > args.seeds.index(seed) for other in unfinished),
            }
            runs.append(runner.run(config, Namespace(**{**vars(args), **own, "given": args.given | {"seed"}})))
            trained |= read_results(part.results_file) != before
            setup_logger(summary.log)  # instead of the seed's
        results: dict[str, Any] = {"protocol": runs[0]["protocol"], "seeds": args.seeds}
        results["best_chosen_on"] = runs[0]["best_chosen_on"]
        for figure in FIGURES:
            values = [finished[figure] for finished in runs]
            mean, std = float(np.mean(values)), float(np.std(values))
            results[figure] = {"values": values, "mean": mean, "std": std, "best": max(values)}
        rows = [[name, *(results[name][key] for key in ("mean", "std", "best"))] for name in FIGURES]
        summary.show(summary.mode, format_table(rows, [results["protocol"], "mean", "std", "best seed"]))
        return summary.finish(results, trained=trained)
