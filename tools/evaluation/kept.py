"""Arrays that a command keeps in a file, and takes from there when it is started again, with what they belong to."""

import json
import logging
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.untrusted import check_labels
from utils.files import atomic_write

logger = logging.getLogger(__name__)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], origin: dict[str, Any]) -> None:
    """Keep arrays in an .npz file, which is whole or absent.

    Args:
        path: in an existing folder.
        arrays: by name; "origin" is taken.
        origin: what they belong to, as plain values.
    """
    with atomic_write(path) as file:
        np.savez(file, origin=np.array(json.dumps(origin)), **arrays)


def load_arrays(
    path: Path,
    names: Sequence[str],
    origin: dict[str, Any],
    what: str,
    flag: str,
    may_differ: Collection[str] = (),
) -> list[np.ndarray]:
    """Read arrays that were kept; nothing in the file can run code.

    Args:
        path: file of `save_arrays`.
        names: of the arrays to return.
        origin: what they must belong to.
        what: what they are, for messages, such as "a bank".
        flag: of the command line that names the file, for messages.
        may_differ: keys of the origin of which another value is a warning.

    Raises:
        ValueError: if they belong to something else, or the file does not hold them.
    """
    way_out = f"give {flag} another file, or delete this one to encode again"
    arrays, found = read_arrays(path, names, what, way_out)
    now = json.loads(json.dumps(origin))
    for key in may_differ:
        if difference := _difference(found.pop(key, None), now.pop(key, None), key):
            logger.warning("%s holds %s of other software: %s", path, what, difference)
    if difference := _difference(found, now):
        raise ValueError(f"{path} holds {what} of another origin: {difference}; {way_out}")
    return arrays


def read_arrays(path: Path, names: Sequence[str], what: str, way_out: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Read arrays that were kept, and their origin, whatever it is; ValueError if the file does not hold them."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no .npz file")
        with np.load(path, allow_pickle=False) as file:
            found = json.loads(str(file["origin"]))
            arrays = [file[name] for name in names]
        if not isinstance(found, dict):
            raise ValueError("its origin is none")
    except (ValueError, KeyError, EOFError, RecursionError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no {what.removeprefix('a ')} ({error}); {way_out}") from error
    return arrays, found


def check_rows(
    path: Path, features: np.ndarray, labels: np.ndarray, num_classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Check that arrays of a file are features (n, C) float32 and their labels (n,); returns these as int64."""
    labels = check_labels(labels, path, num_classes)
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != len(labels):
        raise ValueError(
            f"{path}: features {features.dtype} {features.shape} of {len(labels)} labels; expected float32, a row each"
        )
    return features, labels


def _difference(found: Any, now: Any, where: str = "") -> str:
    """Name the first value that differs; "" if none does."""
    if not (isinstance(found, dict) and isinstance(now, dict)):
        return "" if found == now else f"{where} is {found!r} there and {now!r} here"
    keys = sorted({*found, *now})
    places = (_difference(found.get(key), now.get(key), f"{where}.{key}" if where else key) for key in keys)
    return next(filter(None, places), "")
