"""CLIP's image towers, and those of open_clip that are built the same way."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import resize_pos_embed
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from utils.nearest import did_you_mean
from utils.settings import check_settings

from .interface import (
    IMAGENET,
    WHERE,
    Blueprint,
    Normalisation,
    Statistics,
    Teacher,
    check_grid,
    seeded,
    warn_untrained,
)
from .saliency import pooling_row, similarity_to_mean
from .weights import check_fit, find_clip_weights, read_visual_weights

# CLIP's name of an image tower → open_clip's name of the same tower with QuickGELU, which CLIP was trained with.
CLIP_TOWERS = {
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
HEAD_WIDTH = 64  # of every tower above
OWN = Statistics(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


class TowerSizes(NamedTuple):
    """Sizes of a CLIP image tower: its output channels, pixels per side of image and patch, and the transformer's."""

    embed_dim: int
    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int


class CLIPTeacher(Teacher):
    """CLIP's image tower: the class token sums an image up.

    Features are the last layer's patch tokens in CLIP's joint space, not normalised. Saliency is the class token's
    attention to the patches in the last block, averaged over heads. The share of the class token itself is left out, so
    that a map sums to a little under 1.
    """

    def __init__(self, visual: VisionTransformer, statistics: Statistics = IMAGENET) -> None:
        super().__init__(visual.proj.shape[1], visual.image_size[0], visual.grid_size, statistics)
        self.visual = visual
        self.freeze()

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (V, h·w, C) and saliency (V, h·w) of images (V, 3, S, S)."""
        *blocks, last_block = self.visual.transformer.resblocks
        tokens = self._embed(images)
        for block in blocks:
            tokens = block(tokens)
        patches, attention = split_last_block(last_block, tokens)
        return self.visual.ln_post(patches) @ self.visual.proj, attention

    def _embed(self, images: Tensor) -> Tensor:
        """Turn images (V, 3, S, S) into tokens (V, 1 + h·w, width), the class token first."""
        patches = self.visual.conv1(images).flatten(2).mT
        class_token = self.visual.class_embedding.expand(len(images), 1, -1)
        return self.visual.ln_pre(torch.cat([class_token, patches], dim=1) + self.visual.positional_embedding)


class AveragedTeacher(CLIPTeacher):
    """A tower whose summary is the mean of its patches (CLIPA): saliency is how near a patch is to it."""

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (V, h·w, C) and saliency (V, h·w) of images (V, 3, S, S)."""
        tokens = self.visual.transformer(self._embed(images))
        features = self.visual.ln_post(tokens[:, 1:]) @ self.visual.proj
        return features, similarity_to_mean(features)


class AttentionPooledTeacher(CLIPTeacher):
    """A tower with an attention pool (CoCa), whose first query sums an image up: saliency is its attention.

    The pool alone leads to the joint space, so features are the last block's patch tokens.
    """

    def __init__(self, visual: VisionTransformer, statistics: Statistics = IMAGENET) -> None:
        super().__init__(visual, statistics)
        self.feat_dim = visual.conv1.out_channels

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (V, h·w, width) and saliency (V, h·w) of images (V, 3, S, S)."""
        tokens = self.visual.transformer(self._embed(images))
        pool = self.visual.attn_pool
        query = pool.ln_q(pool.query[:1]).expand(len(images), 1, -1)
        return tokens[:, 1:], pooling_row(pool.attn, query, pool.ln_k(tokens))[:, 1:]


def teacher_of_tower(visual: VisionTransformer, statistics: Statistics) -> CLIPTeacher:
    """The teacher that reads the saliency of a tower as the tower sums up an image."""
    if visual.attn_pool is not None:
        return AttentionPooledTeacher(visual, statistics)
    return (AveragedTeacher if visual.pool_type == "avg" else CLIPTeacher)(visual, statistics)


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
    patches = tokens[:, 1:] + block.ls_1(attn.out_proj(mixed.transpose(1, 2).flatten(2)))
    return patches + block.ls_2(block.mlp(block.ln_2(patches))), attention


def clip_blueprint(
    visual_encoder: str | Mapping[str, int],
    pretrained: str | Path | None,
    image_size: int | None,
    normalisation: Normalisation | None,
) -> Blueprint:
    """Plan CLIP's image tower; arguments as those of `build_teacher`, defaults `openai` and `imagenet`."""
    sizes = tower_sizes(visual_encoder)
    if image_size is not None:
        check_grid(str(visual_encoder), image_size, sizes.patch_size)
        sizes = sizes._replace(image_size=image_size)
    statistics = OWN if normalisation == "own" else IMAGENET

    def build() -> CLIPTeacher:
        if str(pretrained) == "untrained":
            warn_untrained()
            with seeded():
                return CLIPTeacher(_build_tower(sizes), statistics)
        name = CLIP_TOWERS[visual_encoder] if isinstance(visual_encoder, str) else ""
        path = find_clip_weights(name, visual_encoder, pretrained or "openai")
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            tower = _build_tower(sizes)
        fill_tower(tower, path, resize=image_size is not None)
        return CLIPTeacher(tower, statistics)

    return Blueprint(sizes.embed_dim, build)


def fill_tower(tower: VisionTransformer, path: Path, resize: bool) -> None:
    """Give a tower the weights of a file.

    Args:
        tower: filled in place; what it holds is replaced.
        path: see `read_visual_weights`.
        resize: let open_clip fit the position embeddings to the tower's image size.

    Raises:
        ValueError: if the weights differ from the tower in a name or a shape.
    """
    weights = read_visual_weights(path)
    if resize and "positional_embedding" in weights:
        resized = {"visual.positional_embedding": weights["positional_embedding"]}
        resize_pos_embed(resized, SimpleNamespace(visual=tower))
        weights["positional_embedding"] = resized["visual.positional_embedding"]
    check_fit(tower.state_dict(), weights, path)
    tower.load_state_dict(weights, assign=True)


def tower_sizes(visual_encoder: str | Mapping[str, int]) -> TowerSizes:
    """Look up the sizes of a named image tower, or check given ones.

    Raises:
        ValueError: if the name is unknown, or a size is unknown, missing, not a positive integer or does not divide.
    """
    if isinstance(visual_encoder, Mapping):
        return _check_sizes(visual_encoder)
    if visual_encoder not in CLIP_TOWERS:
        question = did_you_mean(visual_encoder, CLIP_TOWERS, cutoff=0.8).strip()
        hint = f" ({question})" if question else ""
        raise ValueError(
            f"{WHERE}.visual_encoder is {visual_encoder!r}{hint}, but the teacher needs the patch tokens "
            f"and the class token's attention of a CLIP vision transformer: {', '.join(CLIP_TOWERS)}, or a mapping "
            f"with {', '.join(TowerSizes._fields)}. ResNet towers have neither. Other models have the name of their "
            "library in front: open_clip:NAME, timm:NAME"
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
    where = f"{WHERE}.visual_encoder"
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
