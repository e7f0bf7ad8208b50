"""Features of the files of one's own: computed so that nothing is lost on the way, and the files that keep them."""

import importlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.folder import upright
from datasets.own.cache import draws_of
from datasets.own.files import LISTS, list_files
from datasets.own.formats import FORMATS, MissingLibrary, read_points
from datasets.transforms import normalize_unit_sphere
from models import Encoder
from tools.evaluation.kept import load_arrays, read_arrays, save_arrays
from utils.files import atomic_write, size_and_date
from utils.logger import progress
from utils.nearest import did_you_mean_path

logger = logging.getLogger(__name__)

KEPT_POINTS = 8192  # N_POINTS of a Folder, so that its test clouds have the same points
PARQUET = ".parquet"
ENDINGS = (".npz", PARQUET)
INSTALL = "pip install -r requirements-library.txt"
NAMES = ("paths", "labels", "points", "features")
SECONDS_BETWEEN_SAVES = 30.0
WHAT = "features"


@dataclass(frozen=True)
class Shape:
    """A file: as it is called, where it is, the place in its folder that decides its draws, and its class or ""."""

    name: str
    folder: Path
    path: str
    label: str


@dataclass(frozen=True)
class Draw:
    """How points are drawn from files, as `datasets.folder.Folder` draws those of a test cloud.

    Attributes:
        npoints: of a cloud; of a file with fewer they repeat.
        up: which axis of the files points up, y or z.
        seed: of what is drawn from meshes and large clouds; `SPLIT_SEED` of a Folder.
    """

    npoints: int
    up: str
    seed: int

    def read(self, shape: Shape) -> tuple[Tensor, int]:
        """Read a file: (npoints, 3) in the unit sphere, y up, and how many points it has; ValueError if it is bad."""
        rng = draws_of(shape.path, self.seed)
        points, count = read_points(shape.folder / shape.path, KEPT_POINTS, rng)
        cloud = torch.from_numpy(upright(points, self.up))
        return normalize_unit_sphere(cloud[torch.arange(self.npoints) % len(cloud)]), count


@dataclass(frozen=True)
class FeatureFile:
    """What a file of features holds.

    Attributes:
        paths: of the n files.
        labels: the class of each, "" where there is none.
        points: (n,) int64, how many points each file has; of a mesh, how many were drawn.
        features: (n, C) float32.
        origin: what made them, as plain values: the encoder's config, its checkpoint, the draw, versions.
    """

    paths: list[str]
    labels: list[str]
    points: np.ndarray
    features: np.ndarray
    origin: dict[str, Any]


def find_shapes(inputs: Sequence[Path]) -> list[Shape]:
    """List the files that are named, those of folders that are, and those of .json lists, in this order.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if a file is of no kind that is read, or is named twice.
    """
    shapes: dict[str, Shape] = {}
    for shape in (shape for path in inputs for shape in _shapes_of(path)):
        if shape.name in shapes:
            raise ValueError(f"{shape.name} is named twice; name each file once")
        shapes[shape.name] = shape
    return list(shapes.values())


def _shapes_of(path: Path) -> Iterator[Shape]:
    if path.is_dir() or (path.is_file() and path.suffix.lower() in LISTS and path.suffix.lower() not in FORMATS):
        listing = list_files(path)
        if listing.others:
            others = ", ".join(f"{count} {ending}" for ending, count in listing.others.most_common())
            logger.info("%s: left alone: %s", path, others)
        for file, label in zip(listing.paths, listing.labels or [""] * len(listing.paths), strict=True):
            yield Shape(str(listing.folder / file), listing.folder, file, label)
    elif not path.is_file():
        hint = did_you_mean_path(path, Path.exists)
        raise FileNotFoundError(f"{path} does not exist; {hint}name files, folders or .json lists of shapes")
    elif path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path} is of no kind that is read: {', '.join(FORMATS)}, a folder or a .json list")
    else:
        yield Shape(str(path), path.parent, path.name, "")


class Encoding:
    """Features of shapes as far as they are computed, kept in a file beside the one to write.

    Args:
        output: the file to write in the end; `partial` stands beside it until then.
        origin: what the features depend on; of another origin a partial file is refused.
    """

    def __init__(self, output: Path, origin: dict[str, Any]) -> None:
        self.partial, self.origin = output.with_name(f"{output.name}.partial.npz"), origin
        self.done: dict[str, tuple[np.ndarray, int, tuple[int, int]]] = {}  # name → feature, points, size and date
        if self.partial.exists():
            found = load_arrays(self.partial, ("paths", "features", "points", "stamps"), origin, WHAT, "-o")
            self.done = {
                str(name): (feature, int(count), (int(size), int(date)))
                for name, feature, count, (size, date) in zip(*found, strict=True)
            }
            logger.info("%d features are in %s already", len(self.done), self.partial)

    def run(self, encoder: Encoder, shapes: Sequence[Shape], draw: Draw, batch_size: int) -> dict[str, str]:
        """Encode what is not done or has changed since, and keep it every half minute and when interrupted.

        Returns:
            The files that cannot be read, and why.

        Raises:
            MissingLibrary: if a library has to be installed.
        """
        todo = [shape for shape in shapes if not self._is_done(shape)]
        batches = [todo[start : start + batch_size] for start in range(0, len(todo), batch_size)]
        bad: dict[str, str] = {}
        saved = time.monotonic()
        try:
            for batch in progress(batches, "encoding"):
                self._encode(encoder, batch, draw, bad)
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    self._save()
                    saved = time.monotonic()
        finally:
            if self.done:
                self._save()
        return bad

    def result(self, shapes: Sequence[Shape], more: dict[str, Any]) -> FeatureFile:
        """The features of those of the shapes that could be read; `more` goes into the origin."""
        read = [shape for shape in shapes if shape.name in self.done]
        rows, counts, _ = zip(*(self.done[shape.name] for shape in read), strict=True)
        names, labels = [shape.name for shape in read], [shape.label for shape in read]
        return FeatureFile(names, labels, np.array(counts, dtype=np.int64), np.stack(rows), {**self.origin, **more})

    def _is_done(self, shape: Shape) -> bool:
        return shape.name in self.done and self.done[shape.name][2] == size_and_date(shape.folder / shape.path)

    def _encode(self, encoder: Encoder, batch: Sequence[Shape], draw: Draw, bad: dict[str, str]) -> None:
        clouds, read = [], []
        for shape in batch:
            self.done.pop(shape.name, None)
            stamp = size_and_date(shape.folder / shape.path)
            try:
                cloud, count = draw.read(shape)
            except MissingLibrary as error:
                raise MissingLibrary(f"{shape.name}: {error}") from error
            except ValueError as error:
                bad[shape.name] = str(error)
                continue
            clouds.append(cloud)
            read.append((shape.name, count, stamp))
        if clouds:
            with torch.inference_mode():
                features = encoder(torch.stack(clouds)).feature.float().cpu().numpy()
            for (name, count, stamp), feature in zip(read, features, strict=True):
                self.done[name] = feature, count, stamp

    def _save(self) -> None:
        features, points, stamps = zip(*self.done.values(), strict=True)
        arrays = {"features": np.stack(features), "points": np.array(points), "stamps": np.array(stamps)}
        save_arrays(self.partial, {"paths": np.array(list(self.done)), **arrays}, self.origin)


def write_features(path: Path, found: FeatureFile) -> None:
    """Write features as .npz or .parquet; the file is whole or absent."""
    if path.suffix != PARQUET:
        values = (np.array(found.paths), np.array(found.labels, dtype=str), found.points, found.features)
        save_arrays(path, dict(zip(NAMES, values, strict=True)), {"what": WHAT, **found.origin})
        return
    pa, pq = arrow()
    rows = pa.FixedSizeListArray.from_arrays(pa.array(found.features.ravel()), found.features.shape[1])
    columns = dict(zip(NAMES, (found.paths, found.labels, found.points, rows), strict=True))
    table = pa.table(columns).replace_schema_metadata({"origin": json.dumps({"what": WHAT, **found.origin})})
    with atomic_write(path) as file:
        pq.write_table(table, file)


def read_features(path: Path) -> FeatureFile:
    """Read what `write_features` wrote; nothing in the file can run code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no such features.
    """
    if not path.is_file():
        hint = did_you_mean_path(path)
        raise FileNotFoundError(f"{path} does not exist; {hint}`python -m tools.features` writes such files")
    if path.suffix == PARQUET:
        paths, labels, points, features, origin = _read_parquet(path)
    else:
        (paths, labels, points, features), origin = read_arrays(path, NAMES, WHAT, "give what tools.features wrote")
    if origin.get("what") != WHAT or features.dtype != np.float32 or features.ndim != 2 or len(features) != len(paths):
        raise ValueError(f"{path} holds no features of `python -m tools.features`")
    return FeatureFile([str(name) for name in paths], [str(name) for name in labels], points, features, origin)


def _read_parquet(path: Path) -> tuple[Any, ...]:
    pa, pq = arrow()
    try:
        table = pq.read_table(path)
        origin = json.loads(table.schema.metadata[b"origin"])
        paths, labels, points = (table[name].to_pylist() for name in NAMES[:3])
        rows = table["features"].combine_chunks()
        features = rows.values.to_numpy().reshape(len(rows), -1)
    except (pa.ArrowException, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} holds no features ({error}); give what tools.features wrote") from error
    return paths, labels, np.array(points, dtype=np.int64), features, origin


def arrow() -> tuple[Any, Any]:
    """The library that reads and writes .parquet files; ValueError if it has to be installed."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError(f"pyarrow is not installed, which .parquet files need; run `{INSTALL}`") from error
