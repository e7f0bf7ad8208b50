"""A training set split in two: what is learnt from, and what chooses a checkpoint in place of the test set."""

import copy
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset

SHARE = 0.1  # of each class that is held out


class Part(Dataset):
    """Some clouds of a data set, with an epoch of their own.

    Args:
        dataset: the whole; its clouds are shared, not copied.
        indices: of the clouds, (n,) int.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        self.dataset, self.indices = copy.copy(dataset), indices
        self.labels, self.class_names = dataset.labels[indices], dataset.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def set_epoch(self, epoch: int) -> None:
        """Draw other points from now on, where the data set draws."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


def whole(dataset: Dataset) -> Dataset:
    """Return the data set that a `Part` is of; any other as it is."""
    return dataset.dataset if isinstance(dataset, Part) else dataset


def hold_out(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split clouds at random into nine tenths and one tenth, with the same share of every class.

    Args:
        labels: (n,) int64.
        seed: of the split.

    Returns:
        Indices of the clouds that stay and of those that are held out, each ascending.

    Raises:
        ValueError: if there are too few clouds to hold some of every class out.
    """
    try:
        kept, held = train_test_split(np.arange(len(labels)), test_size=SHARE, stratify=labels, random_state=seed)
    except ValueError as error:
        raise ValueError(
            f"{len(labels)} training clouds of {len(np.unique(labels))} classes cannot be split to hold some out "
            f"({error}); give more, or use --select_on test instead of val"
        ) from error
    return np.sort(kept), np.sort(held)
