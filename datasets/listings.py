"""The files that a published data set's lists name, and their labels. Needs no PyTorch."""

import re
from pathlib import Path

from datasets.hints import Entry
from datasets.published import CATEGORIES, PARTS, TEST_AREA
from datasets.untrusted import read_json_list, read_lines, safe_join


def modelnet_files(listing: Path, class_names: list[str], key: str | Entry) -> tuple[list[Path], list[int]]:
    """Read a list of ModelNet40 with normals: `<class>_<number>` a line.

    Args:
        listing: modelnet40_train.txt or modelnet40_test.txt.
        class_names: their order gives the labels.
        key: config key or entry that led here, for the message.

    Returns:
        The text files, beside the list, and their labels.

    Raises:
        FileNotFoundError: if the list is missing.
        ValueError: if a line is of another form, or names another class.
    """
    files, labels = [], []
    index = {name: i for i, name in enumerate(class_names)}
    for name in read_lines(listing, key):
        match = re.fullmatch(r"(.+)_\d+", name)
        if match is None:
            raise ValueError(f"{listing}: {name!r} is not of the form <class>_<number>")
        files.append(safe_join(listing.parent, f"{match[1]}/{name}.txt"))
        if match[1] not in index:
            raise ValueError(f"{listing}: class {match[1]!r} of {name!r} is not in modelnet40_shape_names.txt")
        labels.append(index[match[1]])
    return files, labels


def room_files(folder: Path) -> dict[str, list[Path]]:
    """Find the rooms of S3DIS, Area_<area>_<room>.npy, in a folder.

    Returns:
        Subset → files of its rooms, in the order of their names: those of area 5 for "test", the others for "train".
    """
    rooms: dict[str, list[Path]] = {"train": [], "test": []}
    for path in sorted(folder.glob("Area_[0-9]_*.npy")):
        rooms["test" if path.name.startswith(f"Area_{TEST_AREA}_") else "train"].append(path)
    return rooms


def part_categories(path: Path, key: str | Entry) -> dict[str, int]:
    """Read synsetoffset2category.txt: the label of the category that each synset stands for; raises as above."""
    category_of = {}
    for line in read_lines(path, key):
        match = re.fullmatch(r"(\w+)\s+(\d+)", line)
        if match is None or match[1] not in PARTS:
            raise ValueError(
                f"{path}: {line!r} is not of the form <category> <synset>, with a category of {', '.join(PARTS)}"
            )
        category_of[match[2]] = CATEGORIES.index(match[1])
    return category_of


def part_files(
    listing: Path, folder: Path, category_of: dict[str, int], key: str | Entry
) -> tuple[list[Path], list[int]]:
    """Read the files and the categories of the shapes that a list of ShapeNetPart names as shape_data/<synset>/<id>.

    Args:
        listing: shuffled_{train,val,test}_file_list.json.
        folder: of the synsets' folders.
        category_of: what `part_categories` returned.
        key: config key or entry that led here, for the message.

    Raises:
        FileNotFoundError: if the list is missing.
        ValueError: if it is not as described.
    """
    files, categories = [], []
    for name in read_json_list(listing, key):
        match = re.fullmatch(r"shape_data/([^/]+)/([^/]+)", name)
        if match is None or match[1] not in category_of:
            raise ValueError(
                f"{listing}: {name!r} is not of the form shape_data/<synset>/<id>, with a synset of "
                "synsetoffset2category.txt"
            )
        files.append(safe_join(folder, f"{match[1]}/{match[2]}.txt"))
        categories.append(category_of[match[1]])
    return files, categories
