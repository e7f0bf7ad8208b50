"""The frozen transformer of images that ACT's autoencoder passes the words of a cloud through; timm builds it."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.frozen import UNTRAINED
from models.teacher.interface import seeded
from models.teacher.weights import read_tensors
from utils.nearest import did_you_mean
from utils.settings import check_settings

TIMM = "timm"
FRAME = "vit_base_patch16_224"  # whose sizes a config may replace
PREFIXES = {"visual_embed.": "", "blocks.": "0.", "norm.": "1."}  # of tensors: in ACT's and timm's files → here
WAYS_OUT = (
    "Write `visual_embed_pretrained: timm`, and timm downloads the weights (this needs the network); or "
    "`visual_embed_pretrained: PATH` of a local file with them (.safetensors, .pth), or of a checkpoint of ACT, whose "
    "visual_embed.* tensors are then used."
)


class VisualSizes(NamedTuple):
    """Sizes of a vision transformer: channels, blocks and attention heads."""

    embed_dim: int
    depth: int
    num_heads: int


def build_visual(kind: str | Mapping[str, int], pretrained: str | Path) -> nn.ModuleList:
    """Build the blocks and the final norm of a vision transformer; its patches, class token and positions are left out.

    Args:
        kind: a vision transformer of timm, by name; or sizes as in `VisualSizes`.
        pretrained: `timm`, the weights that timm has for the name, downloaded once; `untrained`, the same random
            weights each time, while the global random state stays as it was; or the path of a file with the weights:
            timm's, or a checkpoint of ACT's autoencoder or pre-training.

    Returns:
        The blocks, an nn.Sequential, and the norm.

    Raises:
        ValueError: if timm has no such vision transformer, sizes are wrong, or the file does not fit.
        FileNotFoundError: if there is no such file or nothing could be downloaded.
    """
    name, sizes = (FRAME, _checked(kind)) if isinstance(kind, Mapping) else (_checked_name(kind), {})
    if sizes and pretrained == TIMM:
        raise ValueError(
            f"timm has no weights for a transformer of given sizes: write `visual_embed_pretrained: {UNTRAINED}` "
            "beside visual_embed_type, or PATH, or name a model of timm"
        )
    with seeded():
        model: Any = _downloaded(name) if pretrained == TIMM else timm.create_model(name, num_classes=0, **sizes)
    visual = nn.ModuleList([model.blocks, model.norm])
    if pretrained == UNTRAINED:
        warnings.warn(
            "the 2D transformer is untrained: it makes of a shape what a random network does; visual_embed_pretrained "
            "gives it weights",
            stacklevel=2,
        )
    elif pretrained != TIMM:
        _fill(visual, Path(pretrained).expanduser())
    return visual


@contextmanager
def filled_later() -> Iterator[None]:
    """Build an untrained transformer without a word: a checkpoint will replace its weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the 2D transformer is untrained")
        yield


def _checked_name(name: str) -> str:
    if name.startswith("CLIP:"):
        raise ValueError(
            f"visual_embed_type is {name!r}: CLIP's towers by that name are not supported, since in the released code "
            "their attention mixes the clouds of a batch instead of the tokens of a cloud (docs/FIDELITY.md); name a "
            "vision transformer of timm, such as vit_base_patch16_384 or vit_base_patch16_clip_224.openai"
        )
    if not timm.is_model(name.partition(".")[0]):
        hint = did_you_mean(name, timm.list_models(), shown=3)
        raise ValueError(f"visual_embed_type is {name!r}, which is no model of timm; {hint}timm.list_models() has all")
    with torch.device("meta"):
        model = timm.create_model(name)
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"visual_embed_type is {name!r}, which is no plain vision transformer: name one of timm, such as "
            "vit_base_patch16_384"
        )
    return name


def _checked(sizes: Mapping[str, int]) -> dict[str, Any]:
    check_settings(VisualSizes, sizes, "visual_embed_type")
    for key, value in sizes.items():
        if value < 1:
            raise ValueError(f"visual_embed_type.{key} is {value}: give a positive integer")
    if sizes["embed_dim"] % sizes["num_heads"]:
        raise ValueError(
            f"visual_embed_type.embed_dim is {sizes['embed_dim']}, which is no multiple of num_heads, "
            f"{sizes['num_heads']}"
        )
    return dict(sizes)


def _downloaded(name: str) -> Any:
    if not timm.is_model_pretrained(name):
        raise FileNotFoundError(f"timm knows no weights of {name!r}. {WAYS_OUT} `{UNTRAINED}` gives random weights.")
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # as many kinds as there are ways to fail on a network
        raise FileNotFoundError(
            f"the weights of the 2D transformer {name!r} could not be downloaded ({type(error).__name__}: "
            f"{' '.join(str(error).split())}). {WAYS_OUT} `{UNTRAINED}` gives random weights."
        ) from error


def _fill(visual: nn.ModuleList, path: Path) -> None:
    """Give the transformer the weights of a file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if its blocks or its norm are others.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"visual_embed_pretrained is '{path}', which is no file. {WAYS_OUT} `{UNTRAINED}` gives random weights."
        )
    try:
        visual.load_state_dict(_own_names(read_tensors(path, WAYS_OUT)))
    except RuntimeError as error:
        reason = " ".join(str(error).split()).partition(": ")[2]
        raise ValueError(
            f"{path} does not hold the blocks and the norm of the transformer that visual_embed_type names: "
            f"{reason[:300]}"
        ) from error


def _own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The blocks and the norm in a file, be it of an image model or of one of ACT's."""
    found = {}
    for key, tensor in tensors.items():
        bare = key.removeprefix("module.").removeprefix("dvae_tokenizer.")
        if prefix := next(filter(bare.startswith, PREFIXES), None):
            found[PREFIXES[prefix] + bare.removeprefix(prefix)] = tensor
    return found
