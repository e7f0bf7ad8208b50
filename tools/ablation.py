"""`python -m tools.ablation`: what the 2D guidance of I2P-MAE does, measured small, under a small teacher.

On generated shapes it pre-trains under a teacher that has learned and one that has not, with either loss alone, with
both in several balances, and with masks that follow the saliency less or more: each setting with every seed as a
command of main.py. A linear SVM measures the encoders. A run that is finished is read instead of repeated, one that was
interrupted is continued.
"""

import json
import logging
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from easydict import EasyDict

from tools.training.launch import run_or_read
from tools.training.modes import EXPERIMENTS, PRE_TRAINING
from utils.command import Parser, add_seeds, run_command
from utils.config import load_config, save_config
from utils.files import atomic_write, make_folder
from utils.logger import setup_logger
from utils.tables import format_table, markdown_table, read_text, replace_section

# What imports PyTorch or Matplotlib, which takes seconds, is imported where it is used.

logger = logging.getLogger(__name__)

CONFIG = Path("cfgs/demo/ablation.yaml")
DATA = Path("data/ablation")
EXPECTED_SECONDS = {False: 170, True: 50}  # of a run on two idle cores, quick or not
HEADING = "Figures"
HEADERS = (
    "teacher",
    "losses",
    "mask",
    "linear SVM, %",
    "seeds",
    "beside the released setting",
    "gradient of 3D : 2D, at first",
    "at the end",
    "saliency held by visible tokens, %",
)
SHAPES_OF_GRADIENTS = 32
UNTRAINED = "untrained encoder"


class Setting(NamedTuple):
    """How to pre-train.

    Attributes:
        teacher: "trained", the one of the config, or "untrained", the same tower at random.
        losses, mask_temperature: arguments of `I2P_MAE`.
        weight_3d: the 3D loss's in the sum of both; the 2D loss has 1.
    """

    teacher: str
    losses: str
    mask_temperature: float = 1.0
    weight_3d: float = 1.0

    @property
    def name(self) -> str:
        """Of its config and its folder of runs."""
        weight = f"-weight-{self.weight_3d:g}" if self.weight_3d != 1 else ""
        return f"{self.teacher}-{self.losses}{weight}-temperature-{self.mask_temperature:g}"

    @property
    def words(self) -> tuple[str, str, str]:
        """Teacher, losses and mask, as the table says them."""
        weight = f", 3D × {self.weight_3d:g}" if self.weight_3d != 1 else ""
        mask = "random" if math.isinf(self.mask_temperature) else f"temperature {self.mask_temperature:g}"
        return ("none" if self == POINT_M2AE else self.teacher), self.losses + weight, mask

    def of(self, config: EasyDict) -> dict[str, Any]:
        """The config with this setting."""
        clip = dict(config.model.clip_config)
        if self.teacher == "untrained":
            clip["pretrained"] = "untrained"
        model = {"losses": self.losses, "mask_temperature": self.mask_temperature}
        return {
            **config,
            "model": {**config.model, **model, "loss_weights": [self.weight_3d, 1.0], "clip_config": clip},
        }


POINT_M2AE = Setting("untrained", "3d", math.inf)  # what its teacher says reaches neither mask nor loss
RELEASED = Setting("trained", "both")
SETTINGS = (
    POINT_M2AE,
    Setting("untrained", "2d"),
    Setting("untrained", "both"),
    Setting("trained", "2d"),
    RELEASED,
    *(Setting("trained", "both", weight_3d=weight) for weight in (0.1, 0.01)),
    *(Setting("trained", "both", temperature) for temperature in (math.inf, 0.01, 0.003)),
)


class Figures(NamedTuple):
    """What a run comes to.

    Attributes:
        accuracy: of the linear SVM, in percent.
        visible_saliency: share of the saliency that visible tokens held in the last epoch.
        gradients: norms of the gradients of loss_3d and loss_2d, {"first": …, "last": …}.
    """

    accuracy: float
    visible_saliency: float | None = None
    gradients: dict[str, dict[str, float]] | None = None


Table = dict[Setting | str, dict[int, Figures]]  # setting → seed → figures


def main(argv: list[str] | None = None) -> int:
    """Measure every setting with every seed; print the table and write it with a picture."""
    parser = Parser(prog="python -m tools.ablation", description=__doc__.split("\n\n")[0])
    add_seeds(parser, [0, 1, 2, 3, 4], "one run each (default: 0 1 2 3 4)")
    parser.add_argument("--quick", action="store_true", help="one epoch a run: to see that it works")
    parser.add_argument("--finished", action="store_true", help="start no run: figures of those that are finished")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help=f"put the figures under '## {HEADING}' of a document"
    )
    args = parser.parse_args(argv)
    setup_logger(None)
    if args.write:
        try:
            read_text(args.write, HEADING)  # fails now rather than after the runs
        except (ValueError, OSError) as error:
            parser.error(f"--write: {error}")
    folder = EXPERIMENTS / ("ablation-quick" if args.quick else "ablation")
    config = load_config(CONFIG)
    if args.quick:
        config.max_epoch = 0
    if args.finished:
        table = read_all(config, args.seeds, folder)
    else:
        table = measure_all(config, args.seeds, folder, EXPECTED_SECONDS[args.quick])
    print(f"\n{format_table(summarise(table), HEADERS)}\n")
    draw(table, folder / "ablation.png")
    print(f"picture  {folder / 'ablation.png'}")
    if args.write:
        flags = f"--seeds {' '.join(map(str, args.seeds))}{' --quick' if args.quick else ''} --write {args.write}"
        write(args.write, table, flags)
        print(f"written  {args.write}")
    return 0


def measure_all(config: EasyDict, seeds: Sequence[int], folder: Path, expected_seconds: float) -> Table:
    """Measure the untrained encoder and every setting; all settings with a seed before the next seed.

    Args:
        config: of the released setting.
        seeds: of each setting.
        folder: of the runs, within `EXPERIMENTS`.
        expected_seconds: of a run, for the first forecast.
    """
    from datasets.synthetic import write_demo

    make_folder(folder)
    to_do = sum(not figures_file(folder, s.name, seed).exists() for s in SETTINGS for seed in seeds)
    total = len(SETTINGS) * len(seeds)
    logger.info(
        "%d of %d runs to do: about %.0f minutes on two idle cores", to_do, total, to_do * expected_seconds / 60
    )
    write_demo(DATA)
    table: Table = {UNTRAINED: {seed: measure_untrained(config, seed, folder) for seed in seeds}}
    table.update({setting: {} for setting in SETTINGS})
    began, done = time.perf_counter(), 0
    for seed in seeds:
        for setting in SETTINGS:
            new = not figures_file(folder, setting.name, seed).exists()
            table[setting][seed] = measure(config, setting, seed, folder)
            if new:
                done += 1
                left = (to_do - done) * (time.perf_counter() - began) / done / 60
                logger.info("%d of %d runs done, about %.0f minutes left", done, to_do, left)
    return table


def read_all(config: EasyDict, seeds: Sequence[int], folder: Path) -> Table:
    """Read the figures of the runs that are finished; ValueError if the released setting or the untrained has none."""
    make_folder(folder)
    table: Table = {}
    for key in (UNTRAINED, *SETTINGS):
        name, own = (key, config) if isinstance(key, str) else (key.name, reloaded(key, config, folder))
        found = {seed: read_figures(figures_file(folder, name, seed), own) for seed in seeds}
        if runs := {seed: figures for seed, figures in found.items() if figures}:
            table[key] = runs
    if missing := {UNTRAINED, RELEASED} - set(table):
        raise ValueError(f"{folder} has no finished run of {missing.pop()}, beside which the others are seen")
    return table


def measure(config: EasyDict, setting: Setting, seed: int, folder: Path) -> Figures:
    """Pre-train and probe with one setting and seed, or read what an earlier call found.

    Raises:
        ValueError: if the folder of the run holds one of another config.
        SystemExit: if the run fails, with its exit code.
    """
    from models import build_model
    from tools.evaluation.features import calibrated_svm_accuracy, without_teacher
    from utils.checkpoint import load_weights
    from utils.seed import seed_everything

    config = reloaded(setting, config, folder)
    file = figures_file(folder, setting.name, seed)
    if found := read_figures(file, config):
        return found
    run = file.parent
    run_or_read(run, ["--config", str(folder / f"{setting.name}.yaml"), "--exp_name", run.name], seed)
    seed_everything(seed)
    with_teacher = build_model(config.model)
    gradients = {"first": gradients_of(with_teacher, config)}
    load_weights(with_teacher, run / "ckpt-last.pth", strict=True)
    gradients["last"] = gradients_of(with_teacher, config)
    model = build_model(without_teacher(config.model))
    load_weights(model, run / "ckpt-last.pth", strict=True)
    history = json.loads((run / "results.json").read_text())[PRE_TRAINING]["history"]
    return keep(file, Figures(calibrated_svm_accuracy(model, config), history[-1]["visible_saliency"], gradients))


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
    return keep(file, Figures(calibrated_svm_accuracy(build_model(without_teacher(config.model)), config)))


def gradients_of(model: Any, config: EasyDict) -> dict[str, float]:
    """Norms of the losses' gradients on some shapes of the training split, always the same."""
    import torch

    from datasets import build_dataset
    from tools.evaluation.gradients import gradient_norms

    shapes = build_dataset(config.dataset.train)
    chosen = torch.linspace(0, len(shapes) - 1, min(SHAPES_OF_GRADIENTS, len(shapes))).long().tolist()
    return gradient_norms(model, torch.stack([shapes[i][0] for i in chosen]))


def reloaded(setting: Setting, config: EasyDict, folder: Path) -> EasyDict:
    """Write the config of a setting into the folder of all runs; returns it as it is read from there."""
    source = folder / f"{setting.name}.yaml"
    save_config(setting.of(config), source)
    return load_config(source)


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


def summarise(table: Table) -> list[list[str]]:
    """Rows of the table, as `HEADERS` says."""
    released = table[RELEASED]
    rows = []
    for setting, runs in table.items():
        words = setting.words if isinstance(setting, Setting) else (setting, "–", "–")
        accuracies = [run.accuracy for run in runs.values()]
        differences = [run.accuracy - released[seed].accuracy for seed, run in runs.items() if seed in released]
        shares = [100 * run.visible_saliency for run in runs.values() if run.visible_saliency is not None]
        rows.append(
            [
                *words,
                _spread(accuracies),
                " ".join(f"{accuracy:.1f}" for accuracy in accuracies),
                "–" if setting == RELEASED else _difference(differences),
                *(_gradients(list(runs.values()), when) for when in ("first", "last")),
                _spread(shares) if shares else "–",
            ]
        )
    return rows


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.pstdev(values):.1f}" if len(values) > 1 else mean


def _difference(values: Sequence[float]) -> str:
    """Mean of the differences of runs with the same seed, ± its standard error."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):+.1f}"
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.1f}" if len(values) > 1 else mean


def _gradients(runs: Sequence[Figures], when: str) -> str:
    """Norms of the gradients of the 3D and the 2D loss, the mean over the runs; – for one that does not act."""
    found = [run.gradients[when] for run in runs if run.gradients]
    if not found:
        return "–"
    norms = [[of_run[name] for of_run in found if name in of_run] for name in ("loss_3d", "loss_2d")]
    return " : ".join(f"{statistics.fmean(values):.2g}" if values else "–" for values in norms)


def draw(table: Table, path: Path) -> None:
    """Write a PNG: accuracy of every setting, and the saliency that masks hold against the temperature.

    Bars are standard deviations, dots the seeds, dashes the untrained encoder.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    from tools.evaluation.figures import save_figure

    settings = {s: list(runs.values()) for s, runs in table.items() if isinstance(s, Setting)}
    figure, axis = plt.subplots(figsize=(9, 0.55 * len(settings) + 1.5))
    for place, runs in enumerate(settings.values()):
        axis.plot([run.accuracy for run in runs], [place] * len(runs), ".", color="darkgrey")
    values = [[run.accuracy for run in runs] for runs in settings.values()]
    axis.errorbar(
        [np.mean(v) for v in values], range(len(values)), xerr=[np.std(v) for v in values], fmt="o", capsize=4
    )
    axis.axvline(np.mean([run.accuracy for run in table[UNTRAINED].values()]), linestyle="--", color="grey")
    axis.set_yticks(range(len(values)), [" | ".join(setting.words) for setting in settings])
    axis.invert_yaxis()
    axis.set(xlabel="linear SVM, %", title="teacher | losses | mask")
    save_figure(figure, path)


def write(document: Path, table: Table, flags: str) -> None:
    """Replace what stands under the heading of a document by the table, and the picture beside it."""
    picture = document.with_suffix(".png")
    draw(table, picture)
    parts = [
        f"Made by `python -m tools.ablation {flags}`.",
        markdown_table(summarise(table), HEADERS),
        f"![accuracy of each setting]({picture.name})",
    ]
    replace_section(document, HEADING, "\n\n".join(parts))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
