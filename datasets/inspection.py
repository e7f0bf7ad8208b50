"""Look at the files of a published data set: which are missing, what the others hold. Needs no PyTorch.

The quick look reads lists, names, sizes, headers and the labels of .h5 files; the full one reads every cloud.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from datasets.hints import Entry
from datasets.listings import modelnet_files, part_categories, part_files
from datasets.origin import GENERATED, PUBLISHED, marker_of, origin_of
from datasets.packed import PackedClouds, index_file, read_list
from datasets.pickled import fold_items, read_processed
from datasets.published import FOLDS, SCAN_SPLITS, SHOTS, WAYS, fold_name
from datasets.sources import DRAWN_LISTS, SOURCES, version_of
from datasets.untrusted import (
    check_points,
    check_single_labels,
    load_npy,
    load_pickle,
    missing_of,
    read_h5,
    read_h5_labels,
    read_lines,
    read_table,
    safe_join,
)
from utils.command import describe

MISSING, INCOMPLETE, DAMAGED = "missing", "incomplete", "damaged"
NAMED_AT_MOST = 3  # of missing files, or of files with the same fault
CHUNKS = {"train": 5, "test": 2}  # published .h5 files of ModelNet40
LABEL_BYTES = (40, 600)  # what a cloud of a .dat file takes beside its points, at least and at most

Value = TypeVar("Value")


@dataclass
class Finding:
    """What was found of one version of a data set.

    Attributes:
        name: NAME of its config entry.
        title: of the version.
        folder: where it was looked for.
        verdict: what it is (see `datasets.origin`), or what is wrong with it.
        reason: what tells.
        splits: subset → {"clouds", "points", "labels": class → clouds}, as far as they were seen.
        missing: files that should be there.
        files: how many should be.
        problems: what is wrong with those that are there, a sentence each.
        notes: what else is worth knowing.
        ranges: of a full look: {"clouds", "smallest radius", "largest radius"}, from the origin.
        way_out: how to get what is missing.
    """

    name: str
    title: str
    folder: str
    verdict: str = MISSING
    reason: str = ""
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    files: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ranges: dict[str, float] = field(default_factory=dict)
    way_out: str = ""

    @property
    def whole(self) -> bool:
        """Whether all of its files are there and nothing is wrong with them, whatever it is."""
        return self.verdict not in (MISSING, INCOMPLETE, DAMAGED)

    def attempt(self, function: Callable[..., Value], *arguments: Any) -> Value | None:
        """Call what reads a file; what is wrong with it becomes a problem."""
        try:
            return function(*arguments)
        except (ValueError, OSError) as error:
            self.problems.append(describe(error))
            return None

    def present(self, paths: Iterable[Path]) -> dict[Path, int]:
        """Note those files that are missing or empty, return the others and their sizes."""
        wanted = list(dict.fromkeys(paths))
        gone = set(missing_of(wanted))
        sizes = {path: _size(path) for path in wanted if path not in gone}
        there = {path: size for path, size in sizes.items() if size is not None}
        self.files += len(wanted)
        self.missing += [str(path) for path in wanted if path not in there]
        if empty := [path for path, size in there.items() if size == 0]:
            self.problems.append(f"{_some(empty)} empty; get them anew")
        return {path: size for path, size in there.items() if size}

    def count(self, subset: str, labels: Iterable[str], points: int | None) -> None:
        """Add clouds to a subset: the class of each, and the points that each has."""
        split = self.splits.setdefault(subset, {"clouds": 0, "points": None, "labels": {}})
        counted = Counter(split["labels"]) + Counter(labels)
        split.update(clouds=sum(counted.values()), labels=dict(sorted(counted.items())))
        split["points"] = split["points"] if points is None else points


def inspect(entry: Mapping[str, Any], full: bool = False) -> Finding:
    """Look at what a config entry names, all subsets of it.

    Args:
        entry: NAME, one of `SOURCES`, and the keys that say where it is and which version; N_POINTS where there is one.
        full: read every cloud, too.
    """
    source, key = SOURCES[entry["NAME"]], next(iter(SOURCES[entry["NAME"]].folders))
    known = Entry(entry["NAME"], key, entry[key], entry.get("N_POINTS"))
    finding = Finding(entry["NAME"], version_of(dict(entry)).title, str(entry[key]), way_out=known.get())
    folders = [Path(entry[key]) for key in source.folders]
    if not any(folder.is_dir() for folder in folders):
        finding.reason = "the folder is not there"
        return finding
    clouds = _LOOKS[entry["NAME"]](entry, finding)
    if full:
        _read_all(finding, clouds)
    finding.verdict, finding.reason = _judge(entry, finding)
    return finding


def entries(root: Path, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield an entry for each version of published data sets, where they belong under `root`."""
    for name in names:
        source = SOURCES[name]
        places = {key: str(root / folder) for key, folder in source.folders.items()}
        for split in source.versions:
            yield {"NAME": name, **places, **({"SPLIT": split} if split else {})}


def _judge(entry: Mapping[str, Any], finding: Finding) -> tuple[str, str]:
    if finding.problems:
        return DAMAGED, f"{len(finding.problems)} problems"
    if finding.missing:
        verdict = MISSING if len(finding.missing) == finding.files else INCOMPLETE
        return verdict, f"{len(finding.missing):,} of {finding.files:,} files are missing"
    if entry["NAME"] == "ModelNetFewShot":
        if marker := marker_of(entry):
            return GENERATED, f"{marker} says so"
        return PUBLISHED, "all folds are there; those of datasets.few_shot_splits look the same"
    published = version_of(dict(entry)).clouds
    counts = {subset: _clouds(split, published[subset]) for subset, split in finding.splits.items()}
    classes = {label for split in finding.splits.values() for label in split["labels"]}
    return origin_of(entry, counts, classes)


def _clouds(split: Mapping[str, Any], published: int) -> int:
    """Clouds of a subset; of a .dat file that was not read, the published number, if its size admits that."""
    if split["clouds"] is not None:
        return split["clouds"]
    most, least = (split["bytes"] // (split["points"] * 6 * 4 + label) for label in LABEL_BYTES)
    return published if least <= published <= most else most


# ---------------------------------------------------------------------------------------------------- one by one
# Each looks at the files of one data set and returns its clouds, to be read: (where it stands, how to read it).

Clouds = Iterator[tuple[str, Callable[[], np.ndarray]]]


def _shapenet(entry: Mapping[str, Any], finding: Finding) -> Clouds:
    lists, folder = Path(entry["DATA_PATH"]), Path(entry["PC_PATH"])
    names = {}
    for listing in finding.present([lists / "train.txt", lists / "test.txt"]):
        names[listing.stem] = finding.attempt(read_list, listing) or []
    if index_file(folder).is_file():
        finding.notes.append(f"reads the pack {index_file(folder).parent}; `python -m datasets.pack --check` reads it")
        packs = [_pack(finding, entry, subset, listed) for subset, listed in names.items()]
        points = next((pack.shape[1] for pack in packs if pack), None)
        clouds = ((f"{p.path}, {p.names[i]}", lambda p=p, i=i: p[i]) for p in packs if p for i in range(len(p.names)))
    else:
        wanted = [finding.attempt(safe_join, folder, name) for listed in names.values() for name in listed]
        there = finding.present(path for path in wanted if path)
        points = _npy_points(finding, there)
        asked = Entry("ShapeNet", "PC_PATH", folder, entry.get("N_POINTS"))
        if points is not None and asked.points not in (None, points):
            finding.problems.append(f"{next(iter(there))}: holds {points} points; {asked.of_points(points)}")
        clouds = ((str(path), lambda path=path: load_npy(path)) for path in there)
    for subset, listed in names.items():
        finding.count(subset, (name.partition("-")[0] for name in listed), points)
    if (lists / DRAWN_LISTS).is_file():
        finding.notes.append("train.txt and test.txt were drawn by `python -m datasets.lists`, not published")
    return clouds


def _pack(finding: Finding, entry: Mapping[str, Any], subset: str, names: list[str]) -> PackedClouds | None:
    points = entry.get("N_POINTS", SOURCES["ShapeNet"].points)
    return finding.attempt(PackedClouds, entry["DATA_PATH"], entry["PC_PATH"], points, {subset: names})


def _npy_points(finding: Finding, sizes: dict[Path, int]) -> int | None:
    """Points per cloud as the header of the first file says; files of another size are a problem."""
    if not sizes:
        return None
    usual = Counter(sizes.values()).most_common(1)[0][0]
    if odd := [path for path, size in sizes.items() if size != usual]:
        finding.problems.append(f"{_some(odd)} not of {usual:,} bytes as the others; get them anew")
    first = next(path for path, size in sizes.items() if size == usual)
    array = finding.attempt(load_npy, first, "r")
    if array is not None and (array.ndim != 2 or array.shape[1] != 3):
        finding.problems.append(f"{first}: shape {array.shape}; expected (points, 3)")
    return len(array) if array is not None and array.ndim == 2 else None


def _modelnet_svm(entry: Mapping[str, Any], finding: Finding) -> Clouds:
    folder = Path(entry["DATA_DIR"])
    names_file = folder / "shape_names.txt"
    names = (finding.attempt(read_lines, names_file, "DATA_DIR") if names_file.is_file() else None) or []
    generated = marker_of(entry)
    clouds = []
    for subset, published in CHUNKS.items():
        found = sorted(folder.glob(f"ply_data_{subset}*.h5"))
        wanted = [folder / f"ply_data_{subset}{i}.h5" for i in range(1 if generated else published)]
        finding.present([*wanted, *found])
        clouds += [_h5(finding, path, subset, names) for path in found]
    return (cloud for file in clouds for cloud in file)


def _scanobjectnn(entry: Mapping[str, Any], finding: Finding) -> Clouds:
    base = Path(entry["ROOT"])
    folder, ending = SCAN_SPLITS[entry["SPLIT"]]
    names_file = base / "shape_names.txt"
    names = (finding.attempt(read_lines, names_file, "ROOT") if names_file.is_file() else None) or list(
        SOURCES["ScanObjectNN"].classes
    )
    files = {base / folder / f"{part}_objectdataset{ending}.h5": subset for part, subset in _SCAN_PARTS}
    clouds = [_h5(finding, path, files[path], names) for path in finding.present(files)]
    return (cloud for file in clouds for cloud in file)


_SCAN_PARTS = (("training", "train"), ("test", "test"))


def _h5(finding: Finding, path: Path, subset: str, names: list[str]) -> Clouds:
    """Count the clouds of an .h5 file by its labels."""
    read = finding.attempt(read_h5_labels, path, "")
    if read is None:
        return iter(())
    points, labels = read[0], read[1].tolist()
    if names and (wrong := [label for label in labels if label >= len(names)]):
        finding.problems.append(f"{path}: label {wrong[0]}, but there are {len(names)} class names")
        return iter(())
    finding.count(subset, (names[label] if names else str(label) for label in labels), points)
    whole: list[np.ndarray] = []

    def cloud(i: int) -> np.ndarray:
        if not whole:
            whole.append(read_h5(path, "")[0])
        return whole[0][i]

    return ((f"{path}, cloud {i}", lambda i=i: cloud(i)) for i in range(len(labels)))


def _modelnet(entry: Mapping[str, Any], finding: Finding) -> Clouds:
    folder = Path(entry["DATA_PATH"])
    there = [*finding.present([folder / "modelnet40_shape_names.txt"])]
    names = (finding.attempt(read_lines, there[0], "DATA_PATH") if there else None) or []
    clouds = [_modelnet_subset(entry, finding, subset, names) for subset in ("train", "test")]
    return (cloud for subset in clouds for cloud in subset)


def _modelnet_subset(entry: Mapping[str, Any], finding: Finding, subset: str, names: list[str]) -> Clouds:
    """The .dat file of a subset, or else its text files, as the reader has it."""
    folder = Path(entry["DATA_PATH"])
    points = entry.get("N_POINTS")
    processed = sorted(folder.glob(f"modelnet40_{subset}_{points or '[0-9]*'}pts_fps.dat"))
    if processed:
        finding.present(processed[:1])
        return _dat(finding, processed[0], subset, names)
    there = [*finding.present([folder / f"modelnet40_{subset}.txt"])]
    files, labels = (finding.attempt(modelnet_files, there[0], names, "DATA_PATH") if there and names else None) or (
        [],
        [],
    )
    finding.count(subset, (names[label] for label in labels), None)
    if files:
        finding.notes.append(
            f"{subset}: text files, whose first N_POINTS lines are read; published figures were measured on the .dat "
            "file, which `python -m datasets.process_modelnet` makes of them"
        )
    return ((str(path), lambda path=path: read_table(path, 6, "DATA_PATH", ",")) for path in finding.present(files))


def _dat(finding: Finding, path: Path, subset: str, names: list[str]) -> Clouds:
    """Say what the size of a .dat file tells; its clouds and labels are counted when it is read."""
    points = int(re.sub(r"\D", "", path.name.removeprefix(f"modelnet40_{subset}_")))
    finding.splits[subset] = {"clouds": None, "points": points, "labels": {}, "bytes": path.stat().st_size}

    def clouds() -> Clouds:
        read, labels = finding.attempt(read_processed, path, "") or ([], [])
        numbers = finding.attempt(check_single_labels, labels, path, len(names)) if read else None
        if numbers is not None:
            del finding.splits[subset]
            finding.count(subset, (names[label] for label in numbers), points)
        yield from ((f"{path}, cloud {i}", lambda cloud=cloud: cloud) for i, cloud in enumerate(read))

    return clouds()


def _few_shot(entry: Mapping[str, Any], finding: Finding) -> Clouds:
    folder = Path(entry["DATA_PATH"])
    wanted = [fold_name(way, shot, fold) for way in WAYS for shot in SHOTS for fold in range(FOLDS)]
    there = finding.present(folder / name for name in wanted)

    def clouds() -> Clouds:
        for path in there:
            content = finding.attempt(load_pickle, path)
            for subset in ("train", "test") if content is not None else ():
                for i, (cloud, _, _) in enumerate(finding.attempt(fold_items, path, content, subset) or []):
                    yield f"{path}, {subset} cloud {i}", lambda cloud=cloud: cloud

    return clouds()


def _parts(entry: Mapping[str, Any], finding: Finding) -> Clouds:
    folder = Path(entry["ROOT"])
    categories = folder / "synsetoffset2category.txt"
    lists = {
        folder / f"train_test_split/shuffled_{subset}_file_list.json": subset for subset in ("train", "val", "test")
    }
    there = finding.present([categories, *lists])
    category_of = (finding.attempt(part_categories, categories, "ROOT") if categories in there else None) or {}
    wanted = []
    for listing in (path for path in there if path in lists and category_of):
        files, labels = finding.attempt(part_files, listing, folder, category_of, "ROOT") or ([], [])
        finding.count(lists[listing], (SOURCES["ShapeNetPart"].classes[label] for label in labels), None)
        wanted += files
    return ((str(path), lambda path=path: read_table(path, 7, "ROOT")) for path in finding.present(wanted))


_LOOKS: dict[str, Callable[[Mapping[str, Any], Finding], Clouds]] = {
    "ShapeNet": _shapenet,
    "ModelNet40_SVM": _modelnet_svm,
    "ModelNet": _modelnet,
    "ModelNetFewShot": _few_shot,
    "ScanObjectNN": _scanobjectnn,
    "ShapeNetPart": _parts,
}


# ---------------------------------------------------------------------------------------------------- every cloud


def _read_all(finding: Finding, clouds: Clouds) -> None:
    """Read every cloud: what is damaged, all zeros, the same as another; the range of coordinates."""
    from utils.logger import progress  # imports PyTorch, which the quick look does without

    seen: dict[bytes, str] = {}
    zeros, copies, radii = [], [], []
    for place, read in progress(clouds, f"{finding.title} (clouds)"):
        points = finding.attempt(lambda place=place, read=read: check_points(*_as_points(read(), place)))
        if points is None:
            continue
        radius = float(np.linalg.norm(points[:, :3].astype(np.float64), axis=1).max())
        radii.append(radius)
        if radius == 0:
            zeros.append(place)
        other = seen.setdefault(hashlib.sha256(points.tobytes()).digest(), place)
        if other != place and finding.name != "ModelNetFewShot":  # whose folds share clouds
            copies.append(f"{place} (as {other})")
    if zeros:
        finding.problems.append(f"{_some(zeros)} all zeros; get them anew")
    if copies:
        finding.notes.append(f"{len(copies)} clouds are the same as another, first {copies[0]}")
    if radii:
        finding.ranges = {"clouds": len(radii), "smallest radius": min(radii), "largest radius": max(radii)}


def _as_points(cloud: Any, place: str) -> tuple[Any, str, tuple[int | None, ...]]:
    """A cloud, where it stands and the shape that it must have: any number of points of the channels it has."""
    channels = cloud.shape[-1] if isinstance(cloud, np.ndarray) and cloud.ndim == 2 else 3
    return cloud, place, (None, channels if channels in (3, 6, 7) else 3)


def _size(path: Path) -> int | None:
    """Bytes of a file; None where a link leads nowhere."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _some(paths: list[Any]) -> str:
    """Count files and name the first few."""
    names = ", ".join(map(str, paths[:NAMED_AT_MOST]))
    more = f" and {len(paths) - NAMED_AT_MOST:,} more" if len(paths) > NAMED_AT_MOST else ""
    return f"{names}{more} {'are' if len(paths) > 1 else 'is'}"
