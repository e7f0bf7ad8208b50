"""What is set up wrongly and yet runs: said before it does, a line in the log for each."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from datasets import name_of
from datasets.modelnet40_fewshot import ModelNetFewShot
from utils.distributed import is_main

logger = logging.getLogger(__name__)

CLOUDS = 5  # of each split that are looked at
RADII = (0.1, 10.0)  # largest distance from the origin: published clouds that are not scaled by a reader are near 1
_REPEATED = "fewer than the {} groups that the model makes: centres repeat"


def warn(config: dict[str, Any], model: nn.Module, **datasets: Dataset) -> None:
    """Say what is wrong with a training run that could begin.

    Args:
        config: resolved config.
        model: what is trained.
        **datasets: what `dataset.train` and other sections of the config have become.

    Raises:
        ValueError: if a cloud cannot be read.
    """
    found = [*_of_schedule(config), *_of_head(model, datasets["train"]), *_of_points(config, model)]
    for split, dataset in datasets.items():
        if hasattr(model, "num_classes") or split.startswith("svm_"):  # nothing else learns classes
            found += _of_classes(split, dataset)
        found += _of_clouds(split, dataset, model)
    for text in found if is_main() else []:
        logger.warning("%s", text)


def _of_schedule(config: dict[str, Any]) -> Iterator[str]:
    """A cosine longer than the run, or as long, is published."""
    cosine, last = config["scheduler"]["kwargs"]["epochs"], config["max_epoch"]
    if cosine < last:
        yield (
            f"scheduler.kwargs.epochs is {cosine}, but max_epoch {last}: from epoch {cosine} on the learning rate is "
            f"the lowest; set scheduler.kwargs.epochs to at least {last}"
        )


def _of_head(model: nn.Module, dataset: Dataset) -> Iterator[str]:
    """Few-shot tasks of 5 or 10 ways have a head of all 40 classes, as published."""
    classes, outputs = len(dataset.class_names), getattr(model, "num_classes", 0)
    if outputs > classes and name_of(dataset) != ModelNetFewShot.__name__:
        yield (
            f"the model has {outputs} classes, but {name_of(dataset)} (dataset.train) has {classes} classes: the other "
            f"outputs are never right; set model.num_classes (model.cls_dim of a PointTransformer) to {classes}"
        )


def _of_points(config: dict[str, Any], model: nn.Module) -> Iterator[str]:
    if config.get("npoints", model.num_groups[0]) < model.num_groups[0]:
        yield f"npoints is {config['npoints']}, {_REPEATED.format(model.num_groups[0])}; raise it, or lower the groups"


def _of_classes(split: str, dataset: Dataset) -> Iterator[str]:
    if len(np.unique(dataset.labels)) == 1:
        yield (
            f"dataset.{split} has clouds of one class only, {dataset.class_names[dataset.labels[0]]}: an accuracy on "
            "it, or learnt from it, says nothing; check its list or file"
        )


def _of_clouds(split: str, dataset: Dataset, model: nn.Module) -> Iterator[str]:
    places = np.unique(np.linspace(0, len(dataset) - 1, CLOUDS).astype(int)).tolist()
    clouds = {place: dataset[place][0][:, :3] for place in places}
    radii = {place: float(points.norm(dim=1).max()) for place, points in clouds.items()}
    if (points := len(clouds[0])) < model.num_groups[0]:
        yield (
            f"clouds of dataset.{split} have {points} points, {_REPEATED.format(model.num_groups[0])}; let the data "
            "set hand out more, or lower the groups"
        )
    if empty := [place for place, radius in radii.items() if radius == 0]:
        yield (
            f"dataset.{split}: all points of cloud {empty[0]} are at the origin, as in {len(empty)} of the "
            f"{len(places)} clouds looked at; replace the damaged files"
        )
    if far := [place for place, radius in radii.items() if radius and not RADII[0] <= radius <= RADII[1]]:
        yield (
            f"dataset.{split}: the farthest point of cloud {far[0]} is {radii[far[0]]:.3g} from the origin, and "
            f"{len(far)} of the {len(places)} clouds looked at are so far from the unit sphere, for which augmentation "
            "and released weights are made; scale them"
        )
