"""`--test_svm`: a linear SVM on the features of a frozen, pre-trained encoder."""

import logging
from argparse import Namespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from tools.builder import build_network, evaluation_loader
from tools.engine import extract_features
from tools.report import format_table, open_run
from tools.svm import choose_C, linear_svm_accuracy
from utils.checkpoint import load_weights
from utils.device import choose_device
from utils.seed import seed_everything

logger = logging.getLogger(__name__)

MODE = "linear SVM"
REQUIRED = ("model", "dataset.svm_train", "dataset.svm_test", "svm.C")
DATASET_OF_FLAG = {"modelnet40": "ModelNet40_SVM", "scan": "ScanObjectNN"}


def run(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Measure the checkpoint `args.ckpts` by linear SVMs.

    Args:
        config: resolved config with `model`, `dataset.svm_train`, `dataset.svm_test` and `svm.C`.
        args: command line.

    Returns:
        The protocol; the test accuracy with the config's C; the C chosen by cross-validation on the training features,
        its cross-validated accuracy and its test accuracy. In percent.

    Raises:
        ValueError: if the flag names another data set than the config, or the checkpoint does not fit.
    """
    _check_flag(config, args)
    with open_run(config, args, MODE, training=False) as run:
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        model = build_network(without_teacher(config["model"]), "encode", MODE).to(device)
        logger.info("%s", load_weights(model, args.ckpts))
        features = svm_features(model, svm_loaders(config, args), device)
        C = config["svm"]["C"]
        chosen_C, cross_validated = choose_C(*features[:2])
        results = {
            "protocol": f"linear SVM on {config['dataset']['svm_test']['NAME']}, test split",
            "checkpoint": str(args.ckpts),
            "C": C,
            "accuracy": linear_svm_accuracy(*features, C),
            "chosen_C": chosen_C,
            "chosen_C_cross_validated_accuracy": cross_validated,
            "chosen_C_accuracy": linear_svm_accuracy(*features, chosen_C),
        }
        rows = [
            [f"C = {C:g}, from the config", results["accuracy"]],
            [f"C = {chosen_C:g}, cross-validated on the training split", results["chosen_C_accuracy"]],
        ]
        logger.info("%s\n%s", MODE, format_table(rows, [results["protocol"], "%"]))
        return run.finish(results)


def svm_loaders(config: dict[str, Any], args: Namespace) -> tuple[DataLoader, DataLoader]:
    """Build the loaders of the clouds that the SVM is fitted to and of those it is tested on."""
    return evaluation_loader(config, "svm_train", args), evaluation_loader(config, "svm_test", args)


def svm_features(
    model: nn.Module, loaders: tuple[DataLoader, DataLoader], device: torch.device
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Encode both splits.

    Returns:
        Training features (n, C), training labels (n,), test features (m, C), test labels (m,).
    """
    train, test = loaders
    return (
        *extract_features(model.encode, train, device, "training features"),
        *extract_features(model.encode, test, device, "test features"),
    )


def without_teacher(model_config: dict[str, Any]) -> dict[str, Any]:
    """Copy a model section so that no teacher is built: features need none."""
    if "clip_config" not in model_config:
        return model_config
    return {**model_config, "clip_config": {**model_config["clip_config"], "visual_encoder": None}}


def _check_flag(config: dict[str, Any], args: Namespace) -> None:
    expected = DATASET_OF_FLAG[args.test_svm]
    for entry in ("svm_train", "svm_test"):
        if (name := config["dataset"][entry]["NAME"]) != expected:
            right = next((flag for flag, dataset in DATASET_OF_FLAG.items() if dataset == name), None)
            hint = f"use --test_svm {right} or another config" if right else "use another config"
            raise ValueError(f"--test_svm {args.test_svm} needs {expected}, but dataset.{entry} is {name}; {hint}")
