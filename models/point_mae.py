"""Point-MAE (ECCV 2022): masked autoencoding of point clouds at a single scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from extensions.chamfer_dist import ChamferDistanceL1, ChamferDistanceL2
from models.encoded import Encoded, encoded
from models.initialisation import init_truncated_normal, init_xavier_uniform
from models.kinds import kind_of
from models.masked_autoencoder import visible_tokens
from models.masking import Packing, count_visible, split_tokens
from models.single_scale import (
    POSITION_HIDDEN_DIM,
    SingleScaleEncoder,
    check_groups,
    check_token_width,
    group_points,
    mean_beside_max,
)
from models.tokenizer import Group, PointwiseConv
from models.transformer import BlockStack, drop_path_rates, positional_embedding
from utils.checkpoint import LoadingRules


@dataclass(frozen=True)
class TransformerConfig:
    """The section `transformer_config` of Point-MAE.

    Attributes:
        mask_ratio: share of the tokens that is masked, in (0, 1).
        mask_type: "rand" masks tokens drawn uniformly, "block" those around one.
        trans_dim, encoder_dims: channels of the blocks and of the token embedding, which must be equal.
        depth, num_heads: blocks of the encoder, and attention heads of each.
        decoder_depth, decoder_num_heads: the same of the decoder.
        drop_path_rate: stochastic depth of the last block, of the encoder and of the decoder each.
    """

    mask_ratio: float = 0.6
    mask_type: Literal["rand", "block"] = "rand"
    trans_dim: int = 384
    encoder_dims: int = 384
    depth: int = 12
    drop_path_rate: float = 0.1
    num_heads: int = 6
    decoder_depth: int = 4
    decoder_num_heads: int = 6

    def __post_init__(self) -> None:
        check_token_width(self.encoder_dims, self.trans_dim)
        if self.mask_type not in ("rand", "block"):
            raise ValueError(f"mask_type must be 'rand' or 'block', got {self.mask_type!r}")
        if self.decoder_depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, got {self.decoder_depth}")


class Decoder(BlockStack):
    """Blocks with a norm beside them, which is for the tokens that are read out."""

    def __init__(self, dim: int, num_heads: int, drop_paths: Sequence[float]):
        super().__init__(dim, num_heads, drop_paths)
        self.norm = nn.LayerNorm(dim)


class Point_MAE(nn.Module):
    """Point-MAE's pre-training model.

    Args:
        transformer_config: arguments of `TransformerConfig`; None = the released ones.
        num_group: tokens of a cloud.
        group_size: points of a token's neighbourhood.
        loss: Chamfer distance between predicted and true neighbourhoods, "cdl2" of squares (released) or "cdl1".

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    loading = LoadingRules(kind=kind_of)
    encoder_parts: ClassVar = ("MAE_encoder",)
    sections: ClassVar = {"transformer_config": TransformerConfig}  # section of the config → what takes its keys

    def __init__(
        self,
        transformer_config: Mapping[str, Any] | None = None,
        num_group: int = 64,
        group_size: int = 32,
        loss: Literal["cdl1", "cdl2"] = "cdl2",
    ):
        super().__init__()
        config = TransformerConfig(**(transformer_config or {}))
        check_groups(num_group, group_size)
        if loss not in ("cdl1", "cdl2"):
            raise ValueError(f"loss must be 'cdl1' or 'cdl2', got {loss!r}")
        self.num_groups, self.group_size = (num_group,), group_size
        self.num_tokens = num_group  # among which `visible_tokens` counts
        self.num_visible, self.mask_type = count_visible(config.mask_ratio, num_group), config.mask_type
        self.distance = ChamferDistanceL1() if loss == "cdl1" else ChamferDistanceL2()
        dim, rate = config.trans_dim, config.drop_path_rate
        self.MAE_encoder = SingleScaleEncoder(dim, config.depth, config.num_heads, rate)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed = positional_embedding(dim, POSITION_HIDDEN_DIM)
        self.MAE_decoder = Decoder(dim, config.decoder_num_heads, drop_path_rates(rate, [config.decoder_depth])[0])
        self.increase_dim = nn.Sequential(PointwiseConv(dim, 3 * group_size))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.MAE_encoder.apply(init_truncated_normal)
        self.MAE_decoder.apply(init_xavier_uniform)

    def forward(
        self, points: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Mask, encode what is visible, reconstruct what is masked, compare.

        Args:
            points: (B, N, 3) coordinates in the unit sphere.
            mask: (B, G) bool, True = masked; None = draw it.
            generator: source of the draw's randomness; None = PyTorch's own.

        Returns:
            0-d tensors: loss; loss_3d, the same; and visible_tokens, those of a cloud.

        Raises:
            ValueError: if `mask` has another shape or type, or masks all or none of a sample.
        """
        group = self.group(points)
        visible, masked = self.split(group, mask, generator)
        encoded = self.MAE_encoder.encode_group(group, visible)
        predicted = self.decode(group, encoded, visible, masked)
        loss = self.loss_3d(predicted, group, masked)
        return {"loss": loss, "loss_3d": loss, "visible_tokens": visible_tokens(~visible.valid)}

    def group(self, points: Tensor) -> Group:
        """Group (B, N, 3) points into the neighbourhoods that become tokens."""
        return group_points(points, *self.num_groups, self.group_size)

    def split(self, group: Group, mask: Tensor | None, generator: torch.Generator | None) -> tuple[Packing, Packing]:
        """Part the tokens into visible and masked ones, by the given mask or one that is drawn.

        Args:
            group: the neighbourhoods.
            mask: (B, G) bool, True = masked, or None to draw it.
            generator: source of randomness of the draw.

        Returns:
            The visible tokens and the masked ones, each in the order of the groups.
        """
        return split_tokens(group.centers, mask, self.num_visible, self.mask_type, generator)

    def decode(self, group: Group, encoded: Tensor, visible: Packing, masked: Packing) -> Tensor:
        """Predict the neighbourhoods of the masked tokens, each relative to its centre.

        The mask token stands at every masked place. The blocks attend among all tokens, so that their order is free;
        here it is that of the groups.

        Args:
            group: gives the centres.
            encoded: (B, L, C) visible tokens.
            visible: where they belong among the groups.
            masked: where the others do.

        Returns:
            (B, M, k, 3), packed and padded as `masked`.
        """
        places = self.mask_token.expand(*group.centers.shape[:2], -1)
        tokens = self.MAE_decoder(visible.unpack(encoded, onto=places), self.decoder_pos_embed(group.centers))
        return self.increase_dim(self.MAE_decoder.norm(masked.pack(tokens))).unflatten(-1, (-1, 3))

    def loss_3d(self, predicted: Tensor, group: Group, masked: Packing) -> Tensor:
        """Chamfer distance of the predicted neighbourhoods, over the masked tokens of the whole batch.

        Args:
            predicted: (B, M, k, 3).
            group: the true neighbourhoods.
            masked: which of them are predicted.

        Returns:
            0-d tensor.
        """
        true = masked.pack(group.neighborhoods.flatten(2)).view_as(predicted)
        if masked.attention_mask is None:
            return self.distance(predicted.flatten(0, 1), true.flatten(0, 1))
        return self.distance(predicted[masked.valid], true[masked.valid])

    def encode(self, points: Tensor) -> Tensor:
        """The linear probe's feature, (B, 2C): mean beside max over all tokens. This pooling is of this project."""
        return self.encode_groups([self.group(points)]).feature

    def encode_groups(self, groups: Sequence[Group]) -> Encoded:
        """The tokens, and the feature of `encode`."""
        tokens = self.MAE_encoder.encode_group(groups[0])
        return encoded(mean_beside_max(tokens), [tokens], groups)

    @torch.no_grad()
    def reconstruct(self, points: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """True and predicted neighbourhoods of (B, N, 3) points under a mask, for looking at.

        Returns:
            `visible` (B, G) bool, True = visible; `neighborhoods` (B, G, k, 3), the true points; `predictions`
            (B, G, k, 3), the predicted ones where masked and the true ones elsewhere; absolute coordinates.
        """
        group = self.group(points)
        visible, masked = self.split(group, mask, None)
        predicted = self.decode(group, self.MAE_encoder.encode_group(group, visible), visible, masked)
        joined = masked.unpack(predicted.flatten(2), onto=group.neighborhoods.flatten(2))
        seen = torch.zeros_like(group.centers[..., 0], dtype=torch.bool)
        return {
            "visible": seen.scatter(1, visible.index, visible.valid),
            "neighborhoods": group.points,
            "predictions": joined.view_as(group.points) + group.centers.unsqueeze(2),
        }
