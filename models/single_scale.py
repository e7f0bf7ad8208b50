"""The single-scale encoder (Point-MAE, section 3): groups of one size become tokens, which one stack transforms."""

import torch
from torch import Tensor, nn

from models.masking import Packing
from models.tokenizer import Group, TokenEmbed, group_levels
from models.transformer import BlockStack, drop_path_rates, positional_embedding

POSITION_HIDDEN_DIM = 128


class SingleScaleEncoder(nn.Module):
    """A mini-PointNet for the groups, an embedding of their centres, blocks and a norm.

    Args:
        dim: channels of a token.
        depth: transformer blocks.
        num_heads: attention heads of every block.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, drop_path_rate: float):
        super().__init__()
        if dim < 1 or depth < 1:
            raise ValueError(f"trans_dim and depth must be at least 1, got {dim} and {depth}")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1), got {drop_path_rate}")
        self.encoder = TokenEmbed(3, (128, 256, 512), dim)
        self.pos_embed = positional_embedding(dim, POSITION_HIDDEN_DIM)
        self.blocks = BlockStack(dim, num_heads, drop_path_rates(drop_path_rate, [depth])[0])
        self.norm = nn.LayerNorm(dim)

    def encode_group(self, group: Group, visible: Packing | None = None) -> Tensor:
        """Encode the visible tokens only.

        Args:
            group: all groups; BatchNorm of the token embedding sees the masked ones too.
            visible: which tokens are, None = all of them.

        Returns:
            (B, L, C) tokens after the norm, packed and padded; of all groups without `visible`.
        """
        tokens, centers = self.encoder(group.neighborhoods), group.centers
        if visible is None:
            return self.norm(self.blocks(tokens, self.pos_embed(centers)))
        position = self.pos_embed(visible.pack(centers))
        return self.norm(self.blocks(visible.pack(tokens), position, visible.attention_mask))


def with_class_token(tokens: Tensor, class_token: Tensor) -> Tensor:
    """Put a (1, 1, C) class token, or its position, before (B, G, C) tokens, or theirs; returns (B, 1 + G, C)."""
    return torch.cat([class_token.expand(len(tokens), -1, -1), tokens], dim=1)


def group_points(points: Tensor, num_groups: int, group_size: int) -> Group:
    """Group (B, N, 3) points: farthest point sampling takes the centres, each its nearest points of the cloud."""
    return group_levels(points, [num_groups], [group_size])[0]


def check_groups(num_group: int, group_size: int, least: int = 1) -> None:
    """Refuse groups that cannot be made.

    Args:
        num_group: groups of a cloud.
        group_size: points of a group.
        least: groups that the model needs.

    Raises:
        ValueError: naming the value.
    """
    if num_group < least or group_size < 1:
        raise ValueError(
            f"num_group must be at least {least} and group_size at least 1, got {num_group} and {group_size}"
        )


def check_token_width(encoder_dims: int, trans_dim: int) -> None:
    """Refuse tokens of another width than the blocks: between them Point-MAE has no layer, Point-BERT has.

    Raises:
        ValueError: naming both.
    """
    if encoder_dims != trans_dim:
        raise ValueError(
            f"encoder_dims {encoder_dims} must equal trans_dim {trans_dim}: Point-MAE has no layer between them"
        )
