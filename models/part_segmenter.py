"""The part segmenter: tokens of all levels are carried back to the points, each of which gets a part."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoded import Encoded, encoded
from models.encoder import HierarchicalEncoder, check_encoder
from models.loading import SEGMENTER_HEAD, loading_rules
from models.propagation import PointPropagation
from models.segmenter import CATEGORY_DIM, CloudAwareSegmenter, category_embedding, check_segmenter, log_probabilities
from models.tokenizer import Group, group_levels

HEAD_DIMS = (1024, 512, 256)


class PartSegmenter(CloudAwareSegmenter):
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
    encoder_parts: ClassVar = ("h_encoder",)

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
        if num_groups[-1] < 3:
            raise ValueError(f"a point takes its features from 3 tokens of each level, num_groups are {[*num_groups]}")
        check_segmenter(num_parts, num_categories, point_dims)
        self.num_groups, self.group_sizes = tuple(num_groups), tuple(group_sizes)
        self.local_radius = tuple(local_radius)
        self.num_parts, self.num_categories = num_parts, num_categories
        self.h_encoder = HierarchicalEncoder(encoder_dims, encoder_depths, num_heads, drop_path_rate)
        self.propagations = nn.ModuleList(PointPropagation(dim, point_dims) for dim in encoder_dims)
        self.label_conv = category_embedding(num_categories)
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
        return log_probabilities(self.convs4(x))

    def encode_groups(self, groups: Sequence[Group]) -> Encoded:
        """Tokens of all levels, normalised, and mean plus max over the top ones."""
        tokens = self.h_encoder.forward_all(groups, self.local_radius)
        return encoded(tokens[-1].mean(1) + tokens[-1].amax(1), tokens, groups)

    def point_features(self, points: Tensor) -> Tensor:
        """Features of every point from the tokens of all levels, (B, local_dim, N)."""
        groups = group_levels(points, self.num_groups, self.group_sizes)
        levels = self.h_encoder.forward_all(groups, self.local_radius)
        propagated = [
            propagation(points, group.centers, tokens)
            for propagation, group, tokens in zip(self.propagations, groups, levels, strict=True)
        ]
        return torch.cat(propagated, dim=1)
