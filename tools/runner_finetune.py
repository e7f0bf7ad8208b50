"""`--finetune_model` and `--scratch_model`: train a classifier from a pre-trained encoder, or from nothing."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datasets import name_of
from datasets.transforms import AUGMENTATIONS, random_subset
from extensions.pointnet2_ops.pointnet2_utils import furthest_point_sample
from tools.builder import build_network, evaluation_loader, parallel, selection_loader, test_split, training_loader
from tools.engine import evaluate
from tools.metrics import overall_accuracy
from tools.report import open_run
from tools.trainer import Trainer
from utils.checkpoint import load_weights
from utils.device import choose_device
from utils.seed import seed_everything

MODE = "fine-tuning"
REPEATABLE = True  # --seeds
REQUIRED = (
    *("optimizer", "scheduler", "model", "npoints", "total_bs", "max_epoch"),
    *("dataset.train", "dataset.test"),
)
FPS_POINTS = {1024: 1200, 2048: 2400, 4096: 4800, 8192: 8192}


def run(config: dict[str, Any], args: Namespace, part: str = "") -> dict[str, Any]:
    """Train a classifier; its accuracy on the split that `--select_on` names chooses ckpt-best.

    Args:
        config: resolved config of cfgs/fine-tuning/.
        args: command line.
        part: folder within the run's folder, of one of many runs.

    Returns:
        What `Trainer.fit` returns.
    """
    mode = training_mode(args)
    with open_run(config, args, mode, training=True, part=part) as run:
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        train = training_loader(config, args, least=2)
        chooser, name = selection_loader(config, args, train)
        test = chooser if args.select_on == "test" else evaluation_loader(config, "test", args)
        run.note_data(train=train.dataset, test=test.dataset)
        model = build_network(config["model"], "num_classes", mode).to(device)
        check_labels(model, train, test)
        if args.ckpts and not args.resume:
            run.note_weights(load_weights(model, args.ckpts))
        network = parallel(model, args)
        npoints = config["npoints"]
        augment = AUGMENTATIONS[config["augmentation"]]

        def step(points: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            points = sample_farthest(points, min(fps_points(npoints), points.shape[1]))
            logits = network(augment(random_subset(points, npoints, generator, shared=True), generator))
            accuracy = 100.0 * (logits.argmax(dim=1) == labels).float().mean()
            return {"loss": model.loss(logits, labels), "accuracy": accuracy}

        def accuracy_on(loader: DataLoader) -> float:
            return overall_accuracy(*evaluate(model, loader, device, lambda points: sample_farthest(points, npoints)))

        return run.finish(
            Trainer(
                *(config, args, run, network, train, step),
                evaluate=lambda: accuracy_on(chooser),
                protocol=f"accuracy on {name}",
                test=None if args.select_on == "test" else lambda: accuracy_on(test),
                test_protocol=f"accuracy on {test_split(config)}",
            ).fit()
        )


def training_mode(args: Namespace) -> str:
    """Name of the mode: fine-tuning, or training from scratch."""
    return MODE if args.finetune_model else "training from scratch"


def check_labels(model: nn.Module, *loaders: DataLoader) -> None:
    """Refuse data with more classes than the classifier has outputs."""
    for dataset in (loader.dataset for loader in loaders):
        if dataset.labels.max() >= model.num_classes:
            raise ValueError(
                f"{name_of(dataset)} has label {dataset.labels.max()}, but the model has {model.num_classes} "
                "classes (labels start at 0); set model.num_classes"
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
