"""What was read of a user's own files, kept in one memory-mapped file beside them.

The folder `<ROOT>.packed/` holds, for each set of settings, `points-<settings>-<files>.f32`, rows of three
little-endian float32, and a `.json` of the same name, which is written last and says which rows belong to which file.
<files> stands for the names, sizes and dates of all files: where one changes the name does, and they are read again.
"""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.mapped import MappedRows
from datasets.own.formats import MissingLibrary, read_points
from extensions.cuda_runtime import cache_folder
from utils.files import atomic_write, locked, make_folder, size_and_date
from utils.logger import progress
from utils.seed import mixed_seed

logger = logging.getLogger(__name__)

VERSION = 1  # raise it when the same file gives other points


@dataclass(frozen=True)
class Record:
    """What is known of a file.

    Attributes:
        first, rows: where its points are.
        points: how many the file has; of a mesh, how many were drawn.
        crc: CRC-32 of the rows' bytes.
        sha256: of the file.
        extents: of its points, along x, y and z.
    """

    first: int
    rows: int
    points: int
    crc: int
    sha256: str
    extents: tuple[float, float, float]


class PointsCache(MappedRows):
    """The points of files, read once.

    Args:
        root: what the config names: the cache stands beside it or, where nothing can be written there, in the folder of
            the compiled kernels.
        folder: that the paths are relative to.
        paths: of the files.
        n_points: points drawn from a mesh, and the most that are kept of a cloud.
        centred: whether the mean of a cloud is moved to the origin before it is rounded to float32.
        seed: of what is drawn.

    Attributes:
        records: path → what is known of the file.
        unreadable: path → why it could not be read.

    Raises:
        OSError: if a file cannot be opened or the cache cannot be written.
        MissingLibrary: if a library has to be installed.
    """

    columns = 3

    def __init__(
        self, root: str | os.PathLike[str], folder: Path, paths: Sequence[str], n_points: int, centred: bool, seed: int
    ) -> None:
        self.folder, self.paths = folder, paths
        self.n_points, self.centred, self.seed = n_points, centred, seed
        settings = _digest([VERSION, n_points, centred, seed])
        name = f"points-{settings}-{_digest([[path, *size_and_date(folder / path)] for path in paths])}"
        places = _places(Path(os.path.abspath(root)))
        if not any(self._load(place / name) for place in places):
            place = places[0] if _is_writable(places[0]) else places[1]
            make_folder(place)
            with locked(place, wait=True):
                if not self._load(place / name):  # no other process has made it meanwhile
                    for old in place.glob(f"points-{settings}-*"):
                        old.unlink()
                    self._make()
                    assert self._load(place / name)

    def __getitem__(self, path: str) -> np.ndarray:
        """Read the points kept of a file: (N, 3) float32, a copy; ValueError if they have changed since."""
        return self.take(path, self.records[path], f"delete {self.data.parent}, and it is made anew")

    def _load(self, path: Path) -> bool:
        """Read the index, if there is one; return whether it and the file of the points are whole."""
        self.index, self.data = path.with_suffix(".json"), path.with_suffix(".f32")
        if not self.index.is_file():
            return False
        try:
            content = json.loads(self.index.read_text(encoding="utf-8"))
            self.records = {path: Record(**record) for path, record in content["records"].items()}
            self.unreadable: dict[str, str] = content["unreadable"]
            rows = sum(record.rows for record in self.records.values())
            if self.holds(rows) and {*self.records, *self.unreadable} == set(self.paths):
                return True
            reason = "it is cut short"
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error)
        logger.warning("%s cannot be used (%s) and is made anew", self.data, reason)
        return False

    def _make(self) -> None:
        """Read all files, write their points, then the index."""
        logger.info(
            "reading %d files of %s once; their points are kept in %s", *(len(self.paths), self.folder, self.data)
        )
        records, unreadable, first = {}, {}, 0
        with atomic_write(self.data) as file:
            for path in progress(self.paths, "reading files"):
                rng = draws_of(path, self.seed)
                try:
                    points, count = read_points(self.folder / path, self.n_points, rng, self.centred)
                    sha256 = hashlib.sha256((self.folder / path).read_bytes()).hexdigest()
                except MissingLibrary as error:
                    raise MissingLibrary(f"{self.folder / path}: {error}") from error
                except ValueError as error:  # what the disk refuses is no fault of the file, and stops here
                    unreadable[path] = str(error)
                    continue
                points = np.ascontiguousarray(points, dtype="<f4")
                extents = (points.max(axis=0) - points.min(axis=0)).tolist()
                records[path] = Record(first, len(points), count, zlib.crc32(points.data), sha256, extents)
                file.write(points.data)
                first += len(points)
        with atomic_write(self.index) as file:
            content = {"records": {path: asdict(record) for path, record in records.items()}, "unreadable": unreadable}
            file.write(json.dumps(content).encode())


def draws_of(path: str, seed: int) -> np.random.Generator:
    """What decides which points of a file are drawn, and their order: its place in its folder, and the seed."""
    return np.random.default_rng(mixed_seed(seed, zlib.crc32(path.encode())))


def _places(root: Path) -> tuple[Path, Path]:
    """The folders of the cache: beside the data, or below that of the compiled kernels."""
    elsewhere = cache_folder() / "own-data" / f"{root.name}-{_digest(str(root))}"
    return root.with_name(f"{root.name}.packed"), elsewhere


def _is_writable(folder: Path) -> bool:
    return os.access(folder if folder.is_dir() else folder.parent, os.W_OK)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
