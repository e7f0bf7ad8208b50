"""`python main.py` alone: what can be done next with what is on this disk. Imports no PyTorch, so that it is quick."""

from collections.abc import Iterator
from pathlib import Path

from tools.training.modes import CHECKPOINTS, DATA, EXPERIMENTS

SHOWN = 3  # of a kind
TOKENIZERS = ("NAME: DiscreteVAE", "NAME: ACTPromptedDiscreteVAEwithVIT")  # models from which nothing is fine-tuned
PRE_TRAINING_DATA = DATA / "ShapeNet55-34"
PRE_TRAIN = "python main.py --config cfgs/pre-training/i2p-mae.yaml --exp_name pre-train"
FINE_TUNE = "python main.py --config cfgs/fine-tuning/modelnet40.yaml --finetune_model --exp_name finetune --ckpts {}"
TEST = "python main.py --config cfgs/fine-tuning/modelnet40.yaml --test --exp_name test --ckpts {}"


def report() -> str:
    """What is there, and the commands that can be run next."""
    data = sorted(str(path) for path in DATA.glob("[!.]*") if path.is_dir())
    weights = sorted(str(path) for path in CHECKPOINTS.rglob("*.pth"))
    runs = sorted({str(path.parent) for path in EXPERIMENTS.rglob("ckpt-*.pth")})
    found = {f"data in {DATA}/": data, f"weights in {CHECKPOINTS}/": weights, f"runs in {EXPERIMENTS}/": runs}
    lines = [f"{where}: {_some(names)}" for where, names in found.items()]
    return "\n".join(
        [
            *lines,
            *_next_steps(bool(data), weights, list(filter(_has_encoder, runs))),
            "python main.py --help lists every mode and flag",
        ]
    )


def _next_steps(data: bool, weights: list[str], runs: list[str]) -> Iterator[str]:
    """Lines of what to do, with its command."""
    if not (data or weights or runs):
        yield "see it work, in minutes: make demo"
    if not data:
        yield f"get data: python -m datasets.check says how to get each, and {DATA}/README.md what goes where"
        yield f"or generated stand-ins: python -m datasets.synthetic --root {DATA}"
    elif not (weights or runs):
        if PRE_TRAINING_DATA.is_dir():
            yield f"pre-train: {PRE_TRAIN}"
        yield f"get weights: {CHECKPOINTS}/README.md"
    else:
        yield f"fine-tune: {FINE_TUNE.format(_start(weights, runs))}"
        yield f"test what is fine-tuned: {TEST.format('FILE')}"


def _start(weights: list[str], runs: list[str]) -> str:
    """Weights to fine-tune: of a pre-training, if one is there."""
    files = [*weights, *(f"{run}/ckpt-last.pth" for run in runs)]
    return next((file for file in files if "pre-train" in file), files[0])


def _has_encoder(run: str) -> bool:
    """Whether a classifier could start from the weights of a run."""
    config = Path(run, "config.yaml")
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    return not any(name in text for name in TOKENIZERS)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "none"
