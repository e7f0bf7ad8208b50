"""Clouds to look at: of files, or of the split of a data set that its model has not been trained on."""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets import build_dataset, name_of
from datasets.own.files import list_files
from datasets.own.formats import FORMATS, MissingLibrary, read_points
from datasets.transforms import normalize_unit_sphere
from tools.training.builder import with_seed
from utils.nearest import did_you_mean_path
from utils.seed import mixed_seed

logger = logging.getLogger(__name__)

MOST_POINTS = 8192  # kept of a file


@dataclass(frozen=True)
class Clouds:
    """Some clouds, all of as many points.

    Attributes:
        points: (B, N, 3), y up.
        names: of the clouds.
        source: where they are from, in words.
        labels: (B,) int64 classes or categories, None where they are not known.
        parts: (B, N) int64, None where they are not known.
    """

    points: Tensor
    names: list[str]
    source: str
    labels: Tensor | None = None
    parts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.points)


def unseen_split(config: dict[str, Any], seed: int) -> Dataset:
    """The split on which the model of a config is tested: `dataset.test`, or that of its other data.

    Args:
        config: resolved.
        seed: of a data set that draws points.

    Raises:
        FileNotFoundError: if it is not on the disk.
        ValueError: if there is none, or a file of it is not as described.
    """
    data = config["dataset"]
    if "train" in data and "test" not in data:
        others = data["train"].get("others") or {}
        entry = {**data["train"], "others": {**others, "partition" if "partition" in others else "subset": "test"}}
    else:
        entry = data.get("test") or data.get("svm_test")
    if entry is None:
        raise ValueError("the config has no dataset.test, dataset.train or dataset.svm_test to take shapes from")
    return build_dataset(with_seed(entry, seed))


def unseen_or_seen(config: dict[str, Any], seen: Dataset, seed: int, count: int) -> Tensor:
    """Some shapes of the split that a model in training does not see, or of the one that it does; (count, N, 3).

    Args:
        config: resolved.
        seen: what is trained on. Its shapes are taken, and that is said in the log, where no others can be read.
        seed: of the points.
        count: of shapes, at most.
    """
    try:
        return of_dataset(unseen_split(config, seed), count).points
    except (ValueError, FileNotFoundError) as error:
        logger.info("reconstructions will be drawn of shapes that are trained on: %s", error)
        return of_dataset(seen, count).points


def first_of_each(labels: np.ndarray, count: int) -> list[int]:
    """Choose `count` items: the first of each class, then the second of each, and so on, each time by class."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    place = np.arange(len(labels)) - np.searchsorted(ordered, ordered)  # within its class
    return order[np.lexsort((ordered, place))][:count].tolist()


def of_dataset(dataset: Dataset, count: int) -> Clouds:
    """Take some items of a data set, of as many classes as there can be; their parts too, where it has them."""
    chosen = first_of_each(np.asarray(dataset.labels), count)
    items = [dataset[index] for index in chosen]
    columns = [torch.stack([torch.as_tensor(value) for value in column]) for column in zip(*items, strict=True)]
    points, labels, *parts = columns
    numbered = dataset.class_names or ["cloud"]
    names = [f"{numbered[int(label)]}, item {index}" for label, index in zip(labels, chosen, strict=True)]
    return Clouds(points, names, f"{name_of(dataset)}, test split", labels, *parts)


def of_files(inputs: Sequence[Path], count: int, num_points: int, up: str, seed: int) -> Clouds:
    """Read files of any kind that data of one's own may have, and scale each cloud to the unit sphere.

    Args:
        inputs: files and folders, or lists of files; see docs/OWN_DATA.md.
        count: the most to read.
        num_points: of each; those of a smaller file repeat.
        up: the axis of the files that points up, y or z.
        seed: of what is drawn of a mesh or a large cloud.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if one is of no kind that is read, or cannot be read; the message names it.
    """
    paths = [path for given in inputs for path in _files_of(given)]
    clouds = [_read(path, num_points, up, seed) for path in paths[:count]]
    more = f", the first {count} of {len(paths)}" if len(paths) > count else ""
    return Clouds(torch.stack(clouds), ["/".join(path.parts[-2:]) for path in paths[:count]], f"files{more}")


def _files_of(given: Path) -> list[Path]:
    if given.is_dir() or given.suffix.lower() == ".json":
        listing = list_files(given)
        return [listing.folder / path for path in listing.paths]
    if not given.exists():
        hint = did_you_mean_path(given, Path.exists)
        raise FileNotFoundError(f"INPUT {given} does not exist; {hint}give a cloud, a mesh or a folder of them")
    if given.suffix.lower() not in FORMATS:
        raise ValueError(f"INPUT {given} is of no kind that is read: {', '.join(FORMATS)}; see docs/OWN_DATA.md")
    return [given]


def _read(path: Path, num_points: int, up: str, seed: int) -> Tensor:
    """Read a file: (num_points, 3) in the unit sphere, y up."""
    rng = np.random.default_rng(mixed_seed(seed, zlib.crc32(path.name.encode())))
    try:
        found, _ = read_points(path, MOST_POINTS, rng)
    except MissingLibrary as error:
        raise MissingLibrary(f"{path}: {error}") from error
    points = torch.from_numpy(found)[torch.arange(num_points) % len(found)]
    x, y, z = points.unbind(-1)
    return normalize_unit_sphere(points if up == "y" else torch.stack([x, z, -y], dim=-1))
