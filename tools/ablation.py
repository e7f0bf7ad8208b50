"""`python -m tools.ablation`: what the 2D guidance of I2P-MAE does, measured small and with an untrained teacher.

On generated shapes it pre-trains with masks that follow the saliency less or more, and with either loss alone: each
setting with every seed as a command of main.py. A linear SVM measures the encoders. A run that is finished is read
instead of repeated, one that was interrupted is continued.
"""

import argparse
import json
import logging
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from easydict import EasyDict

from tools.training.launch import launch, shown
from tools.training.modes import EXPERIMENTS, PRE_TRAINING
from utils.command import Parser, add_seeds, run_command
from utils.config import load_config, save_config
from utils.files import atomic_write, make_folder
from utils.logger import setup_logger
from utils.tables import format_table, markdown_table

# What imports PyTorch or Matplotlib, which takes seconds, is imported where it is used.

logger = logging.getLogger(__name__)

CONFIG = Path("cfgs/demo/ablation.yaml")
DATA = Path("data/ablation")
EXPECTED_SECONDS = {False: 170, True: 50}  # of a run on two idle cores, quick or not
HEADING = "## Figures\n"
HEADERS = ("mask", "losses", "linear SVM, %", "seeds", "saliency held by visible tokens, %")


class Setting(NamedTuple):
    """How to pre-train; the arguments of `I2P_MAE`."""

    mask_temperature: float
    losses: str

    @property
    def name(self) -> str:
        """Of its config and its folder of runs."""
        return f"temperature-{self.mask_temperature:g}-{self.losses}"

    @property
    def mask(self) -> str:
        """In words."""
        return "random" if math.isinf(self.mask_temperature) else f"temperature {self.mask_temperature:g}"


TEMPERATURES = (math.inf, 1.0, 0.1, 0.01, 0.001)
SETTINGS = (*(Setting(temperature, "both") for temperature in TEMPERATURES), Setting(1.0, "3d"), Setting(1.0, "2d"))
UNTRAINED = "untrained"


class Figures(NamedTuple):
    """What a run comes to: accuracy of the linear SVM in percent, share of the saliency that visible tokens held."""

    accuracy: float
    visible_saliency: float | None


def main(argv: list[str] | None = None) -> int:
    """Measure every setting with every seed; print the table and write it with a picture."""
    parser = Parser(prog="python -m tools.ablation", description=__doc__.split("\n\n")[0])
    add_seeds(parser, [0, 1, 2], "one run each (default: 0 1 2)")
    parser.add_argument("--quick", action="store_true", help="one epoch a run: to see that it works")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the figures under '## Figures' of a document")
    args = parser.parse_args(argv)
    setup_logger(None)
    if args.write:
        try:
            read_text(args.write)  # fails now rather than after the runs
        except (ValueError, OSError) as error:
            parser.error(f"--write: {error}")
    folder = EXPERIMENTS / ("ablation-quick" if args.quick else "ablation")
    config = load_config(CONFIG)
    if args.quick:
        config.max_epoch = 0
    table = measure_all(config, args.seeds, folder, EXPECTED_SECONDS[args.quick])
    rows = summarise(table)
    print(f"\n{format_table(rows, HEADERS)}\n")
    draw(table, folder / "ablation.png")
    print(f"picture  {folder / 'ablation.png'}")
    if args.write:
        write(args.write, table, args)
        print(f"written  {args.write}")
    return 0


def measure_all(
    config: EasyDict, seeds: Sequence[int], folder: Path, expected_seconds: float
) -> dict[Setting | str, list[Figures]]:
    """Measure the untrained encoder and every setting.

    Args:
        config: of the setting of temperature 1 with both losses.
        seeds: of each setting.
        folder: of the runs, within `EXPERIMENTS`.
        expected_seconds: of a run, for the first forecast.

    Returns:
        The figures of each seed.
    """
    from datasets.synthetic import write_demo

    make_folder(folder)
    to_do = sum(not figures_file(folder, s.name, seed).exists() for s in SETTINGS for seed in seeds)
    total = len(SETTINGS) * len(seeds)
    logger.info(
        "%d of %d runs to do: about %.0f minutes on two idle cores", to_do, total, to_do * expected_seconds / 60
    )
    write_demo(DATA)
    table: dict[Setting | str, list[Figures]] = {UNTRAINED: [measure_untrained(config, seed, folder) for seed in seeds]}
    began, done = time.perf_counter(), 0
    for setting in SETTINGS:
        table[setting] = []
        for seed in seeds:
            new = not figures_file(folder, setting.name, seed).exists()
            table[setting].append(measure(config, setting, seed, folder))
            if new:
                done += 1
                left = (to_do - done) * (time.perf_counter() - began) / done / 60
                logger.info("%d of %d runs done, about %.0f minutes left", done, to_do, left)
    return table


def measure(config: EasyDict, setting: Setting, seed: int, folder: Path) -> Figures:
    """Pre-train and probe with one setting and seed, or read what an earlier call found.

    Raises:
        ValueError: if the folder of the run holds one of another config.
        SystemExit: if the run fails, with its exit code.
    """
    from models import build_model
    from tools.evaluation.features import calibrated_svm_accuracy, without_teacher
    from tools.training.run import Run
    from utils.checkpoint import load_weights

    source = folder / f"{setting.name}.yaml"
    save_config({**config, "model": {**config.model, **setting._asdict()}}, source)
    config = load_config(source)
    file = figures_file(folder, setting.name, seed)
    run = file.parent
    if found := read_figures(file, config):
        return found
    if not (run / "results.json").exists():
        command = ["--config", str(source), "--exp_name", run.name, "--seed", str(seed), "--num_workers", "0"]
        command += ["--resume"] if Run(run, PRE_TRAINING, {}).resumable else []
        print(f"\n$ {shown(command)}", flush=True)
        if code := launch(command):
            raise SystemExit(code)
    model = build_model(without_teacher(config.model))
    load_weights(model, run / "ckpt-last.pth", strict=True)
    history = json.loads((run / "results.json").read_text())[PRE_TRAINING]["history"]
    return keep(file, Figures(calibrated_svm_accuracy(model, config), history[-1]["visible_saliency"]))


def measure_untrained(config: EasyDict, seed: int, folder: Path) -> Figures:
    """Probe an encoder as it is initialised, or read what an earlier call found."""
    from models import build_model
    from tools.evaluation.features import calibrated_svm_accuracy, without_teacher
    from utils.seed import seed_everything

    file = figures_file(folder, UNTRAINED, seed)
    if found := read_figures(file, config):
        return found
    make_folder(file.parent)
    save_config(config, file.with_name("config.yaml"))
    seed_everything(seed)
    return keep(file, Figures(calibrated_svm_accuracy(build_model(without_teacher(config.model)), config), None))


def figures_file(folder: Path, name: str, seed: int) -> Path:
    """Where the figures of a run are kept: in its folder."""
    return folder / name / f"seed{seed}" / "figures.json"


def read_figures(file: Path, config: EasyDict) -> Figures | None:
    """Read the figures of a run, None if it has none; ValueError if the run is one of another config."""
    own = file.with_name("config.yaml")
    if own.exists() and load_config(own) != config:
        raise ValueError(f"{file.parent} holds a run of another config; move it away, or delete it, to run anew")
    return Figures(**json.loads(file.read_text())) if file.exists() else None


def keep(file: Path, figures: Figures) -> Figures:
    """Write the figures of a run, return them."""
    with atomic_write(file) as out:
        out.write((json.dumps(figures._asdict()) + "\n").encode())
    return figures


def summarise(table: dict[Setting | str, list[Figures]]) -> list[list[str]]:
    """Rows of the table, as `HEADERS` says: mean ± standard deviation, and the accuracy of each seed."""
    rows = []
    for setting, runs in table.items():
        mask, losses = (setting.mask, setting.losses) if isinstance(setting, Setting) else (setting, "–")
        accuracies = [run.accuracy for run in runs]
        shares = [100 * run.visible_saliency for run in runs if run.visible_saliency is not None]
        each = " ".join(f"{accuracy:.1f}" for accuracy in accuracies)
        rows.append([mask, losses, _spread(accuracies), each, _spread(shares) if shares else "–"])
    return rows


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.pstdev(values):.1f}" if len(values) > 1 else mean


def draw(table: dict[Setting | str, list[Figures]], path: Path) -> None:
    """Write a PNG: accuracy and saliency against the mask, accuracy against the losses.

    Bars are standard deviations, dots the seeds, dashes the untrained encoder.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    from tools.evaluation.figures import save_figure

    runs = {setting: runs for setting, runs in table.items() if isinstance(setting, Setting)}
    masks = {s.mask.removeprefix("temperature "): found for s, found in runs.items() if s.losses == "both"}
    losses = {s.losses: found for s, found in runs.items() if s.mask == "temperature 1"}
    panels = [
        ("linear SVM, %", "mask temperature", masks, lambda run: run.accuracy),
        ("saliency held by visible tokens, %", "mask temperature", masks, lambda run: 100 * run.visible_saliency),
        ("linear SVM, %", "losses", losses, lambda run: run.accuracy),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.5))
    for axis, (title, label, columns, value) in zip(axes, panels, strict=True):
        values = [[value(run) for run in found] for found in columns.values()]
        places = range(len(values))
        for place, of_seeds in zip(places, values, strict=True):
            axis.plot([place] * len(of_seeds), of_seeds, ".", color="lightgrey")
        axis.errorbar(places, [np.mean(v) for v in values], [np.std(v) for v in values], fmt="o", capsize=4)
        if "SVM" in title:
            axis.axhline(np.mean([run.accuracy for run in table[UNTRAINED]]), linestyle="--", color="grey")
        axis.set_xticks(places, list(columns))
        axis.margins(x=0.15)
        axis.set(title=title, xlabel=label)
    save_figure(figure, path)


def read_text(document: Path) -> str:
    """Return what a document says before its figures; ValueError if it has no heading for them."""
    text, heading, _ = document.read_text(encoding="utf-8").partition(HEADING)
    if not heading:
        raise ValueError(f"{document} has no line '{HEADING.strip()}', under which the figures go; add it")
    return text


def write(document: Path, table: dict[Setting | str, list[Figures]], args: argparse.Namespace) -> None:
    """Replace all that follows the heading of a document by the table, and the picture beside it."""
    picture = document.with_suffix(".png")
    draw(table, picture)
    flags = f"--seeds {' '.join(map(str, args.seeds))}{' --quick' if args.quick else ''} --write {document}"
    parts = [
        f"Made by `python -m tools.ablation {flags}`; mean ± standard deviation over the seeds.",
        markdown_table(summarise(table), HEADERS),
        f"![accuracy and saliency against mask and losses]({picture.name})",
    ]
    with atomic_write(document) as file:
        file.write((read_text(document) + HEADING + "\n" + "\n\n".join(parts) + "\n").encode())


if __name__ == "__main__":
    raise SystemExit(run_command(main))
