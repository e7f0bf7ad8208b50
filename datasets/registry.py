"""NAME in a config → class, and what tells one data set from another."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from datasets.draws import DrawnDataset, unshuffled
from datasets.folder import Folder, name_in_results
from datasets.holdout import Part, whole
from datasets.modelnet40 import ModelNet, ModelNet40_SVM
from datasets.modelnet40_fewshot import ModelNetFewShot
from datasets.own.cache import Record
from datasets.s3dis import S3DIS
from datasets.scanobjectnn import ScanObjectNN
from datasets.shapenet55 import ShapeNet
from datasets.shapenetpart import ShapeNetPart
from datasets.untrusted import check_count
from utils.settings import check_name, check_settings

DATASETS: dict[str, type[Dataset]] = {
    "ShapeNet": ShapeNet,
    "ModelNet": ModelNet,
    "ModelNet40_SVM": ModelNet40_SVM,
    "ModelNetFewShot": ModelNetFewShot,
    "ScanObjectNN": ScanObjectNN,
    "ShapeNetPart": ShapeNetPart,
    "S3DIS": S3DIS,
    "Folder": Folder,
}

# Constructor keywords that a config writes under `others`; the rest stand beside NAME, in capitals.
OTHERS = ("subset", "partition", "npoints", "num_points", "seed", "way", "shot", "fold")


def check_dataset_config(config: Mapping[str, Any], where: str) -> None:
    """Check the keys of one data set entry against the constructor's signature, without touching the disk.

    Args:
        config: resolved entry: NAME, the keys of that data set, and `others`.
        where: the entry's place in the config, such as "dataset.train", for the message.

    Raises:
        ValueError: for an unknown NAME, an unknown key (with the nearest valid one) or a missing key.
    """
    check_name(config.get("NAME"), DATASETS, f"{where}.NAME")
    others = config.get("others") or {}
    if not isinstance(others, Mapping):
        raise ValueError(f"{where}.others is {others!r}; expected keys and values")
    if "bs" in others:
        check_count(others["bs"], f"{where}.others.bs")
    given = {key: value for key, value in config.items() if key not in ("NAME", "others")}
    given |= {f"others.{key}": value for key, value in others.items() if key != "bs"}
    check_settings(DATASETS[config["NAME"]], given, where, key_of=_key_of)


def _key_of(argument: str) -> str:
    """Where an entry of a config gives a constructor's argument."""
    return f"others.{argument}" if argument in OTHERS else argument.upper()


def build_dataset(config: Mapping[str, Any]) -> Dataset:
    """Build a data set from one resolved config entry.

    Args:
        config: see `check_dataset_config`; `others.bs`, the loader's batch size, is not used here.

    Raises:
        ValueError: if the entry or a file of the data set is not as described.
        FileNotFoundError: if a file of the data set is missing.
    """
    check_dataset_config(config, "dataset")
    arguments = {key.lower(): value for key, value in config.items() if key not in ("NAME", "others")}
    arguments |= {key: value for key, value in (config.get("others") or {}).items() if key != "bs"}
    return DATASETS[config["NAME"]](**arguments)


def name_of(dataset: Dataset) -> str:
    """Name of a data set, or of the one that it shuffles or is a part of; of one's own with that of its folder."""
    dataset = whole(unshuffled(dataset))
    return dataset.name if isinstance(dataset, Folder) else type(dataset).__name__


def name_of_entry(config: Mapping[str, Any]) -> str:
    """What `name_of` says of the data set that a config entry describes."""
    return name_in_results(config["ROOT"]) if config["NAME"] == Folder.__name__ else config["NAME"]


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What tells one data set from another: its kind, its size, and a hash of labels, class names and some clouds.

    The clouds are the first, the middle and the last, with their points in the order of the files; of a data set that
    draws its points anew every epoch, none; of data of one's own, all.
    """
    dataset = unshuffled(dataset)
    labels = np.asarray(dataset.labels, dtype=np.int64)
    digest = hashlib.sha256(labels.tobytes() + "\n".join(dataset.class_names).encode())
    if isinstance(whole(dataset), Folder):
        digest.update("".join(record.sha256 for record in records_of(dataset)).encode())
    elif not isinstance(whole(dataset), DrawnDataset):
        for index in sorted({0, len(labels) // 2, len(labels) - 1}):
            digest.update(_as_in_the_file(dataset, index).tobytes())
    return {"name": name_of(dataset), "clouds": len(labels), "sha256": digest.hexdigest()}


def records_of(dataset: Dataset) -> list[Record]:
    """What is known of the files of data of one's own, or of a part of it."""
    indices = dataset.indices if isinstance(dataset, Part) else range(len(dataset))
    return [whole(dataset).record(int(index)) for index in indices]


def _as_in_the_file(dataset: Dataset, index: int) -> np.ndarray:
    """A cloud before it is scaled to the unit sphere, which rounds differently on another kind of processor."""
    if isinstance(dataset, Part):
        return _as_in_the_file(dataset.dataset, int(dataset.indices[index]))
    return dataset.cloud(index) if hasattr(dataset, "cloud") else dataset[index][0].numpy()
