"""`python main.py` alone: what can be done next with what is on this disk. Imports no PyTorch, so that it is quick."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from tools.training.modes import CHECKPOINTS, DATA, EXPERIMENTS
from tools.training.next_steps import CONFIGS, TEACHERS, Done, fine_tune, loaded, main_command

SHOWN = 3  # of a kind
TOKENIZERS = tuple(f"NAME: {name}" for name in TEACHERS)  # models from which nothing is fine-tuned
PRE_TRAINING_DATA = DATA / "ShapeNet55-34"
PRE_TRAIN = main_command(CONFIGS / "pre-training/i2p-mae.yaml", "--exp_name", "pre-train")
CLASSIFIER = CONFIGS / "fine-tuning/modelnet40.yaml"
FINE_TUNE = f"{main_command(CLASSIFIER, '--finetune_model', '--exp_name', 'finetune', '--ckpts')} {{}}"
TEST = f"{main_command(CLASSIFIER, '--test', '--exp_name', 'test', '--ckpts')} {{}}"


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
        yield f"fine-tune: {_fine_tune(_start(weights, runs))}"
        yield f"test what is fine-tuned: {TEST.format('FILE')}"


def _fine_tune(start: str) -> str:
    """The command that fine-tunes weights: with a config that fits them, if they are of a run, which keeps its own."""
    config = loaded(Path(start).with_name("config.yaml"))
    if config is not None:
        done = Done(Path(start).with_name("config.yaml"), config, Namespace(exp_name="finetune"), Path(start))
        for _, command in fine_tune(done):
            return command
    return FINE_TUNE.format(start)


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
