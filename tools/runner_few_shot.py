"""Few-shot tasks: a training run or, with `--test_bank`, a memory bank per fold, and the mean over the folds."""

import itertools
import logging
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from easydict import EasyDict

from datasets.modelnet40_fewshot import require_fold
from datasets.published import FOLDS, SHOTS, WAYS
from tools.evaluation.bank import ALL_OTHERS
from tools.training.modes import MEMORY_BANK, TO_TRAIN, training_mode
from tools.training.record import continue_as
from tools.training.run import Run, open_run, read_results
from utils.config import load_config
from utils.distributed import restarted
from utils.logger import setup_logger
from utils.tables import format_table, markdown_table

logger = logging.getLogger(__name__)

MODE = "few-shot classification"
REQUIRED = (*TO_TRAIN, "npoints", "dataset.test")
NOTE = (
    "Percent; mean ± standard deviation over the folds (numpy.std, divided by their number). Published figures are "
    "those of the best {}, chosen on the test clouds."
)
OF_EPOCHS = {"best": "best_accuracy", "final": "final_accuracy"}  # of a setting → of a fold's results
BANK_ROWS = {
    "leave_one_out": f"γ of each fold chosen by {ALL_OTHERS}",
    "best": "γ of each fold chosen on its test clouds",
    "nearest_neighbor": "nearest neighbour",
}
OF_BANKS = {"accuracy": "accuracy", **{which: f"{which}_accuracy" for which in BANK_ROWS}}


class Task(NamedTuple):
    """One fold of one setting."""

    way: int
    shot: int
    fold: int

    @property
    def part(self) -> str:
        """Its folder within the run's folder."""
        return f"{self.way}way_{self.shot}shot/fold{self.fold}"


def run(config: dict[str, Any], args: Namespace, run_fold: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Train a classifier or make a bank on each fold asked for; sum up all finished folds of the run's folder.

    With `--resume`, folds that are finished are not run again and one that was interrupted continues. Folds run by
    other commands under the same name count in the table too, so that several machines can share the work; folds of one
    table share seed, weights, precision and what chose the best epoch. Banks are quick, and made again each time.

    Args:
        config: resolved config of cfgs/few-shot/, or cfgs/point-nn/few-shot.yaml.
        args: command line; `way`, `shot` and `fold` choose, of what is not given the published ones are all run.
        run_fold: (config, args, part) → results of one fold; `run` of the runner that trains, makes banks or, with
            `--test`, tests.

    Returns:
        The summary, see `summarise`; with `--test` what `run_fold` returns.

    Raises:
        ValueError: if the folder holds a run of a fold already, or folds that began otherwise, or a fold would have no
            weights to start from.
        FileNotFoundError: if there is nothing to resume, or a file of a fold is missing.
    """
    tasks = choose_tasks(config, args)
    if args.test:
        if len(tasks) > 1:
            raise ValueError("a checkpoint belongs to one fold: say which with --way, --shot and --fold")
        return run_fold(of_task(config, tasks[0]), args)
    if args.dry_run:  # one fold stands for all
        return run_fold(of_task(config, tasks[0]), args, part=tasks[0].part)
    if args.save_bank:
        raise ValueError("--save_bank keeps one bank, and each few-shot fold has its own: drop it")
    mode = MEMORY_BANK if args.test_bank else training_mode(args)
    with open_run(config, args, f"few-shot {mode}", training=False) as run:
        begun, left = ([], tasks) if args.test_bank else how_far(run.folder, mode, config, tasks)
        if restarted():  # whatever the command line says: continue what is there
            args.resume = bool(begun)
        check_start(run, config, args, begun, left)
        last = config.get("max_epoch", 0)  # a bank has no epochs
        hold_together(run, mode, last, args, begun, left)
        results: dict[str, Any] = {}
        if len(left) < len(tasks):
            logger.info("%d of %d folds are finished already", len(tasks) - len(left), len(tasks))
            results = report(run, mode, last, final=not left, trained=False)
        for number, task in enumerate(left, 1):
            task_args = Namespace(**{**vars(args), "resume": task in begun, "following": len(left) - number})
            run_fold(of_task(config, task), task_args, part=task.part)
            setup_logger(run.log)  # instead of the fold's
            results = report(run, mode, last, final=task == left[-1])
        return results


def choose_tasks(config: dict[str, Any], args: Namespace) -> list[Task]:
    """Return the folds to run: what the command line, or else the config, says; all published ones of the rest."""
    others = _split(config, "train").get("others") or {}
    choices = []
    for key, published in (("way", WAYS), ("shot", SHOTS), ("fold", range(FOLDS))):
        given = others.get(key) if getattr(args, key) is None else getattr(args, key)
        choices.append(published if given is None else (given,))
    return [Task(*choice) for choice in itertools.product(*choices)]


def of_task(config: dict[str, Any], task: Task) -> EasyDict:
    """Return the config with the task written into its training and test data."""
    entries = {
        name: {**entry, "others": {**(entry.get("others") or {}), **task._asdict()}}
        for name, entry in config["dataset"].items()
        if name in ("train", "test", "svm_train", "svm_test")
    }
    return EasyDict({**config, "dataset": {**config["dataset"], **entries}})


def _split(config: dict[str, Any], subset: str) -> dict[str, Any]:
    """Return the data set entry of a split, which `--test_bank` reads under another name."""
    data = config["dataset"]
    return data[subset] if subset in data else data[f"svm_{subset}"]


def how_far(folder: Path, mode: str, config: dict[str, Any], tasks: list[Task]) -> tuple[list[Task], list[Task]]:
    """Return the tasks whose training has begun and those that it has not come to the end of."""
    begun = [task for task in tasks if Run(folder / task.part, mode, {}).resumable]
    return begun, [task for task in tasks if not is_finished(folder / task.part, mode, of_task(config, task))]


def check_start(run: Run, config: dict[str, Any], args: Namespace, begun: list[Task], left: list[Task]) -> None:
    """Refuse, before the first fold is trained, what would stop or spoil a later one."""
    if begun and not args.resume:
        raise ValueError(
            f"{run.folder / begun[0].part} already holds a run; add --resume to continue, or choose another --exp_name"
        )
    if args.resume and not begun:
        raise FileNotFoundError(f"nothing to resume: {run.folder} holds none of these folds; start without --resume")
    fresh = [task for task in left if task not in begun]
    if fresh and args.finetune_model and not (args.ckpts or args.start_ckpts):
        raise ValueError(f"{len(fresh)} folds have not begun and need the weights to fine-tune: add --ckpts FILE")
    entry = _split(config, "train")
    for task in left:
        require_fold(entry["DATA_PATH"], *task, entry["N_POINTS"])


def hold_together(run: Run, mode: str, max_epoch: int, args: Namespace, begun: list[Task], left: list[Task]) -> None:
    """Hold the command line to the folds that stay as they are and to those it resumes, before one is trained."""
    for task, results in finished_folds(run.folder, mode, max_epoch).items():
        if task not in left:
            continue_as(run.folder / task.part, {"mode": mode, **results["about"]}, mode, run.about, args)
    for task in (task for task in left if task in begun):
        fold = Run(run.folder / task.part, mode, {})
        continue_as(fold.folder, fold.latest()[1].get("run", {}), mode, run.about, args)


def is_finished(folder: Path, mode: str, config: dict[str, Any]) -> bool:
    """Return whether a fold has been trained to the end; warn if that was under another config."""
    if finished_results(folder, mode, config["max_epoch"]) is None:
        return False
    if load_config(folder / "config.yaml") != config:
        logger.warning("%s was run with another config and stays as it is", folder)
    return True


def finished_results(folder: Path, mode: str, max_epoch: int) -> dict[str, Any] | None:
    """Return the results in a fold's folder, None if it is not trained to the end."""
    results = read_results(folder / "results.json").get(mode)
    return results if results and results.get("final_epoch", max_epoch) >= max_epoch else None


def finished_folds(folder: Path, mode: str, max_epoch: int) -> dict[Task, dict[str, Any]]:
    """Return the results of every finished fold in a run's folder, in order."""
    found = {}
    for path in folder.glob("*/*/results.json"):
        match = re.fullmatch(r"(\d+)way_(\d+)shot/fold(\d+)", path.parent.relative_to(folder).as_posix())
        if match and (results := finished_results(path.parent, mode, max_epoch)):
            found[Task(*map(int, match.groups()))] = results
    return dict(sorted(found.items(), key=lambda item: item[0]))


def summarise(folder: Path, mode: str, max_epoch: int) -> dict[str, Any]:
    """Sum up the finished folds of a run's folder.

    Args:
        folder: the run's folder.
        mode: name under which the folds' results.json hold their results.
        max_epoch: last epoch of a finished fold.

    Returns:
        The protocol, what chose the best epochs or γ, and `settings`: for each "<way>-way <shot>-shot" the folds and,
        of the best and of the final epoch, or of each way to choose γ, the accuracy of each fold, their mean and their
        standard deviation.
    """
    finished = finished_folds(folder, mode, max_epoch)
    settings: dict[str, Any] = {}
    for (way, shot), group in itertools.groupby(finished, key=lambda task: task[:2]):
        tasks = list(group)
        setting: dict[str, Any] = {"folds": [task.fold for task in tasks]}
        for which, key in (OF_BANKS if mode == MEMORY_BANK else OF_EPOCHS).items():
            accuracies = [finished[task][key] for task in tasks]
            mean, std = float(np.mean(accuracies)), float(np.std(accuracies))
            setting[which] = {"accuracies": accuracies, "mean": mean, "std": std}
        settings[f"{way}-way {shot}-shot"] = setting
    chooser = "gamma_chosen_on" if mode == MEMORY_BANK else "best_chosen_on"
    said = {key: ", ".join(sorted({results[key] for results in finished.values()})) for key in ("protocol", chooser)}
    return {**said, "settings": settings}


def table_of(summary: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    """Return rows and headers: a column per setting, mean ± std of each figure below it."""
    names = BANK_ROWS
    if "best_chosen_on" in summary:
        names = {"best": f"best epoch of each fold (chosen on {summary['best_chosen_on']})", "final": "final epoch"}
    settings = summary["settings"].values()
    rows = [
        [name, *(f"{setting[which]['mean']:.1f} ± {setting[which]['std']:.1f}" for setting in settings)]
        for which, name in names.items()
    ]
    rows.append(["folds", *(str(len(setting["folds"])) for setting in settings)])
    return rows, [summary["protocol"], *summary["settings"]]


def report(run: Run, mode: str, max_epoch: int, final: bool, trained: bool = True) -> dict[str, Any]:
    """Show the table of all finished folds, write it into results.json and results.md, return the summary.

    Args:
        run: the open folder of all folds.
        mode: of a fold.
        max_epoch: last epoch of a finished fold.
        final: whether no fold is left to train.
        trained: False if no fold was trained since there may have been a table.
    """
    summary = summarise(run.folder, mode, max_epoch)
    rows, headers = table_of(summary)
    run.one_of_many = not final
    note = NOTE.format("γ" if mode == MEMORY_BANK else "epochs")
    run.show(run.mode, f"{format_table(rows, headers)}\n{note}")
    return run.finish(summary, f"{markdown_table(rows, headers)}\n\n{note}", trained)
