"""Comparing with the golden numbers: figures of the official models, see tests/golden/."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models import build_model
from tests.golden.fixtures import fill_parameters, golden_tensor, summary
from tools.training.builder import build_optimizer

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 2e-5
OPTIMIZER = {"type": "AdamW", "kwargs": {"lr": 1e-3, "weight_decay": 0.05}}


def load(name: str) -> dict:
    """Read tests/golden/`name`.json."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def assert_keys(module: nn.Module, keys: list, ignore: str = "clip_model.") -> None:
    """The state dict has the official names, shapes and dtypes, no more and no fewer."""
    ours = {
        key: (list(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in module.state_dict().items()
    }
    official = {key: (shape, dtype) for key, shape, dtype in keys if not key.startswith(ignore)}
    assert ours == official


def assert_figure(ours: float | Tensor, official: float, tolerance: float = TOLERANCE) -> None:
    """A loss or norm agrees within the relative tolerance."""
    ours = ours.item() if isinstance(ours, Tensor) else ours
    np.testing.assert_allclose(ours, official, rtol=tolerance)


def assert_summary(tensor: Tensor, official: dict, atol: float = TOLERANCE) -> None:
    """A tensor agrees with its summary: some elements, the statistics, and a sum that moves with any element."""
    ours = summary(tensor)
    assert ours["n"] == official["n"]
    for key in ("first", "last"):
        np.testing.assert_allclose(ours[key], official[key], atol=atol)
    for key in ("mean", "std", "norm"):
        np.testing.assert_allclose(ours[key], official[key], rtol=TOLERANCE, atol=TOLERANCE)
    # An error of size e, independent in every element, moves the sum by about e·√(n/2).
    np.testing.assert_allclose(ours["dot_cos"], official["dot_cos"], atol=atol * max(1.0, official["n"] ** 0.5))


def fill_teacher(teacher: nn.Module) -> None:
    """Give the teacher's tower the golden weights, which are seeded by the official names."""
    with torch.no_grad():
        for key, tensor in teacher.visual.state_dict().items():
            tensor.copy_(golden_tensor(f"clip_model.visual.{key}", tensor))


def gradient_norm(module: nn.Module) -> float:
    """Root of the summed squares of all parameter gradients, in double precision."""
    return sum(float(p.grad.double().square().sum()) for p in module.parameters() if p.grad is not None) ** 0.5


def released(config: dict, training: bool = False) -> nn.Module:
    """A model with the golden weights and without dropout."""
    model = fill_parameters(build_model(config)).train(training)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def assert_close(ours: Tensor, official: list) -> None:
    """Figures agree within 1e-5 of their root mean square."""
    expected = np.asarray(official)
    np.testing.assert_allclose(ours.detach(), expected, rtol=0, atol=1e-5 * np.sqrt(np.mean(expected**2)))


def exempt_by_name(model: nn.Module) -> list[str]:
    """Parameters without weight decay that are neither one-dimensional nor biases."""
    plain = build_optimizer(model, OPTIMIZER).param_groups[0]["params"]
    ids = {id(parameter) for parameter in plain}
    return [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in ids and parameter.ndim > 1 and not name.endswith(".bias")
    ]
