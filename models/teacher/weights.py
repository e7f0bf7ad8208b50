"""Weights of 2D teachers: files of several kinds, read on the CPU without running what may be in them."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import open_clip
import torch
from safetensors import safe_open
from torch import Tensor

from utils.checkpoint import admit_numpy_numbers
from utils.nearest import did_you_mean_path

from .interface import WHERE

VISUAL_KEY = re.compile(r"(?:module\.)?(?:clip_model\.)?visual\.(.+)")
CLIP_WAYS_OUT = (
    "Write under model.clip_config either `pretrained: openai`, or another tag of open_clip that the tower has, and "
    "open_clip downloads the weights (this needs the network); or `pretrained: PATH` of a local file with CLIP's "
    "weights (OpenAI .pt, open_clip .pt or .bin, .safetensors) or of a released I2P-MAE pre-training checkpoint, whose "
    "clip_model.visual.* tensors are then used."
)


def find_clip_weights(name: str, visual_encoder: object, pretrained: str | Path) -> Path:
    """Return the local file of the weights of a tag of open_clip, downloaded if need be, or of a path.

    Args:
        name: open_clip's name of the model, "" for none.
        visual_encoder: what the config calls it.
        pretrained: the tag or the path.

    Raises:
        FileNotFoundError: if there is neither such a tag nor such a file, or the download failed.
    """
    if open_clip.is_pretrained_cfg(name, str(pretrained)):
        try:
            return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, str(pretrained))))
        except Exception as error:  # as many kinds as there are ways to fail on a network
            raise download_failed(visual_encoder, pretrained, error, CLIP_WAYS_OUT) from error
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
    return existing_file(visual_encoder, pretrained, tags, CLIP_WAYS_OUT)


def existing_file(visual_encoder: object, pretrained: str | Path, tags: str, ways_out: str) -> Path:
    """Return `pretrained` as the path of a file; FileNotFoundError if there is none."""
    path = Path(str(pretrained)).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"{WHERE}.pretrained is '{pretrained}', which is no file and no tag of {visual_encoder!r} (tags: "
            f"{tags}). {did_you_mean_path(path)}{ways_out} `untrained` gives random weights."
        )
    return path


def download_failed(
    visual_encoder: object, pretrained: str | Path, error: Exception, ways_out: str
) -> FileNotFoundError:
    """The error of weights that a library could not fetch."""
    return FileNotFoundError(
        f"the weights '{pretrained}' of the 2D teacher {visual_encoder!r} could not be downloaded "
        f"({type(error).__name__}: {error}). {ways_out}"
    )


def read_visual_weights(path: Path) -> dict[str, Tensor]:
    """Read CLIP's image tower from a file, and nothing else of it.

    Args:
        path: an OpenAI TorchScript archive, a .safetensors file, or a PyTorch file with a state dict, bare or under
            `state_dict` (open_clip) or `base_model` (released pre-training checkpoints).

    Returns:
        Float32 tensors under the names of open_clip's image tower.

    Raises:
        ValueError: if the file cannot be read or holds no image tower.
    """
    tensors = read_tensors(path, CLIP_WAYS_OUT)
    weights = {
        match[1]: tensor.to(torch.float32, copy=True)  # a copy, or the whole file would stay mapped
        for key, tensor in tensors.items()
        if (match := VISUAL_KEY.fullmatch(key))
    }
    if not weights:
        raise ValueError(
            f"{path} holds no CLIP image tower: none of its {len(tensors)} tensors is named visual.* or "
            f"clip_model.visual.* (it begins with: {', '.join(list(tensors)[:5]) or 'nothing'}). {CLIP_WAYS_OUT}"
        )
    return weights


def read_tensors(path: Path, ways_out: str) -> dict[str, Tensor]:
    """Read all tensors of a file, on the CPU and as they are saved.

    Args:
        path: a .safetensors file, a TorchScript archive, or a PyTorch file with a state dict, bare or under
            `base_model`, `state_dict` or `model`.
        ways_out: what the error tells to do.

    Raises:
        ValueError: if the file cannot be read, or holds objects beside tensors and plain values.
    """
    try:
        return _read_tensors(path)
    except Exception as error:  # garbage can fail in any way
        raise ValueError(
            f"{path} cannot be read as weights of the 2D teacher ({type(error).__name__}): it is damaged, or no weight "
            f"file. {ways_out}"
        ) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    is_zip = zipfile.is_zipfile(path)
    if is_zip and _is_torchscript(path):
        return torch.jit.load(str(path), map_location="cpu").state_dict()
    admit_numpy_numbers()
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    state = next((checkpoint[key] for key in ("base_model", "state_dict", "model") if checkpoint.get(key)), checkpoint)
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def check_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that differ from the tower in a name or a shape; none is ever left out."""
    other_shape = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    problems = {
        "missing": [key for key in expected if key not in found],
        "unknown": [key for key in found if key not in expected],
        "of another shape": other_shape,
    }
    listed = [
        f"{len(keys)} tensors {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in problems.items()
        if keys
    ]
    if listed:
        raise ValueError(
            f"{path} holds another image tower than {WHERE}.visual_encoder says: {'; '.join(listed)}. "
            f"Nothing is resized unless {WHERE}.image_size asks for it: name the tower, patch and image size that the "
            "file was made for."
        )
