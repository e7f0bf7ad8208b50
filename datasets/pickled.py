"""What the pickled files of ModelNet40 hold: the processed .dat files and the few-shot folds. Needs no PyTorch."""

from pathlib import Path
from typing import Any

from datasets.hints import Entry, way_out
from datasets.untrusted import load_pickle


def read_processed(path: Path, key: str | Entry) -> tuple[list[Any], list[Any]]:
    """Read the clouds and the labels of a .dat file, which are yet to be checked, one by one.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is no pickled [list of clouds, list of as many labels].
    """
    content = load_pickle(path)
    if not isinstance(content, (list, tuple)) or [type(part) for part in content] != [list, list]:
        raise ValueError(f"{path}: expected a pickled [list of clouds, list of labels]")
    clouds, labels = content
    if not clouds or len(clouds) != len(labels):
        raise ValueError(f"{path}: holds {len(clouds)} clouds and {len(labels)} labels; {way_out(key)}")
    return clouds, labels


def fold_items(path: Path, content: Any, subset: str) -> list[tuple]:
    """Return the (points, label, class) items of one subset of a fold, which are yet to be checked.

    Args:
        path: the file, for the message.
        content: what it holds.
        subset: train or test.

    Raises:
        ValueError: if it is no {"train": [items], "test": [items]}.
    """
    items = content.get(subset) if isinstance(content, dict) else None
    if not isinstance(items, (list, tuple)) or not items:
        raise ValueError(f"{path}: expected a pickled {{'train': [...], 'test': [...]}} with clouds in '{subset}'")
    for i, item in enumerate(items):
        if not isinstance(item, (list, tuple)) or len(item) != 3:
            raise ValueError(f"{path}: {subset} item {i} (counted from 0) is not (points, label, class)")
    return list(items)
