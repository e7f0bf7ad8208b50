"""What a model says of every cloud of a loader, in evaluation mode."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tools.training.engine import Batch
from utils.distributed import gather, interleave
from utils.logger import progress


def extract_features(
    encode: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    device: torch.device,
    description: str = "features",
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Encode every cloud in evaluation mode.

    Args:
        encode: points (B, N, 3) → features (B, C); a method of the model, for instance `model.encode`.
        loader: yields (points, labels) in a fixed order.
        device: where the points go.
        description: what the progress bar says.
        prepare: points → points, applied on the device before `encode`.

    Returns:
        Features (n, C) float32 and labels (n,) int64, in the loader's order.
    """
    features, labels = evaluate(encode, loader, device, prepare, description)
    return features.numpy(), labels.numpy()


@torch.no_grad()
def evaluate(
    predict: Callable[..., Tensor],
    loader: Iterable[Batch],
    device: torch.device,
    prepare: Callable[[Tensor], Tensor] | None = None,
    description: str | None = "evaluation",
    inputs: int = 1,
) -> tuple[Tensor, ...]:
    """Predict every cloud in evaluation mode.

    Args:
        predict: points (B, N, 3) → (B, …), for instance logits; a module or a method of one.
        loader: yields (points, targets …) in a fixed order. With several processes each yields its share: rank r the
            clouds r, r + world size, …
        device: where the points go.
        prepare: points → points, applied on the device before `predict` (sampling, augmentation).
        description: what the progress bar says, None for no bar.
        inputs: how many tensors of a batch `predict` takes, the points first; the rest are targets.

    Returns:
        Outputs (n, …), float32 where they are of floating type, and the targets, labels as int64; all on the CPU, in
        the order of the data set, from all processes.

    Raises:
        ValueError: if the loader is empty.
    """
    rows: list[Batch] = []
    with _evaluation_mode(_module_of(predict)):
        for batch in progress(loader, description) if description else loader:
            points, *others = (tensor.to(device, non_blocking=True) for tensor in batch[:inputs])
            output = predict(prepare(points) if prepare else points, *others)
            rows.append((output.float() if output.is_floating_point() else output, *batch[inputs:]))
    columns = [torch.cat(column).cpu() for column in zip(*rows, strict=True)]
    shares = [share for share in gather(columns) if share]  # of fewer clouds than processes some have none
    if not shares:
        raise ValueError("the evaluation loader yields no batch")
    return tuple(interleave(list(column)) for column in zip(*shares, strict=True))


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
            for points, *_ in progress(loader, "BatchNorm statistics"):
                forward(points.to(device, non_blocking=True))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


def _module_of(function: Callable) -> nn.Module:
    module = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    assert isinstance(module, nn.Module), f"{function} is neither a module nor a method of one"
    return module


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training.items():
            module.training = training
