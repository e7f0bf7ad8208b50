"""What a training run is about to learn from, where the data is one's own: said in the log before it does."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from datasets import name_of, records_of
from datasets.draws import unshuffled
from datasets.folder import Folder
from datasets.holdout import whole
from datasets.own.cache import Record
from models.tokenizer import group_levels
from utils.distributed import is_main

logger = logging.getLogger(__name__)

CLOUDS = 5  # of which groups are made
SHOWN = 12  # classes, or kinds of files
LARGEST_SHARE = 0.1  # of a cloud in a group; the published configs have 0.008 to 0.047
LEAST_HELD = 0.7  # of the points, in any group, against what as many groups at random places hold of even clouds


def report(config: dict[str, Any], model: nn.Module, **datasets: Dataset) -> None:
    """Log what the files of one's own data hold, and whether that suits the groups of the model.

    Args:
        config: resolved config.
        model: what is trained.
        **datasets: what `dataset.train` and other sections of the config have become; others than `Folder` are passed
            over, and what is the same as another.
    """
    own, seen = {}, set()
    for split, dataset in datasets.items():
        if isinstance(folder := whole(unshuffled(dataset)), Folder):
            files = (folder.cache.data, *(record.first for record in records_of(dataset)))
            if files not in seen:
                own[split] = dataset
            seen.add(files)
    if not own or not is_main():
        return
    for text in dict.fromkeys(text for item in own.items() for text in _of_files(*item)):  # some are of both splits
        logger.info("%s", text)
    found = [*_of_copies(own), *_of_groups(config, model, next(iter(own.items())))]
    for text in found:
        logger.warning("%s", text)


def _of_files(split: str, dataset: Dataset) -> Iterator[str]:
    """Clouds of each class, points and size of a file, what was not taken."""
    folder, records = whole(dataset), records_of(dataset)
    classes = "without classes"
    if folder.class_names:
        counts = np.bincount(dataset.labels, minlength=len(folder.class_names))
        classes = f"{len(counts)} classes: {_some(dict(zip(folder.class_names, counts.tolist(), strict=True)))}"
    points, sides = [record.points for record in records], [max(record.extents) for record in records]
    yield (
        f"dataset.{split} is {name_of(dataset)}, {len(records)} clouds {'of ' if folder.class_names else ''}{classes}; "
        f"points of a file {_spread(points)}, longest side {_spread(sides)} (least, median, most)"
    )
    if thinned := sum(record.points > record.rows for record in records):
        yield f"dataset.{split}: of {thinned} clouds {folder.cache.n_points} points are kept (N_POINTS)"
    if folder.split_drawn:
        yield (
            f"{name_of(dataset)}: there is no split on the disk; a fifth of each class, drawn by SPLIT_SEED "
            f"{folder.cache.seed}, is the test split"
        )
    if folder.other_files:
        yield f"{name_of(dataset)}: files left alone: {_some(folder.other_files)}"


def _of_copies(datasets: dict[str, Dataset]) -> Iterator[str]:
    """Files with the same bytes, within a split and between two."""
    first: dict[str, tuple[str, str]] = {}
    copies: dict[tuple[str, str], list[str]] = {}
    for split, dataset in datasets.items():
        for path, record in zip(_paths(dataset), records_of(dataset), strict=True):
            before, original = first.setdefault(record.sha256, (split, path))
            if (before, original) != (split, path):
                copies.setdefault((before, split), []).append(f"{path} of {original}")
    for (before, split), found in copies.items():
        if before == split:
            yield f"dataset.{split}: {len(found)} files are copies of others, first {found[0]}; delete them"
        else:
            yield (
                f"dataset.{split}: {len(found)} files are copies of what dataset.{before} has, first {found[0]}: "
                "figures on them are too good; delete them from one of the two"
            )


def _paths(dataset: Dataset) -> list[str]:
    paths = whole(dataset).paths
    return [paths[int(i)] for i in dataset.indices] if whole(dataset) is not dataset else paths


def _of_groups(config: dict[str, Any], model: nn.Module, first: tuple[str, Dataset]) -> Iterator[str]:
    """Log how the groups of the finest level lie on the clouds; yield what does not suit them."""
    split, dataset = first
    records = records_of(dataset)
    groups, size = model.num_groups[0], model.group_sizes[0] if hasattr(model, "group_sizes") else model.group_size
    seen = min(config.get("npoints", whole(dataset).npoints), whole(dataset).npoints)
    reach, held = _measure_groups(dataset, groups, size, seen)
    logger.info(
        "dataset.%s: the model sees %d points of a cloud in %d groups of %d, so that a point is in %.2g groups and a "
        "group has %.2g %% of the points; groups reach %.3f from their centres (median) and together hold %.0f %% of "
        "the points",
        *(split, seen, groups, size, groups * size / seen, 100 * size / seen, reach, 100 * held),
    )
    yield from _of_few_points(split, records, seen, size)
    if groups * size < seen:
        yield (
            f"dataset.{split}: {groups} groups of {size} leave some of the {seen} points out; raise num_groups to at "
            f"least {-(-seen // size)} or the group size to {-(-seen // groups)}, or lower npoints to {groups * size}"
        )
    if size > LARGEST_SHARE * seen:
        yield (
            f"dataset.{split}: a group of {size} is {100 * size / seen:.0f} % of the {seen} points: details are lost; "
            f"raise npoints to {round(size / LARGEST_SHARE)}, or lower the group size to {int(LARGEST_SHARE * seen)}"
        )
    elif held < LEAST_HELD * (1 - math.exp(-groups * size / seen)):
        yield (
            f"dataset.{split}: only {100 * held:.0f} % of the points are in a group, since many lie much denser than "
            "the rest; thin the clouds evenly, as on a grid of cells"
        )


def _of_few_points(split: str, records: Sequence[Record], seen: int, size: int) -> Iterator[str]:
    fewest = min(record.rows for record in records)
    if few := sum(record.rows < seen for record in records):
        yield (
            f"dataset.{split}: {few} of {len(records)} clouds have fewer than the {seen} points that the model sees, "
            f"the smallest {fewest}: points repeat, and of {size} in a group about {max(1, size * fewest // seen)} "
            f"differ; lower npoints to {fewest}, or leave small clouds out"
        )


def _measure_groups(dataset: Dataset, groups: int, size: int, seen: int) -> tuple[float, float]:
    """How far the groups of some clouds reach from their centres (the median), and the share of points in any group."""
    places = np.unique(np.linspace(0, len(dataset) - 1, CLOUDS).astype(int)).tolist()
    clouds = torch.stack([dataset[place][0][:seen] for place in places])  # (clouds, seen, 3)
    (level,) = group_levels(clouds, [groups], [size])
    members = level.index.flatten(1)  # (clouds, groups · size)
    held = torch.zeros(len(clouds), seen).scatter_(1, members, 1.0).mean()
    return float(level.neighborhoods.norm(dim=-1).amax(dim=-1).median()), float(held)


def _spread(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in (min(values), float(np.median(values)), max(values)))


def _some(counts: dict[str, int]) -> str:
    """Names with their counts, as far as there is room."""
    more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    return ", ".join(f"{name} {count}" for name, count in Counter(counts).most_common(SHOWN)) + more
