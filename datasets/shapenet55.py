"""ShapeNet-55: 8192 points per shape, one .npy file each, named by two lists. The pre-training set."""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.draws import DrawnDataset
from datasets.hints import Entry
from datasets.packed import PackedClouds, index_file, read_list
from datasets.transforms import normalize_unit_sphere
from datasets.untrusted import (
    check_choice,
    check_count,
    read_npy,
    require_folder,
    require_listed,
    safe_join,
)

logger = logging.getLogger(__name__)

LISTS = {"train": ("train",), "test": ("test",), "whole": ("train", "test")}  # subset → its lists


class ShapeNet(DrawnDataset):
    """Clouds of `npoints` of each shape's points, drawn anew every epoch, centred and scaled to the unit sphere.

    Where `python -m datasets.pack` has packed the files, the pack is read instead of them, with the same result; the
    files are then not needed any more.

    Args:
        data_path: folder of train.txt and test.txt, each with lines `<taxonomy>-<model>.npy`.
        pc_path: folder of the .npy files, (n_points, 3) float32 each.
        n_points: points per file.
        subset: train, test, or whole: the training shapes and after them the test shapes.
        npoints: points to draw per item, at most `n_points`.
        seed: the draw depends on (seed, epoch, index) alone, whichever worker makes it.

    Raises:
        FileNotFoundError: if a folder, the list, or a listed file is missing.
        ValueError: if an argument, the list, the pack, or (when read) a cloud is not as described.
    """

    def __init__(
        self, data_path: str | Path, pc_path: str | Path, n_points: int, subset: str, npoints: int, seed: int = 0
    ) -> None:
        super().__init__(seed)
        self.n_points = check_count(n_points, "N_POINTS")
        self.npoints = check_count(npoints, "npoints", at_most=self.n_points)
        check_choice(subset, LISTS, "subset")
        entry = Entry("ShapeNet", "DATA_PATH", data_path, n_points)
        self.entry = Entry("ShapeNet", "PC_PATH", pc_path, n_points)
        listings = {name: require_folder(data_path, entry) / f"{name}.txt" for name in LISTS[subset]}
        lists = {name: read_list(listing, entry) for name, listing in listings.items()}

        self.packed: PackedClouds | None = None
        if index_file(pc_path).is_file():
            self.packed = PackedClouds(data_path, pc_path, n_points, lists)
            logger.info("reading the packed clouds %s", self.packed.path)
        else:
            folder = require_folder(pc_path, self.entry)
            self.files = []
            for name, listing in listings.items():
                files = [safe_join(folder, file) for file in lists[name]]
                require_listed(files, listing, self.entry)
                self.files += files

        taxonomies = [name.partition("-")[0] for names in lists.values() for name in names]
        self.class_names = sorted(set(taxonomies))
        self.labels = np.searchsorted(self.class_names, taxonomies).astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        points = torch.from_numpy(self.cloud(index))
        chosen = torch.randperm(self.n_points, generator=self.generator(index % len(self)))[: self.npoints]
        return normalize_unit_sphere(points[chosen]), int(self.labels[index])

    def cloud(self, index: int) -> np.ndarray:
        """Read all points of a shape, as they are: (n_points, 3) float32."""
        if self.packed is not None:
            return self.packed[index]
        return read_npy(self.files[index], (self.n_points, 3), self.entry)
