"""Surfaces from which the shapes are put together: arrays of triangles (F, 3, 3), wound so that normals point outwards.

Stretching one is `surface * (sx, sy, sz)` with positive factors. Axes are 0 = x, 1 = y (up), 2 = z.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..surfaces import edge_products, triangle_areas

Triangles = NDArray[np.floating]


def triangle_normals(triangles: Triangles) -> NDArray[np.floating]:
    """Return the outward unit normals, (F, 3) for triangles (F, 3, 3) of positive area."""
    products = edge_products(triangles)
    return products / np.linalg.norm(products, axis=1, keepdims=True)


def join(*surfaces: Triangles) -> Triangles:
    """Put surfaces together into one array of triangles (F, 3, 3)."""
    return np.concatenate(surfaces)


def move(triangles: Triangles, x: float, y: float, z: float) -> Triangles:
    """Shift a surface, or other points (..., 3)."""
    return triangles + np.array([x, y, z])


def rotate(triangles: Triangles, axis: int, angle: float) -> Triangles:
    """Rotate a surface, or other points (..., 3), about a coordinate axis, counter-clockwise by `angle` radians."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    rotated = triangles.copy()
    rotated[..., first] = np.cos(angle) * triangles[..., first] - np.sin(angle) * triangles[..., second]
    rotated[..., second] = np.sin(angle) * triangles[..., first] + np.cos(angle) * triangles[..., second]
    return rotated


def mirror(triangles: Triangles, axis: int) -> Triangles:
    """Reflect along a coordinate axis; the winding is reversed so that normals stay outward."""
    reflected = triangles[:, ::-1].copy()
    reflected[..., axis] *= -1
    return reflected


def both_sides(triangles: Triangles, axis: int = 0) -> Triangles:
    """Return the surface together with its mirror image along `axis`."""
    return join(triangles, mirror(triangles, axis))


def box(width: float, height: float, depth: float) -> Triangles:
    """Return a box around the origin with sides along x, y and z."""
    outline = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (width / 2, height / 2)
    return extrude(outline, depth)


def extrude(outline: ArrayLike, thickness: float, axis: int = 2) -> Triangles:
    """Return a closed plate of a given outline.

    Args:
        outline: (P, 2) corners in order, on the two axes that follow `axis` cyclically (axis 2: x, y; axis 0: y, z;
            axis 1: z, x). The polygon must be visible from the mean of its corners.
        thickness: extent along `axis`, centred on 0.
        axis: the direction of extrusion.

    Returns:
        (4P, 3, 3) triangles.
    """
    corners = np.asarray(outline, dtype=float)
    following = np.roll(corners, -1, axis=0)
    if np.sum(corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]) < 0:
        corners = corners[::-1]
        following = np.roll(corners, -1, axis=0)
    centre = np.broadcast_to(corners.mean(axis=0), corners.shape)

    def lift(points: np.ndarray, height: float) -> np.ndarray:
        return np.column_stack([points, np.full(len(points), height)])

    half = thickness / 2
    low, low_next = lift(corners, -half), lift(following, -half)
    high, high_next = lift(corners, half), lift(following, half)
    faces = [
        (lift(centre, half), high, high_next),
        (lift(centre, -half), low_next, low),
        (low, low_next, high_next),
        (low, high_next, high),
    ]
    return np.roll(join(*(np.stack(face, axis=1) for face in faces)), axis - 2, axis=-1)


def revolve(profile: ArrayLike, axis: int = 1, segments: int = 28) -> Triangles:
    """Return a surface of revolution.

    Args:
        profile: (P, 2) pairs (radius, height); the outside lies to the right of the direction of travel, so a closed
            body starts on the axis at its bottom and ends on the axis at its top.
        axis: the axis of revolution.
        segments: sides of the circle.
    """
    radius, height = np.asarray(profile, dtype=float).T[..., None]
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    vertices = np.stack(np.broadcast_arrays(radius * np.cos(angle), height, radius * np.sin(angle)), axis=-1)
    return np.roll(_grid(vertices), axis - 1, axis=-1)


def cylinder(radius: float, height: float, top_radius: float | None = None, axis: int = 1) -> Triangles:
    """Return a capped cylinder, or cone frustum, standing on the origin along `axis`."""
    top = radius if top_radius is None else top_radius
    return revolve([(0, 0), (radius, 0), (top, height), (0, height)], axis)


def ellipsoid(width: float, height: float, depth: float, start: float = -0.5, stop: float = 0.5) -> Triangles:
    """Return an ellipsoid around the origin, or the zone of it between two latitudes in units of pi (open at a cut)."""
    latitude = np.pi * np.linspace(start, stop, 14)
    sphere = revolve(np.column_stack([np.cos(latitude), np.sin(latitude)]))
    return sphere * (width / 2, height / 2, depth / 2)


def torus(radius: float, tube_radius: float, axis: int = 1) -> Triangles:
    """Return a torus around the origin; `radius` reaches the middle of the tube."""
    angle = np.linspace(-np.pi, np.pi, 13)
    return revolve(np.column_stack([radius + tube_radius * np.cos(angle), tube_radius * np.sin(angle)]), axis)


def tube(path: ArrayLike, radius: ArrayLike, segments: int = 12) -> Triangles:
    """Return a capped tube along a path that lies in a plane.

    Args:
        path: (P, 3) points, P ≥ 2.
        radius: one radius, or P of them.
        segments: sides of the cross-section; 4 makes a square bar.
    """
    points = np.asarray(path, dtype=float)
    tangent = np.gradient(points, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    plane_normal = np.linalg.svd(tangent)[2][-1]
    right = np.cross(tangent, plane_normal)
    up = np.cross(right, tangent)
    angle = np.linspace(0, 2 * np.pi, segments + 1) + np.pi / segments
    ring = right[:, None] * np.cos(angle)[:, None] + up[:, None] * np.sin(angle)[:, None]  # (P, segments + 1, 3)
    wall = points[:, None] + ring * np.broadcast_to(radius, len(points))[:, None, None]
    first, last = (np.broadcast_to(points[end], wall[:1].shape) for end in (0, -1))
    return _grid(join(first, wall, last))


def arc(radius: float, start: float, stop: float) -> NDArray[np.float64]:
    """Return (16, 3) points on a circle about the z axis, between two angles in units of pi."""
    angle = np.pi * np.linspace(start, stop, 16)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle), 0 * angle])


def _grid(vertices: np.ndarray) -> Triangles:
    """Triangulate a grid of vertices (P, Q, 3); normals are (direction of P) × (direction of Q)."""
    a, b, c, d = vertices[:-1, :-1], vertices[1:, :-1], vertices[1:, 1:], vertices[:-1, 1:]
    triangles = join(*(np.stack(corners, axis=2).reshape(-1, 3, 3) for corners in ((a, b, c), (a, c, d))))
    return triangles[triangle_areas(triangles) > 1e-12]
