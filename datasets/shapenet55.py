"""ShapeNet-55: 8192 points per shape, one .npy file each, named by two lists. The pre-training set."""

import re

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.transforms import normalize_unit_sphere
from datasets.untrusted import (
    check_choice,
    check_count,
    read_lines,
    read_npy,
    require_folder,
    require_listed,
    safe_join,
)


class ShapeNet(Dataset):
    """Clouds of `npoints` of each shape's points, drawn anew every epoch, centred and scaled to the unit sphere.

    Args:
        data_path: folder of train.txt and test.txt, each with lines `<taxonomy>-<model>.npy`.
        pc_path: folder of the .npy files, (n_points, 3) float32 each.
        n_points: points per file.
        subset: train or test.
        npoints: points to draw per item, at most `n_points`.
        seed: the draw depends on (seed, epoch, index) alone, whichever worker makes it.

    Raises:
        FileNotFoundError: if a folder, the list, or a listed file is missing.
        ValueError: if an argument, the list, or (when read) a file is not as described.
    """

    def __init__(self, data_path: str, pc_path: str, n_points: int, subset: str, npoints: int, seed: int = 0) -> None:
        self.n_points = check_count(n_points, "N_POINTS")
        self.npoints = check_count(npoints, "npoints", at_most=self.n_points)
        if type(seed) is not int or seed < 0:
            raise ValueError(f"seed is {seed!r}; give an integer of at least 0")
        self.seed = seed
        check_choice(subset, ("train", "test"), "subset")
        listing = require_folder(data_path, "DATA_PATH") / f"{subset}.txt"
        folder = require_folder(pc_path, "PC_PATH")

        names = read_lines(listing, "DATA_PATH")
        matches = [re.fullmatch(r"(\d+)-.+\.npy", name) for name in names]
        if None in matches:
            bad = names[matches.index(None)]
            raise ValueError(f"{listing}: {bad!r} is not of the form <taxonomy>-<model>.npy")
        self.files = [safe_join(folder, name) for name in names]
        require_listed(self.files, listing, "PC_PATH")

        taxonomies = [match[1] for match in matches if match]
        self.class_names = sorted(set(taxonomies))
        self.labels = np.searchsorted(self.class_names, taxonomies).astype(np.int64)
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Draw other points from now on, in this process and in running workers."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        points = torch.from_numpy(read_npy(self.files[index], (self.n_points, 3), "PC_PATH"))
        chosen = torch.randperm(self.n_points, generator=self._generator(index))[: self.npoints]
        return normalize_unit_sphere(points[chosen]), int(self.labels[index])

    def _generator(self, index: int) -> torch.Generator:
        mixed = np.random.SeedSequence((self.seed, int(self.epoch), index % len(self))).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed[0]))
