"""Points drawn, or put in another order, anew every epoch, in the same way whichever process does it."""

from typing import Any

import torch
from torch.utils.data import Dataset

from utils.seed import mixed_seed


class DrawnDataset(Dataset):
    """A data set whose items are drawn by (seed, epoch, index) alone, whichever worker draws them.

    Args:
        seed: at least 0.

    Raises:
        ValueError: if the seed is not such an integer.
    """

    def __init__(self, seed: int) -> None:
        if type(seed) is not int or seed < 0:
            raise ValueError(f"seed is {seed!r}; give an integer of at least 0")
        self.seed = seed
        self.epoch = _epoch_0()

    def __copy__(self) -> "DrawnDataset":
        """Return the same data set at epoch 0, and from then on with epochs of its own."""
        other: Any = object.__new__(type(self))
        other.__dict__ = {**self.__dict__, "epoch": _epoch_0()}
        return other

    def set_epoch(self, epoch: int) -> None:
        """Draw other points from now on, in this process and in running workers."""
        self.epoch.fill_(epoch)

    def generator(self, index: int) -> torch.Generator:
        """Return the generator of item `index` (not negative) in this epoch."""
        return torch.Generator().manual_seed(mixed_seed(self.seed, int(self.epoch), index))


class Shuffled(DrawnDataset):
    """A data set with the points of each cloud in another random order every epoch.

    Farthest point sampling starts at a cloud's first point, so in training it starts elsewhere every time.

    Args:
        dataset: its items begin with the points (N, C); what follows them stays as it is. Shared, not copied.
        seed: the order depends on (seed, epoch, index) alone, whichever worker makes it.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        super().__init__(seed)
        self.dataset = dataset
        self.labels, self.class_names = dataset.labels, dataset.class_names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        points, *others = self.dataset[index]
        order = torch.randperm(len(points), generator=self.generator(index % len(self)))
        return points[order], *others


def unshuffled(dataset: Dataset) -> Dataset:
    """Return the data set that `Shuffled` shuffles, with points in the order of the files; any other as it is."""
    return dataset.dataset if isinstance(dataset, Shuffled) else dataset


def _epoch_0() -> torch.Tensor:
    return torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change
