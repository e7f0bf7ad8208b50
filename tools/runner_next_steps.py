"""`python main.py` alone: what can be done next with what is on this disk. Imports no PyTorch, so that it is quick."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets.sources import SOURCES
from tools.training.modes import CHECKPOINTS, DATA, EXPERIMENTS
from tools.training.next_steps import CONFIGS
from tools.training.unfinished import continuing
from utils.config import load_config

SHOWN = 3  # of a kind
CONTINUED = 2  # runs that were interrupted
SMALL = "synthetic"  # folder of the data of cfgs/demo
PRE_TRAIN = "python main.py --config cfgs/pre-training/i2p-mae.yaml --exp_name pre-train"
SMALL_PRE_TRAIN = "python main.py --config cfgs/demo/pre-train.yaml --exp_name demo"
PROBED = "python -m datasets.download ModelNet40_SVM"
BANK = "python main.py --config cfgs/point-nn/{}.yaml --test_bank --exp_name bank"
FINE_TUNE = "python main.py --config {} --finetune_model --exp_name finetune --ckpts {}"
TEST = "python main.py --config {} --test --exp_name test --ckpts {}"
VISUALIZE = "python -m tools.visualize --config {} --ckpts {} -o pictures"
FEATURES = "python -m tools.features --ckpts {} {} -o features.npz"
DEMO = "see it work, in minutes: make demo"
OWN = "cfgs/own-data/i2p-mae.yaml"
OWN_ROOT = "my_shapes"  # of that config
CLASS_KEYS = ("num_classes", "cls_dim")  # of a classifier's model
TASKS = {"scan_pb": "ScanObjectNN", "modelnet40": "ModelNet"}  # end of a config's name → its data


class Encoder(NamedTuple):
    """A pre-training, and what can be made of its encoder.

    Attributes:
        released: name of the released weights; "" for none.
        classifier: config of a classifier, within `CONFIGS`; {} stands for one of `TASKS`.
        data: folder that this config reads, within `DATA`; "" where the task says it.
    """

    released: str
    classifier: str
    data: str = ""


ENCODERS = {  # folder of the runs within `EXPERIMENTS` → what they are
    "pre-training/i2p-mae": Encoder("pre-train", "fine-tuning/{}"),
    "pre-training/point-m2ae": Encoder("point-m2ae_pre-train", "fine-tuning/point-m2ae_{}"),
    "point-mae/pre-train": Encoder("point-mae_pre-train", "point-mae/{}"),
    "point-bert/pre-train": Encoder("point-bert_pre-train", "point-bert/{}"),
    "act/pre-train": Encoder("act_pre-train", "act/{}"),
    "own-data/i2p-mae": Encoder("", "own-data/i2p-mae", OWN_ROOT),
    "own-data/point-mae": Encoder("", "own-data/point-mae", OWN_ROOT),
    "demo/own-data": Encoder("", "demo/own-data", f"{SMALL}/meshes"),
    "demo/pre-train": Encoder("", "demo/fine-tune", f"{SMALL}/{SOURCES['ScanObjectNN'].home}"),
    "demo/point-bert": Encoder("", "demo/point-bert_fine-tune", f"{SMALL}/{SOURCES['ScanObjectNN'].home}"),
    "demo/act": Encoder("", "demo/act_fine-tune", f"{SMALL}/{SOURCES['ScanObjectNN'].home}"),
}
TOKENIZERS = {  # folder of an autoencoder's runs → the pre-training that takes it
    "point-bert/dvae": "point-bert/pre-train",
    "act/autoencoder": "act/pre-train",
    "demo/dvae": "demo/point-bert",
    "demo/act-autoencoder": "demo/act",
}


def report() -> str:
    """What is there, and the commands that can be run next."""
    data = sorted(path for path in DATA.glob("[!.]*") if path.is_dir())
    weights = sorted(CHECKPOINTS.rglob("*.pth"))
    runs = sorted({path.parent for path in EXPERIMENTS.rglob("ckpt-*.pth")})
    found = {f"data in {DATA}/": data, f"weights in {CHECKPOINTS}/": weights, f"runs in {EXPERIMENTS}/": runs}
    lines = [f"{where}: {_some([str(path) for path in paths])}" for where, paths in found.items()]
    steps = [f"continue what was interrupted: {command}" for command in continuing()[:CONTINUED]]
    steps += [] if data or weights or runs else [DEMO]
    steps += _next_steps({path.name for path in data}) if data else _ways_to_data()
    return "\n".join([*lines, *steps, "python main.py --help lists every mode and flag"])


def _ways_to_data() -> Iterator[str]:
    yield f"get data: python -m datasets.check says how to get each, and {DATA}/README.md what goes where"
    yield f"or generated stand-ins: python -m datasets.synthetic --root {DATA}"


def _next_steps(data: set[str]) -> Iterator[str]:
    """Lines of what to do with data, by the names of their folders; each with its command, the most useful first."""
    starts = dict(_encoders())
    for config, start in list(_tunable(starts))[:1]:
        yield f"fine-tune: {FINE_TUNE.format(config, start)}"
    for config, start in list(_classifiers())[:1]:
        yield f"test what is fine-tuned: {TEST.format(config, start)}"
    if "demo/pre-train" in starts and _has("ScanObjectNN", SMALL):
        yield f"look at it: {VISUALIZE.format('cfgs/demo/pre-train.yaml', starts['demo/pre-train'])}"
    for command in _from_tokenizers():
        yield f"pre-train with the tokenizer that is there: {command}"
    if not starts:
        yield from _first_steps()
    yield from _own_data(data, list(starts.values()))
    if not starts and data != {SMALL}:
        yield f"get weights: {CHECKPOINTS}/README.md"


def _first_steps() -> Iterator[str]:
    """What can be done with published data, or generated ones, where nothing is pre-trained yet."""
    if _has("ShapeNet"):
        before = "" if _has("ModelNet40_SVM") else f", once `{PROBED}` has brought what its linear SVM reads"
        yield f"pre-train{before}: {PRE_TRAIN}"
    if _has("ShapeNet", SMALL) and _has("ScanObjectNN", SMALL):
        yield f"pre-train, small, on generated shapes: {SMALL_PRE_TRAIN}"
    elif (DATA / SMALL).is_dir():
        yield DEMO
    for task in [name for name, source in TASKS.items() if _has(source)][:1]:
        yield f"recognise without training: {BANK.format(task)}"


def _encoders() -> Iterator[tuple[str, Path]]:
    """Pre-trained encoders that are there: what they are, as a key of `ENCODERS`, and their weights."""
    for folder, encoder in ENCODERS.items():
        path = CHECKPOINTS / f"{encoder.released}.pth"
        runs = [run for run in _runs(folder, "ckpt-last.pth") if not _is_classifier(run.parent)]
        if path.is_file():
            yield folder, path
        elif runs:
            yield folder, runs[-1]


def _tunable(starts: dict[str, Path]) -> Iterator[tuple[Path, Path]]:
    """Configs that fine-tune an encoder on data that are there, and the weights of the encoder."""
    for folder, start in starts.items():
        config = _classifier_of(ENCODERS[folder])
        if config is not None:
            yield config, start


def _classifier_of(encoder: Encoder) -> Path | None:
    """The config that fine-tunes an encoder on data that are there."""
    if encoder.data:
        return CONFIGS / f"{encoder.classifier}.yaml" if (DATA / encoder.data).is_dir() else None
    tasks = (task for task, name in TASKS.items() if _has(name))
    return next((CONFIGS / f"{encoder.classifier.format(task)}.yaml" for task in tasks), None)


def _classifiers() -> Iterator[tuple[Path, Path]]:
    """Classifiers whose data are there: their configs and their weights."""
    for encoder in ENCODERS.values():
        config = _classifier_of(encoder)
        if config is not None:
            folder = f"{config.parent.name}/{config.stem}"
            runs = [run for run in _runs(folder, "ckpt-best.pth") if _is_classifier(run.parent)]
            prefix = encoder.released.removesuffix("pre-train")
            path = CHECKPOINTS / f"{prefix}{config.stem.removeprefix(prefix)}.pth"
            released = [path] if encoder.released and path.is_file() else []
            yield from ((config, weights) for weights in [*runs[-1:], *released])


def _is_classifier(run: Path) -> bool:
    """Whether a run is of a classifier: its folder says so, but where one config serves both kinds (your own data)."""
    folder = f"{run.parent.parent.name}/{run.parent.name}"
    if folder not in ENCODERS or ENCODERS[folder].classifier != folder:
        return folder not in ENCODERS
    try:
        model = load_config(run / "config.yaml").model
    except (OSError, ValueError):
        return False
    return any(key in model for key in CLASS_KEYS)


def _from_tokenizers() -> Iterator[str]:
    """Commands of pre-trainings that have not begun, and whose config names a tokenizer that is there."""
    for tokenizer, pre_training in TOKENIZERS.items():
        config, small = CONFIGS / f"{pre_training}.yaml", pre_training.startswith("demo/")
        there = any((EXPERIMENTS / tokenizer).glob("*/ckpt-best.pth")) and _has("ShapeNet", SMALL if small else "")
        if there and config.is_file() and not any((EXPERIMENTS / pre_training).glob("*/ckpt-*.pth")):
            named = re.search(r"^ *ckpt: (\S+)", config.read_text(encoding="utf-8"), re.MULTILINE)
            if named and Path(named[1]).is_file():
                yield f"python main.py --config {config} --exp_name {'demo' if small else 'pre-train'}"


def _own_data(data: set[str], encoders: list[Path]) -> Iterator[str]:
    """What to do with the first folder that is of no published data set."""
    published = {Path(source.home).parts[0] for source in SOURCES.values()}
    own = sorted(name for name in data - published - {SMALL} if not name.endswith(".packed"))
    if own and encoders:
        yield f"features of your files: {FEATURES.format(encoders[0], DATA / own[0])}"
    elif own:
        write = "" if OWN_ROOT in own else f"write {DATA / own[0]} into ROOT of {OWN}, then "
        yield f"pre-train on your data (docs/OWN_DATA.md): {write}python main.py --config {OWN} --exp_name pre-train"


def _runs(folder: str, checkpoint: str) -> list[Path]:
    """Checkpoints of the runs of a config, by their names."""
    return sorted((EXPERIMENTS / folder).glob(f"*/{checkpoint}"))


def _has(name: str, within: str = "") -> bool:
    """Whether there is a folder of a published data set, or of its generated stand-in within a folder."""
    return (DATA / within / SOURCES[name].home).is_dir()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "none"
