"""`--finetune_model` and `--scratch_model`: train a classifier from a pre-trained encoder, or from nothing."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.transforms import AUGMENTATIONS, random_subset
from tools.evaluation.classification import check_channels, check_labels, farthest_candidates, sample_farthest
from tools.evaluation.inference import evaluate
from tools.evaluation.metrics import overall_accuracy
from tools.training import own_data, sanity
from tools.training.builder import (
    build_network,
    evaluation_loader,
    parallel,
    selection_loader,
    test_split,
    training_loader,
)
from tools.training.modes import FINE_TUNING, TO_TRAIN, training_mode
from tools.training.run import open_run
from tools.training.trainer import Trainer
from utils.checkpoint import load_weights
from utils.device import choose_device
from utils.seed import seed_everything

MODE = FINE_TUNING
mode_of = training_mode  # --seeds
REQUIRED = (*TO_TRAIN, "npoints", "dataset.test")


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
        if run.finished:
            return run.finished
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        train = training_loader(config, args, least=2)
        chooser, name = selection_loader(config, args, train)
        test = chooser if args.select_on == "test" else evaluation_loader(config, "test", args)
        run.note_data(train=train.dataset, test=test.dataset)
        model = build_network(config["model"], "num_classes", mode).to(device)
        check_labels(model, train, test)
        check_channels(train, test)
        sanity.warn(config, model, train=train.dataset, test=test.dataset)
        own_data.report(config, model, train=train.dataset, test=test.dataset)
        if args.ckpts and not args.resume:
            run.note_weights(load_weights(model, args.ckpts))
        network = parallel(model, args)
        npoints = config["npoints"]
        augment = AUGMENTATIONS[config["augmentation"]]

        def step(points: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            points = random_subset(farthest_candidates(points, npoints), npoints, generator, shared=True)
            logits = network(augment(points, generator))
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
