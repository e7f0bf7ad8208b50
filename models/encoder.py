"""The hierarchical encoder (Point-M2AE, section 3.2): tokens are embedded, transformed and merged, fine to coarse."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.initialisation import init_truncated_normal
from models.masking import Packing, propagate_mask
from models.tokenizer import Group, TokenEmbed, take
from models.transformer import BlockStack, drop_path_rates, positional_embedding

NUM_LEVELS = 3


@dataclass(frozen=True)
class EncodedLevel:
    """What the masked encoder leaves of one level.

    Attributes:
        tokens: (B, L, C) visible tokens after the level's norm, packed and padded.
        packing: where they belong among the level's G tokens.
        mask: (B, G) bool, True = masked.
    """

    tokens: Tensor
    packing: Packing
    mask: Tensor

    def scattered(self) -> Tensor:
        """The visible tokens at their places among all, (B, G, C), zeros where masked."""
        zeros = self.tokens.new_zeros(*self.mask.shape, self.tokens.shape[-1])
        return self.packing.unpack(self.tokens, zeros)


class HierarchicalEncoder(nn.Module):
    """Token embedding, transformer blocks and token merging over several levels.

    Args:
        dims: channels per level, fine to coarse.
        depths: transformer blocks per level.
        num_heads: attention heads of every block.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 over all blocks.
        norms: whether each level's output is normalised (`encoder_norms`).

    Attributes:
        padding_radius: per level; under a mask, padding acts as a token at the origin on the tokens whose centres are
            strictly nearer than this. 0 = padding does not act.
    """

    padding_radius: Sequence[float] = (0.0,) * NUM_LEVELS

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: int,
        drop_path_rate: float = 0.0,
        norms: bool = True,
    ):
        super().__init__()
        embeds = [TokenEmbed(3, (128, 256, 512), dims[0])]
        embeds += [TokenEmbed(finer, (finer, finer, dim), dim) for finer, dim in pairwise(dims)]
        self.token_embed = nn.ModuleList(embeds)
        self.encoder_pos_embeds = nn.ModuleList(positional_embedding(dim) for dim in dims)
        self.encoder_blocks = nn.ModuleList(
            BlockStack(dim, num_heads, rates)
            for dim, rates in zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)
        )
        self.encoder_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims) if norms else None
        self.apply(init_truncated_normal)

    def _embed(self, level: int, group: Group, finer_tokens: Tensor | None) -> Tensor:
        """All tokens of a level, (B, G, C): level 0 from coordinates, a later one merged from the finer tokens."""
        members = group.neighborhoods if finer_tokens is None else take(finer_tokens, group.index)
        return self.token_embed[level](members)

    def embed_points(self, groups: Sequence[Group]) -> Tensor:
        """The tokens of level 0 before any block, (B, G_0, C): all that can be encoded before there is a mask."""
        return self._embed(0, groups[0], None)

    def forward(self, groups: Sequence[Group], coarse_mask: Tensor, tokens: Tensor | None = None) -> list[EncodedLevel]:
        """Encode the visible tokens only; masked tokens keep their embedding and are merged as they are.

        Args:
            groups: per level, fine to coarse.
            coarse_mask: (B, G_top) bool, True = masked.
            tokens: what `embed_points` made of the groups, if that is done already.

        Returns:
            One `EncodedLevel` per level, fine to coarse.
        """
        levels: list[EncodedLevel] = []
        masks = propagate_mask(coarse_mask, [group.index for group in groups])
        packings = Packing.of_levels(masks)
        for level, (group, mask, packing) in enumerate(zip(groups, masks, packings, strict=True)):
            if level > 0 or tokens is None:
                tokens = self._embed(level, group, tokens)
            visible, centers, attention_mask = packing.pack(tokens), packing.pack(group.centers), packing.attention_mask
            if attention_mask is not None and self.padding_radius[level] > 0:
                padding = ~packing.valid.unsqueeze(-1)
                visible, centers = visible.masked_fill(padding, 0), centers.masked_fill(padding, 0)
                attention_mask = _leaking_attention_mask(packing.valid, centers, self.padding_radius[level])
            position = self.encoder_pos_embeds[level](centers)
            visible = self.encoder_blocks[level](visible, position, attention_mask)
            tokens = packing.unpack(visible, onto=tokens)
            if self.encoder_norms is not None:
                visible = self.encoder_norms[level](visible)
            levels.append(EncodedLevel(visible, packing, mask))
        return levels

    def forward_reached(self, groups: Sequence[Group]) -> tuple[list[Tensor], list[Tensor]]:
        """What `forward` computes under an empty mask in evaluation mode, without packing: shapes depend on no values.

        Hidden tokens are transformed too, but no visible one sees them, nor is merged from them.

        Args:
            groups: per level, fine to coarse.

        Returns:
            Per level, fine to coarse, (B, G, C) tokens after the level's norm, zeros where hidden, and (B, G) bool,
            True = visible. A finer token that is in no visible coarser group is hidden. Padding never acts.
        """
        levels: list[Tensor] = []
        empty = torch.zeros_like(groups[-1].index[..., 0], dtype=torch.bool)
        visible = [~mask for mask in propagate_mask(empty, [group.index for group in groups])]
        tokens: Tensor | None = None
        for level, (group, seen) in enumerate(zip(groups, visible, strict=True)):
            position = self.encoder_pos_embeds[level](group.centers)
            tokens = self.encoder_blocks[level](self._embed(level, group, tokens), position, seen[:, None, None, :])
            normed = tokens if self.encoder_norms is None else self.encoder_norms[level](tokens)
            levels.append(normed.masked_fill(~seen.unsqueeze(-1), 0))
        return levels, visible

    def forward_all(self, groups: Sequence[Group], local_radius: Sequence[float]) -> list[Tensor]:
        """Encode with every token visible, as the downstream models do.

        Args:
            groups: per level, fine to coarse.
            local_radius: per level, a token attends to tokens whose centres are strictly nearer; 0 = to all.

        Returns:
            Per level, fine to coarse, (B, G, C) tokens, normalised where the encoder has norms.
        """
        levels = []
        tokens: Tensor | None = None
        for level, (group, radius) in enumerate(zip(groups, local_radius, strict=True)):
            position = self.encoder_pos_embeds[level](group.centers)
            tokens = self.encoder_blocks[level](
                self._embed(level, group, tokens), position, local_attention_mask(group.centers, radius)
            )
            levels.append(tokens if self.encoder_norms is None else self.encoder_norms[level](tokens))
        return levels


def local_attention_mask(centers: Tensor, radius: float) -> Tensor | None:
    """(B, 1, G, G) bool, True = the centres are strictly nearer than `radius`; None for radius 0: no limit."""
    if radius <= 0:
        return None
    distance = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
    return (distance < radius).unsqueeze(1)


def _leaking_attention_mask(valid: Tensor, centers: Tensor, radius: float) -> Tensor:
    """Which padding acts as released: on, and as, a query whose centre is nearer than `radius`.

    Args:
        valid: (B, L) bool, True = a visible token, False = padding.
        centers: (B, L, 3), those of padding at the origin.
        radius: positive.

    Returns:
        (B, 1, L, L) bool, True = the query may attend to the key: both are visible tokens, or their centres are near.
    """
    both_visible = valid[:, None, :, None] & valid[:, None, None, :]
    near = local_attention_mask(centers, radius)
    assert near is not None
    return both_visible | near


def check_encoder(
    num_groups: Sequence[int],
    group_sizes: Sequence[int],
    encoder_dims: Sequence[int],
    encoder_depths: Sequence[int],
    local_radius: Sequence[float],
    drop_path_rate: float,
) -> None:
    """Refuse settings of an encoder that do not fit each other.

    Raises:
        ValueError: if one does not hold a value per level, or a value is out of range, or a group has more members than
            the level below has tokens.
    """
    per_level = {
        "num_groups": (num_groups, 1),
        "group_sizes": (group_sizes, 1),
        "encoder_dims": (encoder_dims, 1),
        "encoder_depths": (encoder_depths, 0),
        "local_radius": (local_radius, 0),
    }
    for name, (values, least) in per_level.items():
        if len(values) != NUM_LEVELS or min(values) < least:
            raise ValueError(f"{name} must hold {NUM_LEVELS} values ≥ {least}, fine to coarse, got {list(values)}")
    for level in range(1, NUM_LEVELS):
        if not group_sizes[level] <= num_groups[level - 1] >= num_groups[level]:
            raise ValueError(
                f"level {level} makes {num_groups[level]} groups of {group_sizes[level]} out of "
                f"{num_groups[level - 1]} tokens: num_groups {list(num_groups)} must not rise, group_sizes "
                f"{list(group_sizes)} must fit"
            )
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"drop_path_rate must be in [0, 1), got {drop_path_rate}")
