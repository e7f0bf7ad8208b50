"""What was meant by a misspelt name: the nearest of the valid names, or of the files and folders on disk."""

import difflib
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

NEAR = 0.6  # ratio of difflib from which a name may be meant
SHOWN = 3  # paths that may be meant
FOLLOWED = 8  # spellings of the first parts of a path that are looked into
MOST_ENTRIES = 2000  # a folder that has more is not looked through: its names are numbers rather than words


def did_you_mean(
    name: object, valid: Iterable[object], shown: int = 1, cutoff: float = NEAR, quoted: bool = False
) -> str:
    """Ask whether the nearest of the valid names was meant, case aside.

    Args:
        name: what was given.
        valid: what could have been.
        shown: names to show at most.
        cutoff: ratio of difflib below which a name is not shown.
        quoted: put the names in quotation marks.

    Returns:
        The question with a blank behind it, or "" if no name is near.
    """
    near = _nearest(str(name), map(str, valid), shown, cutoff)
    return _question([repr(one) if quoted else one for one in near])


def did_you_mean_path(path: str | Path, accepts: Callable[[Path], bool] = Path.is_file) -> str:
    """Ask whether another path was meant than one that is not there.

    Each part of the path may be misspelt; where that leads nowhere, a folder in it may be missing or be another.

    Args:
        path: what was given.
        accepts: what it has to be: `Path.is_file`, `Path.is_dir` or `Path.exists`.

    Returns:
        The question with a blank behind it, or "" if nothing is near.
    """
    path = Path(path)
    respelt = list(filter(accepts, _respelt(path)))[:1]
    return _question(list(map(str, respelt or sorted(set(filter(accepts, _moved(path))))[:SHOWN])))


def _question(near: list[str]) -> str:
    return f"did you mean {', '.join(near)}? " if near else ""


def _nearest(name: str, valid: Iterable[str], shown: int, cutoff: float = NEAR) -> list[str]:
    by_lower = {one.lower(): one for one in valid}
    return [by_lower[near] for near in difflib.get_close_matches(name.lower(), by_lower, shown, cutoff)]


def _respelt(path: Path) -> list[Path]:
    """Paths that exist and each of whose parts is near the given one, the nearest first."""
    places = [Path(path.anchor)]
    for part in path.relative_to(path.anchor).parts:
        near = [place / name for place in places for name in _nearest(part, _entries(place), SHOWN)]
        exact = [place / part for place in places if (place / part).exists()]
        places = sorted(dict.fromkeys(exact + near), key=lambda place: -_likeness(place, path))[:FOLLOWED]
    return places


def _likeness(one: Path, other: Path) -> float:
    return difflib.SequenceMatcher(None, str(one), str(other)).ratio()


def _moved(path: Path) -> Iterator[Path]:
    """Paths with a folder more, or another, at one place."""
    for level in range(1 if path.anchor else 0, len(path.parts)):
        above, below = Path(*path.parts[:level]), path.parts[level:]
        for name in _entries(above):
            yield Path(above, name, *below)
            if len(below) > 1:
                yield Path(above, name, *below[1:])


def _entries(folder: Path) -> list[str]:
    """Names in a folder but the hidden ones; none of one that cannot be read or has too many."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, MOST_ENTRIES + 1)]
    except OSError:
        return []
    return [name for name in sorted(names) if not name.startswith(".")] if len(names) <= MOST_ENTRIES else []
