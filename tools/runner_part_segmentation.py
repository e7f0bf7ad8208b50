"""Part segmentation: `--finetune_model` and `--scratch_model` train a segmenter, `--test` tests one."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datasets.shapenetpart import CATEGORIES, NUM_PARTS, parts_of_categories
from datasets.transforms import AUGMENTATIONS
from tools.builder import build_network, evaluation_loader, parallel, selection_loader, test_split, training_loader
from tools.engine import evaluate
from tools.figures import draw_parts
from tools.metrics import own_argmax, segmentation_scores
from tools.report import format_table, open_run
from tools.trainer import Trainer
from utils.checkpoint import load_weights
from utils.device import choose_device
from utils.distributed import is_main
from utils.seed import seed_everything

logger = logging.getLogger(__name__)

MODE = "part segmentation"
REPEATABLE = True  # --seeds
REQUIRED = (
    *("optimizer", "scheduler", "model", "total_bs", "max_epoch"),
    *("dataset.train", "dataset.test"),
)
PICTURE, SHAPES_DRAWN = "parts.png", 6


def run(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Train a segmenter, or test `args.ckpts`.

    Args:
        config: resolved config of cfgs/part-segmentation/.
        args: command line.

    Returns:
        What `train` or `test` returns.
    """
    return test(config, args) if args.test else train(config, args)


def train(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Train a segmenter; its instance mIoU on the split `args.select_on` chooses ckpt-best.

    Returns:
        What `Trainer.fit` returns, its accuracies being instance mIoUs, and what `measure` returns of the "best" and of
        the "final" segmenter on the test split.
    """
    mode = f"{MODE}, fine-tuning" if args.finetune_model else f"{MODE}, training from scratch"
    with open_run(config, args, mode, training=True) as run:
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        loader = training_loader(config, args, least=2)
        chooser, name = selection_loader(config, args, loader)
        test_loader = chooser if args.select_on == "test" else evaluation_loader(config, "test", args)
        run.note_data(train=loader.dataset, test=test_loader.dataset)
        model = build_segmenter(config, device)
        if args.ckpts and not args.resume:
            run.note_weights(load_weights(model, args.ckpts))
        network = parallel(model, args)
        augment = AUGMENTATIONS[config["augmentation"]]
        tested: list[dict[str, Any]] = []

        def step(points: Tensor, categories: Tensor, parts: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            log_probs = network(augment(points, generator), categories)
            accuracy = 100.0 * (log_probs.argmax(dim=-1) == parts).float().mean()
            return {"loss": model.loss(log_probs, parts), "accuracy": accuracy}

        def choosing_miou() -> float:
            return measure(model, chooser, device)["instance_mIoU"]

        def test_miou() -> float:
            tested.append(measure(model, test_loader, device, run.folder / PICTURE))
            return tested[-1]["instance_mIoU"]

        results = Trainer(
            *(config, args, run, network, loader, step),
            evaluate=choosing_miou,
            protocol=f"instance mIoU on {name}",
            test=test_miou,
            test_protocol=f"instance mIoU on {test_split(config)}",
        ).fit()
        if args.dry_run:
            return results
        final, best = tested  # the order in which `Trainer.fit` tests
        logger.info("%s\n%s", mode, score_table(test_split(config), {"best": best, "final": final}))
        return run.finish({**results, "best": best, "final": final})


def test(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Test the segmenter `args.ckpts`.

    Returns:
        The protocol, the checkpoint and what `measure` returns.

    Raises:
        ValueError: with `--vote`, which only classifiers have.
    """
    if args.vote:
        raise ValueError("--vote averages the predictions of a classifier; part segmentation has none: drop it")
    with open_run(config, args, MODE, training=False) as run:
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        loader = evaluation_loader(config, "test", args)
        model = build_segmenter(config, device)
        run.note_weights(load_weights(model, args.ckpts, strict=True))
        scores = measure(model, loader, device, run.folder / PICTURE)
        tested_on = test_split(config)
        run.note_data(test=loader.dataset)
        logger.info("%s\n%s", MODE, score_table(run.tested(tested_on), {"%": scores}))
        return run.finish({"protocol": tested_on, "checkpoint": str(args.ckpts), **scores})


def build_segmenter(config: dict[str, Any], device: torch.device) -> nn.Module:
    """Build the segmenter on its device, and refuse a model that does not fit the parts of ShapeNetPart."""
    model = build_network(config["model"], "num_parts", MODE).to(device)
    if [getattr(model, name, None) for name in ("num_parts", "num_categories")] != [NUM_PARTS, len(CATEGORIES)]:
        raise ValueError(
            f"model.NAME is {config['model']['NAME']}, but {MODE} needs Point_M2AE_SEG with num_parts {NUM_PARTS} and "
            f"num_categories {len(CATEGORIES)}; choose another config or another mode"
        )
    return model


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
        picture: write a PNG of some shapes, one of a category, to this file.

    Returns:
        What `segmentation_scores` returns, the categories by their names.
    """
    predicted, true = evaluate(OwnPartSegmenter(model).to(device), loader, device, inputs=2)
    categories = torch.from_numpy(loader.dataset.labels)
    scores = segmentation_scores(predicted, true, categories, parts_of_categories())
    if picture and is_main():
        _, first = np.unique(loader.dataset.labels, return_index=True)
        shown = first[:SHAPES_DRAWN]
        points = torch.stack([loader.dataset[index][0] for index in shown])
        names = [CATEGORIES[category] for category in categories[shown]]
        draw_parts(points, true[shown], predicted[shown], names, picture)
    of_categories = zip(CATEGORIES, scores["category_mIoU"], strict=True)
    return {**scores, "category_mIoU": {name: miou for name, miou in of_categories if miou is not None}}


def score_table(title: str, columns: dict[str, dict[str, Any]]) -> str:
    """Lay out what `measure` returned, a column for each segmenter."""
    rows = [["instance mIoU", "instance_mIoU"], ["class mIoU", "class_mIoU"], ["point accuracy", "point_accuracy"]]
    cells = [[name, *(scores[key] for scores in columns.values())] for name, key in rows]
    for name in next(iter(columns.values()))["category_mIoU"]:
        cells.append([f"mIoU of {name}", *(scores["category_mIoU"][name] for scores in columns.values())])
    return format_table(cells, [title, *columns])
