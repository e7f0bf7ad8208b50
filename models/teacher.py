"""Frozen 2D teachers: images in, patch features and a saliency map out."""

import difflib
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from safetensors import safe_open
from torch import Tensor, nn

from utils.checkpoint import admit_numpy_numbers
from utils.settings import check_settings

# CLIP's name of an image tower → open_clip's name of the same tower with QuickGELU, which CLIP was trained with.
CLIP_TOWERS = {
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
HEAD_WIDTH = 64  # of every tower above
VISUAL_KEY = re.compile(r"(?:module\.)?(?:clip_model\.)?visual\.(.+)")
WAYS_OUT = (
    "Write under model.clip_config either `pretrained: openai`, and open_clip downloads CLIP's weights (this needs the "
    "network); or `pretrained: PATH` of a local file with CLIP's weights (OpenAI .pt, open_clip .pt or .bin, "
    ".safetensors) or of a released I2P-MAE pre-training checkpoint, whose clip_model.visual.* tensors are then used."
)


class TowerSizes(NamedTuple):
    """Sizes of a CLIP image tower: its output channels, pixels per side of image and patch, and the transformer's."""

    embed_dim: int
    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int


class CLIPTeacher(nn.Module):
    """CLIP's image tower, frozen: the patch features and the saliency that guide I2P-MAE.

    Attributes:
        feat_dim: C, channels of the features.
        image_size: S, pixels per side of the images.
    """

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        self.visual = visual
        self.feat_dim: int = visual.proj.shape[1]
        self.image_size: int = visual.image_size[0]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "CLIPTeacher":
        """Stay in eval mode, whatever the student does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Describe each patch of each image, and say how much the image's summary looks at it.

        On a GPU the tower runs in half precision.

        Args:
            images: (V, 3, S, S) float, normalised.

        Returns:
            features: (V, C, h, w) float32, the last layer's patch tokens in CLIP's joint space, not normalised.
            saliency: (V, h, w) float32, the class token's attention to the patches in the last block, averaged over
                heads. The share of the class token itself is left out, so that a map sums to a little under 1.

        Raises:
            ValueError: if `images` is not (V, 3, S, S).
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.image_size, self.image_size):
            expected = f"(V, 3, {self.image_size}, {self.image_size})"
            raise ValueError(f"images are {tuple(images.shape)}, but this teacher takes {expected}: resize them")
        *blocks, last_block = self.visual.transformer.resblocks
        with torch.autocast(images.device.type, dtype=torch.float16, enabled=images.is_cuda):
            tokens = self._embed(images)
            for block in blocks:
                tokens = block(tokens)
            patches, attention = split_last_block(last_block, tokens)
            features = self.visual.ln_post(patches) @ self.visual.proj  # (V, h·w, C)
        grid = self.visual.grid_size
        return features.float().mT.unflatten(2, grid), attention.unflatten(1, grid)

    def _embed(self, images: Tensor) -> Tensor:
        """Turn images (V, 3, S, S) into tokens (V, 1 + h·w, width), the class token first."""
        patches = self.visual.conv1(images).flatten(2).mT
        class_token = self.visual.class_embedding.expand(len(images), 1, -1)
        return self.visual.ln_pre(torch.cat([class_token, patches], dim=1) + self.visual.positional_embedding)


def split_last_block(block: ResidualAttentionBlock, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Run the last transformer block for the patches, and read the class token's attention on the way.

    Attention weights are formed for the class token's row alone.

    Args:
        block: a block of open_clip's VisionTransformer.
        tokens: (V, 1 + P, width) input of the block, the class token first.

    Returns:
        patches: (V, P, width) output of the block.
        attention: (V, P) float32, softmax over class token and patches, averaged over heads, the class token's column
            dropped.
    """
    attn = block.attn
    qkv = F.linear(block.ln_1(tokens), attn.in_proj_weight, attn.in_proj_bias)
    # (V, 1 + P, 3·width) → three of (V, heads, 1 + P, head_dim)
    query, key, value = qkv.unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
    logits = (query[:, :, :1] * attn.head_dim**-0.5) @ key.mT  # (V, heads, 1, 1 + P)
    attention = logits.float().softmax(-1)[:, :, 0, 1:].mean(1)
    mixed = F.scaled_dot_product_attention(query[:, :, 1:], key, value)  # (V, heads, P, head_dim)
    patches = tokens[:, 1:] + attn.out_proj(mixed.transpose(1, 2).flatten(2))
    return patches + block.mlp(block.ln_2(patches)), attention


def build_teacher(
    visual_encoder: str | Mapping[str, int] | None, feat_dim: int, pretrained: str | Path = "openai"
) -> CLIPTeacher | None:
    """Build CLIP's image tower and give it its weights.

    Args:
        visual_encoder: a name of `CLIP_TOWERS`, or the sizes of a tower as in `TowerSizes`; None for no teacher.
        feat_dim: channels of the features that the caller expects.
        pretrained: a tag of open_clip (`openai`; downloaded once), a path, or `untrained`. A path leads to CLIP's
            weights as OpenAI's .pt, open_clip's .pt or .bin, or .safetensors, or to a released pre-training checkpoint,
            whose clip_model.visual.* tensors are then used. `untrained` draws the same random weights each time and
            leaves the global random state as it was.

    Returns:
        The frozen teacher, float32, on the CPU; None if none is asked for.

    Raises:
        ValueError: if the tower is unknown or its sizes are wrong, if it does not make `feat_dim` channels, or if the
            weights do not fit it.
        FileNotFoundError: if there are no such weights or they could not be downloaded.
    """
    if visual_encoder is None:
        return None
    sizes = tower_sizes(visual_encoder)
    if feat_dim != sizes.embed_dim:
        raise ValueError(
            f"model.clip_config.feat_dim is {feat_dim}, but the image tower {visual_encoder!r} makes "
            f"{sizes.embed_dim} channels: write feat_dim: {sizes.embed_dim}"
        )
    if str(pretrained) == "untrained":
        return CLIPTeacher(_untrained_tower(sizes))
    path = _find_weights(visual_encoder, pretrained)
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
        tower = _build_tower(sizes)
    weights = read_visual_weights(path)
    _check_fit(tower.state_dict(), weights, path)
    tower.load_state_dict(weights, assign=True)
    return CLIPTeacher(tower)


def tower_sizes(visual_encoder: str | Mapping[str, int]) -> TowerSizes:
    """Look up the sizes of a named image tower, or check given ones.

    Raises:
        ValueError: if the name is unknown, or a size is unknown, missing, not a positive integer or does not divide.
    """
    if isinstance(visual_encoder, Mapping):
        return _check_sizes(visual_encoder)
    if visual_encoder not in CLIP_TOWERS:
        nearest = difflib.get_close_matches(visual_encoder, CLIP_TOWERS, n=1, cutoff=0.8)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise ValueError(
            f"model.clip_config.visual_encoder is {visual_encoder!r}{hint}, but the teacher needs the patch tokens "
            f"and the class token's attention of a CLIP vision transformer: {', '.join(CLIP_TOWERS)}, or a mapping "
            f"with {', '.join(TowerSizes._fields)}. ResNet towers have neither."
        )
    config = open_clip.get_model_config(CLIP_TOWERS[visual_encoder])
    vision = config["vision_cfg"]
    return TowerSizes(
        config["embed_dim"],
        vision["image_size"],
        vision["patch_size"],
        vision["width"],
        vision["layers"],
        heads=vision["width"] // HEAD_WIDTH,
    )


def _check_sizes(sizes: Mapping[str, int]) -> TowerSizes:
    where = "model.clip_config.visual_encoder"
    check_settings(TowerSizes, sizes, where)
    for key, value in sizes.items():
        if value < 1:
            raise ValueError(f"{where}.{key} is {value}: give a positive integer")
    tower = TowerSizes(**sizes)
    for whole, part in (("image_size", "patch_size"), ("width", "heads")):
        if getattr(tower, whole) % getattr(tower, part):
            raise ValueError(
                f"{where}.{whole} is {getattr(tower, whole)}, which is no multiple of {part}, {getattr(tower, part)}"
            )
    return tower


def _build_tower(sizes: TowerSizes) -> VisionTransformer:
    return VisionTransformer(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        width=sizes.width,
        layers=sizes.layers,
        heads=sizes.heads,
        mlp_ratio=4.0,
        output_dim=sizes.embed_dim,
        act_layer=QuickGELU,
    )


def _untrained_tower(sizes: TowerSizes) -> VisionTransformer:
    warnings.warn(
        "the 2D teacher is untrained: it guides as well as a random network does, not as CLIP does; "
        "model.clip_config.pretrained gives it CLIP's weights",
        stacklevel=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the CPU's generator alone; torch.manual_seed also sets the GPUs'
        return _build_tower(sizes)


def _find_weights(visual_encoder: str | Mapping[str, int], pretrained: str | Path) -> Path:
    """Return the local file of a tag's weights, downloaded if need be, or of a path."""
    name = CLIP_TOWERS[visual_encoder] if isinstance(visual_encoder, str) else ""
    if open_clip.is_pretrained_cfg(name, str(pretrained)):
        try:
            return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, str(pretrained))))
        except Exception as error:  # as many kinds as there are ways to fail on a network
            raise FileNotFoundError(
                f"the weights '{pretrained}' of the 2D teacher {visual_encoder!r} could not be downloaded "
                f"({type(error).__name__}: {error}). {WAYS_OUT}"
            ) from error
    path = Path(str(pretrained)).expanduser()
    if not path.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise FileNotFoundError(
            f"model.clip_config.pretrained is '{pretrained}', which is no file and no tag of {visual_encoder!r} (tags: "
            f"{tags}). {WAYS_OUT} `untrained` gives random weights."
        )
    return path


def read_visual_weights(path: Path) -> dict[str, Tensor]:
    """Read CLIP's image tower from a file, and nothing else of it.

    Args:
        path: an OpenAI TorchScript archive, a .safetensors file, or a PyTorch file with a state dict, bare or under
            `state_dict` (open_clip) or `base_model` (released pre-training checkpoints).

    Returns:
        Float32 tensors under the names of open_clip's VisionTransformer.

    Raises:
        ValueError: if the file cannot be read or holds no image tower.
    """
    try:
        tensors = _read_tensors(path)
    except Exception as error:  # garbage can fail in any way
        raise ValueError(
            f"{path} cannot be read as weights of the 2D teacher ({type(error).__name__}): it is damaged, or no weight "
            f"file. {WAYS_OUT}"
        ) from error
    weights = {
        match[1]: tensor.to(torch.float32, copy=True)  # a copy, or the whole file would stay mapped
        for key, tensor in tensors.items()
        if (match := VISUAL_KEY.fullmatch(key))
    }
    if not weights:
        raise ValueError(
            f"{path} holds no CLIP image tower: none of its {len(tensors)} tensors is named visual.* or "
            f"clip_model.visual.* (it begins with: {', '.join(list(tensors)[:5]) or 'nothing'}). {WAYS_OUT}"
        )
    return weights


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    is_zip = zipfile.is_zipfile(path)
    if is_zip and _is_torchscript(path):
        return torch.jit.load(str(path), map_location="cpu").state_dict()
    admit_numpy_numbers()
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    state = checkpoint.get("base_model") or checkpoint.get("state_dict") or checkpoint
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _check_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that differ from the tower in a name or a shape; nothing is ever resized or left out."""
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
            f"{path} holds another image tower than model.clip_config.visual_encoder says: {'; '.join(listed)}. "
            "Nothing is resized: name the tower, patch and image size that the file was made for."
        )
