"""ShapeNetPart in one file, which reads faster than 16,881 text files: how it is laid out, and how it is read.

The folder `<ROOT>.packed/` holds `shapes.f32`, rows of four little-endian float32 (x, y, z, part), and `index.json`,
which is written last and says which rows belong to which shape. `python -m datasets.pack_parts` writes them.
"""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.hints import Entry
from datasets.mapped import MappedRows
from datasets.published import CATEGORIES, PARTS
from datasets.untrusted import read_table

VERSION = 1


@dataclass(frozen=True)
class Shape:
    """Where a shape is, and what it was made from.

    Attributes:
        first, rows: of `shapes.f32`.
        crc: CRC-32 of their bytes.
        size, mtime: bytes, and time of modification in ns, of the text file when it was packed.
    """

    first: int
    rows: int
    crc: int
    size: int
    mtime: int


def pack_folder(root: str | os.PathLike[str]) -> Path:
    """Return where the pack of a folder is, whether or not there is one."""
    path = Path(os.path.abspath(root))
    return path.with_name(f"{path.name}.packed")


def pack_again(root: str | os.PathLike[str]) -> str:
    """Name the command that makes a pack anew."""
    return f"run `{shlex.join(['python', '-m', 'datasets.pack_parts', '--root', os.fspath(root)])}` again"


def shape_name(path: Path) -> str:
    """`<synset>/<id>` of a text file."""
    return f"{path.parent.name}/{path.stem}"


def read_shape(path: Path, category: int, entry: Entry) -> np.ndarray:
    """Read a text file of ShapeNetPart.

    Args:
        path: lines of `x y z nx ny nz part`.
        category: of the shape; its parts have to be those of the category.
        entry: the config entry that led here, for the message.

    Returns:
        (n, 4) float32: x, y, z, part.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is not as described.
    """
    rows, own = read_table(path, 7, entry), PARTS[CATEGORIES[category]]
    if (wrong := ~np.isin(rows[:, 6], own)).any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{path}: row {row} (counted from 0) has the part {rows[row, 6]:g}; the parts of the category "
            f"{CATEGORIES[category]} are {own.start} to {own.stop - 1}"
        )
    return np.ascontiguousarray(rows[:, [0, 1, 2, 6]], dtype="<f4")


class PackedParts(MappedRows):
    """The shapes of a pack.

    Args:
        root: folder of the data set; there must be a pack of it.

    Attributes:
        shapes: `<synset>/<id>` → where it is.

    Raises:
        ValueError: if the pack is damaged.
    """

    columns = 4  # x, y, z, part

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.data, self.way_out = pack_folder(root) / "shapes.f32", pack_again(root)
        index = self.data.with_name("index.json")
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
            self.shapes = {name: Shape(*place) for name, place in content["shapes"].items()}
            rows = sum(shape.rows for shape in self.shapes.values())
            whole = content["version"] == VERSION and self.holds(rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{index} is damaged ({error}); {self.way_out}") from error
        if not whole:
            raise ValueError(f"{self.data} is cut short, or of another version; {self.way_out}")

    @classmethod
    def of(cls, root: str | os.PathLike[str]) -> "PackedParts | None":
        """Open the pack of a folder, if there is one."""
        return cls(root) if (pack_folder(root) / "index.json").is_file() else None

    def require(self, names: Sequence[str], listing: Path) -> None:
        """Check that the pack has the shapes that a list names; ValueError if not."""
        if missing := [name for name in names if name not in self.shapes]:
            raise ValueError(
                f"{len(missing)} of the {len(names)} shapes listed in {listing} are not in {self.data.parent}, first "
                f"{missing[0]}; {self.way_out}"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        """Read a shape: (n, 4) float32, a copy; ValueError if its bytes have changed."""
        return self.take(name, self.shapes[name], self.way_out)
