"""Border checks. Every file of a data set is read through here, because it may be missing, damaged or hostile."""

import json
import logging
import math
import os
import pickle
import pickletools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import h5py
import numpy as np

from datasets.hints import WAY_OUT, Entry, way_out
from utils.nearest import did_you_mean_path

logger = logging.getLogger(__name__)

MAX_BYTES = 8 * 2**30  # the largest published file, ModelNet40's training .dat, holds 2 GiB
MAX_LIST_BYTES = 2**26  # the largest published list, ShapeNetPart's training shapes, holds less than 1 MiB


# ---------------------------------------------------------------------------------------------------- values and paths


def check_choice(value: Any, choices: Sequence[Any], key: str) -> Any:
    """Return `value` if it is one of `choices`; ValueError naming the config key if not."""
    if value not in choices:
        raise ValueError(f"{key} is {value!r}; choose one of {', '.join(map(str, choices))}")
    return value


def check_count(value: Any, key: str, at_most: int | None = None) -> int:
    """Return `value` if it is an integer from 1 to `at_most`; ValueError naming the config key if not."""
    if type(value) is not int or value < 1 or (at_most is not None and value > at_most):
        upper = "" if at_most is None else f" and at most {at_most}"
        raise ValueError(f"{key} is {value!r}; give an integer of at least 1{upper}")
    return value


def require_folder(path: str | os.PathLike[str], key: str | Entry) -> Path:
    """Return `path` as a Path if it is a folder; FileNotFoundError naming the config key if it is missing."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"{key} is {path!r}; give the path of a folder")
    if os.path.isfile(path):
        raise ValueError(f"{key} is {os.path.abspath(path)}, which is a file; give the path of a folder")
    if not os.path.isdir(path):
        hint = did_you_mean_path(path, Path.is_dir)
        raise FileNotFoundError(
            f"folder {os.path.abspath(path)} does not exist (config key {key}); {hint}{way_out(key)}"
        )
    return Path(path)


def require_file(path: Path, key: str | Entry) -> Path:
    """Return `path` if it is a file; if not FileNotFoundError, or ValueError for a folder, naming the config key."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder where a file is expected (config key {key}); {way_out(key)}")
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist (config key {key}); {way_out(key)}")
    return path


def require_listed(paths: Sequence[Path], source: Path, key: str | Entry) -> None:
    """Check that all files named by the list `source` exist.

    Raises:
        FileNotFoundError: with the number of missing files and the first of them.
    """
    if missing := missing_of(paths):
        raise FileNotFoundError(
            f"{len(missing)} of the {len(paths)} files listed in {source} are missing, first {missing[0]} "
            f"(config key {key}); {way_out(key)}"
        )


def missing_of(paths: Sequence[Path]) -> list[Path]:
    """Return those that do not exist, with one look into each folder."""
    folders = {path.parent for path in paths}
    present = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
    return [path for path in paths if path.name not in present[path.parent]]


def safe_join(folder: Path, name: str) -> Path:
    """Join a relative path read from a file to `folder`; ValueError if it would lead out of the folder."""
    relative = PurePosixPath(name)
    if not relative.parts or relative.is_absolute() or ".." in relative.parts or re.search(r"[\\:\0]", name):
        raise ValueError(f"path {name!r} leads out of {folder}; a list may only name files inside that folder")
    return folder / relative


# ---------------------------------------------------------------------------------------------------- points and labels


def check_points(points: Any, source: str | Path, shape: tuple[int | None, ...], entry: Entry | str = "") -> np.ndarray:
    """Check coordinates read from `source`.

    Args:
        points: array of floating type.
        source: file and, where it helps, the place in it, for the message.
        shape: expected shape; None admits any length of at least 1.
        entry: what led here, for the way out of another number of points (the last but one of `shape`).

    Returns:
        The points as float32.

    Raises:
        ValueError: if dtype or shape differ, or a value is NaN or infinite (also after the step to float32).
    """
    wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
    if not isinstance(points, np.ndarray) or not np.issubdtype(points.dtype, np.floating):
        raise ValueError(f"{source}: holds {getattr(points, 'dtype', type(points).__name__)}; expected floats {wanted}")
    fits = len(points.shape) == len(shape) and all(
        size == (expected or size) and size > 0 for size, expected in zip(points.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{source}: shape {points.shape}; expected {wanted}{_of_points(points.shape, shape, entry)}")
    with np.errstate(over="ignore"):
        points = np.asarray(points, dtype=np.float32)
    finite = np.isfinite(points).all(axis=-1)
    if not finite.all():
        *cloud, row = np.argwhere(~finite)[0].tolist()
        place = f"cloud {cloud[0]}, row {row}" if cloud else f"row {row}"
        raise ValueError(f"{source}: {place} (counted from 0) is not finite; replace the damaged file")
    return points


def _of_points(found: tuple[int, ...], expected: tuple[int | None, ...], entry: Entry | str) -> str:
    """The way out, where nothing but the number of points is another one."""
    rest = [(*shape[:-2], *shape[-1:]) for shape in (found, expected)]
    if isinstance(entry, Entry) and len(found) == len(expected) > 1 and rest[0] == rest[1] and found[-2]:
        return f"; {entry.of_points(found[-2])}"
    return ""


def check_labels(labels: Any, source: str | Path, num_classes: int | None = None) -> np.ndarray:
    """Return whole-number labels as int64 (n,); ValueError if one is fractional, negative or ≥ `num_classes`."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iuf":
        raise ValueError(f"{source}: labels are {labels.dtype}; expected integers")
    labels = labels.reshape(-1)
    wrong = ~((labels >= 0) & (labels == np.floor(labels)))
    upper = ""
    if num_classes is not None:
        wrong |= labels >= num_classes
        upper = f" to below {num_classes}"
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"{source}: label {labels[row]} of cloud {row}; expected an integer from 0{upper}")
    return labels.astype(np.int64)


def check_single_labels(labels: Sequence[Any], source: str | Path, num_classes: int) -> np.ndarray:
    """Return as int64 (n,) n labels that are a number each, or arrays of one; ValueError as in `check_labels`."""
    sizes = {np.size(label) for label in labels}
    if sizes != {1}:
        raise ValueError(f"{source}: labels of {sorted(sizes)} numbers; expected one per cloud")
    return check_labels(np.stack([np.reshape(label, ()) for label in labels]), source, num_classes)


# ---------------------------------------------------------------------------------------------------- files


def read_lines(path: Path, key: str | Entry) -> list[str]:
    """Read the non-empty lines of a list; FileNotFoundError if it is missing, ValueError if it holds no text."""
    try:
        text = require_file(path, key).read_text(encoding="utf-8-sig")  # Windows editors put a mark at the start
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error}); {way_out(key)}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: the list is empty; {way_out(key)}")
    _warn_of_repetition(lines, path)
    return lines


def read_json_list(path: Path, key: str | Entry) -> list[str]:
    """Read a list of strings from a JSON file.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is larger than `MAX_LIST_BYTES` or holds anything else.
    """
    size = require_file(path, key).stat().st_size
    if size > MAX_LIST_BYTES:
        raise ValueError(f"{path}: {size} bytes; a list of more than {MAX_LIST_BYTES} is refused")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error}); {way_out(key)}") from error
    if not isinstance(content, list) or not content or not all(isinstance(item, str) for item in content):
        raise ValueError(f"{path}: expected a list of one or more strings; {way_out(key)}")
    _warn_of_repetition(content, path)
    return content


def _warn_of_repetition(entries: list[str], path: Path) -> None:
    """Say that a list names something more than once: it would count so often."""
    if repeated := [entry for entry, count in Counter(entries).items() if count > 1]:
        logger.warning(
            "%s lists %d of its %d entries more than once, first %s; delete the repetitions",
            *(path, len(repeated), len(entries), repeated[0]),
        )


def read_table(
    path: Path, columns: int, key: str | Entry, delimiter: str | None = None, max_rows: int | None = None
) -> np.ndarray:
    """Read lines of `columns` numbers as float32 (n, columns).

    Args:
        path: the file.
        columns: numbers in a line.
        key: config key or entry that led here, for the message.
        delimiter: between numbers; None = spaces.
        max_rows: read no more lines than these; None reads all.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it holds anything else, see `check_points`.
    """
    require_file(path, key)
    try:
        values = np.loadtxt(path, dtype=np.float32, comments=None, delimiter=delimiter, max_rows=max_rows, ndmin=2)
    except ValueError as error:
        kind = "comma-separated numbers" if delimiter else "numbers"
        raise ValueError(f"{path}: not lines of {columns} {kind} ({error})") from error
    return check_points(values, path, (None, columns))


def read_npy(path: Path, shape: tuple[int | None, ...], key: str | Entry) -> np.ndarray:
    """Read a float32 array from an .npy file and check it; pickled objects inside are refused.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is no array of that shape or not finite, see `check_points`.
    """
    return check_points(load_npy(require_file(path, key)), path, shape, key)


def load_npy(path: Path, mmap_mode: Literal["r"] | None = None) -> Any:
    """Call np.load without pickles; ValueError whatever it makes of a damaged file, OSError if there is none."""
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header raises nearly any exception
        raise ValueError(f"{path}: not a readable .npy array ({error})") from error


def read_h5(path: Path, key: str | Entry, num_points: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read the clouds and labels of an .h5 file in the layout of ModelNet40 and ScanObjectNN.

    Args:
        path: file with `data` (n, P, 3) floats and `label` (n,) or (n, 1).
        key: config key or entry that led here, for the message.
        num_points: take the first so many points of each cloud; None takes all P.

    Returns:
        points (n, num_points, 3) float32 and labels (n,) int64.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is no .h5 file, or one of another layout, or its values fail `check_points`, `check_labels`.
    """
    with _open_h5(path, key) as (data, label):
        if num_points is not None and num_points > data.shape[1]:
            asked = key.of_points(data.shape[1]) if isinstance(key, Entry) else f"{num_points} are asked for"
            raise ValueError(f"{path}: clouds have {data.shape[1]} points; {asked}")
        points, labels = data[:, :num_points], label[()]
    return check_points(points, path, (None, None, 3)), check_labels(labels, path)


def read_h5_labels(path: Path, key: str | Entry) -> tuple[int, np.ndarray]:
    """Read the points per cloud and the labels (n,) int64, and no cloud; raises as `read_h5`."""
    with _open_h5(path, key) as (data, label):
        points, labels = int(data.shape[1]), label[()]
    return points, check_labels(labels, path)


@contextmanager
def _open_h5(path: Path, key: str | Entry) -> Iterator[tuple[h5py.Dataset, h5py.Dataset]]:
    """Open the arrays `data` and `label`, whose shapes are checked; ValueError whatever is wrong in the block."""
    require_file(path, key)
    try:
        with h5py.File(path, "r") as file:
            data, label = (file.get(name) for name in ("data", "label"))
            if not isinstance(data, h5py.Dataset) or not isinstance(label, h5py.Dataset):
                raise ValueError(f"{path}: holds {sorted(file, key=str)}; expected the arrays 'data' and 'label'")
            shapes = f"data {data.shape} and label {label.shape}"
            if len(data.shape) != 3 or data.shape[2] != 3 or label.shape not in {data.shape[:1], (len(data), 1)}:
                raise ValueError(f"{path}: {shapes}; expected (n, points, 3) and (n,) or (n, 1)")
            if not 0 < data.nbytes <= MAX_BYTES:
                raise ValueError(f"{path}: {shapes}; there must be a cloud, and at most {MAX_BYTES} bytes")
            yield data, label
    except ValueError:
        raise
    except Exception as error:  # a damaged file raises nearly any exception
        raise ValueError(f"{path}: not a readable .h5 file ({error}); it may be damaged or cut short") from error


# ---------------------------------------------------------------------------------------------------- pickles


class _DType:
    """Stands for numpy.dtype while a pickle is read: NumPy's own __setstate__ trusts flags and sizes of the file."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"[biufcSU]\d+", code):
            raise pickle.UnpicklingError(f"arrays of dtype {code!r} are refused")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {state[1]!r} of a dtype")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose pickled state is checked before NumPy takes it."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, described, fortran_order, data = state
        raw = _check_buffer(described, data, shape)
        super().__setstate__((1, shape, described.dtype, bool(fortran_order), raw))


def _check_buffer(described: _DType, data: Any, shape: tuple[int, ...]) -> bytes:
    """Return `data` as bytes if it is exactly an array of that type and shape."""
    if type(described) is not _DType or not isinstance(data, (bytes, bytearray)):
        raise pickle.UnpicklingError("an array is not described by a plain dtype and bytes")
    if any(type(size) is not int or size < 0 for size in shape):
        raise pickle.UnpicklingError(f"array shape {shape!r}")
    if math.prod(shape) * described.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"{len(data)} bytes for an array {shape} of {described.dtype}")
    return bytes(data)


def _reconstruct(kind: str, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    if kind != "ndarray":
        raise pickle.UnpicklingError(f"array of kind {kind!r}")
    return _Array((0,), np.int8)  # the state that follows brings shape and type


def _scalar(described: _DType, data: bytes) -> Any:
    return np.frombuffer(_check_buffer(described, data, (1,)), described.dtype)[0]


def _frombuffer(data: Any, described: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    flat = np.frombuffer(_check_buffer(described, data, shape), described.dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C").view(_Array)


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,  # how protocol 2 writes bytes,
    ("__builtin__", "bytes"): lambda: b"",  # and how it writes none
} | {
    (f"numpy.{core}.{module}", name): function
    for core in ("core", "_core")  # NumPy 1, NumPy 2
    for module, name, function in (
        ("multiarray", "_reconstruct", _reconstruct),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _frombuffer),
    )
}


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Rebuild containers with plain arrays in them, refuse what is not promised. `done`: what was rebuilt, by id."""
    if isinstance(value, np.ndarray):
        return value.view(np.ndarray)
    if value is None or isinstance(value, (str, bytes, int, float, complex, np.generic)):
        return value
    if type(value) not in (list, tuple, dict):
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {_plain(key, done): _plain(part, done) for key, part in value.items()}
        else:
            done[id(value)] = type(value)(_plain(part, done) for part in value)
    return done[id(value)]


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data set needs")
        found = _ALLOWED[module, name]
        # A pickle may set attributes on what it finds: hand out a new function each time, so that ours stay unchanged.
        return (lambda *args: found(*args)) if callable(found) else found


def _check_memo(file: BinaryIO) -> None:
    """Refuse memo indices that the file is too short to need: the unpickler would allocate memory up to them."""
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > (position or 0):
            raise pickle.UnpicklingError(f"memo index {argument} at byte {position}")
    file.seek(0)


def load_pickle(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Any:
    """Read a pickle that may hold arrays, lists, tuples, dicts, strings and numbers, and can run no code.

    Args:
        path: file written by any pickle protocol under NumPy 1 or 2.
        max_bytes: refuse a larger file.

    Returns:
        The object. Arrays have boolean, integer, floating, complex or text type, never object type.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is too large, damaged, or asks for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist; {WAY_OUT}")
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"{path}: {size} bytes; a pickle of more than {max_bytes} is refused")
    with path.open("rb") as file:
        try:
            _check_memo(file)
            return _plain(_RestrictedUnpickler(file).load(), {})
        except Exception as error:  # bytes that are not a pickle raise nearly any exception
            raise ValueError(f"{path}: not a pickle of plain arrays and containers ({error})") from error
