# PYTHON_ARGCOMPLETE_OK
"""Command line: pack the text files of ShapeNetPart into one file, which reads faster; or check a pack."""

import argparse
import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from datasets.hints import Entry
from datasets.listings import part_categories, part_files
from datasets.packed_parts import VERSION, PackedParts, Shape, pack_again, pack_folder, read_shape, shape_name
from datasets.sources import SOURCES
from datasets.untrusted import require_folder, require_listed
from utils.command import Parser, run_command
from utils.files import atomic_write, locked, make_folder, size_and_date
from utils.logger import progress

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
NAME = "ShapeNetPart"


def pack(root: Path) -> Path:
    """Pack all shapes that the lists name; nothing is used before all is written.

    Args:
        root: folder of the data set.

    Returns:
        The folder of the pack.

    Raises:
        FileNotFoundError: if the folder, a list or a listed file is missing.
        ValueError: if a list or a file is not as described, or another process is packing.
    """
    entry, folder = Entry(NAME, "ROOT", root), pack_folder(root)
    files = listed(root, entry)
    make_folder(folder)
    with locked(folder):
        (folder / "index.json").unlink(missing_ok=True)
        shapes: dict[str, Shape] = {}
        with atomic_write(folder / "shapes.f32") as out:
            first = 0
            for name, (path, category) in progress(files.items(), "packing (shapes)"):
                rows = read_shape(path, category, entry)
                shapes[name] = Shape(first, len(rows), zlib.crc32(rows.data), *size_and_date(path))
                out.write(rows.data)
                first += len(rows)
        content = {"version": VERSION, "shapes": {name: astuple(shape) for name, shape in shapes.items()}}
        with atomic_write(folder / "index.json") as out:
            out.write(json.dumps(content).encode())
    logger.info("packed %d shapes into %s", len(shapes), folder)
    return folder


def check(root: Path) -> None:
    """Compare a pack with its checksums, with the lists, and with those of its files that are still there.

    Raises:
        FileNotFoundError: if there is no pack, or a list is missing.
        ValueError: if something differs.
    """
    packed = PackedParts.of(root)
    if packed is None:
        raise FileNotFoundError(f"{pack_folder(root)} does not exist; {pack_again(root).removesuffix(' again')}")
    files = listed(root, Entry(NAME, "ROOT", root), there=False)
    packed.require(list(files), root / "train_test_split")
    for name in progress(packed.shapes, "checking (shapes)"):
        packed[name]
    present = [name for name in packed.shapes if (root / f"{name}.txt").is_file()]
    stats = {name: (packed.shapes[name].size, packed.shapes[name].mtime) for name in present}
    if changed := [name for name in present if size_and_date(root / f"{name}.txt") != stats[name]]:
        raise ValueError(
            f"{len(changed)} files of {root} have another size or date than when they were packed, first {changed[0]}; "
            f"{packed.way_out}"
        )
    logger.info(
        "%s: %d shapes are whole; %d of their files are gone",
        *(packed.data.parent, len(packed.shapes), len(packed.shapes) - len(present)),
    )


def listed(root: Path, entry: Entry, there: bool = True) -> dict[str, tuple[Path, int]]:
    """Shapes that the lists name: `<synset>/<id>` → text file, which has to be there if `there`, and category."""
    folder = require_folder(root, entry)
    category_of = part_categories(folder / "synsetoffset2category.txt", entry)
    found: dict[str, tuple[Path, int]] = {}
    for split in SPLITS:
        listing = folder / f"train_test_split/shuffled_{split}_file_list.json"
        files, categories = part_files(listing, folder, category_of, entry)
        if there:
            require_listed(files, listing, entry)
        found |= {shape_name(path): (path, category) for path, category in zip(files, categories, strict=True)}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Pack or check, as the command line asks."""
    parser = Parser(
        prog="python -m datasets.pack_parts",
        description=__doc__,
        examples=["python -m datasets.pack_parts", "python -m datasets.pack_parts --check"],
    )
    default = Path("data", SOURCES[NAME].home)
    parser.add_argument("--root", type=Path, default=default, metavar="FOLDER", help="ROOT of the config (%(default)s)")
    parser.add_argument("--check", action="store_true", help="read the whole pack and compare it with its checksums")
    args: argparse.Namespace = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (check if args.check else pack)(args.root)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
