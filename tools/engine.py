"""The loops over a loader. They know nothing of any mode: what a batch means is in the function they are given."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.logger import progress

Batch = tuple[Tensor, Tensor]  # points (B, N, 3), labels (B,)


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[Batch],
    step: Callable[[Batch], dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    grad_norm_clip: float | None = None,
    step_per_update: int = 1,
    description: str = "",
) -> dict[str, float]:
    """Train for one pass over the loader.

    Args:
        model: put into training mode; its parameters are clipped.
        loader: yields (points, labels).
        step: batch → 0-d tensors; "loss", the mean over the batch, is minimised, the others are only averaged.
        optimizer: holds the model's parameters.
        grad_norm_clip: largest norm of the gradient of one update, None for no limit.
        step_per_update: batches per update. Their gradients add up to that of one larger batch; the batches left
            at the end of the epoch make a smaller update.
        description: what the progress bar says.

    Returns:
        The mean of everything `step` returned, weighted by batch size.

    Raises:
        ValueError: if the loader is empty.
    """
    model.train()
    sums: dict[str, Tensor] = {}
    seen = 0
    batches = iter(progress(loader, description))
    while update := list(islice(batches, step_per_update)):
        optimizer.zero_grad(set_to_none=True)
        update_size = sum(len(points) for points, _ in update)
        for batch in update:
            values = step(batch)
            size = len(batch[0])
            (values["loss"] * (size / update_size)).backward()
            for name, value in values.items():  # stays on the device: reading it here would wait for the GPU
                sums[name] = sums.get(name, 0.0) + value.detach().float() * size
        if grad_norm_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), grad_norm_clip)
        optimizer.step()
        seen += update_size
    if not seen:
        raise ValueError("the training loader yields no batch")
    return dict(zip(sums, (torch.stack(list(sums.values())) / seen).tolist(), strict=True))


def extract_features(
    encode: Callable[[Tensor], Tensor], loader: Iterable[Batch], device: torch.device, description: str = "features"
) -> tuple[np.ndarray, np.ndarray]:
    """Encode every cloud in evaluation mode.

    Args:
        encode: points (B, N, 3) → features (B, C); a method of the model, for instance `model.encode`.
        loader: yields (points, labels) in a fixed order.
        device: where the points go.

    Returns:
        Features (n, C) float32 and labels (n,) int64, in the loader's order.
    """
    features, labels = evaluate(encode, loader, device, description=description)
    return features.numpy(), labels.numpy()


@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    device: torch.device,
    prepare: Callable[[Tensor], Tensor] | None = None,
    description: str | None = "evaluation",
) -> tuple[Tensor, Tensor]:
    """Predict every cloud in evaluation mode.

    Args:
        predict: points (B, N, 3) → logits (B, classes); a module or a method of one.
        loader: yields (points, labels) in a fixed order.
        device: where the points go.
        prepare: points → points, applied on the device before `predict` (sampling, augmentation).
        description: what the progress bar says, None for no bar.

    Returns:
        Logits (n, classes) float32 and labels (n,) int64, both on the CPU, in the loader's order.

    Raises:
        ValueError: if the loader is empty.
    """
    outputs, labels = [], []
    with _evaluation_mode(_module_of(predict)):
        for points, label in progress(loader, description) if description else loader:
            points = points.to(device, non_blocking=True)
            outputs.append(predict(prepare(points) if prepare else points).float())
            labels.append(label)
    if not outputs:
        raise ValueError("the evaluation loader yields no batch")
    return torch.cat(outputs).cpu(), torch.cat(labels).long()


@torch.no_grad()
def calibrate_batchnorm(
    model: nn.Module, forward: Callable[[Tensor], object], loader: Iterable[Batch], device: torch.device
) -> None:
    """Replace the running statistics of every BatchNorm by their plain average over the loader.

    An encoder that was never trained has statistics that fit no data; with these its features are fair to compare.

    Args:
        model: its BatchNorm layers change; all else is in evaluation mode meanwhile.
        forward: points (B, N, 3) → anything; runs the layers to calibrate, for instance `model.encode`.
        loader: yields (points, labels).
        device: where the points go.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    with _evaluation_mode(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
            layer.train()
        try:
            for points, _ in progress(loader, "BatchNorm statistics"):
                forward(points.to(device, non_blocking=True))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


def _module_of(function: Callable) -> nn.Module:
    module = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    assert isinstance(module, nn.Module), f"{function} is neither a module nor a method of one"
    return module


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training.items():
            module.training = training
