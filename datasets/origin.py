"""What a data set is: the published one, a part of it, generated shapes, or something else. Needs no PyTorch."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets.published import SHOTS, TEST_CLOUDS, WAYS
from datasets.sources import DRAWN_LISTS, MARKER, SOURCES, Version, version_of

PUBLISHED, SUBSET, GENERATED, OTHER, FOREIGN = "published", "subset", "generated", "other version", "foreign"


class Origin(NamedTuple):
    """A verdict on some clouds.

    Attributes:
        verdict: one of the five above.
        reason: what tells, in a few words.
    """

    verdict: str
    reason: str


def origin_of(entry: Mapping[str, Any], counts: Mapping[str, int], class_names: Collection[str]) -> Origin:
    """Tell what clouds are by their number, their classes and what stands beside them.

    Args:
        entry: resolved config entry, whose NAME is one of `SOURCES`.
        counts: subset → clouds in it, of one or more subsets.
        class_names: classes of the clouds; numbers where nothing names them.

    Returns:
        The verdict. Files of the published number and classes are taken for the published ones.
    """
    source, version = SOURCES[entry["NAME"]], version_of(entry)
    if marker := marker_of(entry):
        return Origin(GENERATED, f"{marker} says so")
    if drawn := drawn_lists(entry):
        return Origin(OTHER, f"{drawn} says that the lists were drawn here, not published")
    expected = _expected(entry, version, counts)
    have = " + ".join(f"{count:,} {subset}" for subset, count in counts.items())
    should = " + ".join(f"{count:,} {subset}" for subset, count in expected.items())
    against = f"{have} clouds; {version.title} has {should}"
    if strangers := _strangers(class_names, source.classes):
        return Origin(FOREIGN, f"{strangers[0]} is no class of {source.title}; {against}")
    if counts == expected:
        return Origin(PUBLISHED, f"{have} clouds, as published")
    if others := _as_many(counts, source.classes):
        return Origin(OTHER, f"{against}, and {others[0]} as many as these")
    if all(counts[subset] <= expected[subset] for subset in counts):
        return Origin(SUBSET, against)
    return Origin(FOREIGN, against)


def marker_of(entry: Mapping[str, Any]) -> Path | None:
    """Return what marks the entry's folder, or the one above it, as generated; None if nothing does."""
    folders = [Path(entry[key]) for key in SOURCES[entry["NAME"]].folders]
    places = [place / MARKER for folder in folders for place in (folder, folder.parent)]
    return next((place for place in places if place.is_file()), None)


def drawn_lists(entry: Mapping[str, Any]) -> Path | None:
    """Return the file that says that the entry's lists were drawn by `python -m datasets.lists`, if there is one."""
    place = Path(entry["DATA_PATH"], DRAWN_LISTS) if entry["NAME"] == "ShapeNet" else None
    return place if place and place.is_file() else None


def _expected(entry: Mapping[str, Any], version: Version, counts: Mapping[str, int]) -> dict[str, int]:
    """Clouds of the published subsets among `counts`; of a few-shot task, those that its setting makes."""
    if entry["NAME"] == "ModelNetFewShot":
        others = entry.get("others") or {}
        way, shot = others.get("way", WAYS[0]), others.get("shot", SHOTS[0])
        made = {"train": way * shot, "test": way * TEST_CLOUDS}
    else:
        made = dict(version.clouds)
        made |= {"trainval": made["train"] + made.get("val", 0), "whole": made["train"] + made["test"]}
    return {subset: made[subset] for subset in counts}


def _strangers(class_names: Collection[str], published: Collection[str]) -> list[str]:
    """Classes that the published data set has not, or the number of those that are too many."""
    if all(name.isdecimal() for name in class_names) and not all(name.isdecimal() for name in published):
        return [f"class {len(published)}"] if len(class_names) > len(published) else []
    return sorted(set(class_names) - set(published))


def _as_many(counts: Mapping[str, int], classes: Collection[str]) -> list[str]:
    """Name the published versions of these classes that have so many clouds."""
    versions = [v for source in SOURCES.values() if source.classes == classes for v in source.versions.values()]
    return [v.title for v in versions if all(v.clouds.get(subset) == count for subset, count in counts.items())]
