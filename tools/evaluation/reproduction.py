"""The published figures of five methods beside what this code gets, each by a command of main.py."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from datasets.sources import MARKER
from tools.evaluation import profiler
from tools.evaluation.paper_results import DATA_SETS, PUBLISHED, REPOSITORIES, ROWS, Row, Way, look_up
from tools.training.launch import launch, shown
from tools.training.modes import CHECKPOINTS, DATA, EXPERIMENTS, PROFILE
from utils.config import load_config, save_config
from utils.files import atomic_write, make_folder
from utils.logger import setup_logger
from utils.parser import parse_args
from utils.tables import format_table, markdown_table

FOLDER = EXPERIMENTS / "reproduce"
RUN_NAME = "reproduce"
PROFILED = (  # one of each kind of model
    *("fine-tuning/scan_pb", "fine-tuning/modelnet40", "fine-tuning/point-m2ae_modelnet40"),
    *("part-segmentation/i2p-mae", "pre-training/point-m2ae", "pre-training/i2p-mae"),
    *("point-mae/scan_pb", "point-mae/modelnet40", "point-mae/part-segmentation", "point-mae/pre-train"),
    *("point-bert/part-segmentation", "point-bert/pre-train"),
    *("point-bert/modelnet40", "act/modelnet40_linear", "act/s3dis"),
)


@dataclass(frozen=True)
class Setup:
    """What the command line of this tool says.

    Attributes:
        data: folder of the data sets.
        ckpts: folder of the released checkpoints.
        train: whether to train what no checkpoint gives.
    """

    data: Path = DATA
    ckpts: Path = CHECKPOINTS
    train: bool = False

    def config(self, row: Row) -> Path:
        """The row's config; another file than the shipped one if the data are elsewhere."""
        config = Path(row.config)
        return config if self.data == DATA or not row.data else FOLDER / "cfgs" / config.parent.name / config.name


class Lack(NamedTuple):
    """Something that a row needs and that is not there, and where it comes from."""

    what: str
    where: str


class Outcome(NamedTuple):
    """What became of a row, or would: the command, our figure in the form of `Row.published`, what was missing.

    Without a figure, `ours` is None.
    """

    row: Row
    command: str
    ours: Any
    status: str
    lacks: tuple[Lack, ...] = ()


def run_folder(row: Row) -> Path:
    """Where main.py puts the run of a row."""
    config = Path(row.config)
    return EXPERIMENTS / config.parent.name / config.stem / RUN_NAME


def own_results(row: Row, way: Way) -> dict[str, Any] | None:
    """Return what the run of a row left in its results.json, None if it has not come to its end."""
    path = run_folder(row) / "results.json"
    return json.loads(path.read_text()).get(way.mode) if path.exists() else None


def own_checkpoint(row: Row) -> Path:
    """The checkpoint that the training run of a row leaves."""
    return run_folder(row) / "ckpt-best.pth"


def weights_at_hand(setup: Setup) -> dict[str, Path]:
    """Find the weights that the rows use: released ones, else those of a finished run of this tool."""
    ways = [(row, way) for row in ROWS for way in row.ways]
    own = {way.makes: own_checkpoint(row) for row, way in ways if way.makes and own_results(row, way) is not None}
    released = {way.weights: setup.ckpts / way.weights for _, way in ways if way.weights}
    return {name: path for name, path in [*own.items(), *released.items()] if path.is_file()}


def missing_data(row: Row, data: Path) -> list[Lack]:
    """Name each data set of a row that is incomplete, or generated and not the published one."""
    lacks = []
    for folder, files, publisher in (DATA_SETS[name] for name in row.data):
        place = data / folder
        absent = [file for file in files if not any(any(place.glob(pattern)) for pattern in file.split("|"))]
        if (place / MARKER).exists():
            lacks.append(Lack(f"{place} as published (these are generated shapes)", f"from {publisher}"))
        elif absent:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            lacks.append(Lack(f"{place / absent[0].replace('|', ' or ')}{more}", f"from {publisher}"))
    return lacks


def choose_way(row: Row, setup: Setup, weights: dict[str, Path]) -> tuple[Way, list[list[Lack]]]:
    """Choose the first way that nothing is missing for.

    Args:
        row: the published figure.
        setup: what is where.
        weights: files that were found, by name.

    Returns:
        The way and an empty list; or the first of all ways and, for each of them, what is missing.
    """
    all_lacks = []
    for way in row.ways:
        lacks = missing_data(row, setup.data)
        if way.weights and way.weights not in weights:
            where = f"link in the README of {REPOSITORIES[row.method]}, where released"
            lacks.append(Lack(str(setup.ckpts / way.weights), where))
        if way.trains and not setup.train:
            lacks.append(Lack("--train", "a flag of this command; trains for hours to days"))
        if not lacks:
            return way, []
        all_lacks.append(lacks)
    return row.ways[0], all_lacks


def missing(all_lacks: list[list[Lack]]) -> tuple[str, tuple[Lack, ...]]:
    """Say in words what is missing for the first way, or for another; and list it all."""
    first, *others = all_lacks
    texts = [", ".join(lack.what for lack in first)]
    texts += [", ".join(lack.what for lack in lacks if lack not in first) for lacks in others]
    return f"missing: {'; or else '.join(texts)}", tuple(dict.fromkeys(chain(*all_lacks)))


def command_of(way: Way, config: Path, weights: Path) -> list[str]:
    """Return the arguments of main.py, with this config and these weights."""
    named = [] if way.mode == PROFILE else ["--exp_name", RUN_NAME]
    return ["--config", str(config), *way.flags, *named, *(["--ckpts", str(weights)] if way.weights else [])]


def command_here(row: Row, way: Way, setup: Setup, weights: dict[str, Path]) -> list[str]:
    """Return the arguments of main.py, with the files that are here, so that a run that has begun is continued."""
    command = command_of(way, setup.config(row), weights.get(way.weights, setup.ckpts / way.weights))
    begun = way.trains and any(run_folder(row).glob(f"{way.part}/ckpt-last.pth"))
    return [*command, "--resume"] if begun else command


def plan(rows: Sequence[Row], setup: Setup) -> list[Outcome]:
    """Say what `measure` would run, row by row, counting on the weights that earlier rows would train."""
    weights = weights_at_hand(setup)
    outcomes = []
    for row in rows:
        way, all_lacks = choose_way(row, setup, weights)
        command = shown(command_here(row, way, setup, weights))
        if way.makes in weights:
            outcomes.append(Outcome(row, command, None, f"not needed: {weights[way.makes]} is there"))
        elif all_lacks:
            outcomes.append(Outcome(row, command, None, *missing(all_lacks)))
        else:
            outcomes.append(Outcome(row, command, None, "ready"))
            weights |= {way.makes: own_checkpoint(row)} if way.makes else {}
    return outcomes


def measure(row: Row, setup: Setup, done: dict[str, dict[str, Any] | int]) -> Outcome:
    """Run a row, if it can be run.

    Args:
        row: the published figure.
        setup: what is where.
        done: results of the commands that ran already, or the exit codes of those that failed; the row's is added.
    """
    weights = weights_at_hand(setup)
    way, all_lacks = choose_way(row, setup, weights)
    arguments = command_here(row, way, setup, weights)
    command = shown(arguments)
    if way.makes in weights:
        results = own_results(row, way)
        ours = None if results is None else figure(results, way)
        return Outcome(row, command, ours, f"not needed: {weights[way.makes]} is there")
    if all_lacks:
        return Outcome(row, command, None, *missing(all_lacks))
    if command not in done:
        done[command] = run(row, way, arguments, setup)
    outcome = done[command]
    if isinstance(outcome, int):
        return Outcome(row, command, None, f"failed: exit code {outcome}")
    used = f"measured with {weights[way.weights]}" if way.weights else "measured"
    return Outcome(row, command, figure(outcome, way), used)


def run(row: Row, way: Way, arguments: list[str], setup: Setup) -> dict[str, Any] | int:
    """Run a command of main.py and return its results, or its exit code if it fails."""
    print(f"\n$ {shown(arguments)}", flush=True)
    if way.mode == PROFILE:
        return profiler.count(load_config(row.config), row.config, parse_args(arguments).seed)
    if setup.data != DATA:
        make_folder(setup.config(row).parent)
        save_config(_with_data(load_config(row.config), setup.data), setup.config(row))
    if code := launch(arguments):
        return code
    results = own_results(row, way)
    assert results is not None, f"{row.config} left no results of {way.mode}"
    return results


def figure(results: dict[str, Any], way: Way) -> Any:
    """Pick the figure out of a run's results, in the unit of the published one."""
    value = look_up(results, way.field)
    return [value["mean"], value["std"]] if isinstance(value, dict) else value / way.unit


def _with_data(value: Any, data: Path) -> Any:
    """Copy a config with its paths below data/ led to another folder."""
    if isinstance(value, dict):
        return type(value)({key: _with_data(entry, data) for key, entry in value.items()})
    if isinstance(value, str) and value.startswith(f"{DATA}/"):
        return str(data / value.removeprefix(f"{DATA}/"))
    return value


def run_all(args: argparse.Namespace) -> int:
    """Do what the command line of `tools.reproduce` asks; returns 1 if a run failed.

    Raises:
        ValueError: if no row is chosen.
    """
    if args.docs:
        print(markdown(), end="")
        return 0
    setup_logger(None)
    rows = [row for row in ROWS if any(text in row.key for text in args.only)]
    if not rows:
        keys = ", ".join(row.key for row in ROWS)
        raise ValueError(f"--only {' '.join(args.only)} is in no key; keys are {keys}")
    setup = Setup(args.data, args.ckpts, args.train)
    if args.plan:
        outcomes = plan(rows, setup)
        for outcome in outcomes:
            figures = f"{outcome.row.key} = {shown_figure(outcome.row.published)}"
            print(f"{figures}: {outcome.status}\n  $ {outcome.command}")
        print(f"{shopping_list(outcomes)}\n\n{summary(outcomes)}")
        return 0
    done: dict[str, dict[str, Any] | int] = {}
    outcomes = [measure(row, setup, done) for row in rows]
    print(f"\n{format_table(*outcome_table(outcomes))}\n{shopping_list(outcomes)}\nwritten to {write(outcomes)}")
    return int(any(isinstance(results, int) for results in done.values()))


def summary(outcomes: Sequence[Outcome]) -> str:
    """Count the rows of a plan by what would become of them."""
    kinds = ("ready", "not needed", "missing")
    counts = [f"{kind} {sum(outcome.status.startswith(kind) for outcome in outcomes)}" for kind in kinds]
    return f"{len(outcomes)} figures: {', '.join(counts)}"


def shopping_list(outcomes: Sequence[Outcome]) -> str:
    """List everything that is missing, once, with where it comes from."""
    lacks = dict.fromkeys(lack for outcome in outcomes for lack in outcome.lacks)
    return "\n".join(
        ["", "missing:" if lacks else "nothing is missing", *(f"  {what}: {where}" for what, where in lacks)]
    )


def outcome_table(outcomes: list[Outcome]) -> tuple[list[list[str]], list[str]]:
    """Return the rows and headers of the table of published and own figures."""
    rows = [
        [
            f"{row.method}: {row.title}",
            shown_figure(row.published),
            shown_figure(row.remeasured),
            shown_figure(ours),
            "" if ours is None else f"{_mean(ours) - _mean(row.published):+.2f}",
            status,
        ]
        for row, _, ours, status, _ in outcomes
    ]
    return rows, ["figure", "published", "released weights, by others", "ours", "difference", "status"]


def shown_figure(value: Any) -> str:
    """Return a figure, or a mean and its deviation, as text; "" for None."""
    if isinstance(value, (list, tuple)):
        return " ± ".join(f"{part:.1f}" for part in value)
    return "" if value is None else f"{round(value, 2):g}"


def _mean(value: Any) -> float:
    return value[0] if isinstance(value, (list, tuple)) else value


def write(outcomes: list[Outcome]) -> Path:
    """Write the outcomes as JSON and as Markdown; returns the path of the latter."""
    make_folder(FOLDER)
    path = FOLDER / f"{datetime.now():%Y%m%d-%H%M%S}.md"
    entries = [
        {
            "key": row.key,
            "published": row.published,
            "remeasured": row.remeasured,
            "ours": ours,
            "command": command,
            "status": status,
        }
        for row, command, ours, status, _ in outcomes
    ]
    with atomic_write(path.with_suffix(".json")) as file:
        file.write((json.dumps(entries, indent=2) + "\n").encode())
    with atomic_write(path) as file:
        file.write(f"# Published and own figures\n\n{markdown_table(*outcome_table(outcomes))}\n".encode())
    return path


def markdown() -> str:
    """Return the tables of docs/RESULTS.md: every published figure with its commands, and what the models cost."""
    parts = []
    for method in dict.fromkeys(row.method for row in ROWS):
        rows = [
            [row.title, shown_figure(row.published), shown_figure(row.remeasured), "<br>".join(commands(row))]
            for row in ROWS
            if row.method == method
        ]
        table = markdown_table(rows, ["figure", "published", "released weights, by others", "command"])
        parts += [f"## {method}", f"Source: {PUBLISHED[method]['source']}.", table]
    return "\n\n".join([*parts, "## Cost of one cloud", markdown_table(*cost_table())]) + "\n"


def commands(row: Row) -> list[str]:
    """Return the commands of all ways to a figure, with everything in its default place."""
    return [f"`{shown(command_of(way, Path(row.config), CHECKPOINTS / way.weights))}`" for way in row.ways]


def cost_table() -> tuple[list[list[str]], list[str]]:
    """Return rows and headers of what `--profile` counts for a config of each kind."""
    rows = []
    for name in PROFILED:
        path = f"cfgs/{name}.yaml"
        results = profiler.count(load_config(path), path, seed=0)
        teacher = [stage for stage in results["stages"] if stage["name"] == profiler.TEACHER]
        for title, cost in zip([f"`{path}`", "its teacher"], [results["total"], *teacher], strict=False):
            billions = [f"{cost[key] / 1e9:.2f}" for key in ("macs", "run_macs", "products")]
            rows.append([title, f"{cost['parameters']:,}", *billions])
    return rows, ["config", "parameters", "MACs, G", "run here, G", "products, G"]
