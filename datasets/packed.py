"""Clouds of many files in one memory-mapped array: where `python -m datasets.pack` leaves it, and how it is read.

Beside the folder of the files stands `<folder>.packed/` with `index.json`, written last, and the array it speaks of,
`clouds-<digest of the sources>.npy`: (clouds, n_points, 3) float32, openable by `np.load(path, mmap_mode="r")`.
"""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from datasets.hints import Entry
from datasets.untrusted import check_points, load_npy, read_lines

VERSION = 1
SUBSETS = ("train", "test")


@dataclass(frozen=True)
class Index:
    """What `index.json` says.

    Attributes:
        n_points: points per cloud.
        chunk: clouds per checksum; the last chunk may have fewer.
        lists: subset → names in the order of its list.
        sources: name → [bytes, time of modification in ns] of the file when it was packed, in the order of the array.
        checksums: SHA-256 of the bytes of each chunk.
    """

    n_points: int
    chunk: int
    lists: dict[str, list[str]]
    sources: dict[str, list[int]]
    checksums: list[str]

    @property
    def file(self) -> str:
        """Name of the array's file: another one for other sources."""
        about = [VERSION, self.n_points, self.chunk, self.lists, list(self.sources.items())]
        return f"clouds-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}.npy"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(clouds, n_points, 3)."""
        return len(self.sources), self.n_points, 3

    @property
    def num_chunks(self) -> int:
        """Chunks, each with a checksum."""
        return -(-len(self.sources) // self.chunk)

    def to_json(self) -> str:
        """Write what `read_index` reads."""
        return json.dumps({"version": VERSION, **asdict(self)}) + "\n"


def read_list(listing: Path, key: str | Entry = "DATA_PATH") -> list[str]:
    """Read the names in train.txt or test.txt.

    Args:
        listing: the list.
        key: config key or entry that led to it, for the message.

    Raises:
        FileNotFoundError: if the list is missing.
        ValueError: if it is empty, no text, or a line is not `<taxonomy>-<model>.npy`.
    """
    names = read_lines(listing, key)
    for name in names:
        if re.fullmatch(r"\d+-.+\.npy", name) is None:
            raise ValueError(f"{listing}: {name!r} is not of the form <taxonomy>-<model>.npy")
    return names


def index_file(pc_path: str | os.PathLike[str]) -> Path:
    """Return where the index of the pack of a folder is, whether or not there is one."""
    return Path(os.path.abspath(str(pc_path)) + ".packed", "index.json")


def read_index(path: Path) -> Index:
    """Read an index and check its types and lengths.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no index of this version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("version")
        if version != VERSION:
            raise ValueError(f"its version is {version!r}")
        index = Index(**content)
        if not _is_sound(index):
            raise ValueError("its entries do not fit together")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not an index of packed clouds of version {VERSION} ({error})") from error
    return index


def pack_again(data_path: str | os.PathLike[str], pc_path: str | os.PathLike[str], n_points: int) -> str:
    """Say how to get a pack that fits, for messages."""
    options = ["--data_path", str(data_path), "--pc_path", str(pc_path), "--n_points", str(n_points)]
    command = shlex.join(["python", "-m", "datasets.pack", *options])
    return f"run `{command}`, or delete the folder {index_file(pc_path).parent} to read the files themselves"


class PackedClouds:
    """The clouds of some lists, read from the pack of their files. Pickles without the data: a process opens the file.

    Args:
        data_path: folder of the lists.
        pc_path: folder of the files that were packed; it need not exist any more.
        n_points: points per cloud.
        lists: subset, train or test, → the content of its list.

    Raises:
        OSError: if the index cannot be read.
        ValueError: if the pack is damaged, or was made from another list or with another number of points.
    """

    def __init__(
        self,
        data_path: str | os.PathLike[str],
        pc_path: str | os.PathLike[str],
        n_points: int,
        lists: Mapping[str, Sequence[str]],
    ) -> None:
        self.way_out = pack_again(data_path, pc_path, n_points)
        path = index_file(pc_path)
        try:
            index = read_index(path)
        except ValueError as error:
            raise ValueError(f"{error}; {self.way_out}") from error
        if index.n_points != n_points:
            raise ValueError(f"{path}: clouds have {index.n_points} points, not {n_points} (N_POINTS); {self.way_out}")
        for subset, names in lists.items():
            for entry, (now, then) in enumerate(zip_longest(names, index.lists[subset])):
                if now != then:
                    raise ValueError(
                        f"{path} was made from another {subset}.txt than that of {data_path} now: entry {entry} "
                        f"(counted from 0) was {then}, is {now}; {self.way_out}"
                    )
        places = {name: row for row, name in enumerate(index.sources)}
        self.names = [name for names in lists.values() for name in names]
        self.rows = [places[name] for name in self.names]
        self.path, self.shape = path.with_name(index.file), index.shape
        self._clouds: np.ndarray | None = self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clouds": None}  # a memory map would be pickled with all its data

    def __getitem__(self, index: int) -> np.ndarray:
        """Read a cloud: (n_points, 3) float32, a copy; ValueError if it is not finite."""
        if self._clouds is None:
            self._clouds = self._open()
        row = self.rows[index]
        source = f"{self.path}, {self.names[index]} (row {row})"
        return check_points(np.array(self._clouds[row]), source, self.shape[1:])

    def _open(self) -> np.ndarray:
        try:
            clouds = load_npy(self.path, "r")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path}: missing, cut short or no array ({error}); {self.way_out}") from error
        if not isinstance(clouds, np.memmap) or (clouds.dtype, clouds.shape) != (np.dtype("<f4"), self.shape):
            found = f"{clouds.dtype} {clouds.shape}" if isinstance(clouds, np.memmap) else "no single array"
            raise ValueError(f"{self.path}: holds {found}; expected float32 {self.shape}; {self.way_out}")
        return clouds


def _is_sound(index: Index) -> bool:
    return (
        all(type(count) is int and count > 0 for count in (index.n_points, index.chunk))
        and set(index.lists) == set(SUBSETS)
        and all(isinstance(names, list) and set(names) <= index.sources.keys() for names in index.lists.values())
        and all([type(number) for number in source] == [int, int] for source in index.sources.values())
        and isinstance(index.checksums, list)
        and len(index.checksums) == index.num_chunks
    )
