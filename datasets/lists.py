# PYTHON_ARGCOMPLETE_OK
"""Command line: draw train.txt and test.txt of ShapeNet-55 from the files on disk, where the published are missing.

The split is ours, not the published one: of each taxonomy a fifth is for the test, as many as the published lists have
of all shapes together. A file beside the lists says so, and so do `datasets.check` and every run that reads them.
"""

import argparse
import json
import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.hints import Entry
from datasets.sources import DRAWN_LISTS, SOURCES
from datasets.untrusted import require_folder
from utils.command import Parser, integer_from, run_command
from utils.files import atomic_write, make_folder

logger = logging.getLogger(__name__)

SHARE = 0.2  # of each taxonomy; 10,518 of the published 52,470 are 0.2005


def write_lists(data_path: Path, pc_path: Path, seed: int = 0, share: float = SHARE) -> dict[str, int]:
    """Split the files of a folder into two lists.

    Args:
        data_path: folder of train.txt and test.txt, neither of which may be there; made if missing.
        pc_path: folder of `<taxonomy>-<model>.npy`.
        seed: of the draw; what is drawn of a taxonomy depends on it and on the files of that taxonomy alone.
        share: of each taxonomy that is for the test; a taxonomy of one file is for training.

    Returns:
        subset → names in its list.

    Raises:
        FileNotFoundError: if the folder of the files is missing.
        ValueError: if a list is there already, or there are no files, or no two of a taxonomy.
    """
    require_folder(pc_path, Entry("ShapeNet", "PC_PATH", pc_path))
    paths = {subset: data_path / f"{subset}.txt" for subset in ("train", "test")}
    if there := [str(path) for path in paths.values() if path.exists()]:
        raise ValueError(f"{' and '.join(there)} is there already and stays as it is; move it away to draw another")
    names: dict[str, list[str]] = defaultdict(list)
    for path in sorted(pc_path.iterdir()):
        if match := re.fullmatch(r"(\d+)-.+\.npy", path.name):
            names[match[1]].append(path.name)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for taxonomy, of_it in names.items():
        held = set(np.random.default_rng([seed, int(taxonomy)]).permutation(len(of_it))[: round(share * len(of_it))])
        for i, name in enumerate(of_it):
            lists["test" if i in held else "train"].append(name)
    if not lists["test"]:
        found = sum(map(len, names.values()))
        raise ValueError(f"{pc_path}: {found} files <taxonomy>-<model>.npy are too few to hold some out for the test")
    make_folder(data_path)
    about = {"drawn_by": "python -m datasets.lists", "seed": seed, "share": share, "published": False}
    with atomic_write(data_path / DRAWN_LISTS) as file:  # first, so that no list is without it
        file.write((json.dumps(about, indent=1) + "\n").encode())
    for subset, path in paths.items():
        with atomic_write(path) as file:
            file.write("".join(f"{name}\n" for name in lists[subset]).encode())
    return {subset: len(listed) for subset, listed in lists.items()}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog="python -m datasets.lists",
        description="Draw train.txt and test.txt of ShapeNet-55 from the .npy files on disk. The split is not the "
        "published one, and a file beside the lists says so. Lists that are there are never touched.",
        examples=["python -m datasets.lists"],
    )
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets (%(default)s)")
    parser.add_argument("--seed", type=integer_from(0), default=0, help="seed of the draw (%(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the lists that are asked for."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folders = {key: args.root / folder for key, folder in SOURCES["ShapeNet"].folders.items()}
    counts = write_lists(folders["DATA_PATH"], folders["PC_PATH"], args.seed)
    published = SOURCES["ShapeNet"].versions[""].clouds
    logger.info(
        "%s: %s; published: %s. This is another split than the published one: figures differ.",
        folders["DATA_PATH"],
        *(" + ".join(f"{count:,} {subset}" for subset, count in one.items()) for one in (counts, published)),
    )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
