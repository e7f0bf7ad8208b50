"""Points drawn from surfaces, arrays of triangles (F, 3, 3)."""

import numpy as np
from numpy.typing import NDArray


def triangle_areas(triangles: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the area of each triangle, (F,) for triangles (F, 3, 3)."""
    return np.linalg.norm(edge_products(triangles), axis=1) / 2


def edge_products(triangles: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return (F, 3), normal to each triangle and twice as long as its area."""
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def draw_points(
    triangles: NDArray[np.floating], num_points: int, rng: np.random.Generator
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """Draw points evenly by area, in random order.

    Args:
        triangles: (F, 3, 3), of which one at least has an area.
        num_points: how many.
        rng: source of the draws.

    Returns:
        Points (num_points, 3), and the triangle (num_points,) that each lies in.
    """
    cumulative = np.cumsum(triangle_areas(triangles))
    face = np.searchsorted(cumulative, rng.random(num_points) * cumulative[-1], side="right")
    first, second = rng.random((2, num_points, 1))
    beyond = first + second > 1
    first, second = np.where(beyond, 1 - first, first), np.where(beyond, 1 - second, second)
    origin, *corners = np.moveaxis(triangles[face], 1, 0)
    return origin + first * (corners[0] - origin) + second * (corners[1] - origin), face
