"""`--test`: the accuracy of a trained classifier, with `--vote` also that of averaged predictions."""

import logging
from argparse import Namespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from datasets.transforms import random_subset, scale_and_translate
from tools.builder import EVALUATION_BATCH_SIZE, build_network, evaluation_loader, test_split
from tools.engine import evaluate
from tools.metrics import mean_class_accuracy, overall_accuracy
from tools.report import format_table, open_run
from tools.runner_finetune import check_labels, fps_points, sample_farthest
from utils.checkpoint import load_weights
from utils.device import choose_device
from utils.distributed import rank, world_size
from utils.logger import progress
from utils.seed import seed_everything

logger = logging.getLogger(__name__)

MODE = "test"
REQUIRED = ("model", "npoints", "dataset.test")


def run(config: dict[str, Any], args: Namespace, repeats: int = 49) -> dict[str, Any]:
    """Test the classifier `args.ckpts`.

    Args:
        config: resolved config of cfgs/fine-tuning/.
        args: command line.
        repeats: how often to repeat the vote.

    Returns:
        The protocol and the accuracies without and, if asked for, with voting, in percent.
    """
    with open_run(config, args, MODE, training=False) as run:
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        loader = evaluation_loader(config, "test", args)
        model = build_network(config["model"], "num_classes", MODE).to(device)
        check_labels(model, loader)
        run.note_weights(load_weights(model, args.ckpts, strict=True))
        npoints = config["npoints"]
        logits, labels = evaluate(model, loader, device, lambda points: sample_farthest(points, npoints))
        results = {
            "protocol": f"{test_split(config)}, {npoints} points",
            "checkpoint": str(args.ckpts),
            "accuracy": overall_accuracy(logits, labels),
            "mean_class_accuracy": mean_class_accuracy(logits, labels),
        }
        rows = [["overall accuracy", results["accuracy"]], ["mean class accuracy", results["mean_class_accuracy"]]]
        if args.vote:
            accuracies = vote(model, farthest_clouds(loader, npoints, device), npoints, args.seed, device, repeats)
            results["vote"] = {
                "repeats": repeats,
                "mean_accuracy": float(np.mean(accuracies)),
                "std_accuracy": float(np.std(accuracies)),
                "best_accuracy": max(accuracies),
            }
            rows += [
                [f"vote: mean of {repeats} repeats", results["vote"]["mean_accuracy"]],
                ["vote: standard deviation", results["vote"]["std_accuracy"]],
                ["vote: best of them (chosen on the test split, as published)", results["vote"]["best_accuracy"]],
            ]
        logger.info("%s\n%s", MODE, format_table(rows, [run.tested(results["protocol"]), "%"]))
        return run.finish(results)


def farthest_clouds(loader: DataLoader, npoints: int, device: torch.device) -> DataLoader:
    """Sample the clouds once, to the farthest points of which each vote draws `npoints`; a loader over the result.

    Of several processes each has its share of the clouds, as in `evaluation_loader`.
    """

    def prepare(points: Tensor) -> Tensor:
        return sample_farthest(points, min(fps_points(npoints), points.shape[1]))

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

    def accuracy() -> float:
        ballots = [evaluate(model, loader, device, prepare, None) for _ in range(votes)]
        return overall_accuracy(torch.stack([logits for logits, _ in ballots]).mean(dim=0), ballots[0][1])

    return [accuracy() for _ in progress(range(repeats), "votes")]
