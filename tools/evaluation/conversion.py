"""Checkpoints in other clothes: as the official code wants them, or as .safetensors; the tensors stay bit for bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save as to_safetensors
from torch import Tensor

from models.released import released_configs
from models.teacher.weights import read_tensors
from tools.training.record import plain
from utils.checkpoint import SAFETENSORS, model_tensors, save_checkpoint
from utils.config import load_config
from utils.files import atomic_write

PREFIX, CLIP = "module.", "clip_model."
KEPT = ("epoch", "metrics", "best_metrics", "chosen_by", "config", "run")  # the rest serves to resume
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's files
TOWERS = (f"{CLIP}visual.", f"{CLIP}transformer.")
CLIP_WAY_OUT = "Give OpenAI's .pt of the tower, or a released I2P-MAE pre-training checkpoint."


def converted(
    content: Mapping[str, Any], path: Path, config: Path | None = None, prefix: bool = False, clip: Path | None = None
) -> dict[str, Any]:
    """The weights of a checkpoint, and what it says of them, without what serves to resume.

    Args:
        content: of the checkpoint.
        path: its file, for messages.
        config: says what made it, where the file does not.
        prefix: put `module.` in front of the names, as released files have it.
        clip: a file with the whole CLIP, which the official I2P-MAE wants beside its own weights; None = none.

    Returns:
        `base_model` and what is known of epoch, metrics, choice, config and run.

    Raises:
        ValueError: if there is no model in it, or CLIP is asked for where it does not belong or is not in its file.
    """
    tensors = {key: value for key, value in model_tensors(content, path).items() if not key.startswith(CLIP)}
    if clip is not None:
        if "rec_head_2d.weight" not in tensors:
            raise ValueError(f"{path} holds no I2P-MAE pre-training model, which alone has CLIP beside it: drop --clip")
        tensors |= _clip_tensors(clip)
    about = {key: _plain(content[key]) for key in KEPT if key in content}
    if config is not None:
        about["config"] = plain(load_config(config))
    elif "config" not in about and len(found := released_configs(tensors)) == 1:
        about["config"] = {"model": plain(next(iter(found.values())))}
    return {"base_model": {PREFIX * prefix + key: value for key, value in tensors.items()}, **about}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write what `converted` returned as .pth or .safetensors; the file is whole or absent."""
    if path.suffix != SAFETENSORS:
        save_checkpoint(path, content)
        return
    tensors = {key: value.contiguous().clone() for key, value in content["base_model"].items()}  # none may share memory
    metadata = {key: json.dumps(value) for key, value in content.items() if key != "base_model"}
    with atomic_write(path) as file:
        file.write(to_safetensors(tensors, {"format": "pt", **metadata}))


def _clip_tensors(path: Path) -> dict[str, Tensor]:
    """Both towers of CLIP under the names that the official model gives them."""
    found = {key.removeprefix(PREFIX): value for key, value in read_tensors(path, CLIP_WAY_OUT).items()}
    inside = {key: value for key, value in found.items() if key.startswith(CLIP)}
    tensors = inside or {CLIP + key: value for key, value in found.items() if key not in NOT_WEIGHTS}
    for tower in TOWERS:
        if not any(key.startswith(tower) for key in tensors):
            raise ValueError(f"{path} has no {tower}*: the official code wants both towers of CLIP. {CLIP_WAY_OUT}")
    return tensors


def _plain(value: Any) -> Any:
    """Turn the NumPy numbers that released files hold into Python's."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
