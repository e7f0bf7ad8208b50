"""Data of one's own: a folder of clouds or meshes, with a sub-folder for each class or without classes."""

import functools
import logging
import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datasets.draws import DrawnDataset
from datasets.own.cache import PointsCache, Record
from datasets.own.files import SPLITS, WAY_OUT, draw_split, list_files, name_of_root
from datasets.transforms import normalize_unit_sphere
from datasets.untrusted import check_choice, check_count
from utils.distributed import is_main

logger = logging.getLogger(__name__)

SHOWN = 10  # files that are left out


class Folder(DrawnDataset):
    """Clouds of `npoints` of each file's points, or drawn from its surface.

    The points of the training split are drawn anew every epoch, those of the test split stay the same. Where a file has
    fewer, they repeat. All files are read once; what was read is kept in `<ROOT>.packed/`.

    Args:
        root: folder or list, see docs/OWN_DATA.md.
        subset: train or test. Without a split on the disk, test is a fifth of each class, and of files without classes
            train is all.
        npoints: points to hand out per item, at most `n_points`.
        up: which axis of the files points up; z is turned into y, which is up here.
        normalise: move the mean of the drawn points to the origin and scale the farthest to norm 1.
        n_points: points drawn once from the surface of a mesh, and the most that are kept of a cloud.
        split_seed: of the split, and of what is drawn once from a mesh or a large cloud.
        skip_bad: files that may be unreadable; they are left out.
        seed: the draw depends on (seed, epoch, index) alone, whichever worker makes it.

    Attributes:
        class_names: names of the classes, sorted; none where there are none. All labels are 0 then.
        paths: of the files of this subset, relative to the folder or that of the list.
        split_drawn: whether the split was drawn.
        unreadable: path → why it was left out, of files of either subset.

    Raises:
        FileNotFoundError: if the folder, the list or a listed file is missing.
        ValueError: if an argument, the folder or the list is not as described, there are no such clouds, or more files
            than `skip_bad` cannot be read.
    """

    def __init__(
        self,
        root: str | Path,
        subset: str,
        npoints: int,
        up: Literal["y", "z"] = "y",
        normalise: bool = True,
        n_points: int = 8192,
        split_seed: int = 0,
        skip_bad: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.subset = check_choice(subset, SPLITS, "subset")
        self.npoints = check_count(npoints, "npoints", at_most=check_count(n_points, "N_POINTS"))
        self.up, self.normalise = check_choice(up, ("y", "z"), "UP"), normalise
        self.name = name_in_results(root)
        listing = list_files(root)
        self.split_drawn = not listing.splits and bool(listing.labels)
        splits = listing.splits or draw_split(listing, split_seed)
        self.cache = PointsCache(root, listing.folder, listing.paths, n_points, normalise, split_seed)
        self.unreadable, self.other_files = self.cache.unreadable, listing.others
        if len(self.unreadable) > skip_bad:
            raise ValueError(
                f"{len(self.unreadable)} of {len(listing.paths)} files of {self.name} cannot be read, first "
                f"{next(iter(self.unreadable.values()))}; mend or delete them, or go on without: "
                f"SKIP_BAD: {len(self.unreadable)}"
            )
        if self.unreadable:
            reasons = list(self.unreadable.values())
            more = f"; and {len(reasons) - SHOWN} more, see {self.cache.index}" if len(reasons) > SHOWN else ""
            _say_once(f"{self.name}: {len(reasons)} files are left out: {'; '.join(reasons[:SHOWN])}{more}")
        chosen = [i for i, path in enumerate(listing.paths) if splits[i] == subset and path in self.cache.records]
        if not chosen:
            why = "" if listing.labels else ", and without classes none is drawn"
            raise ValueError(f"{self.name} has no clouds of the {subset} split{why}; {WAY_OUT}")
        self.paths = [listing.paths[i] for i in chosen]
        self.class_names = listing.class_names
        names = [listing.labels[i] for i in chosen] if listing.labels else []
        self.labels = np.searchsorted(self.class_names, names) if names else np.zeros(len(chosen), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        points = torch.from_numpy(self.cloud(index))
        if self.subset == "train":
            points = points[torch.randperm(len(points), generator=self.generator(index % len(self)))]
        points = points[torch.arange(self.npoints) % len(points)]
        return normalize_unit_sphere(points) if self.normalise else points, int(self.labels[index])

    def cloud(self, index: int) -> np.ndarray:
        """Read all points kept of a file, in an order that says nothing: (N, 3) float32, y up."""
        return upright(self.cache[self.paths[index]], self.up)

    def record(self, index: int) -> Record:
        """What is known of a file."""
        return self.cache.records[self.paths[index]]


def upright(points: np.ndarray, up: str) -> np.ndarray:
    """Turn (N, 3) points whose axis `up`, y or z, points up so that y does."""
    return points if up == "y" else np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1)


@functools.cache
def _say_once(text: str) -> None:
    """Warn, the first time in a process: a run builds the data of several places. Of several processes one does."""
    if is_main():
        logger.warning("%s", text)


def name_in_results(root: str | os.PathLike[str]) -> str:
    """Name by which results speak of the data."""
    return f"{Folder.__name__} {name_of_root(root)}"
