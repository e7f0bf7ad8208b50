"""Pre-training, the mode of a command line without a mode."""

import logging
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from datasets import name_of_entry
from datasets.transforms import AUGMENTATIONS
from tools.evaluation.clouds import unseen_or_seen
from tools.evaluation.explain import reconstructs
from tools.evaluation.features import seen_points, svm_features, svm_loaders, svm_name, without_probe
from tools.evaluation.figures import draw_reconstructions
from tools.evaluation.svm import linear_svm_accuracy
from tools.training import own_data, provenance, sanity
from tools.training.builder import (
    OTHER_CONFIG_OR_MODE,
    build_network,
    check_pre_trains,
    parallel,
    training_loader,
)
from tools.training.modes import OTHER_MODE, PRE_TRAINING, TO_TRAIN
from tools.training.run import open_run
from tools.training.trainer import Trainer
from utils.device import choose_device
from utils.distributed import mean, on_main, world_size
from utils.seed import seed_everything

logger = logging.getLogger(__name__)

MODE = PRE_TRAINING
REQUIRED = TO_TRAIN
PICTURE = "reconstructions.png"
SHAPES_DRAWN = 4


def run(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Pre-train; a linear SVM on the features chooses ckpt-best. At the end the final weights reconstruct some shapes.

    Where there are no classes, or no data for the SVM, nothing is measured but the loss, and there is no ckpt-best.

    Args:
        config: resolved config of cfgs/pre-training/.
        args: command line.

    Returns:
        What `Trainer.fit` returns.

    Raises:
        ValueError: of one of several seeds without an SVM, whose accuracies would be summed up.
    """
    check_pre_trains(config["model"], MODE, OTHER_MODE if args.resume else OTHER_CONFIG_OR_MODE)
    reason = without_probe(config)
    if reason and getattr(args, "one_of_many", False):
        raise ValueError(
            f"--seeds sums up accuracies, and {reason}; pre-train once per --seed, with an --exp_name each"
        )
    with open_run(config, args, MODE, training=True) as run:
        if run.finished:
            return run.finished
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        loader = training_loader(config, args)
        data = {"train": loader.dataset}
        if not reason:
            loaders = svm_loaders(config, args)
            data |= {"svm_train": loaders[0].dataset, "svm_test": loaders[1].dataset}
        run.note_data(**data)
        model = build_network(config["model"], "encode", MODE).to(device)
        sanity.warn(config, model, **data)
        provenance.warn(config, **data)
        own_data.report(config, model, **data)
        shapes = unseen_or_seen(config, loader.dataset, args.seed, SHAPES_DRAWN)  # fails now rather than at the end
        network = parallel(model, args)
        augment = AUGMENTATIONS[config["augmentation"]]
        weights = getattr(model, "loss_weights", {})  # of a model with several losses

        def step(points: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return over_all_processes(network(augment(points, generator)), model.num_tokens, weights)

        def evaluate() -> float:
            features = svm_features(model, loaders, device, seen_points(config))
            return on_main(lambda: linear_svm_accuracy(*features, config["svm"]["C"], config["svm"]["solver"]))

        chooser = None if reason else evaluate
        results = Trainer(config, args, run, network, loader, step, chooser, protocol_of(config, reason)).fit()
        if reconstructs(model) and not args.dry_run:
            on_main(lambda: draw_reconstructions(model, shapes.to(device), run.folder / PICTURE, args.seed))
        return run.finish(results)


def mode_of(args: Namespace) -> str:
    """Name of what a command line does."""
    return MODE


def protocol_of(config: dict[str, Any], reason: str) -> str:
    """Say what chooses ckpt-best, or for which reason nothing does."""
    if not reason:
        return f"linear SVM ({svm_name(config)}) on {name_of_entry(config['dataset']['svm_test'])}, test split"
    protocol = f"no linear SVM, since {reason}; nothing chooses a checkpoint"
    logger.info("%s: there will be ckpt-last.pth, of the latest epoch, and no ckpt-best.pth", protocol)
    return protocol


def over_all_processes(
    values: dict[str, Tensor], num_tokens: int, weights: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Weigh the losses so that their mean over the processes is the mean over all tokens of the global batch.

    `loss_3d` and `loss_2d` are means over the masked or visible tokens of this process, whose number varies a little. A
    model without them weighs its losses itself, or has one that is a mean over clouds, of which every process has as
    many.

    Args:
        values: what a pre-training model returned.
        num_tokens: tokens in a cloud among which the model counts the visible ones.
        weights: of a loss in the sum; 1 where none is given.

    Returns:
        The values, with losses weighed so. In a single process they are what they were.
    """
    if world_size() == 1 or values.keys().isdisjoint(("loss_3d", "loss_2d")):
        return values
    visible = values["visible_tokens"]
    everywhere = mean(visible)
    masked, masked_everywhere = num_tokens - visible, (num_tokens - everywhere).clamp_min(1e-6)  # if none is: 0 / 1e-6
    shares = {"loss_3d": masked / masked_everywhere, "loss_2d": visible / everywhere}
    weighted = {name: share * values[name] for name, share in shares.items() if name in values}
    return {**values, **weighted, "loss": sum((weights or {}).get(name, 1.0) * loss for name, loss in weighted.items())}
