# PYTHON_ARGCOMPLETE_OK
"""`make demo`: generated shapes, pre-training, linear SVM, fine-tuning, in minutes on a CPU.

Each step is a command of main.py, printed before it runs. The model and its teacher are small, and the teacher has
learnt generated shapes with the names of their classes: the demo shows the pipeline, not the gain of the paper.
"""

import json
import logging
import statistics
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tools.training.launch import launch, shown
from tools.training.modes import EXPERIMENTS
from utils.command import Parser, add_seeds, run_command
from utils.config import load_config
from utils.files import atomic_write
from utils.logger import setup_logger
from utils.tables import format_table

# What imports PyTorch, which takes seconds, is imported where it is used.

logger = logging.getLogger(__name__)

CONFIGS = Path("cfgs/demo")
DATA = Path("data/synthetic")
NOTE = (
    "This is a small I2P-MAE under a small 2D teacher, which has learnt depth images of other generated shapes WITH "
    "THE NAMES OF THEIR CLASSES, those of this demo among them, but no scan (ckpts/README.md). It shows what a teacher "
    "that knows something does, not the gain of the paper, which needs CLIP's weights, the published data and a GPU."
)


def main(argv: list[str] | None = None) -> int:
    """Run the demo once per seed and print the table of accuracies."""
    parser = Parser(
        prog="python -m tools.demo",
        description=__doc__.split("\n\n")[0],
        examples=["python -m tools.demo", "python -m tools.demo --seeds 0 1 2"],
    )
    add_seeds(parser, [0], "one whole run each (default: 0)")
    args = parser.parse_args(argv)
    from datasets.synthetic import write_demo

    setup_logger(None)
    began = time.perf_counter()
    logger.info(NOTE)
    write_demo(DATA)
    name = f"{datetime.now():%Y%m%d-%H%M%S}"
    runs = [run_seed(f"{name}-seed{seed}", seed) for seed in args.seeds]
    table = format_table(summarise(runs), ["accuracy on the scan variant, test split, %", *_columns(args.seeds)])
    folder = EXPERIMENTS / "demo"
    with atomic_write(folder / f"{name}.json") as file:
        file.write((json.dumps(runs, indent=2) + "\n").encode())
    minutes = (time.perf_counter() - began) / 60
    print(f"\n{table}\n\n{NOTE}\n")
    print(f"figures  {folder / f'{name}.json'}")
    for run in runs:
        print(f"picture  {run['picture']}   (input, visible points, masked points, reconstruction)")
        print(f"runs     {', '.join(run['folders'])}")
    print(f"time     {minutes:.1f} minutes")
    return 0


def run_seed(name: str, seed: int) -> dict[str, Any]:
    """Run every step with one seed; returns the accuracies in percent, and where the files are."""
    from models import build_model
    from tools.evaluation.features import calibrated_svm_accuracy, without_teacher
    from utils.checkpoint import load_weights
    from utils.seed import seed_everything

    common = ["--exp_name", name, "--seed", str(seed), "--num_workers", "0"]
    pretrained = run_step("pre-train", *common)
    checkpoint = str(pretrained / "ckpt-last.pth")
    run_step("linear-svm", "--test_svm", "scan", "--ckpts", checkpoint, *common)
    tuned = run_step("fine-tune", "--finetune_model", "--ckpts", checkpoint, "--val_freq", "5", *common)
    common[1] += "-scratch"
    scratch = run_step("fine-tune", "--scratch_model", "--val_freq", "5", *common)

    config = load_config(CONFIGS / "pre-train.yaml")
    seed_everything(seed)
    untrained = calibrated_svm_accuracy(build_model(without_teacher(config["model"])), config)
    model = build_model(config["model"])
    load_weights(model, checkpoint, strict=True)
    return {
        "seed": seed,
        "svm_untrained": untrained,
        "svm_pretrained": calibrated_svm_accuracy(model, config),
        "scratch": _final_accuracy(scratch, "training from scratch"),
        "finetuned": _final_accuracy(tuned, "fine-tuning"),
        "picture": str(pretrained / "reconstructions.png"),
        "folders": [str(folder) for folder in (pretrained, tuned, scratch)],
    }


def run_step(config: str, *flags: str) -> Path:
    """Run one command of main.py, show it, and return its run folder."""
    command = ["--config", str(CONFIGS / f"{config}.yaml"), *flags]
    print(f"\n$ {shown(command)}", flush=True)
    began = time.perf_counter()
    if code := launch(command):
        raise SystemExit(code)
    logger.info("that took %.0f s", time.perf_counter() - began)
    return EXPERIMENTS / "demo" / config / flags[flags.index("--exp_name") + 1]


def summarise(runs: list[dict[str, Any]]) -> list[list[object]]:
    """Table rows: a name, the accuracy of each seed and, for several seeds, their mean and standard deviation."""
    names = {
        "svm_untrained": "linear SVM, untrained encoder",
        "svm_pretrained": "linear SVM, pre-trained encoder",
        "scratch": "classifier, trained from scratch",
        "finetuned": "classifier, fine-tuned",
    }
    rows: list[list[object]] = []
    for key, name in names.items():
        values = [run[key] for run in runs]
        spread = [statistics.fmean(values), statistics.pstdev(values)] if len(runs) > 1 else []
        rows.append([name, *values, *spread])
    return rows


def _columns(seeds: list[int]) -> list[str]:
    return [f"seed {seed}" for seed in seeds] + (["mean", "std"] if len(seeds) > 1 else [])


def _final_accuracy(folder: Path, mode: str) -> float:
    return json.loads((folder / "results.json").read_text())[mode]["final_accuracy"]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
