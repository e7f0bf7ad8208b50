"""The part segmenter: tokens of all levels are carried back to the points, each of which gets a part."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder import HierarchicalEncoder, check_encoder
from models.loading import SEGMENTER_HEAD, loading_rules
from models.propagation import interpolate_features
from models.tokenizer import group_levels

HEAD_DIMS = (1024, 512, 256)
CATEGORY_DIM = 64


class PartSegmenter(nn.Module):
    """Gives every point of a cloud, whose category is known, the log-probability of each part.

    Args:
        num_parts: parts of all categories together.
        num_categories: categories of shapes.
        num_groups, group_sizes: tokens, and neighbours per token, of each level, fine to coarse.
        encoder_dims, encoder_depths, num_heads, drop_path_rate: of the encoder.
        local_radius: per level, a token attends only to tokens whose centres are nearer; 0 = to all.
        point_dims: channels of the two layers over what the tokens of a level give to the points.

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    loading = loading_rules(new=SEGMENTER_HEAD)

    def __init__(
        self,
        num_parts: int = 50,
        num_categories: int = 16,
        num_groups: Sequence[int] = (512, 256, 64),
        group_sizes: Sequence[int] = (16, 8, 8),
        encoder_dims: Sequence[int] = (96, 192, 384),
        encoder_depths: Sequence[int] = (5, 5, 5),
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        local_radius: Sequence[float] = (0.32, 0.64, 1.28),
        point_dims: Sequence[int] = (1536, 1024),
    ):
        super().__init__()
        check_encoder(num_groups, group_sizes, encoder_dims, encoder_depths, local_radius, drop_path_rate)
        if num_parts < 2 or num_categories < 1:
            raise ValueError(
                f"num_parts must be at least 2 and num_categories at least 1, got {num_parts} and {num_categories}"
            )
        if num_groups[-1] < 3:
            raise ValueError(f"a point takes its features from 3 tokens of each level, num_groups are {[*num_groups]}")
        if len(point_dims) != 2 or min(point_dims) < 1:
            raise ValueError(f"point_dims must hold 2 values ≥ 1, got {[*point_dims]}")
        self.num_groups, self.group_sizes = tuple(num_groups), tuple(group_sizes)
        self.local_radius = tuple(local_radius)
        self.num_parts, self.num_categories = num_parts, num_categories
        self.h_encoder = HierarchicalEncoder(encoder_dims, encoder_depths, num_heads, drop_path_rate)
        self.propagations = nn.ModuleList(_PointPropagation(dim, point_dims) for dim in encoder_dims)
        self.label_conv = nn.Sequential(
            nn.Conv1d(num_categories, CATEGORY_DIM, 1, bias=False), nn.BatchNorm1d(CATEGORY_DIM), nn.LeakyReLU(0.2)
        )
        self.local_dim = len(encoder_dims) * point_dims[-1]
        self.convs1 = nn.Conv1d(2 * self.local_dim + CATEGORY_DIM, HEAD_DIMS[0], 1)
        self.convs2 = nn.Conv1d(HEAD_DIMS[0], HEAD_DIMS[1], 1)
        self.convs3 = nn.Conv1d(HEAD_DIMS[1], HEAD_DIMS[2], 1)
        self.convs4 = nn.Conv1d(HEAD_DIMS[2], num_parts, 1)
        self.bns1, self.bns2, self.bns3 = (nn.BatchNorm1d(dim) for dim in HEAD_DIMS)
        self.dropout = nn.Dropout(0.5)

    def forward(self, points: Tensor, category: Tensor) -> Tensor:
        """Segment clouds into parts.

        Args:
            points: (B, N, 3) coordinates in the unit sphere.
            category: (B,) int from 0 to num_categories − 1, or (B, num_categories) one-hot.

        Returns:
            (B, N, num_parts) log-probabilities.

        Raises:
            ValueError: if `category` has another shape.
        """
        local = self.point_features(points)  # (B, local_dim, N)
        of_cloud = torch.cat([local.max(-1).values + local.mean(-1), self.embed_category(category, points)], dim=1)
        x = self.dropout(F.relu(self.bns1(self.mix(of_cloud, local)), inplace=True))
        x = F.relu(self.bns2(self.convs2(x)), inplace=True)
        x = F.relu(self.bns3(self.convs3(x)), inplace=True)
        logits = self.convs4(x).transpose(1, 2)
        return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))  # not in bfloat16

    def point_features(self, points: Tensor) -> Tensor:
        """Features of every point from the tokens of all levels, (B, local_dim, N)."""
        groups = group_levels(points, self.num_groups, self.group_sizes)
        levels = self.h_encoder.forward_all(groups, self.local_radius)
        propagated = [
            propagation(points, group.centers, tokens)
            for propagation, group, tokens in zip(self.propagations, groups, levels, strict=True)
        ]
        return torch.cat(propagated, dim=1)

    def embed_category(self, category: Tensor, points: Tensor) -> Tensor:
        """Embed the categories of (B, N, 3) points, given as in `forward`; returns (B, CATEGORY_DIM)."""
        if category.shape not in ((len(points),), (len(points), self.num_categories)):
            raise ValueError(
                f"category has shape {tuple(category.shape)}; expected ({len(points)},) or a one-hot "
                f"({len(points)}, {self.num_categories})"
            )
        one_hot = category if category.ndim == 2 else F.one_hot(category.long(), self.num_categories)
        return self.label_conv(one_hot.to(points.dtype).unsqueeze(-1)).squeeze(-1)

    def mix(self, of_cloud: Tensor, local: Tensor) -> Tensor:
        """`convs1` over the concatenation [of_cloud, local], its first part computed once a cloud, not once a point.

        Args:
            of_cloud: (B, local_dim + CATEGORY_DIM), the same for all points of a cloud.
            local: (B, local_dim, N).

        Returns:
            (B, HEAD_DIMS[0], N).
        """
        for_cloud, for_point = self.convs1.weight.split([of_cloud.shape[1], self.local_dim], dim=1)
        shared = F.linear(of_cloud, for_cloud.squeeze(-1), self.convs1.bias)
        return F.conv1d(local, for_point) + shared.unsqueeze(-1)

    def loss(self, log_probs: Tensor, parts: Tensor) -> Tensor:
        """Negative log-likelihood of (B, N) parts under (B, N, num_parts) log-probabilities, mean over all points."""
        return F.nll_loss(log_probs.flatten(0, 1), parts.flatten())


class _PointPropagation(nn.Module):
    """Carries a level's tokens to the points: interpolation beside the coordinates, then two shared layers.

    Args:
        dim: channels of the tokens.
        point_dims: channels of the two layers.
    """

    def __init__(self, dim: int, point_dims: Sequence[int]):
        super().__init__()
        wide, out = point_dims
        self.mlp_convs = nn.ModuleList([nn.Conv1d(3 + dim, wide, 1), nn.Conv1d(wide, out, 1)])
        self.mlp_bns = nn.ModuleList([nn.BatchNorm1d(wide), nn.BatchNorm1d(out)])

    def forward(self, points: Tensor, centers: Tensor, tokens: Tensor) -> Tensor:
        """Carry (B, G, dim) tokens at (B, G, 3) centres to (B, N, 3) points; returns (B, point_dims[-1], N)."""
        interpolated = interpolate_features(points, centers, tokens)
        x = torch.cat([points, interpolated], dim=-1).transpose(1, 2)  # (B, 3 + dim, N)
        for conv, bn in zip(self.mlp_convs, self.mlp_bns, strict=True):
            x = F.relu(bn(conv(x)), inplace=True)
        return x
