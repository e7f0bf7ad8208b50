"""How segmenters of rooms are measured: on blocks drawn at random, or on whole rooms by a vote of all their blocks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datasets.published import ROOM_CLASSES
from datasets.s3dis import S3DIS, Room, blocks_of
from tools.evaluation.inference import evaluate
from tools.evaluation.metrics import class_scores, confusion
from utils.distributed import mean, rank, world_size
from utils.logger import progress
from utils.seed import mixed_seed
from utils.tables import format_table

VOTES = 3  # passes over a room, as published
CLOUDS = 32  # of a batch
SCORES = {"mIoU": "mIoU", "mean class accuracy": "mean_class_accuracy", "point accuracy": "point_accuracy"}


class MostProbable(nn.Module):
    """A segmenter that gives each point its most probable class.

    Args:
        model: the segmenter.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, points: Tensor) -> Tensor:
        """Give (B, N, 3) points their classes, (B, N) int64."""
        return self.model(points).argmax(dim=-1)


def measure_blocks(model: nn.Module, loader: DataLoader, device: torch.device) -> dict[str, Any]:
    """Measure a segmenter on the blocks of a loader; returns what `scores_of` does."""
    predicted, true = evaluate(MostProbable(model), loader, device)
    return scores_of(confusion(predicted, true, len(ROOM_CLASSES)))


@torch.no_grad()
def measure_rooms(
    model: nn.Module, dataset: S3DIS, device: torch.device, seed: int, votes: int = VOTES
) -> dict[str, Any]:
    """Measure a segmenter on whole rooms: each point has the class that most of the blocks that it is in gave it.

    Args:
        model: on `device`.
        dataset: of the rooms; of several processes each takes its share.
        device: where to compute.
        seed: of the order of points in a block, and of those that fill one up.
        votes: passes over each room.

    Returns:
        What `scores_of` does.
    """
    predict = MostProbable(model)
    was_training = model.training
    predict.eval()
    counts = torch.zeros(len(ROOM_CLASSES), len(ROOM_CLASSES), dtype=torch.float64)
    for number in progress(range(rank(), len(dataset.rooms), world_size()), "rooms"):
        room = dataset.rooms[number]
        generator = torch.Generator().manual_seed(mixed_seed(seed, number))
        tally = sum(vote(predict, room, dataset.npoints, device, generator) for _ in range(votes))
        counts += confusion(tally.argmax(dim=1), torch.from_numpy(room.classes).long(), len(ROOM_CLASSES))
    model.train(was_training)
    return scores_of(mean(counts.to(device)).cpu() * world_size())


def vote(predict: MostProbable, room: Room, npoints: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """Count how often in one pass over a room its points are given each class; returns (N, classes) int64."""
    blocks = list(blocks_of(room, npoints, generator))
    index, points = (torch.cat(column) for column in zip(*blocks, strict=True))
    predicted = torch.cat([predict(clouds.to(device)).cpu() for clouds in points.split(CLOUDS)])
    places = index.flatten() * len(ROOM_CLASSES) + predicted.flatten()
    return places.bincount(minlength=len(room.points) * len(ROOM_CLASSES)).view(-1, len(ROOM_CLASSES))


def scores_of(counts: Tensor) -> dict[str, Any]:
    """Turn a confusion matrix into percents by name; `class_IoU` has those of the classes that occur."""
    scores = class_scores(counts)
    of_classes = zip(ROOM_CLASSES, scores.pop("ious"), strict=True)
    return {**scores, "class_IoU": {name: iou for name, iou in of_classes if iou is not None}}


def score_table(title: str, columns: dict[str, dict[str, Any]]) -> str:
    """Lay out what `scores_of` returned, a column for each segmenter."""
    rows = [[name, *(scores[key] for scores in columns.values())] for name, key in SCORES.items()]
    names = [name for name in ROOM_CLASSES if any(name in scores["class_IoU"] for scores in columns.values())]
    rows += [[f"IoU of {name}", *(scores["class_IoU"].get(name, "-") for scores in columns.values())] for name in names]
    return format_table(rows, [title, *columns])
