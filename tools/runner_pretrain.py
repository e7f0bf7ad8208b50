"""Pre-training, the mode of a command line without a mode."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from datasets.transforms import AUGMENTATIONS
from tools.builder import build_network, training_loader
from tools.report import open_run
from tools.runner_test_svm import svm_features, svm_loaders
from tools.svm import linear_svm_accuracy
from tools.trainer import Trainer
from utils.device import choose_device
from utils.seed import seed_everything

MODE = "pre-training"
REQUIRED = (
    *("optimizer", "scheduler", "model", "total_bs", "max_epoch", "svm.C"),
    *("dataset.train", "dataset.svm_train", "dataset.svm_test"),
)


def run(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Pre-train; a linear SVM on the features chooses ckpt-best.

    Args:
        config: resolved config of cfgs/pre-training/.
        args: command line.

    Returns:
        What `Trainer.fit` returns.
    """
    with open_run(config, args, MODE, training=True) as run:
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        loader = training_loader(config, args)
        loaders = svm_loaders(config, args)
        model = build_network(config["model"], "encode", MODE).to(device)
        augment = AUGMENTATIONS[config["augmentation"]]

        def step(points: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return model(augment(points, generator))

        def evaluate() -> float:
            return linear_svm_accuracy(*svm_features(model, loaders, device), config["svm"]["C"])

        protocol = f"linear SVM (C = {config['svm']['C']:g}) on {config['dataset']['svm_test']['NAME']}, test split"
        return run.finish(Trainer(config, args, run, model, loader, step, evaluate, protocol).fit())
