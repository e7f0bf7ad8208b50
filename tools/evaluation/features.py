"""Features of a frozen encoder, the clouds that they are taken of, and the probe that is fair to an untrained one."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datasets import build_dataset, name_of, name_of_entry
from datasets.folder import Folder
from datasets.own.files import list_files
from models.frozen import UNTRAINED
from models.teacher import feature_width
from tools.evaluation.classification import sample_farthest
from tools.evaluation.inference import calibrate_batchnorm, extract_features
from tools.evaluation.svm import choose_C, linear_svm_accuracy, standardise
from tools.training.builder import EVALUATION_BATCH_SIZE, evaluation_loader, require_classes
from tools.training.modes import LINEAR_SVM
from utils.device import choose_device

Seen = Callable[[Tensor], Tensor]


def svm_loaders(config: dict[str, Any], args: Namespace) -> tuple[DataLoader, DataLoader]:
    """Build the loaders of the clouds that the SVM is fitted to and of those it is tested on; both need classes."""
    train = evaluation_loader(config, "svm_train", args)
    require_classes(train.dataset.class_names, name_of(train.dataset), LINEAR_SVM)
    return train, evaluation_loader(config, "svm_test", args)


def without_probe(config: dict[str, Any]) -> str:
    """Say why no linear SVM can be fitted while a model is pre-trained; "" if one can.

    Raises:
        ValueError: if the config has one of the two splits.
    """
    given = [name for name in ("svm_train", "svm_test") if name in config["dataset"]]
    if len(given) == 1:
        raise ValueError(f"the config has dataset.{given[0]} alone: give both svm_train and svm_test, or neither")
    if not given:
        return "the config has no dataset.svm_train and dataset.svm_test"
    entry = config["dataset"]["svm_train"]
    if entry["NAME"] != Folder.__name__:
        return ""
    listing, name = list_files(entry["ROOT"]), name_of_entry(entry)
    if len(listing.class_names) < 2:
        return f"{name} has {'one class only' if listing.class_names else 'no classes'}"
    return f"{name} has no test split" if listing.splits and "test" not in listing.splits else ""


def seen_points(config: dict[str, Any]) -> Seen | None:
    """What the encoder sees of a cloud: `npoints` farthest points, where the config says it; None = all."""
    npoints = config.get("npoints")
    return None if npoints is None else partial(sample_farthest, num_points=npoints)


def svm_features(
    model: nn.Module, loaders: tuple[DataLoader, DataLoader], device: torch.device, see: Seen | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Encode both splits.

    Args:
        model: the encoder, on `device`.
        loaders: of both splits.
        device: where to compute.
        see: points → points that the encoder sees; None = all.

    Returns:
        Training features (n, C), training labels (n,), test features (m, C), test labels (m,).
    """
    train, test = loaders
    return (
        *extract_features(model.encode, train, device, "training features", see),
        *extract_features(model.encode, test, device, "test features", see),
    )


def svm_name(config: dict[str, Any]) -> str:
    """What tells the linear SVM of a config from others: its C, and how it is fitted where not as usual."""
    svm = config["svm"]
    return f"C = {svm['C']:g}" + (f", {svm['solver']}" if svm["solver"] != "SVC" else "")


def without_teacher(model_config: dict[str, Any]) -> dict[str, Any]:
    """Copy a model section so that no teacher is sought: features need none, but the 2D head keeps its width.

    A tokenizer, or ACT's autoencoder, has its place in the model, but its weights come with the rest of them.
    """
    if "dvae_config" in model_config:
        return {**model_config, "dvae_config": {**model_config["dvae_config"], "ckpt": UNTRAINED}}
    if "clip_config" not in model_config:
        return model_config
    teacher = model_config["clip_config"]
    return {**model_config, "clip_config": {"visual_encoder": None, "feat_dim": feature_width(teacher)}}


def calibrated_svm_accuracy(model: nn.Module, config: dict[str, Any], C: float | None = None) -> float:
    """Accuracy of a linear SVM on frozen features, the same way for trained and untrained encoders.

    BatchNorm statistics are calibrated and features standardised on the labelled training clouds, and C is chosen by
    cross-validation on them, unless it is given.
    """
    device = choose_device()
    model = model.to(device)
    train, test = (
        DataLoader(build_dataset(config["dataset"][key]), EVALUATION_BATCH_SIZE) for key in ("svm_train", "svm_test")
    )
    calibrate_batchnorm(model, model.encode, train, device)
    train_x, train_y, test_x, test_y = svm_features(model, (train, test), device)
    train_x, test_x = standardise(train_x, test_x)
    if C is None:
        C, _ = choose_C(train_x, train_y)
    return linear_svm_accuracy(train_x, train_y, test_x, test_y, C)
