"""Which files of a user's own data there are, of which class and split: a folder of folders, or a list."""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from datasets.own.formats import FORMATS
from datasets.untrusted import MAX_LIST_BYTES, check_choice, safe_join
from utils.config import check_keys
from utils.nearest import did_you_mean_path

SPLITS = ("train", "test")
LISTS = (".csv", ".json")
COLUMNS = ("path", "label", "split")
SHARE = 5  # one cloud of so many is held out where no split is on the disk
WAY_OUT = "docs/OWN_DATA.md says how a folder or a list has to look"


@dataclass(frozen=True)
class Listing:
    """The files of a data set, in the order of their paths.

    Attributes:
        folder: that the paths are relative to.
        paths: of the files, with / between folders.
        labels: class name of each; none where there are no classes.
        splits: train or test, of each; none where there is no split.
        others: ending → files left alone, since they are of no kind that is read; "in val/": in a third split.
    """

    folder: Path
    paths: list[str]
    labels: list[str]
    splits: list[str]
    others: Counter[str] = field(default_factory=Counter)

    @property
    def class_names(self) -> list[str]:
        """All classes, sorted."""
        return sorted(set(self.labels))


def list_files(root: str | os.PathLike[str]) -> Listing:
    """List the files of a folder, or those that a list names.

    Args:
        root: a folder, or a .csv or .json file; see docs/OWN_DATA.md.

    Raises:
        FileNotFoundError: if there is no such folder or list, or a listed file is missing.
        ValueError: if the folder or the list is not as described, or leads out of its folder.
    """
    path = Path(root)
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        hint = did_you_mean_path(path, Path.exists)
        raise FileNotFoundError(f"{os.path.abspath(path)} does not exist (config key ROOT); {hint}{WAY_OUT}")
    if path.suffix.lower() not in LISTS:
        raise ValueError(f"ROOT is the file {path}; give a folder, or a list that ends in {' or '.join(LISTS)}")
    return _of_list(path)


def name_of_root(root: str | os.PathLike[str]) -> str:
    """What data of one's own goes by: the name of its folder or list."""
    return Path(os.path.abspath(root)).name


def draw_split(listing: Listing, seed: int) -> list[str]:
    """Hold a fifth of each class out, at least one of two: train or test, of each file.

    Which ones follows from the seed and the paths, so that every process and every run draws the same.
    """
    splits = ["train"] * len(listing.paths)
    for name in listing.class_names:
        members = [i for i, label in enumerate(listing.labels) if label == name]
        members.sort(key=lambda i: hashlib.sha256(f"{seed}/{listing.paths[i]}".encode()).digest())
        for i in members[: max(round(len(members) / SHARE), int(len(members) > 1))]:
            splits[i] = "test"
    return splits


# ---------------------------------------------------------------------------------------------------- folders


def _of_folder(root: Path) -> Listing:
    """Read classes and splits from the names of folders: [train|test/][class/[train|test/]…]file."""
    found, others = [], Counter()
    top = {entry.name for entry in os.scandir(root) if entry.is_dir() and not _is_left_alone(entry.name)}
    split_on_top = set(SPLITS) <= top or (top & set(SPLITS) == top != set())
    if split_on_top and (beside := sorted(top - {*SPLITS, "val"})):
        raise ValueError(f"{root} has folders beside train and test: {', '.join(beside)}; move them; {WAY_OUT}")
    for path in sorted(_walk(root, root.resolve())):
        *folders, name = path.split("/")
        ending = PurePosixPath(name).suffix.lower()
        if ending not in FORMATS:
            others[ending or "none"] += 1
            continue
        split = ""
        for place in [0] if split_on_top else [1]:
            if len(folders) > place and folders[place] in (*SPLITS, "val"):
                split = folders.pop(place)
        if split == "val":
            others["in val/"] += 1
        else:
            found.append((path, folders[0] if folders else "", split))
    if not found:
        there = ", ".join(f"{count} {ending}" for ending, count in others.most_common(3)) or "nothing"
        raise ValueError(f"{root} holds no file that is read ({', '.join(FORMATS)}) but {there}; {WAY_OUT}")
    return _listing(root, root, found, others)


def _walk(folder: Path, root: Path, above: str = "") -> Iterator[str]:
    """Yield the files below a folder, relative to it; hidden ones are left alone, links that lead out are refused."""
    for entry in os.scandir(folder):
        if _is_left_alone(entry.name):
            continue
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root):
            raise ValueError(f"{entry.path} is a link that leads out of {root}; copy or move what it leads to")
        if entry.is_dir():
            if entry.is_symlink():
                raise ValueError(f"{entry.path} is a link to a folder of the same data, which would count twice")
            yield from _walk(Path(entry.path), root, f"{above}{entry.name}/")
        else:
            yield above + entry.name


def _is_left_alone(name: str) -> bool:
    """Whether a file or folder is hidden, or of a program that packs (__MACOSX)."""
    return name.startswith((".", "__"))


# ---------------------------------------------------------------------------------------------------- lists


def _of_list(path: Path) -> Listing:
    """Read paths, classes and splits from a list; paths are relative to its folder."""
    found = []
    for number, row in enumerate(_rows(path), 1):
        where = f"{path}, entry {number}"
        check_keys(row, COLUMNS, "", where)
        values = [row.get(column, "") for column in COLUMNS]
        if not all(isinstance(value, str) for value in values) or not values[0]:
            raise ValueError(f"{where} is {dict(row)}; expected texts, and a path among them")
        name, label, split = (value.strip() for value in values)
        if split:
            check_choice(split, SPLITS, f"{where}: split")
        file = safe_join(path.parent, name)
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise ValueError(f"{where}: {name} is a link that leads out of {path.parent}")
        if file.suffix.lower() not in FORMATS:
            raise ValueError(f"{where}: {name} is of no kind that is read: {', '.join(FORMATS)}")
        if not file.is_file():
            raise FileNotFoundError(f"{where}: file {file} does not exist")
        found.append((PurePosixPath(name).as_posix(), label, split))
    if not found:
        raise ValueError(f"{path}: the list is empty; {WAY_OUT}")
    if repeated := [name for name, count in Counter(name for name, *_ in found).items() if count > 1]:
        raise ValueError(f"{path} lists {repeated[0]} more than once, and {len(repeated) - 1} others; list each once")
    return _listing(path, path.parent, sorted(found), Counter())


def _rows(path: Path) -> Sequence[dict]:
    """Read the entries of a .csv with a line of names on top, or of a .json list of paths or of mappings."""
    size = path.stat().st_size
    if size > MAX_LIST_BYTES:
        raise ValueError(f"{path}: {size} bytes; a list of more than {MAX_LIST_BYTES} is refused")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            reader = csv.DictReader(text.splitlines(), strict=True)
            check_keys(reader.fieldnames or [], COLUMNS, "", f"the first line of {path}")
            return [{key: value or "" for key, value in row.items()} for row in reader]
        rows = json.loads(text)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a {path.suffix} list ({error}); {WAY_OUT}") from error
    if not isinstance(rows, list) or not all(isinstance(row, str | dict) for row in rows):
        raise ValueError(f"{path}: expected a list of paths, or of mappings with {', '.join(COLUMNS)}; {WAY_OUT}")
    return [{"path": row} if isinstance(row, str) else row for row in rows]


def _listing(source: Path, folder: Path, found: list[tuple[str, str, str]], others: Counter[str]) -> Listing:
    """Check that all files have a class or none has, and likewise a split."""
    paths, labels, splits = (list(column) for column in zip(*found, strict=True))
    for what, values in (("class", labels), ("split", splits)):
        if 0 < (without := values.count("")) < len(values):
            raise ValueError(
                f"{source}: {without} of {len(values)} files have no {what}, first {paths[values.index('')]}; give all "
                f"of them one, or none; {WAY_OUT}"
            )
    return Listing(folder, paths, labels if labels[0] else [], splits if splits[0] else [], others)
