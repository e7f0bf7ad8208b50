# PYTHON_ARGCOMPLETE_OK
"""`python -m tools.ablation`: what the 2D guidance of I2P-MAE does, measured small, under a small teacher.

On generated shapes it pre-trains under a teacher that has learned and one that has not, with either loss alone, with
both in several balances, and with masks that follow the saliency less or more: each setting with every seed as a
command of main.py. A linear SVM measures the encoders. A run that is finished is read instead of repeated, one that was
interrupted is continued.
"""

import logging
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from easydict import EasyDict

from tools.evaluation import guidance
from tools.evaluation.guidance import (
    BALANCED,
    POINT_M2AE,
    RELEASED,
    UNTRAINED,
    Figures,
    Setting,
    figures_file,
    measure,
    measure_untrained,
    read_figures,
    reloaded,
)
from tools.evaluation.paired import difference
from tools.training.modes import EXPERIMENTS
from utils.command import Parser, add_seeds, run_command
from utils.config import load_config
from utils.files import make_folder
from utils.logger import setup_logger
from utils.tables import format_table, markdown_table, replace_section

# What imports PyTorch or Matplotlib, which takes seconds, is imported where it is used.

logger = logging.getLogger(__name__)

EXPECTED_SECONDS = {False: 120, True: 50}  # of a run on two idle cores, quick or not
HEADING = "Figures"
HEADERS = (
    "teacher",
    "losses",
    "mask",
    "linear SVM, %",
    "seeds",
    "gradient of 3D : 2D, at first",
    "at the end",
    "saliency held by visible tokens, %",
)
DIFFERENCES = ("what differs", "points", "of each seed", "95 % interval")

UNTRAINED_2D, TRAINED_2D = Setting("untrained", "2d"), Setting("trained", "2d")
TENTH = Setting("trained", "both", weight_3d=0.1)
RANDOM, SHARP, SHARPEST = (BALANCED._replace(mask_temperature=value) for value in (math.inf, 0.01, 0.003))
SETTINGS = (
    POINT_M2AE,
    UNTRAINED_2D,
    TRAINED_2D,
    RELEASED,
    TENTH,
    BALANCED,
    RANDOM,
    SHARP,
    SHARPEST,
)
PAIRS: dict[str, tuple[Setting, Setting | str]] = {  # what differs → which is compared, and beside which
    "the 3D loss alone beside no training": (POINT_M2AE, UNTRAINED),
    "2D targets of the untrained teacher beside the 3D loss alone": (UNTRAINED_2D, POINT_M2AE),
    "2D targets of the trained teacher beside those of the untrained one": (TRAINED_2D, UNTRAINED_2D),
    "both losses, 1 and 1, beside the 2D loss alone": (RELEASED, TRAINED_2D),
    "3D × 0.1 beside 1 and 1": (TENTH, RELEASED),
    "3D × 0.003 beside 1 and 1": (BALANCED, RELEASED),
    "3D × 0.003 beside the 2D loss alone": (BALANCED, TRAINED_2D),
    "3D × 0.003, trained teacher, beside 2D targets of the untrained one": (BALANCED, UNTRAINED_2D),
    "mask of temperature 1 beside a random one": (BALANCED, RANDOM),
    "mask of temperature 0.01 beside a random one": (SHARP, RANDOM),
    "mask of temperature 0.003 beside a random one": (SHARPEST, RANDOM),
}


Table = dict[Setting | str, dict[int, Figures]]  # setting → seed → figures


def main(argv: list[str] | None = None) -> int:
    """Measure every setting with every seed; print the table and write it with a picture."""
    parser = Parser(
        prog="python -m tools.ablation",
        description=__doc__.split("\n\n")[0],
        examples=["python -m tools.ablation --quick --seeds 0", "python -m tools.ablation --finished"],
    )
    add_seeds(parser, [0, 1, 2, 3, 4], "one run each (default: 0 1 2 3 4)")
    parser.add_argument("--quick", action="store_true", help="one epoch a run: to see that it works")
    parser.add_argument("--finished", action="store_true", help="start no run: figures of those that are finished")
    args = guidance.parse_study(parser, HEADING, argv)
    setup_logger(None)
    folder = EXPERIMENTS / ("ablation-quick" if args.quick else "ablation")
    config = load_config(guidance.CONFIG)
    if args.quick:
        config.max_epoch = 0
    if args.finished:
        table = read_all(config, args.seeds, folder)
    else:
        table = measure_all(config, args.seeds, folder, EXPECTED_SECONDS[args.quick])
    print(f"\n{format_table(summarise(table), HEADERS)}\n")
    print(f"{format_table(compare(table), DIFFERENCES)}\n")
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
    write_demo(guidance.DATA)
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
    """Read the figures of the runs that are finished; ValueError if the untrained encoder or every setting has none."""
    make_folder(folder)
    table: Table = {}
    for key in (UNTRAINED, *SETTINGS):
        name, own = (key, config) if isinstance(key, str) else (key.name, reloaded(key, config, folder))
        found = {seed: read_figures(figures_file(folder, name, seed), own) for seed in seeds}
        if runs := {seed: figures for seed, figures in found.items() if figures}:
            table[key] = runs
    if UNTRAINED not in table or len(table) == 1:
        raise ValueError(f"{folder} has no finished run of {'a setting' if table else f'the {UNTRAINED}'}")
    return table


def summarise(table: Table) -> list[list[str]]:
    """Rows of the table, as `HEADERS` says."""
    rows = []
    for setting, runs in table.items():
        words = setting.words if isinstance(setting, Setting) else (setting, "–", "–")
        accuracies = [run.accuracy for run in runs.values()]
        shares = [100 * run.visible_saliency for run in runs.values() if run.visible_saliency is not None]
        rows.append(
            [
                *words,
                _spread(accuracies),
                " ".join(f"{accuracy:.1f}" for accuracy in accuracies),
                *(_gradients(list(runs.values()), when) for when in ("first", "last")),
                _spread(shares) if shares else "–",
            ]
        )
    return rows


def compare(table: Table) -> list[list[str]]:
    """Rows of the differences, as `DIFFERENCES` says: of the `PAIRS` that have a seed in common."""
    rows = []
    for what, pair in PAIRS.items():
        one, other = ({seed: run.accuracy for seed, run in table.get(key, {}).items()} for key in pair)
        if found := difference(one, other):
            interval = "–" if found.interval is None else " to ".join(f"{end:+.1f}" for end in found.interval)
            rows.append([what, str(found), " ".join(f"{value:+.1f}" for value in found.values), interval])
    return rows


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.pstdev(values):.1f}" if len(values) > 1 else mean


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
        "Differences of runs with the same seed, mean ± standard error:",
        markdown_table(compare(table), DIFFERENCES),
        f"![accuracy of each setting]({picture.name})",
    ]
    replace_section(document, HEADING, "\n\n".join(parts))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
