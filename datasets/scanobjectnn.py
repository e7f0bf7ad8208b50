"""ScanObjectNN: objects cut out of scanned rooms, in its three published variants."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.hints import Entry
from datasets.published import SCAN_CLASS_NAMES, SCAN_SPLITS
from datasets.untrusted import check_choice, check_count, check_labels, read_h5, read_lines, require_folder


class ScanObjectNN(Dataset):
    """Clouds of one variant, as they are: neither centred nor scaled.

    Args:
        root: folder that holds main_split and main_split_nobg; shape_names.txt, where present, gives the class names
            instead of the published 15.
        split: obj-bg (objects with background), obj (without), or pb (with background; moved, turned and scaled boxes).
        subset: train or test.
        npoints: take the first so many of the 2048 points; None takes all.

    Raises:
        FileNotFoundError: if a folder or the file is missing.
        ValueError: if an argument or the file is not as described.
    """

    def __init__(self, root: str | Path, split: str, subset: str, npoints: int | None = None) -> None:
        check_choice(split, tuple(SCAN_SPLITS), "SPLIT")
        check_choice(subset, ("train", "test"), "subset")
        if npoints is not None:
            check_count(npoints, "npoints")
        entry = Entry("ScanObjectNN", "ROOT", root, npoints)
        base = require_folder(root, entry)
        folder, ending = SCAN_SPLITS[split]
        part = {"train": "training", "test": "test"}[subset]
        path = base / folder / f"{part}_objectdataset{ending}.h5"
        self.points, labels = read_h5(path, entry, npoints)
        names = base / "shape_names.txt"
        self.class_names = read_lines(names, entry) if names.is_file() else SCAN_CLASS_NAMES
        self.labels = check_labels(labels, path, len(self.class_names))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.points[index].copy()), int(self.labels[index])
