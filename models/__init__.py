"""Models by the names that configs give them."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from models.classifier import Classifier
from models.i2p_mae import I2P_MAE
from models.point_m2ae import Point_M2AE
from models.teacher import build_teacher

MODELS: dict[str, Callable[..., nn.Module]] = {
    "I2P_MAE": I2P_MAE,
    "Point_M2AE": Point_M2AE,
    "I2P_MAE_ModelNet40": partial(Classifier, num_classes=40, pooling="sum", smooth=0.2),
    "I2P_MAE_ScanObjectNN": partial(Classifier, num_classes=15, pooling="concat"),
    "Point_M2AE_ModelNet40": partial(Classifier, num_classes=40, pooling="sum", smooth=0.3),
    "Point_M2AE_ScanObjectNN": partial(Classifier, num_classes=15, pooling="concat", skip_first_token=True),
}


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the model of a config.

    Args:
        config: `NAME`, a key of `MODELS`, and arguments of that model.

    Returns:
        The model, on the CPU, in train mode.

    Raises:
        ValueError: if the name or an argument is unknown, or the model refuses a value.
    """
    check_model_config(config)
    return MODELS[config["NAME"]](**{key: value for key, value in config.items() if key != "NAME"})


def check_model_config(config: Mapping[str, Any], where: str = "model") -> None:
    """Refuse unknown keys of a model's config without building it.

    Args:
        config: `NAME` and arguments of the model.
        where: the config's place in the file, for the message.

    Raises:
        ValueError: that names the key and the nearest valid one.
    """
    _check_known(config.get("NAME"), list(MODELS), f"{where}.NAME")
    _check_arguments(MODELS[config["NAME"]], {key: config[key] for key in config if key != "NAME"}, where)
    if config.get("clip_config") is not None:
        _check_arguments(build_teacher, config["clip_config"], f"{where}.clip_config")


def _check_arguments(function: Callable[..., nn.Module], given: Mapping[str, Any], where: str) -> None:
    parameters = _parameters(function)
    for key in given:
        _check_known(key, list(parameters), f"{where}.{key}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given:
            raise ValueError(f"{where}.{name} is missing; valid keys: {', '.join(parameters)}")


def _check_known(name: Any, valid: list[str], where: str) -> None:
    if name not in valid:
        nearest = difflib.get_close_matches(str(name), valid, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"{where}: unknown name {name!r}; {hint}valid: {', '.join(valid)}")


def _parameters(function: Callable[..., nn.Module]) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor; a class that takes `**settings` hands them to its parent."""
    found: dict[str, inspect.Parameter] = {}
    for owner in inspect.getmro(function) if inspect.isclass(function) else (function,):
        parameters = inspect.signature(owner).parameters
        found |= {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            break
    return found
