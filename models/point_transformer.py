"""The classifier of Point-MAE: a class token among the tokens of a cloud, a head over it and their maximum."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.classifier import classification_head, cross_entropy
from models.encoded import Encoded, encoded
from models.loading import POINT_MAE_CLASSIFIER_HEAD, point_mae_rules
from models.single_scale import SingleScaleEncoder, check_groups, check_token_width, group_points
from models.tokenizer import Group


class PointTransformer(SingleScaleEncoder):
    """Classifies clouds by the class token and the largest of the others.

    Args:
        cls_dim: outputs of the head, the number of classes.
        trans_dim, encoder_dims: channels of the blocks and of the token embedding, which must be equal.
        depth, num_heads: blocks, and attention heads of each.
        drop_path_rate: stochastic depth of the last block.
        num_group: tokens of a cloud.
        group_size: points of a token's neighbourhood.

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    loading = point_mae_rules(new=POINT_MAE_CLASSIFIER_HEAD)
    encoder_parts: ClassVar = ("encoder", "pos_embed", "blocks", "norm", "cls_token", "cls_pos")

    def __init__(
        self,
        cls_dim: int,
        trans_dim: int = 384,
        encoder_dims: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        num_group: int = 64,
        group_size: int = 32,
    ):
        check_token_width(encoder_dims, trans_dim)
        check_groups(num_group, group_size)
        if cls_dim < 2:
            raise ValueError(f"cls_dim must be at least 2, got {cls_dim}")
        super().__init__(trans_dim, depth, num_heads, drop_path_rate)
        self.num_groups, self.group_size, self.num_classes = (num_group,), group_size, cls_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, trans_dim))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, trans_dim))
        self.cls_head_finetune = classification_head(2 * trans_dim, cls_dim)
        for parameter in (self.cls_token, self.cls_pos):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, points: Tensor) -> Tensor:
        """Classify (B, N, 3) points; returns logits (B, cls_dim)."""
        group = group_points(points, *self.num_groups, self.group_size)
        return self.cls_head_finetune(self.encode_groups([group]).feature)

    def encode_groups(self, groups: Sequence[Group]) -> Encoded:
        """The tokens without that of the class, and what the head sees: it beside the largest of the others."""
        (group,) = groups
        batch = len(group.centers)
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), self.encoder(group.neighborhoods)], dim=1)
        position = torch.cat([self.cls_pos.expand(batch, -1, -1), self.pos_embed(group.centers)], dim=1)
        tokens = self.norm(self.blocks(tokens, position))  # (B, 1 + G, C)
        feature = torch.cat([tokens[:, 0], tokens[:, 1:].amax(1)], dim=-1)
        return encoded(feature, [tokens[:, 1:]], groups)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of (B, cls_dim) logits against (B,) labels."""
        return cross_entropy(logits, labels)
