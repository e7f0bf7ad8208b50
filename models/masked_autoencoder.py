"""What the hierarchical pre-training models share: grouping, masked encoder, decoder, 3D loss (Point-M2AE)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from extensions.chamfer_dist import chamfer
from models.encoded import Encoded, encoded
from models.encoder import EncodedLevel, HierarchicalEncoder, check_encoder
from models.initialisation import init_xavier_uniform
from models.loading import loading_rules
from models.masking import check_mask, count_visible, draw_mask
from models.propagation import TokenPropagation
from models.tokenizer import Group, PointwiseConv, group_levels
from models.transformer import BlockStack, drop_path_rates, positional_embedding


class MaskedAutoencoder(nn.Module):
    """Hierarchical masked autoencoder of point clouds; a subclass chooses the mask, the heads and the losses.

    Args:
        mask_ratio: share of the coarse tokens that is masked, in (0, 1).
        num_groups: tokens per level, fine to coarse.
        group_sizes: neighbours per group and level.
        encoder_dims, encoder_depths: channels and blocks per level, fine to coarse.
        decoder_dims, decoder_depths: channels and blocks per decoder level, coarse to fine.
        decoder_up_blocks: residual layers of each step from a decoder level to the next; the first is used.
        drop_path_rate: stochastic depth of the last block, of the encoder and of the decoder each.
        num_heads: attention heads of every block.
        local_radius: part of the released configs; checked, and nothing more (docs/FIDELITY.md, row 12).

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    loading = loading_rules()
    encoder_parts: ClassVar = ("h_encoder",)

    def __init__(
        self,
        mask_ratio: float = 0.8,
        num_groups: Sequence[int] = (512, 256, 64),
        group_sizes: Sequence[int] = (16, 8, 8),
        encoder_dims: Sequence[int] = (96, 192, 384),
        encoder_depths: Sequence[int] = (5, 5, 5),
        decoder_dims: Sequence[int] = (384, 192),
        decoder_depths: Sequence[int] = (1, 1),
        decoder_up_blocks: Sequence[int] = (1, 1),
        drop_path_rate: float = 0.1,
        num_heads: int = 6,
        local_radius: Sequence[float] = (0.0, 0.0, 0.0),
    ):
        super().__init__()
        check_encoder(num_groups, group_sizes, encoder_dims, encoder_depths, local_radius, drop_path_rate)
        check_decoder(num_groups, encoder_dims, decoder_dims, decoder_depths, decoder_up_blocks)
        self.num_groups, self.group_sizes, self.decoder_dim = tuple(num_groups), tuple(group_sizes), decoder_dims[-1]
        self.num_visible = count_visible(mask_ratio, num_groups[-1])
        self.num_tokens = num_groups[1]  # among which `visible_tokens` counts

        self.h_encoder = HierarchicalEncoder(encoder_dims, encoder_depths, num_heads, drop_path_rate)
        self.mask_token = nn.Parameter(torch.zeros(1, decoder_dims[0]))
        self.h_decoder = nn.ModuleList(
            BlockStack(dim, num_heads, rates)
            for dim, rates in zip(decoder_dims, drop_path_rates(drop_path_rate, decoder_depths), strict=True)
        )
        self.decoder_pos_embeds = nn.ModuleList(positional_embedding(dim) for dim in decoder_dims)
        self.token_prop = nn.ModuleList([TokenPropagation(decoder_dims[0], decoder_dims[1], decoder_up_blocks[0])])
        self.decoder_norm = nn.LayerNorm(self.decoder_dim)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.h_decoder.apply(init_xavier_uniform)

    def group(self, points: Tensor) -> list[Group]:
        """Group (B, N, 3) points into the three levels, fine to coarse."""
        return group_levels(points, self.num_groups, self.group_sizes)

    def mask(self, logits: Tensor, coarse_mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """The coarse mask, (B, G_2) bool, True = masked: the given one, checked, or one drawn.

        Args:
            logits: (B, G_2); a token stays visible with probability softmax(logits).
            coarse_mask: (B, G_2) bool, or None to draw it.
            generator: source of randomness of the draw.

        Raises:
            ValueError: if `coarse_mask` has another shape or type, or masks all or none of a sample.
        """
        if coarse_mask is None:
            return draw_mask(logits, self.num_visible, generator)
        check_mask(coarse_mask, logits.shape, "coarse_mask")
        return coarse_mask

    def decode(self, groups: Sequence[Group], encoded: Sequence[EncodedLevel]) -> Tensor:
        """Reconstruct the level-1 tokens from the visible ones, coarse to fine.

        Args:
            groups: three levels, fine to coarse.
            encoded: what the encoder left of them.

        Returns:
            (B, G_1, decoder_dims[-1]) tokens after `decoder_norm`.
        """
        _, middle, top = groups
        tokens = torch.where(encoded[2].mask.unsqueeze(-1), self.mask_token, encoded[2].scattered())
        tokens = self.h_decoder[0](tokens, self.decoder_pos_embeds[0](top.centers))
        tokens = self.token_prop[0](middle.centers, top.centers, encoded[1].scattered(), tokens)
        tokens = self.h_decoder[1](tokens, self.decoder_pos_embeds[1](middle.centers))
        return self.decoder_norm(tokens)

    def loss_3d(self, head: PointwiseConv, decoded: Tensor, group: Group, mask: Tensor) -> Tensor:
        """Chamfer distance of the predicted neighbourhoods, over the masked tokens of the whole batch.

        Args:
            head: predicts the relative coordinates of a token's neighbours.
            decoded: (B, G, C).
            group: the level's true neighbourhoods.
            mask: (B, G) bool, True = masked.

        Returns:
            0-d tensor.
        """
        predicted = head(decoded).unflatten(-1, (-1, 3))  # (B, G, k', 3)
        true = group.neighborhoods
        to_true, to_predicted, *_ = chamfer(predicted.flatten(0, 1).to(true.dtype), true.flatten(0, 1))
        distance = (to_true.mean(1) + to_predicted.mean(1)).view_as(mask)  # (B, G)
        return masked_mean(distance, mask)

    def encode_unmasked(self, points: Tensor) -> Tensor:
        """Top-level tokens (B, G_2, C) after their norm, from an empty coarse mask: what linear probes pool.

        As in pre-training, a finer token that is in no coarser group's neighbourhood stays hidden.
        """
        groups = self.group(points)
        empty = torch.zeros(points.shape[0], self.num_groups[-1], dtype=torch.bool, device=points.device)
        return self.h_encoder(groups, empty)[-1].tokens

    def pool(self, tokens: Tensor) -> Tensor:
        """The linear probe's feature, (B, C), of (B, G_2, C) top-level tokens; a subclass says how."""
        raise NotImplementedError

    def encode(self, points: Tensor) -> Tensor:
        """The linear probe's feature, (B, C). Needs no teacher."""
        return self.pool(self.encode_unmasked(points))

    def encode_groups(self, groups: Sequence[Group]) -> Encoded:
        """Tokens of all levels and the feature, as `encode` of each cloud alone."""
        tokens, visible = self.h_encoder.forward_reached(groups)
        return encoded(self.pool(tokens[-1]), tokens, groups, visible)

    def reconstruction(self, head: PointwiseConv, groups: Sequence[Group], mask: Tensor) -> dict[str, Tensor]:
        """True and predicted neighbourhoods of the level-1 tokens, for looking at.

        Args:
            head: predicts the relative coordinates of a token's neighbours.
            groups: three levels, fine to coarse.
            mask: (B, G_2) bool, True = masked.

        Returns:
            `visible` (B, G_1) bool, True = visible; `neighborhoods` (B, G_1, k, 3), the true points;
            `predictions` (B, G_1, k', 3), the predicted ones; absolute coordinates.
        """
        encoded = self.h_encoder(groups, mask)
        predicted = head(self.decode(groups, encoded)).unflatten(-1, (-1, 3))  # (B, G_1, k', 3)
        return {
            "visible": ~encoded[1].mask,
            "neighborhoods": groups[1].points,
            "predictions": predicted + groups[1].centers.unsqueeze(2),
        }


def check_decoder(
    num_groups: Sequence[int],
    encoder_dims: Sequence[int],
    decoder_dims: Sequence[int],
    decoder_depths: Sequence[int],
    decoder_up_blocks: Sequence[int],
) -> None:
    """Raise ValueError if the sizes of a decoder do not fit each other or the encoder; see `MaskedAutoencoder`."""
    if num_groups[-1] < 3:
        raise ValueError(f"num_groups {list(num_groups)} must end with at least 3: the decoder interpolates from three")
    if tuple(decoder_dims) != tuple(encoder_dims[:0:-1]):
        raise ValueError(
            f"decoder_dims must be {list(encoder_dims[:0:-1])}, the encoder's upper levels from coarse to fine, "
            f"got {list(decoder_dims)}"
        )
    for name, values in (("decoder_depths", decoder_depths), ("decoder_up_blocks", decoder_up_blocks)):
        if len(values) != len(decoder_dims):
            raise ValueError(f"{name} must hold {len(decoder_dims)} values, coarse to fine, got {list(values)}")


def masked_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values of the whole batch, 0 if none is: selecting by multiplication needs no wait for a GPU.

    Args:
        values: (B, G).
        chosen: (B, G) bool.

    Returns:
        0-d tensor.
    """
    return (values * chosen).sum() / chosen.sum().clamp_min(1)


def visible_tokens(mask: Tensor) -> Tensor:
    """Mean number of visible tokens in a cloud, a 0-d tensor, under a (B, G) mask with True = masked."""
    return (~mask).sum(1).float().mean()
