"""Part segmentation: `--finetune_model` and `--scratch_model` train a segmenter, `--test` tests one."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn

from datasets.published import CATEGORIES, NUM_PARTS
from datasets.transforms import AUGMENTATIONS
from tools.evaluation.segmentation import measure, score_table
from tools.training import provenance, sanity
from tools.training.builder import (
    build_network,
    evaluation_loader,
    parallel,
    selection_loader,
    test_split,
    training_loader,
)
from tools.training.modes import PART_SEGMENTATION, TO_TRAIN, training_mode
from tools.training.run import open_run
from tools.training.trainer import Trainer
from utils.checkpoint import load_weights
from utils.device import choose_device
from utils.seed import seed_everything

MODE = PART_SEGMENTATION
REQUIRED = (*TO_TRAIN, "dataset.test")
PICTURE = "parts.png"


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
    mode = mode_of(args)
    with open_run(config, args, mode, training=True) as run:
        if run.finished:
            return run.finished
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        loader = training_loader(config, args, least=2)
        chooser, name = selection_loader(config, args, loader)
        test_loader = chooser if args.select_on == "test" else evaluation_loader(config, "test", args)
        data = {"train": loader.dataset, "test": test_loader.dataset}
        run.note_data(**data)
        model = build_segmenter(config, device)
        sanity.warn(config, model, **data)
        provenance.warn(config, **data)
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
        run.show(mode, score_table(test_split(config), {"best": best, "final": final}))
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
        provenance.warn(config, test=loader.dataset)
        model = build_segmenter(config, device)
        run.note_weights(load_weights(model, args.ckpts, strict=True))
        scores = measure(model, loader, device, run.folder / PICTURE)
        tested_on = test_split(config)
        run.note_data(test=loader.dataset)
        run.show(MODE, score_table(run.tested(tested_on), {"%": scores}))
        return run.finish({"protocol": tested_on, "checkpoint": str(args.ckpts), **scores})


def mode_of(args: Namespace) -> str:
    """Name of what a training command line does."""
    return f"{MODE}, {training_mode(args)}"


def build_segmenter(config: dict[str, Any], device: torch.device) -> nn.Module:
    """Build the segmenter on its device, and refuse a model that does not fit the parts of ShapeNetPart."""
    model = build_network(config["model"], "num_parts", MODE).to(device)
    if [getattr(model, name, None) for name in ("num_parts", "num_categories")] != [NUM_PARTS, len(CATEGORIES)]:
        raise ValueError(
            f"model.NAME is {config['model']['NAME']}, but {MODE} needs a segmenter with num_parts {NUM_PARTS} and "
            f"num_categories {len(CATEGORIES)}; choose another config or another mode"
        )
    return model
