"""Draw rooms: floor, ceiling and walls with furniture on the floor, labelled as S3DIS is."""

import numpy as np

from ..published import ROOM_CLASSES
from .sampling import sample_shape

HEIGHT = 2.5  # metres
FURNITURE = {"table": 0.8, "chair": 0.5, "sofa": 0.9, "bookshelf": 1.0, "lamp": 0.5}  # → half its size, metres
NAMES = {"bookshelf": "bookcase", "lamp": "clutter"}  # of those that S3DIS calls otherwise
PIECES = 4  # of furniture in a room
SHELL = 0.5  # share of the points on floor, ceiling and walls
NOISE = 0.005  # metres


def sample_room(area: int, number: int, num_points: int, side: float, seed: int = 0) -> np.ndarray:
    """Return one room.

    Args:
        area, number: which room; another number, area or seed gives another.
        num_points: points N of it, at least 20.
        side: of the square floor, metres.
        seed: of the collection.

    Returns:
        (N, 7) float64: x y z from the room's corner in metres, r g b from 0 to 255, class.
    """
    rng = np.random.default_rng([seed, area, number])
    of_shell = round(SHELL * num_points)
    parts = [_shell(of_shell, side, rng)]
    kinds = rng.permutation(list(FURNITURE))[:PIECES]
    for i, kind in enumerate(kinds):
        share = (num_points - of_shell) * (i + 1) // PIECES - (num_points - of_shell) * i // PIECES
        half = min(FURNITURE[kind], side / 3)
        points = half * sample_shape(kind, 100 * area + number, share, seed, "s3dis").points[:, [0, 2, 1]].astype(float)
        place = np.append(rng.uniform(half, side - half, 2), -points[:, 2].min())
        parts.append(np.column_stack([points + place, np.full(share, ROOM_CLASSES.index(NAMES.get(kind, kind)))]))
    rows = rng.permutation(np.concatenate(parts))
    rows[:, :3] = np.clip(rows[:, :3] + rng.normal(0, NOISE, (num_points, 3)), 0, [side, side, HEIGHT])
    colours = rng.integers(0, 256, (len(ROOM_CLASSES), 3))[rows[:, 3].astype(int)]
    return np.column_stack([rows[:, :3], colours, rows[:, 3]])


def _shell(num_points: int, side: float, rng: np.random.Generator) -> np.ndarray:
    """Points of floor, ceiling and walls, each by its area; (N, 4), the class last."""
    areas = np.array([side * side] * 2 + [side * HEIGHT] * 4)
    face = rng.choice(6, num_points, p=areas / areas.sum())
    points = rng.uniform(0, [side, side, HEIGHT], (num_points, 3))
    for which, (axis, value) in enumerate([(2, 0), (2, HEIGHT), (0, 0), (0, side), (1, 0), (1, side)]):
        points[face == which, axis] = value
    classes = np.array([ROOM_CLASSES.index(name) for name in ("floor", "ceiling", *["wall"] * 4)])
    return np.column_stack([points, classes[face]])
