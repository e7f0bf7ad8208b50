"""S3DIS: scanned rooms whose points are labelled with 13 classes; blocks of them to learn from, rooms to test on."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.draws import DrawnDataset
from datasets.hints import Entry
from datasets.listings import room_files
from datasets.published import ROOM_CLASSES, TEST_AREA
from datasets.untrusted import check_choice, check_count, check_points, load_npy, require_folder

BLOCK = 1.0  # side of a block's square floor, metres
STRIDE = 0.5  # from one block of a tested room to the next
PADDING = 0.001  # by which a tested block reaches further
LEAST_POINTS = 1024  # a block to learn from holds more
MAX_DRAWS = 1000  # of a block that holds so many


class Room(NamedTuple):
    """One room."""

    path: Path
    points: np.ndarray  # (N, 3) float32, metres; the floor is near z = 0
    classes: np.ndarray  # (N,) uint8


class Block(NamedTuple):
    """A part of a room, in as many clouds as hold all of its points."""

    index: Tensor  # (clouds, npoints) int64: which points of the room
    points: Tensor  # (clouds, npoints, 3)


class S3DIS(DrawnDataset):
    """Blocks of 1 m × 1 m around points drawn at random, anew every epoch, `npoints` of each block.

    Items are points (npoints, 3), x and y relative to the point drawn and z as it is, and the class of each point
    (npoints,). A room gives as many blocks an epoch as `npoints` goes into its points. Rooms are read at once and kept:
    13 bytes a point, 3.5 GB for all published ones.

    Args:
        root: folder of Area_<area>_<room>.npy, (N, 7) with `x y z r g b class` a row; colours are not used.
        subset: train (the rooms of all areas but 5) or test (those of area 5).
        npoints: points of an item; a block that has fewer gives some of them more than once.
        seed: the draw depends on (seed, epoch, index) alone, whichever worker makes it.

    Raises:
        FileNotFoundError: if the folder is missing or has no such room.
        ValueError: if an argument or a file is not as described, or (when drawn) a room is nowhere dense enough.

    Attributes:
        rooms: what has been read.
        labels: the number of each item's room.
        class_names: names of the classes.
    """

    def __init__(self, root: str | Path, subset: str, npoints: int, seed: int = 0) -> None:
        super().__init__(seed)
        check_choice(subset, ("train", "test"), "subset")
        self.npoints = check_count(npoints, "npoints")
        entry = Entry("S3DIS", "ROOT", root)
        files = room_files(require_folder(root, entry))[subset]
        if not files:
            areas = f"area {TEST_AREA}" if subset == "test" else f"an area other than {TEST_AREA}"
            raise FileNotFoundError(
                f"{root} has no room of {areas}, Area_<area>_<room>.npy, to {subset} on (config key ROOT); "
                f"{entry.way_out()}"
            )
        self.rooms = [read_room(path) for path in files]
        self.class_names = ROOM_CLASSES
        blocks = [max(1, round(len(room.points) / npoints)) for room in self.rooms]
        self.labels = np.repeat(np.arange(len(self.rooms)), blocks)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = range(len(self))[index]
        room, generator = self.rooms[self.labels[index]], self.generator(index)
        for _ in range(MAX_DRAWS):
            center = room.points[int(torch.randint(len(room.points), (), generator=generator))].copy()
            inside = np.flatnonzero(_within(room.points, center[:2], BLOCK / 2))
            if len(inside) > LEAST_POINTS:
                break
        else:
            raise ValueError(
                f"{room.path}: none of {MAX_DRAWS} blocks of {BLOCK:g} m × {BLOCK:g} m holds more than {LEAST_POINTS} "
                "points; coordinates must be in metres, and a room that is scanned so thinly cannot be used"
            )
        chosen = inside[_draw(len(inside), self.npoints, generator)]
        center[2] = 0.0
        return torch.from_numpy(room.points[chosen] - center), torch.from_numpy(room.classes[chosen]).long()

    def class_weights(self) -> Tensor:
        """The weight of each class in the loss, (13,) float32; 0 for a class without a point.

        It is the third root of how many times rarer the class is than the commonest.
        """
        counts = sum(np.bincount(room.classes, minlength=len(ROOM_CLASSES)) for room in self.rooms)
        frequency = torch.from_numpy(np.asarray(counts, dtype=np.float64))
        weights = (frequency.max() / frequency) ** (1 / 3)
        return torch.where(frequency > 0, weights, 0.0).float()


def read_room(path: Path) -> Room:
    """Read one room.

    Raises:
        ValueError: if the file is no (N, 7) array of floats, a coordinate is not finite, or a class is none of the 13.
    """
    rows = load_npy(path, "r")
    if getattr(rows, "ndim", 0) != 2 or rows.shape[1] != 7:
        raise ValueError(f"{path}: shape {getattr(rows, 'shape', None)}; expected (points, 7): x y z r g b class")
    points = check_points(rows[:, :3], path, (None, 3))
    if (wrong := ~np.isin(rows[:, 6], np.arange(len(ROOM_CLASSES)))).any():
        row = int(wrong.argmax())
        raise ValueError(f"{path}: class {rows[row, 6]} in row {row}; expected an integer below {len(ROOM_CLASSES)}")
    return Room(path, points, rows[:, 6].astype(np.uint8))


def blocks_of(room: Room, npoints: int, generator: torch.Generator) -> Iterator[Block]:
    """Cut a whole room into overlapping blocks, whose points come in random order.

    Args:
        room: the room.
        npoints: points of a cloud; the last cloud of a block is filled up with points of the block that repeat.
        generator: of the order and of what repeats.
    """
    low, high = room.points[:, :2].min(axis=0), room.points[:, :2].max(axis=0)
    for x in _starts(low[0], high[0]):
        for y in _starts(low[1], high[1]):
            center = np.array([x, y], dtype=np.float32) + np.float32(BLOCK / 2)
            inside = np.flatnonzero(_within(room.points, center, BLOCK / 2 + PADDING))
            if not len(inside):
                continue
            wanted = math.ceil(len(inside) / npoints) * npoints
            filled = np.concatenate([inside, inside[_draw(len(inside), wanted - len(inside), generator)]])
            index = torch.from_numpy(filled)[torch.randperm(wanted, generator=generator)].view(-1, npoints)
            points = torch.from_numpy(room.points)[index]
            yield Block(index, points - torch.tensor([*center, 0.0], dtype=points.dtype))


def _starts(low: float, high: float) -> list[float]:
    """Where blocks begin along one side of a room, the last one so that it ends with the room."""
    number = max(1, math.ceil((high - low - BLOCK) / STRIDE) + 1)
    return [min(low + i * STRIDE + BLOCK, high) - BLOCK for i in range(number)]


def _within(points: np.ndarray, center: np.ndarray, reach: float) -> np.ndarray:
    """Which points stand over a square around (x, y), (N,) bool."""
    return (np.abs(points[:, :2] - center) <= np.float32(reach)).all(axis=1)


def _draw(available: int, wanted: int, generator: torch.Generator) -> np.ndarray:
    """Numbers of `wanted` points out of `available`: different ones, or some twice where there are too few."""
    if wanted <= available:
        return torch.randperm(available, generator=generator)[:wanted].numpy()
    return torch.randint(available, (wanted,), generator=generator).numpy()
