"""Points drawn anew every epoch, the same ones whichever process draws them."""

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


def _epoch_0() -> torch.Tensor:
    return torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change
