"""How classifiers are evaluated: the points they see of a cloud, and votes over several draws of them."""

from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from datasets import name_of
from datasets.transforms import random_subset, scale_and_translate
from extensions.pointnet2_ops.pointnet2_utils import furthest_point_sample
from tools.evaluation.inference import evaluate
from tools.evaluation.metrics import overall_accuracy
from tools.training.builder import EVALUATION_BATCH_SIZE, require_classes
from utils.distributed import rank, world_size
from utils.logger import progress

FPS_POINTS = {1024: 1200, 2048: 2400, 4096: 4800, 8192: 8192}


def check_labels(model: nn.Module, *loaders: DataLoader) -> None:
    """Refuse data without classes, or with more than the classifier has outputs."""
    for dataset in (loader.dataset for loader in loaders):
        require_classes(dataset.class_names, name_of(dataset), "a classifier")
        if dataset.labels.max() >= model.num_classes:
            raise ValueError(
                f"{name_of(dataset)} has label {dataset.labels.max()}, but the model has {model.num_classes} "
                "classes (labels start at 0); set model.num_classes (model.cls_dim of a PointTransformer)"
            )


def check_channels(*loaders: DataLoader) -> None:
    """Refuse clouds with more than coordinates, which the models do not take."""
    for dataset in (loader.dataset for loader in loaders):
        channels = dataset[0][0].shape[1]
        if channels != 3:
            raise ValueError(
                f"{name_of(dataset)} gives {channels} channels a point and the models take 3, the coordinates: set "
                "USE_NORMALS: false for the data set"
            )


def fps_points(npoints: int) -> int:
    """Farthest points to take of a cloud before `npoints` of them are drawn at random; about a fifth more."""
    return FPS_POINTS.get(npoints, round(1.2 * npoints))


def sample_farthest(points: Tensor, num_points: int) -> Tensor:
    """Keep the farthest point sample of each cloud.

    Args:
        points: (B, N, C) with xyz in the first three channels.
        num_points: points to keep, at most N.

    Returns:
        (B, num_points, C).

    Raises:
        ValueError: if the clouds have fewer points.
    """
    if num_points > points.shape[1]:
        raise ValueError(
            f"the clouds have {points.shape[1]} points, fewer than the {num_points} to sample; lower npoints in the "
            "config or let the data set hand out more"
        )
    index = furthest_point_sample(points[..., :3].contiguous(), num_points)
    return points.gather(1, index.unsqueeze(-1).expand(-1, -1, points.shape[-1]))


def farthest_candidates(points: Tensor, npoints: int) -> Tensor:
    """Keep the farthest points of each cloud of which `npoints` are then drawn at random; all of a small cloud."""
    return sample_farthest(points, min(fps_points(npoints), points.shape[1]))


def farthest_clouds(loader: DataLoader, npoints: int, device: torch.device) -> DataLoader:
    """Sample the clouds once, to the farthest points of which each vote draws `npoints`; a loader over the result.

    Of several processes each has its share of the clouds, as in `evaluation_loader`.
    """
    prepare = partial(farthest_candidates, npoints=npoints)
    clouds, labels = evaluate(nn.Identity(), loader, device, prepare, "farthest points")
    share = range(rank(), len(clouds), world_size())
    return DataLoader(TensorDataset(clouds, labels), EVALUATION_BATCH_SIZE, sampler=share)


def vote(
    model: nn.Module,
    loader: DataLoader,
    npoints: int,
    seed: int,
    device: torch.device,
    repeats: int = 49,
    votes: int = 10,
) -> list[float]:
    """Average the logits of several random versions of each cloud; do so several times.

    Args:
        model: classifier.
        loader: yields (points (B, N, 3), labels), in a fixed order.
        npoints: points drawn for one vote; the draw is then scaled and shifted at random.
        seed: of all draws; several processes add their rank.
        device: where the model is.
        repeats: accuracies to return.
        votes: versions per accuracy.

    Returns:
        Overall accuracies in percent, one per repeat.
    """
    generator = torch.Generator(device).manual_seed(seed + rank())

    def prepare(points: Tensor) -> Tensor:
        return scale_and_translate(random_subset(points, npoints, generator, shared=True), generator)

    passes = iter(progress(range(repeats * votes), f"passes of {repeats} votes"))

    def accuracy() -> float:
        ballots = [evaluate(model, loader, device, prepare, None) for _ in islice(passes, votes)]
        return overall_accuracy(torch.stack([logits for logits, _ in ballots]).mean(dim=0), ballots[0][1])

    accuracies = [accuracy() for _ in range(repeats)]
    next(passes, None)  # lets the bar end
    return accuracies
