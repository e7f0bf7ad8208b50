"""Few-shot tasks drawn from ModelNet40: a few labelled clouds of a few classes to learn from, others to test on."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.hints import Entry
from datasets.pickled import fold_items
from datasets.published import fold_name
from datasets.transforms import normalize_unit_sphere
from datasets.untrusted import (
    check_choice,
    check_count,
    check_points,
    check_single_labels,
    load_pickle,
    require_file,
    require_folder,
)


class ModelNetFewShot(Dataset):
    """Whole clouds of one few-shot task, scaled to the unit sphere.

    Args:
        data_path: folder ModelNetFewshot, with <way>way_<shot>shot/<fold>.pkl.
        n_points: points per cloud in the file.
        num_category: classes of the collection that tasks are drawn from, at least `way`.
        subset: train or test.
        use_normals: items are (n, 6) with normals, instead of (n, 3).
        way: classes of the task; labels are 0 … way − 1.
        shot: training clouds of each class.
        fold: which of the draws of this setting, from 0.

    Raises:
        FileNotFoundError: if the folder or the file of the fold is missing.
        ValueError: if an argument or the file is not as described.
    """

    def __init__(
        self,
        data_path: str | Path,
        n_points: int,
        num_category: int,
        subset: str,
        use_normals: bool = False,
        way: int = 5,
        shot: int = 10,
        fold: int = 0,
    ) -> None:
        check_count(n_points, "N_POINTS")
        check_choice(use_normals, (True, False), "USE_NORMALS")
        check_choice(subset, ("train", "test"), "subset")
        check_count(way, "way", at_most=check_count(num_category, "NUM_CATEGORY"))
        check_count(shot, "shot")
        if type(fold) is not int or fold < 0:
            raise ValueError(f"fold is {fold!r}; give an integer of at least 0")
        path = require_fold(data_path, way, shot, fold, n_points)
        entry = Entry("ModelNetFewShot", "DATA_PATH", data_path, n_points)

        items = fold_items(path, load_pickle(path), subset)
        channels = 6 if use_normals else 3
        self.clouds = [
            check_points(points, f"{path}, {subset} cloud {i}", (n_points, 6), entry)[:, :channels].copy()
            for i, (points, _, _) in enumerate(items)
        ]
        self.labels = check_single_labels([label for _, label, _ in items], path, way)
        counts = np.bincount(self.labels, minlength=way)
        fits = counts == shot if subset == "train" else counts > 0
        if not fits.all():
            expected = f"{shot} of each" if subset == "train" else "some of each"
            raise ValueError(f"{path}: the {way} labels have {counts.tolist()} {subset} clouds; expected {expected}")
        self.class_names = [str(items[int((self.labels == label).argmax())][2]) for label in range(way)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        points = torch.from_numpy(self.cloud(index))
        return torch.cat([normalize_unit_sphere(points[:, :3]), points[:, 3:]], dim=1), int(self.labels[index])

    def cloud(self, index: int) -> np.ndarray:
        """Return a cloud as it is: (n_points, 3 or 6) float32."""
        return self.clouds[index]


def require_fold(
    data_path: str | os.PathLike[str], way: int, shot: int, fold: int, n_points: int | None = None
) -> Path:
    """Return the path of a fold's file; FileNotFoundError, with the ways to get it, if it is missing."""
    entry = Entry("ModelNetFewShot", "DATA_PATH", data_path, n_points)
    path = require_folder(data_path, entry) / fold_name(way, shot, fold)
    if not path.is_file():
        folds = sorted(int(file.stem) for file in path.parent.glob("*.pkl") if file.stem.isdecimal())
        there = f"choose of the folds that are there with --fold {' or '.join(map(str, folds))}; " if folds else ""
        require_file(path, replace(entry, instead=there))
    return path
