"""A file of any kind that holds a cloud or a mesh → points.

Files come from anywhere: none is unpickled, none makes another file be read, and none may be, or unpack to, more than
`MAX_BYTES`.
"""

import importlib
import io
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from datasets.own.pcd import parse_pcd
from datasets.own.ply import parse_ply
from datasets.surfaces import draw_points, triangle_areas
from datasets.untrusted import check_points

MAX_BYTES = 2**29  # of one object; a surveyed tile is to be cut into objects first
MAX_COLUMNS = 32  # coordinates, normals, colours, labels …; more is rather a cloud with its points side by side
ARRAYS = ("points", "xyz", "pos", "arr_0")  # names in an .npz that has several arrays
INSTALL = "pip install -r requirements-own-data.txt"
DELIMITERS = str.maketrans(",;\t", "   ")


class MissingLibrary(ValueError):
    """A library that reads a kind of file is not installed: no reason to look at another file of that kind."""


@dataclass(frozen=True)
class Shape:
    """What a file holds.

    Attributes:
        points: (N, 3) float64, of a cloud, or the corners of a mesh.
        triangles: of a mesh, arrays (F, 3, 3) float64; of a cloud, none.
    """

    points: np.ndarray
    triangles: list[np.ndarray] = field(default_factory=list)


def read_points(path: Path, num_points: int, rng: np.random.Generator, centred: bool = True) -> tuple[np.ndarray, int]:
    """Read a file: all points of a cloud in random order, or points drawn evenly from the surface of a mesh.

    Args:
        path: its ending, in capitals or not, says what it is: one of `FORMATS`.
        num_points: drawn from a mesh; of a cloud the most that are returned.
        rng: decides what is drawn and in which order.
        centred: move the mean to the origin, before coordinates far from it lose digits in float32.

    Returns:
        Points (N, 3) float32, and how many points the file has, of a mesh `num_points`.

    Raises:
        MissingLibrary: if a library has to be installed for this kind of file.
        ValueError: if it is too large, damaged, or holds no points; the message is one line with its name.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path}: {size} bytes; an object of more than {MAX_BYTES} is refused")
    ending = path.suffix.lower()
    try:
        with warnings.catch_warnings():  # libraries warn of what the check below refuses
            warnings.simplefilter("ignore")
            shape = FORMATS[ending](path.read_bytes())
    except (MissingLibrary, OSError):
        raise
    except Exception as error:  # a damaged file raises nearly any exception
        raise ValueError(f"{path}: not a readable {ending} file ({error or type(error).__name__})") from error
    if shape.triangles:
        points, count = draw_points(_with_area(shape.triangles, path), num_points, rng)[0], num_points
    elif count := len(shape.points):
        check_points(shape.points, path, (None, 3))
        points = shape.points[rng.permutation(count)[:num_points]]
    else:
        raise ValueError(f"{path}: holds no points and no surface")
    if centred:
        points = points - points.mean(axis=0)
    return check_points(points, path, (None, 3)), count


def _with_area(parts: list[np.ndarray], path: Path) -> np.ndarray:
    """Join the triangles of a mesh, (F, 3, 3); ValueError if they have no area, or not a finite one."""
    triangles = np.concatenate(parts)
    corners = np.isfinite(triangles).all(axis=(1, 2))
    if not corners.all():
        raise ValueError(f"{path}: {(~corners).sum()} of {len(corners)} triangles have a corner that is not finite")
    if not (area := float(triangle_areas(triangles).sum())) > 0 or not np.isfinite(area):
        raise ValueError(
            f"{path}: its {len(triangles)} triangles have the area {area:g}; there is nothing to draw from"
        )
    return triangles


# ---------------------------------------------------------------------------------------------------- arrays and text


def _of_npy(data: bytes) -> Shape:
    return _of_array(np.load(io.BytesIO(data), allow_pickle=False))


def _of_npz(data: bytes) -> Shape:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_BYTES:
        raise ValueError(f"it unpacks to {size} bytes; more than {MAX_BYTES} are refused")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        names = arrays.files if len(arrays.files) == 1 else [name for name in ARRAYS if name in arrays.files]
        if not names:
            raise ValueError(f"holds the arrays {', '.join(arrays.files)}; name that of the points {ARRAYS[0]!r}")
        return _of_array(arrays[names[0]])


def _of_array(values: np.ndarray) -> Shape:
    if values.ndim != 2 or not 3 <= values.shape[1] <= MAX_COLUMNS or values.dtype.kind not in "iuf":
        raise ValueError(
            f"holds {values.dtype} {values.shape}; expected numbers (points, columns), the coordinates in the first "
            "three columns"
        )
    return Shape(values[:, :3].astype(np.float64))


def _of_text(data: bytes) -> Shape:
    """Lines of numbers; a first line that is none may name the columns x, y and z, the first three otherwise."""
    text = data.decode("utf-8-sig")
    lines = [line for line in text.translate(DELIMITERS).splitlines() if line.strip() and line.lstrip()[0] not in "#/"]
    names = [name.strip("\"'").lower() for name in lines[0].split()] if lines else []
    columns = [names.index(axis) for axis in "xyz"] if set(names) >= set("xyz") else [0, 1, 2]
    has_header = not all(map(_is_number, names))
    if not lines[has_header:]:
        raise ValueError("holds no line of numbers")
    return Shape(np.loadtxt(lines[has_header:], usecols=columns, ndmin=2, comments=None))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------- clouds and meshes


def _of_ply(data: bytes) -> Shape:
    vertices, faces = parse_ply(data)
    return Shape(vertices, [part for corners in faces if len(part := _triangles(vertices, corners))])


def _of_pcd(data: bytes) -> Shape:
    return Shape(parse_pcd(data, MAX_BYTES))


def _of_las(data: bytes) -> Shape:
    laspy = _library("laspy")
    with laspy.open(io.BytesIO(data)) as reader:
        size = reader.header.point_count * reader.header.point_format.size
        if size > MAX_BYTES:
            raise ValueError(f"it unpacks to {size} bytes; more than {MAX_BYTES} are refused")
        return Shape(np.asarray(reader.read().xyz, dtype=np.float64))


def _of_mesh(kind: str) -> Callable[[bytes], Shape]:
    """Read by trimesh, which gets the bytes alone: it cannot look for materials or buffers in other files."""

    def read(data: bytes) -> Shape:
        scene = _library("trimesh").load_scene(io.BytesIO(data), file_type=kind, process=False, skip_materials=True)
        points, triangles, count = [np.empty((0, 3))], [], 0
        for node in scene.graph.nodes_geometry:
            transform, name = scene.graph[node]
            body = scene.geometry[name]
            count += len(body.vertices) + 3 * len(getattr(body, "faces", ()))
            if count * 24 > MAX_BYTES:  # a scene may show the same body any number of times
                raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
            vertices = np.asarray(body.vertices, dtype=np.float64) @ transform[:3, :3].T + transform[:3, 3]
            points.append(vertices)
            if len(faces := getattr(body, "faces", ())):
                triangles.append(_triangles(vertices, np.asarray(faces)))
        return Shape(np.concatenate(points), triangles)

    return read


def _triangles(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The triangles (F · (k − 2), 3, 3) of faces (F, k), each a fan around its first corner."""
    corners = faces.shape[1]
    if corners < 3 or not len(faces):
        return np.empty((0, 3, 3))
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"a face has corner {faces.max()}, and there are {len(vertices)} vertices")
    fans = [faces[:, [0, i, i + 1]] for i in range(1, corners - 1)]
    return vertices[np.concatenate(fans)]


def _library(name: str) -> Any:
    try:
        module: ModuleType = importlib.import_module(name)
    except ImportError as error:
        raise MissingLibrary(f"{name} is not installed, which reads this kind of file; run `{INSTALL}`") from error
    return module


FORMATS: dict[str, Callable[[bytes], Shape]] = {
    ".npy": _of_npy,
    ".npz": _of_npz,
    **dict.fromkeys((".txt", ".xyz", ".csv"), _of_text),
    ".ply": _of_ply,
    ".pcd": _of_pcd,
    **{f".{kind}": _of_mesh(kind) for kind in ("obj", "off", "stl", "glb")},
    **dict.fromkeys((".las", ".laz"), _of_las),
}
