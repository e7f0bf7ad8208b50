# PYTHON_ARGCOMPLETE_OK
"""`python -m tools.label_efficiency`: accuracy against the number of labelled shapes, with and without pre-training.

Generated shapes, a small model. What `tools.ablation` has pre-trained as Point-M2AE and, under a small teacher that has
learned and with the balance of the demo, as I2P-MAE is probed by a linear SVM and fine-tuned with few labelled shapes
of each class, beside the same from random weights. A run that is finished is read instead of repeated, one that was
interrupted is continued.
"""

import json
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict

from tools.evaluation import guidance
from tools.evaluation.paired import difference
from tools.training.launch import run_or_read
from tools.training.modes import EXPERIMENTS
from utils.command import Parser, add_seeds, integer_from, run_command
from utils.config import load_config, save_config
from utils.files import atomic_write, make_folder
from utils.logger import setup_logger
from utils.tables import format_table, markdown_table, replace_section

# What imports PyTorch or Matplotlib, which takes seconds, is imported where it is used.

logger = logging.getLogger(__name__)

CONFIG = Path("cfgs/demo/fine-tune.yaml")
DATA = Path("data/label-efficiency")
FOLDER = EXPERIMENTS / "label-efficiency"
TEST_SHAPES = 40  # of each class, those of the demo
UPDATES = 250  # of a fine-tuning, about: whole epochs
STARTS: dict[str, guidance.Setting | None] = {
    "scratch": None,
    "Point-M2AE": guidance.POINT_M2AE,
    "I2P-MAE": guidance.BALANCED,
}
MEASURES = ("linear SVM", "fine-tuned")
PAIRS = (("I2P-MAE", "scratch"), ("I2P-MAE", "Point-M2AE"), ("Point-M2AE", "scratch"))
HEADING = "Label efficiency"

Table = dict[tuple[str, str], dict[int, dict[int, float]]]  # (measure, start) → labels a class → seed → accuracy


def main(argv: list[str] | None = None) -> int:
    """Measure every start with every number of labels and seed; print the table and write it with a picture."""
    parser = Parser(
        prog="python -m tools.label_efficiency",
        description=__doc__.split("\n\n")[0],
        examples=["python -m tools.label_efficiency --seeds 0 --labels 1 5"],
    )
    add_seeds(parser, [0, 1, 2, 3, 4], "one run each (default: 0 1 2 3 4)")
    parser.add_argument(
        "--labels", type=integer_from(1), nargs="+", default=[1, 2, 5, 10, 20, 50], help="shapes of a class"
    )
    args = guidance.parse_study(parser, HEADING, argv)
    setup_logger(None)
    labels = sorted(set(args.labels))
    table = measure_all(args.seeds, labels)
    headers = ["measure", "start", *(f"{count} a class" for count in labels)]
    print(f"\n{format_table(summarise(table), headers)}\n")
    print(f"{format_table(compare(table), headers)}\n")
    picture = args.write.with_name("label-efficiency.png") if args.write else FOLDER / "label-efficiency.png"
    draw(table, picture)
    print(f"picture  {picture}")
    if args.write:
        flags = f"--seeds {' '.join(map(str, args.seeds))} --labels {' '.join(map(str, labels))} --write {args.write}"
        parts = [
            f"Made by `python -m tools.label_efficiency {flags}`; mean ± standard deviation over the seeds.",
            markdown_table(summarise(table), headers),
            "Differences of runs with the same seed, mean ± standard error; **bold**: 95 % interval without zero:",
            markdown_table(compare(table), headers),
            f"![accuracy against labelled shapes]({picture.name})",
        ]
        replace_section(args.write, HEADING, "\n\n".join(parts))
        print(f"written  {args.write}")
    return 0


def measure_all(seeds: Sequence[int], labels: Sequence[int]) -> Table:
    """Measure every start, all of a seed before the next one."""
    from datasets.synthetic import write_demo, write_scanobjectnn
    from datasets.synthetic.layouts import DEMO_POINTS

    write_demo(guidance.DATA)
    for count in labels:
        write_scanobjectnn(data_of(count), train=count, test=TEST_SHAPES, num_points=DEMO_POINTS)
    table: Table = {(measure, start): {count: {} for count in labels} for measure in MEASURES for start in STARTS}
    config = load_config(guidance.CONFIG)
    make_folder(FOLDER)
    total, done = len(seeds) * len(labels) * len(STARTS), 0
    for seed in seeds:
        for start, setting in STARTS.items():
            checkpoint = pre_trained(config, setting, seed)
            for count in labels:
                found = measure(start, checkpoint, config, count, seed)
                for name in MEASURES:
                    table[name, start][count][seed] = found[name]
                done += 1
                logger.info("%d of %d done: %s, %d labelled shapes a class, seed %d", done, total, start, count, seed)
    return table


def data_of(count: int) -> Path:
    """Where the labelled shapes are, `count` of each class; more of them begin with the same."""
    return DATA / f"{count}-a-class"


def pre_trained(config: EasyDict, setting: guidance.Setting | None, seed: int) -> Path | None:
    """Pre-train, or find what `tools.ablation` has; returns the checkpoint, None for random weights."""
    if setting is None:
        return None
    folder = EXPERIMENTS / "ablation"
    make_folder(folder)
    guidance.measure(config, setting, seed, folder)
    return guidance.figures_file(folder, setting.name, seed).with_name("ckpt-last.pth")


def measure(start: str, checkpoint: Path | None, config: EasyDict, count: int, seed: int) -> dict[str, float]:
    """Probe and fine-tune with so many labelled shapes of each class, or read what an earlier call found.

    Returns:
        Name of the measure → accuracy on the test shapes, in percent.
    """
    name = f"{start.lower()}-{count}"
    source = FOLDER / f"{name}.yaml"
    save_config(fine_tuning(count), source)
    run = FOLDER / name / f"seed{seed}"
    file = run / "figures.json"
    if file.exists():
        return json.loads(file.read_text())
    begin = ["--finetune_model", "--ckpts", str(checkpoint)] if checkpoint else ["--scratch_model"]
    epochs = load_config(source).max_epoch + 1
    run_or_read(run, ["--config", str(source), "--exp_name", run.name, "--val_freq", str(epochs), *begin], seed)
    modes = json.loads((run / "results.json").read_text())
    (tuned,) = (found["final_accuracy"] for found in modes.values())
    found = {"linear SVM": probe(checkpoint, config, count, seed), "fine-tuned": tuned}
    with atomic_write(file) as out:
        out.write((json.dumps(found) + "\n").encode())
    return found


def fine_tuning(count: int) -> dict[str, Any]:
    """The demo's fine-tuning on `count` labelled shapes of each class, about `UPDATES` updates long."""
    config = load_config(CONFIG)
    classes = config.model.num_classes
    for split in ("train", "test"):
        config.dataset[split].ROOT = str(data_of(count) / "ScanObjectNN")
    config.total_bs = min(config.total_bs, classes)  # one shape of each class is a batch
    epochs = max(1, round(UPDATES / (classes * count // config.total_bs)))
    config.scheduler.kwargs.epochs, config.max_epoch = epochs, epochs - 1
    return config


def probe(checkpoint: Path | None, config: EasyDict, count: int, seed: int) -> float:
    """Accuracy of a linear SVM on frozen features; its C is the config's, since one shape a class allows no choice."""
    from models import build_model
    from tools.evaluation.features import calibrated_svm_accuracy, without_teacher
    from utils.checkpoint import load_weights
    from utils.seed import seed_everything

    seed_everything(seed)
    model = build_model(without_teacher(config.model))
    if checkpoint:
        load_weights(model, checkpoint, strict=True)
    splits = {
        name: {**config.dataset[name], "ROOT": str(data_of(count) / "ScanObjectNN")}
        for name in ("svm_train", "svm_test")
    }
    return calibrated_svm_accuracy(model, {**config, "dataset": {**config.dataset, **splits}}, config.svm.C)


def summarise(table: Table) -> list[list[str]]:
    """Rows of the table: mean ± standard deviation over the seeds for each number of labels."""
    rows = []
    for (measured, start), by_count in table.items():
        cells = []
        for found in by_count.values():
            values = list(found.values())
            spread = f" ± {statistics.pstdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}")
        rows.append([measured, start, *cells])
    return rows


def compare(table: Table) -> list[list[str]]:
    """Rows of the differences of `PAIRS`, seed by seed, for each number of labels; bold where one is shown."""
    rows = []
    for measured in MEASURES:
        for one, other in PAIRS:
            by_count = [
                difference(table[measured, one][count], found) for count, found in table[measured, other].items()
            ]
            cells = [f"**{found}**" if found and found.shown else str(found) for found in by_count]
            rows.append([measured, f"{one} − {other}", *cells])
    return rows


def draw(table: Table, path: Path) -> None:
    """Write a PNG: accuracy against labelled shapes of a class, a panel for each measure; bars are deviations."""
    import matplotlib.pyplot as plt

    from tools.evaluation.figures import save_figure

    figure, axes = plt.subplots(1, len(MEASURES), figsize=(10, 4), sharey=True)
    for axis, measured in zip(axes, MEASURES, strict=True):
        for start in STARTS:
            by_count = {count: list(found.values()) for count, found in table[measured, start].items()}
            means = [statistics.fmean(values) for values in by_count.values()]
            axis.errorbar([*by_count], means, [statistics.pstdev(v) for v in by_count.values()], capsize=3, label=start)
        axis.set_xscale("log")
        axis.set_xticks(list(by_count), [str(count) for count in by_count])
        axis.minorticks_off()
        axis.set(title=measured, xlabel="labelled shapes of a class", ylabel="accuracy, %")
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
