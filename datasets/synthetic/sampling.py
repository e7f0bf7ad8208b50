"""Draw point clouds from the catalogue: clean ones, and scans with their faults."""

import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.nearest import did_you_mean

from ..published import SCAN_SPLITS
from ..surfaces import draw_points
from .catalogue import CATALOGUE
from .primitives import Triangles, box, join, rotate, triangle_normals

BACKGROUND = -1
SCAN_VARIANTS = tuple(SCAN_SPLITS)
PIXEL, DEPTH_TOLERANCE = 0.045, 0.1  # of the cameras, in the unit of the scene
SCENE_POINTS = 24_000  # dense enough that nothing shines through at the resolution of `_visible`


class Cloud(NamedTuple):
    """Points with unit normals and part ids (index into the parts of the class; `BACKGROUND` where none)."""

    points: NDArray[np.float32]  # (N, 3)
    normals: NDArray[np.float32]  # (N, 3)
    parts: NDArray[np.int64]  # (N,)


class Surface(NamedTuple):
    """Triangles with a part id each."""

    triangles: Triangles  # (F, 3, 3)
    parts: NDArray[np.int64]  # (F,)


def sample_shape(class_name: str, index: int, num_points: int = 2048, seed: int = 0, stream: str = "") -> Cloud:
    """Return one clean shape, sampled evenly by area, centred and scaled to the unit sphere.

    Args:
        class_name: a name of `CATALOGUE`.
        index: which shape of the class; shape i is the same whatever else is drawn.
        num_points: number of points N, in random order.
        seed: seed of the whole collection.
        stream: name of the collection, such as "shapenet/train"; another name gives other shapes.

    Returns:
        points (N, 3), normals (N, 3), parts (N,).

    Raises:
        ValueError: if the class is unknown or `num_points` < 2.
    """
    rng = _shape_rng(class_name, index, seed, stream, num_points)
    cloud = sample_surface(draw_surface(class_name, rng), num_points, rng)
    return cloud._replace(points=_to_unit_sphere(cloud.points))


def sample_scan(
    class_name: str, index: int, num_points: int = 2048, seed: int = 0, stream: str = "", variant: str = "obj-bg"
) -> Cloud:
    """Return one shape as a depth camera would see it, centred and scaled to the unit sphere.

    The shape stands on a floor beside a part of another one, turned about y, seen from one or two sides, with noise.
    "obj-bg" is what lies in the shape's bounding box, "obj" the same without the background, "pb" what lies in a box
    that was moved by up to half its size, turned and scaled, so that the shape is partly cut off.

    Args:
        class_name: a name of `CATALOGUE`.
        index: which shape of the class; the three variants of an index show the same scene from the same side.
        num_points: number of points N; some repeat where too few are visible.
        seed: seed of the whole collection.
        stream: name of the collection; another name gives other shapes.
        variant: one of `SCAN_VARIANTS`.

    Returns:
        points (N, 3), normals (N, 3), parts (N,), where `BACKGROUND` marks floor and neighbour.

    Raises:
        ValueError: if the class or the variant is unknown or `num_points` < 2.
    """
    if variant not in SCAN_VARIANTS:
        raise ValueError(f"unknown variant '{variant}' of a scan; one of {', '.join(SCAN_VARIANTS)}")
    rng = _shape_rng(class_name, index, seed, stream, num_points)
    scene, corner = _draw_scene(class_name, rng)
    dense = sample_surface(scene, SCENE_POINTS, rng)
    seen = _take(dense, _seen_by_cameras(dense, rng))
    noise = np.clip(rng.normal(0, 0.008, seen.points.shape), -0.03, 0.03)
    seen = seen._replace(points=(seen.points + noise).astype(np.float32))
    if variant == "pb":
        inside = _perturbed_crop(seen, corner, rng)
    else:
        inside = _inside_box(seen.points, np.zeros(3), corner)
        if variant == "obj":
            inside &= seen.parts != BACKGROUND
    kept = np.flatnonzero(inside)
    cloud = _take(seen, rng.choice(kept, num_points, replace=len(kept) < num_points))
    return cloud._replace(points=_to_unit_sphere(cloud.points))


def draw_shape(class_name: str, index: int, seed: int = 0, stream: str = "") -> Surface:
    """Return the surface from which `sample_shape` draws its points, neither centred nor scaled."""
    return draw_surface(class_name, _shape_rng(class_name, index, seed, stream))


def draw_surface(class_name: str, rng: np.random.Generator) -> Surface:
    """Draw the surface of one shape of a class, with a random stretch along each axis."""
    shape_class = CATALOGUE[class_name]
    drawn = shape_class.draw(rng)
    names = [name for name in shape_class.parts if name in drawn]
    assert len(names) == len(drawn), f"{class_name} has parts that the catalogue does not list: {sorted(drawn)}"
    parts = np.repeat([shape_class.parts.index(name) for name in names], [len(drawn[name]) for name in names])
    return Surface(join(*(drawn[name] for name in names)) * rng.uniform(0.85, 1.15, 3), parts)


def sample_surface(surface: Surface, num_points: int, rng: np.random.Generator) -> Cloud:
    """Draw points from triangles, evenly by area and in random order; coordinates as in `surface`."""
    points, face = draw_points(surface.triangles, num_points, rng)
    normals = triangle_normals(surface.triangles)[face]
    return Cloud(points.astype(np.float32), normals.astype(np.float32), surface.parts[face])


def check_classes(class_names: list[str]) -> None:
    """Refuse class names that are unknown or named twice.

    Raises:
        ValueError: with the name and the nearest valid one.
    """
    for name in class_names:
        if name not in CATALOGUE:
            hint = did_you_mean(name, CATALOGUE, quoted=True)
            raise ValueError(f"unknown class '{name}' of generated shapes; {hint}valid: {', '.join(CATALOGUE)}")
    twice = sorted({name for name in class_names if class_names.count(name) > 1})
    if twice:
        raise ValueError(f"classes named twice: {', '.join(twice)}")


def _shape_rng(class_name: str, index: int, seed: int, stream: str, num_points: int = 2) -> np.random.Generator:
    check_classes([class_name])
    if num_points < 2:
        raise ValueError(f"a cloud in the unit sphere needs at least 2 points; got num_points {num_points}")
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), zlib.crc32(class_name.encode()), index])


def _draw_scene(class_name: str, rng: np.random.Generator) -> tuple[Surface, np.ndarray]:
    """Put a shape on a floor, with a neighbour; return the scene and the half sides of the shape's box around 0."""
    shape = draw_surface(class_name, rng)
    turned = rotate(shape.triangles, 1, rng.uniform(0, 2 * np.pi))
    low, high = turned.min(axis=(0, 1)), turned.max(axis=(0, 1))
    scale = 2 / np.linalg.norm(high - low)
    turned = (turned - (low + high) / 2) * scale
    corner = (high - low) / 2 * scale
    floor = box(4 * corner[0] + 0.4, 0.01, 4 * corner[2] + 0.4) - (0, corner[1], 0)
    neighbour = rotate(draw_surface(str(rng.choice(list(CATALOGUE))), rng).triangles, 1, rng.uniform(0, 2 * np.pi))
    low, high = neighbour.min(axis=(0, 1)), neighbour.max(axis=(0, 1))
    size = rng.uniform(0.7, 1.3)
    neighbour = (neighbour - ((low + high) / 2 * (1, 0, 1) + low * (0, 1, 0))) * size / (high - low).max()
    place = rng.uniform(-0.5, 0.5, 3) * corner
    side = rng.choice([0, 2])
    place[side] = rng.choice([-1, 1]) * (corner[side] + rng.uniform(0.85, 1.3) * size / 2)
    place[1] = -corner[1]
    background = join(floor, neighbour + place)
    parts = np.concatenate([shape.parts, np.full(len(background), BACKGROUND)])
    return Surface(join(turned, background), parts), corner * (1.1, 1.0, 1.1) + (0.02, 0.03, 0.02)


def _seen_by_cameras(scene: Cloud, rng: np.random.Generator) -> np.ndarray:
    """Return (N,) bool, True where one or two cameras see the point; more where they miss nearly all of the shape."""
    foreground = scene.parts != BACKGROUND
    cameras, azimuth, apart = rng.integers(1, 3), rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.5)
    seen = np.zeros(len(foreground), dtype=bool)
    for camera in range(8):
        seen |= _visible(scene.points, azimuth + camera * apart, rng.uniform(0.4, 0.9))
        if camera + 1 >= cameras and np.sum(seen & foreground) >= 0.1 * np.sum(foreground):
            break
    return seen


def _visible(points: np.ndarray, azimuth: float, elevation: float) -> np.ndarray:
    """Return (N,) bool, True where a point is among the nearest of its pixel to a distant camera; angles in radians."""
    right = np.array([np.cos(azimuth), 0, -np.sin(azimuth)])
    level = np.array([np.sin(azimuth), 0, np.cos(azimuth)])
    towards = np.cos(elevation) * level + (0, np.sin(elevation), 0)
    image = points @ np.column_stack([right, np.cross(towards, right)])
    row, column = np.floor((image - image.min(axis=0)) / PIXEL).astype(np.int64).T
    pixel = row * (column.max() + 1) + column
    nearness = points @ towards
    nearest = np.full(pixel.max() + 1, -np.inf)
    np.maximum.at(nearest, pixel, nearness)
    return nearness >= nearest[pixel] - DEPTH_TOLERANCE


def _perturbed_crop(seen: Cloud, corner: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (N,) bool, True inside a box that was moved, turned and scaled against the shape's own.

    Where less than a quarter of the shape's visible points remain, the move is halved and the box grows.
    """
    shift = rng.uniform(-1, 1, 3) * corner * (1, 0.3, 1)
    size = corner * rng.uniform(0.85, 1.15)
    points = rotate(seen.points, 1, rng.uniform(-0.5, 0.5))
    foreground = seen.parts != BACKGROUND
    inside = _inside_box(points, shift, size)
    while np.sum(inside & foreground) < foreground.sum() / 4:
        shift, size = shift / 2, 1.1 * size
        inside = _inside_box(points, shift, size)
    return inside


def _inside_box(points: np.ndarray, centre: np.ndarray, corner: np.ndarray) -> np.ndarray:
    return np.all(np.abs(points - centre) <= corner, axis=1)


def _take(cloud: Cloud, chosen: np.ndarray) -> Cloud:
    return Cloud(*(values[chosen] for values in cloud))


def _to_unit_sphere(points: np.ndarray) -> NDArray[np.float32]:
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    return (centred / np.linalg.norm(centred, axis=1).max()).astype(np.float32)
