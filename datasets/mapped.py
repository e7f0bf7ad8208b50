"""Rows of numbers in one memory-mapped file, each read checked."""

import zlib
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np


class Place(Protocol):
    """Where some rows are: the first, how many, and the CRC-32 of their bytes."""

    first: int
    rows: int
    crc: int


class MappedRows:
    """Base of what reads rows of little-endian float32. Pickles without the data: each process opens the file.

    Attributes:
        data: the file.
        columns: numbers in a row.
    """

    data: Path
    columns: ClassVar[int]
    _rows: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}  # a memory map would be pickled with all its data

    def holds(self, rows: int) -> bool:
        """Whether the file is as long as so many rows; OSError if there is none."""
        return self.data.stat().st_size == 4 * self.columns * rows

    def take(self, name: str, place: Place, way_out: str) -> np.ndarray:
        """Read the rows of `name`, a copy (n, columns) float32; ValueError with `way_out` if their bytes changed."""
        if self._rows is None:
            self._rows = np.memmap(self.data, "<f4", "r").reshape(-1, self.columns)
        rows = np.array(self._rows[place.first : place.first + place.rows])
        if zlib.crc32(rows.data) != place.crc:
            raise ValueError(f"{self.data} is damaged at {name}; {way_out}")
        return rows
