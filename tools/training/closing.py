"""What a command says at its end: what was found, where it is, and what usually comes next."""

import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.training.curves import pictures_in
from tools.training.next_steps import Done, after
from utils.distributed import is_main

if TYPE_CHECKING:
    from tools.training.run import Run

logger = logging.getLogger(__name__)

FILES = ("ckpt-best.pth", "ckpt-last.pth", "metrics.jsonl", "results.json", "results.md")
CHOSEN = {"best_chosen_on": "best chosen on", "gamma_chosen_on": "γ chosen on", "chosen_on": "λ and γ chosen on"}
SETTINGS = ("seconds", "C", "chosen_C", "lambda", "gamma")  # among the results, but not found


def close_with(run: "Run", config: dict[str, Any], args: Namespace) -> None:
    """Log what a finished run has found, where it is, and what to do with it; nothing of one of many."""
    if not run.results or run.one_of_many or not is_main():
        return
    left = [name for name in FILES if (run.folder / name).exists()]
    pictures = ", ".join(path.name for path in pictures_in(run.folder))
    logger.info("found: %s", found(run.results, run.about.get("checkpoint_chosen_by")))
    logger.info("in %s: %s%s", run.folder, ", ".join(left), f"; pictures: {pictures}" if pictures else "")
    if checkpoint := weights_of(run, args):
        done = Done(Path(args.config), config, args, checkpoint, measured="final_loss" not in run.results)
        for what, command in after(run.mode, done):
            logger.info("next, %s: %s", what, command)


def found(results: Mapping[str, Any], weights_chosen_by: str | None = None) -> str:
    """The figures among results in a line, behind the protocol they were measured by, and what chose them."""
    notes = [f"{said} {results[key]}" for key, said in CHOSEN.items() if key in results]
    if weights_chosen_by and "history" not in results:
        notes.append(f"weights chosen by {weights_chosen_by}")
    return "; ".join([f"{results['protocol']}: {', '.join(_figures(results))}", *notes])


def _figures(results: Mapping[str, Any], of: str = "") -> Iterator[str]:
    """Each figure with its name, its spread and its epoch, where it has one."""
    for name, value in results.items():
        said = f"{of}{name.replace('_', ' ')}"
        if isinstance(value, float) and name not in SETTINGS:
            epoch = results.get(f"{name.partition('_')[0]}_epoch")
            yield f"{said} {_number(value, name)}" + (f" (epoch {epoch})" if epoch is not None else "")
        elif isinstance(value, dict) and value.keys() >= {"mean", "std"}:
            yield f"{said} {_number(value['mean'])} ± {_number(value['std'], name)}"
        elif name in ("vote", "settings"):
            yield from _figures(value, f"{name} " if name == "vote" else "")
        elif of == "" and isinstance(value, dict) and "folds" in value:  # of few-shot tasks
            yield from _figures(value, f"{said} ")


def _number(value: float, name: str = "") -> str:
    """A value with two decimals, a small one with as many as it takes, and its unit."""
    text = f"{value:.4g}" if 0 < abs(value) < 0.1 else f"{value:.2f}"
    return f"{text} %" if "accuracy" in name or "IoU" in name else text


def weights_of(run: "Run", args: Namespace) -> Path | None:
    """The weights to go on with: those that were evaluated, or else the best of the run or of its first seed."""
    if args.test or args.test_svm or args.test_bank:
        return args.ckpts
    folder = run.folder.with_name(f"{run.folder.name}-seed{args.seeds[0]}") if args.seeds else run.folder
    return next((path for name in FILES[:2] if (path := folder / name).exists()), None)
