"""Batches of ShapeNet-55 made on the training device, where the whole data set stays."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from datasets.shapenet55 import ShapeNet
from datasets.transforms import normalize_unit_sphere, random_subset
from utils.device import free_memory
from utils.logger import progress
from utils.seed import mixed_seed

CHUNK = 256  # clouds copied to the device at once
STREAM = 100  # of random numbers: apart from those that the training loop seeds with (seed, epoch, 0 …)


class ResidentLoader:
    """Shuffled full batches of a data set that is read once and then kept on the device: no workers, no copies.

    It yields (points (B, npoints, 3) float32, labels (B,) int64) on the device, as a loader over the data set would:
    clouds in the order of `generator`, of each a random subset of `npoints` points, centred and scaled to the unit
    sphere. Subsets are as likely as the reader's but not the same ones, since the device draws them; they follow from
    the data set's seed and epoch, the rank and the number of the batch.

    Args:
        dataset: what to keep: `len(dataset)` × `n_points` × 12 bytes, 4.1 GB for the published training set.
        batch_size: clouds per batch and process. What fills no batch at the end is left out.
        device: where to keep it.
        rank: of this process, from 0.
        world_size: processes that share an epoch. With generators in the same state they get different clouds, each
            the same number of batches.

    Raises:
        FileNotFoundError: if a file of the data set is missing.
        ValueError: if a cloud is not as described, there is not one batch per process, or the device is too full.
    """

    def __init__(
        self, dataset: ShapeNet, batch_size: int, device: torch.device, rank: int = 0, world_size: int = 1
    ) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, device
        self.rank, self.world_size, self.start = rank, world_size, 0
        if len(self) == 0:
            raise ValueError(
                f"{len(dataset)} training clouds are fewer than one batch of {batch_size} for each of {world_size} "
                "processes; lower total_bs in the config"
            )
        shape = (len(dataset), dataset.n_points, 3)
        needed, free = 4 * math.prod(shape), free_memory(device)
        if needed > free:
            raise ValueError(
                f"keeping {len(dataset)} clouds on {device} takes {needed:,} bytes, but {free:,} are free; "
                "drop --resident_data"
            )
        self.generator = torch.Generator().manual_seed(dataset.seed)  # of the order
        self.labels = torch.from_numpy(dataset.labels).to(device)
        self.clouds = torch.empty(shape, device=device)
        for first in progress(range(0, len(dataset), CHUNK), f"loading the data set onto {device}"):
            rows = range(first, min(first + CHUNK, len(dataset)))
            chunk = torch.from_numpy(np.stack([dataset.cloud(row) for row in rows]))
            self.clouds[first : first + CHUNK] = chunk.to(device)

    def begin(self, epoch: int, seed: int, start: int = 0) -> None:
        """Choose the epoch, the seed of its order, and how many of its batches to leave out."""
        self.dataset.set_epoch(epoch)
        self.generator.manual_seed(seed)
        self.start = start

    def __len__(self) -> int:
        return len(self.dataset) // self.world_size // self.batch_size - self.start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.dataset), generator=self.generator)
        share = order[self.rank :: self.world_size].to(self.device)
        draws = torch.Generator(self.device)
        for batch in range(self.start, self.start + len(self)):
            rows = share[batch * self.batch_size : (batch + 1) * self.batch_size]
            draws.manual_seed(mixed_seed(self.dataset.seed, int(self.dataset.epoch), STREAM, self.rank, batch))
            points = random_subset(self.clouds[rows], self.dataset.npoints, draws)  # (B, npoints, 3)
            yield normalize_unit_sphere(points), self.labels[rows]
