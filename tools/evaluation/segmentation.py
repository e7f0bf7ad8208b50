"""How part segmenters are measured."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datasets.published import CATEGORIES
from datasets.shapenetpart import parts_of_categories
from tools.evaluation.figures import draw_parts
from tools.evaluation.inference import evaluate
from tools.evaluation.metrics import own_argmax, segmentation_scores
from utils.distributed import is_main
from utils.tables import format_table

SCORES = {"instance mIoU": "instance_mIoU", "class mIoU": "class_mIoU", "point accuracy": "point_accuracy"}


class OwnPartSegmenter(nn.Module):
    """A segmenter that gives each point the most probable of the parts that its category has.

    Args:
        model: the segmenter.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("own", parts_of_categories(), persistent=False)

    def forward(self, points: Tensor, categories: Tensor) -> Tensor:
        """Give (B, N, 3) points of (B,) categories their parts, (B, N) int64."""
        return own_argmax(self.model(points, categories), self.own[categories])


def measure(
    model: nn.Module, loader: DataLoader, device: torch.device, picture: Path | None = None
) -> dict[str, float | dict[str, float]]:
    """Measure a segmenter.

    Args:
        model: on `device`.
        loader: over all shapes of a split, in their order.
        device: where to compute.
        picture: write a PNG of the first shape of each category to this file.

    Returns:
        What `segmentation_scores` returns, the categories by their names.
    """
    predicted, true = evaluate(OwnPartSegmenter(model).to(device), loader, device, inputs=2)
    categories = torch.from_numpy(loader.dataset.labels)
    scores = segmentation_scores(predicted, true, categories, parts_of_categories())
    if picture and is_main():
        _, shown = np.unique(loader.dataset.labels, return_index=True)
        points = torch.stack([loader.dataset[index][0] for index in shown])
        names = [CATEGORIES[category] for category in categories[shown]]
        draw_parts(points, true[shown], predicted[shown], names, picture)
    of_categories = zip(CATEGORIES, scores["category_mIoU"], strict=True)
    return {**scores, "category_mIoU": {name: miou for name, miou in of_categories if miou is not None}}


def score_table(title: str, columns: dict[str, dict[str, Any]], shown: dict[str, str] = SCORES) -> str:
    """Lay out what `measure` returned, a column for each segmenter; `shown` names its figures."""
    cells = [[name, *(scores[key] for scores in columns.values())] for name, key in shown.items()]
    for name in next(iter(columns.values()))["category_mIoU"]:
        cells.append([f"mIoU of {name}", *(scores["category_mIoU"][name] for scores in columns.values())])
    return format_table(cells, [title, *columns])
