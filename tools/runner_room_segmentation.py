"""Segmentation of rooms: `--finetune_model` and `--scratch_model` train a segmenter on S3DIS, `--test` tests one."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn

from datasets.published import ROOM_CLASSES
from datasets.transforms import AUGMENTATIONS
from tools.evaluation.rooms import VOTES, measure_blocks, measure_rooms, score_table
from tools.training import provenance, sanity
from tools.training.builder import build_network, evaluation_loader, parallel, test_split, training_loader
from tools.training.modes import ROOM_SEGMENTATION, TO_TRAIN, training_mode
from tools.training.run import open_run
from tools.training.trainer import Trainer
from utils.checkpoint import load_weights
from utils.device import choose_device
from utils.seed import seed_everything

MODE = ROOM_SEGMENTATION
REQUIRED = (*TO_TRAIN, "dataset.test")
WHOLE_ROOMS = f"whole rooms, {VOTES} passes"


def run(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Train a segmenter, or test `args.ckpts`.

    Args:
        config: resolved config, such as cfgs/act/s3dis.yaml.
        args: command line.

    Returns:
        What `train` or `test` returns.
    """
    return test(config, args) if args.test else train(config, args)


def train(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Train a segmenter; its mIoU on blocks of the test rooms chooses ckpt-best.

    Returns:
        What `Trainer.fit` returns, its accuracies being mIoUs of whole rooms, and what `measure_rooms` returns of the
        "best" and of the "final" segmenter.

    Raises:
        ValueError: with `--select_on val`.
    """
    if args.select_on == "val":
        raise ValueError("--select_on val holds clouds out, and blocks of one room overlap: drop it for S3DIS")
    mode = mode_of(args)
    with open_run(config, args, mode, training=True) as run:
        if run.finished:
            return run.finished
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        loader = training_loader(config, args, least=2)
        chooser = evaluation_loader(config, "test", args)
        data = {"train": loader.dataset, "test": chooser.dataset}
        run.note_data(**data)
        model = build_segmenter(config, device)
        sanity.warn(config, model, **data)
        provenance.warn(config, **data)
        if args.ckpts and not args.resume:
            run.note_weights(load_weights(model, args.ckpts))
        network = parallel(model, args)
        augment = AUGMENTATIONS[config["augmentation"]]
        weights = loader.dataset.class_weights().to(device)
        tested: list[dict[str, Any]] = []

        def step(points: Tensor, classes: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            log_probs = network(augment(points, generator))
            accuracy = 100.0 * (log_probs.argmax(dim=-1) == classes).float().mean()
            return {"loss": model.loss(log_probs, classes, weights), "accuracy": accuracy}

        def miou_of_rooms() -> float:
            tested.append(measure_rooms(model, chooser.dataset, device, args.seed))
            return tested[-1]["mIoU"]

        results = Trainer(
            *(config, args, run, network, loader, step),
            evaluate=lambda: measure_blocks(model, chooser, device)["mIoU"],
            protocol=f"mIoU of blocks on {test_split(config)}",
            test=miou_of_rooms,
            test_protocol=f"mIoU of {WHOLE_ROOMS}, on {test_split(config)}",
        ).fit()
        if args.dry_run:
            return results
        final, best = tested  # the order in which `Trainer.fit` tests
        run.show(mode, score_table(f"{test_split(config)}, {WHOLE_ROOMS}", {"best": best, "final": final}))
        return run.finish({**results, "best": best, "final": final})


def test(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Test the segmenter `args.ckpts` on whole rooms.

    Returns:
        The protocol, the checkpoint and what `measure_rooms` returns.

    Raises:
        ValueError: with `--vote`.
    """
    if args.vote:
        raise ValueError(f"--vote is for classifiers; a room is tested by a vote of {VOTES} passes anyway: drop it")
    with open_run(config, args, MODE, training=False) as run:
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        dataset = evaluation_loader(config, "test", args).dataset
        provenance.warn(config, test=dataset)
        model = build_segmenter(config, device)
        run.note_weights(load_weights(model, args.ckpts, strict=True))
        scores = measure_rooms(model, dataset, device, args.seed)
        tested_on = f"{test_split(config)}, {WHOLE_ROOMS}"
        run.note_data(test=dataset)
        run.show(MODE, score_table(run.tested(tested_on), {"%": scores}))
        return run.finish({"protocol": tested_on, "checkpoint": str(args.ckpts), **scores})


def mode_of(args: Namespace) -> str:
    """Name of what a training command line does."""
    return f"{MODE}, {training_mode(args)}"


def build_segmenter(config: dict[str, Any], device: torch.device) -> nn.Module:
    """Build the segmenter on its device, and refuse a model that does not fit the classes of S3DIS."""
    model = build_network(config["model"], "num_parts", MODE).to(device)
    if [getattr(model, name, None) for name in ("num_parts", "num_categories")] != [len(ROOM_CLASSES), 0]:
        raise ValueError(
            f"model.NAME is {config['model']['NAME']}, but {MODE} needs a segmenter with num_parts {len(ROOM_CLASSES)} "
            "and num_categories 0; choose another config or another mode"
        )
    return model
