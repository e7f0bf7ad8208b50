"""Charts of a classifier and of training runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from tools.evaluation.figures import save_figure

COUNTED = 20  # classes up to which the counts of a confusion matrix can be read


def draw_confusion(counts: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Write a PNG of a confusion matrix, its colours by the share of each true class.

    Args:
        counts: (classes, classes) clouds, a row for each true class.
        class_names: of the rows and columns.
        path: the file to write, in an existing folder.
    """
    size = 3 + 0.3 * len(counts)
    figure, axis = plt.subplots(figsize=(size, size))
    axis.imshow(row_shares(counts), cmap="Blues", vmin=0, vmax=1)
    places = range(len(counts))
    axis.set_xticks(places, class_names, rotation=90)
    axis.set_yticks(places, class_names)
    axis.set(xlabel="predicted", ylabel="true")
    if len(counts) <= COUNTED:
        for true, predicted in zip(*np.nonzero(counts), strict=True):
            colour = "white" if row_shares(counts)[true, predicted] > 0.5 else "black"
            axis.text(predicted, true, counts[true, predicted], ha="center", va="center", color=colour, fontsize=8)
    save_figure(figure, path)


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Share of each true class that went to each predicted one, 0 of a class without clouds."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def draw_map(places: np.ndarray, labels: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Write a PNG of clouds as points of the plane, coloured by their classes.

    Args:
        places: (n, 2).
        labels: (n,) classes.
        class_names: of all classes.
        path: the file to write, in an existing folder.
    """
    figure, axis = plt.subplots(figsize=(9, 7))
    present = np.unique(labels)
    for number, label in enumerate(present):
        chosen = labels == label
        marker = "osD^v"[number // 20 % 5]
        axis.scatter(*places[chosen].T, s=18, color=plt.cm.tab20(number % 20), marker=marker, label=class_names[label])
    axis.set(xticks=[], yticks=[])
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(present) // 25, fontsize=8, frameon=False)
    save_figure(figure, path)


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Write a PNG with a panel for each quantity that runs have logged, and a line for each run.

    Args:
        runs: name → what was measured, an entry per epoch.
        path: the file to write, in an existing folder.
    """
    quantities = quantities_of(runs)
    columns = min(3, len(quantities))
    rows = -(-len(quantities) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False)
    for axis in axes.flat[len(quantities) :]:
        axis.set_axis_off()
    for axis, quantity in zip(axes.flat, quantities, strict=False):
        for number, (name, history) in enumerate(runs.items()):
            epochs, values = curve(history, quantity)
            axis.plot(epochs, values, ".-", color=plt.cm.tab10(number % 10), label=name)
        axis.set(title=quantity, xlabel="epoch")
    axes.flat[0].legend(fontsize=8)
    save_figure(figure, path)


def quantities_of(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """What any of the runs has logged, in the order in which it first appears."""
    logged = (key for history in runs.values() for epoch in history for key in epoch)
    return [key for key in dict.fromkeys(logged) if key != "epoch"]


def curve(history: Sequence[Mapping[str, float]], quantity: str) -> tuple[list[int], list[float]]:
    """The epochs in which a quantity was measured, and its values."""
    measured = [epoch for epoch in history if quantity in epoch]
    return [int(epoch["epoch"]) for epoch in measured], [epoch[quantity] for epoch in measured]
