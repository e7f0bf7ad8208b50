"""What usually comes next, as commands that run as they stand. Imports no PyTorch, so that it is quick to ask."""

import re
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tools.training.modes import (
    AUTOENCODING,
    EXPERIMENTS,
    FINE_TUNING,
    FROM_SCRATCH,
    LINEAR_SVM,
    MEMORY_BANK,
    PART_SEGMENTATION,
    PRE_TRAINING,
    ROOM_SEGMENTATION,
    SVM_DATA,
    TEST,
)
from utils.config import FINE_TUNE, PRE_TRAIN, load_config

CONFIGS = Path("cfgs")
CLASSIFIERS = {  # model that is pre-trained → the names of its classifiers
    "I2P_MAE": ("I2P_MAE_ModelNet40", "I2P_MAE_ScanObjectNN"),
    "Point_M2AE": ("Point_M2AE_ModelNet40", "Point_M2AE_ScanObjectNN"),
    **dict.fromkeys(("Point_MAE", "Point_BERT", "ACT_PointDistillation"), ("PointTransformer",)),
}
TEACHERS = {"DiscreteVAE": ("Point_BERT",), "ACTPromptedDiscreteVAEwithVIT": ("ACT_PointDistillation",)}
UNSEEN = ("Point_BERT", "ACT_PointDistillation")  # predict no points: there are no pictures of them
SIZES = ("encoder_dims", "encoder_depths", "trans_dim", "embed_dim", "depth")  # on which weights depend
ROOTS = ("DATA_PATH", "DATA_DIR", "ROOT")  # where a data set entry says where it is


class Step(NamedTuple):
    """What to do, and its command."""

    what: str
    command: str


@dataclass(frozen=True)
class Done:
    """What has been done: a run, or an evaluation.

    Attributes:
        path, config: the config's file, and what it says.
        args: command line.
        checkpoint: the weights to go on with.
        measured: whether there were labels to measure an accuracy with.
    """

    path: Path
    config: Mapping[str, Any]
    args: Namespace
    checkpoint: Path
    measured: bool = True

    def command(self, path: Path, *flags: str) -> str:
        """A command of main.py with the weights."""
        return main_command(path, *flags, "--exp_name", self.args.exp_name, "--ckpts", str(self.checkpoint))


def after(mode: str, done: Done) -> list[Step]:
    """Steps that usually follow a mode of main.py, the most usual first; [] if none does."""
    makers = STEPS.get(mode.partition(",")[0], ())
    return [step for maker in makers for step in maker(done)]


def main_command(path: Path, *flags: str) -> str:
    """A command of main.py, as one types it."""
    return shlex.join(["python", "main.py", "--config", str(path), *flags])


def linear_svm(done: Done) -> Iterator[Step]:
    """A linear SVM on the features of a pre-trained model, with the config itself if it has the data."""
    candidates = ((done.path, done.config), *_configs((done.config["model"]["NAME"],), done))
    for path, config in candidates if done.measured else ():
        entry = config["dataset"].get("svm_test", {})
        for flag, name in SVM_DATA.items():
            if entry.get("NAME") == name:
                yield Step("linear SVM on its features", done.command(path, "--test_svm", flag))
                return


def fine_tune(done: Done) -> Iterator[Step]:
    """A classifier that starts from pre-trained weights."""
    if has_sections(done.path):
        if done.measured:
            yield _fine_tune(done.path, done)
        return
    for path, config in _configs(CLASSIFIERS.get(done.config["model"]["NAME"], ()), done):
        if config["dataset"].get("train", {}).get("NAME") not in (None, "ModelNetFewShot"):
            yield _fine_tune(path, done)
            return


def _fine_tune(path: Path, done: Done) -> Step:
    flags = ("--finetune_model", "--exp_name", free_name(path, done.args.exp_name), "--ckpts", str(done.checkpoint))
    return Step("fine-tune a classifier", main_command(path, *flags))


def pre_train(done: Done) -> Iterator[Step]:
    """The pre-training that takes an autoencoder for its teacher, if a config names this one."""
    for path, config in _configs(TEACHERS[done.config["model"]["NAME"]], done, same_sizes=False):
        named = (config["model"].get("dvae_config") or {}).get("ckpt")
        if named and Path(named).resolve() == done.checkpoint.resolve():
            name = free_name(path, done.args.exp_name)
            yield Step("pre-train what it teaches", main_command(path, "--exp_name", name))
            return
    yield from test(done)


def test(done: Done) -> Iterator[Step]:
    """The test of what was trained, where that was not the test."""
    if not done.args.test:
        yield Step("test it", done.command(done.path, "--test"))


def vote(done: Done) -> Iterator[Step]:
    """The test of a classifier by voting, where that was not the test."""
    if not done.args.vote:
        yield Step("test it with voting", done.command(done.path, "--test", "--vote"))


def visualize(done: Done) -> Iterator[Step]:
    """Pictures of what a model makes of shapes."""
    if done.config["model"]["NAME"] in UNSEEN:
        return
    section = ("--section", FINE_TUNE) if has_sections(done.path) and _is_classifier(done.config) else ()
    flags = ("--config", str(done.path), *section, "--ckpts", str(done.checkpoint), "-o", "pictures")
    yield Step("look at it", shlex.join(["python", "-m", "tools.visualize", *flags]))


STEPS: dict[str, tuple[Callable[[Done], Iterator[Step]], ...]] = {
    PRE_TRAINING: (linear_svm, fine_tune, visualize),
    AUTOENCODING: (pre_train,),
    LINEAR_SVM: (fine_tune,),
    MEMORY_BANK: (fine_tune,),
    FINE_TUNING: (test, vote),
    FROM_SCRATCH: (test, vote),
    TEST: (vote, visualize),
    PART_SEGMENTATION: (visualize,),
    ROOM_SEGMENTATION: (test,),
}


def has_sections(path: Path) -> bool:
    """Whether a config serves both pre-training and fine-tuning."""
    pre_trained, fine_tuned = (loaded(path, section) for section in (PRE_TRAIN, FINE_TUNE))
    return None not in (pre_trained, fine_tuned) and pre_trained != fine_tuned


def free_name(path: Path, name: str) -> str:
    """The first of NAME, NAME-2, NAME-3 … under which no run of a config is."""
    folder, number = EXPERIMENTS / path.resolve().parent.name / path.stem, 2
    taken = name
    while any((folder / taken).glob("ckpt-*.pth")):
        taken, number = f"{name}-{number}", number + 1
    return taken


def _configs(names: tuple[str, ...], done: Done, same_sizes: bool = True) -> list[tuple[Path, Mapping[str, Any]]]:
    """Configs with a model of one of these names, as large as the one at hand; those whose data are here first."""
    found = []
    for path in CONFIGS.glob("*/*.yaml") if names else ():
        if not re.search(rf"NAME: *({'|'.join(names)})\b", path.read_text(encoding="utf-8")):
            continue
        config = loaded(path)
        if config and config["model"]["NAME"] in names and (not same_sizes or _sizes(config) == _sizes(done.config)):
            found.append((path, config))
    beside = done.path.resolve().parent
    return sorted(found, key=lambda pair: (not _has_data(pair[1]), pair[0].resolve().parent != beside, pair[0]))


def loaded(path: Path, section: str = PRE_TRAIN) -> Mapping[str, Any] | None:
    """A config; None if it cannot be read: it is not the one that was asked for."""
    try:
        return load_config(path, section)
    except (ValueError, OSError):
        return None


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model decides which weights fit it; of a pre-trained one its transformer's and tokenizer's."""
    model = config["model"]
    flat = {**(model.get("dvae_config") or {}), **model, **(model.get("transformer_config") or {})}
    return {key: flat[key] for key in SIZES if key in flat}


def _has_data(config: Mapping[str, Any]) -> bool:
    entries = config["dataset"].values()
    return all(Path(entry[root]).exists() for entry in entries for root in ROOTS if root in entry)


def _is_classifier(config: Mapping[str, Any]) -> bool:
    return any(config["model"]["NAME"] in names for names in CLASSIFIERS.values())
