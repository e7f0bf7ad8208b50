"""The encoder of a memory bank: built from a config, filled if it has parameters, and what it sees of a cloud."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tools.evaluation.bank import Bank, normalised
from tools.evaluation.features import Seen, without_teacher
from tools.evaluation.inference import extract_features
from tools.training.builder import build_network
from utils.checkpoint import LoadReport, load_weights
from utils.distributed import world_size


def build_encoder(
    config: dict[str, Any], weights: Path | None, mode: str, flag: str
) -> tuple[nn.Module, LoadReport | None]:
    """Build the encoder of a bank.

    Args:
        config: the `model` section.
        weights: a checkpoint; None for a model without parameters.
        mode: what is about to run, for messages.
        flag: of the command line that gives the checkpoint, for messages.

    Returns:
        The model, on the CPU, and what became of the checkpoint.

    Raises:
        ValueError: if the model has parameters and no checkpoint is given, or the other way round; if the checkpoint
            does not fit; or if a feature depends on its batch and several processes would batch otherwise.
    """
    model = build_network(without_teacher(config), "encode", mode)
    learns = any(True for _ in model.parameters())
    if learns and weights is None:
        raise ValueError(f"{config['NAME']} has parameters, which nothing has trained: give its weights, {flag} FILE")
    if not learns and weights is not None:
        raise ValueError(f"{config['NAME']} has no parameters to load from {weights}: drop {flag}")
    if world_size() > 1 and getattr(model, "normalise", "cloud") == "batch":
        raise ValueError(
            f"with model.normalise: batch a feature depends on its batch, which {world_size()} processes would share "
            "out: start one process, or set model.normalise: cloud"
        )
    return model, None if weights is None else load_weights(model, weights)


def first_points(count: int | None) -> Seen:
    """Keep the first points of each cloud, as a data set that hands out so many does; None keeps all.

    Raises:
        ValueError: by the returned function, if the clouds have fewer points.
    """

    def keep(points: Tensor) -> Tensor:
        if count is not None and count > points.shape[1]:
            raise ValueError(f"the clouds have {points.shape[1]} points, fewer than the {count} that the bank is of")
        return points[:, :count]

    return keep


def make_bank(
    model: nn.Module, loader: DataLoader, device: torch.device, see: Seen | None, origin: dict[str, Any] | None = None
) -> Bank:
    """Encode the clouds of a bank.

    Args:
        model: the encoder, on `device`.
        loader: over labelled clouds, in their order.
        device: where to compute.
        see: points → points that the encoder sees.
        origin: what the bank is made of, as plain values.
    """
    features, labels = extract_features(model.encode, loader, device, "memory bank", see)
    return Bank(normalised(features, "bank"), labels, loader.dataset.class_names, origin or {})
