"""The part segmenter of Point-BERT: tokens of three depths meet on a graph and are carried back to the points."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from extensions.pointnet2_ops.pointnet2_utils import furthest_point_sample
from models.class_token_encoder import ClassTokenEncoder
from models.dgcnn import NEIGHBOURS, GraphPropagation
from models.loading import POINT_BERT_SEGMENTER_HEAD, point_bert_rules
from models.propagation import PointPropagation
from models.segmenter import Segmenter, check_segmenter, log_probabilities
from models.single_scale import check_groups, group_points
from models.tokenizer import take

HEAD_DIM = 128
NUM_TAPS = 3


class PointBertSegmenter(ClassTokenEncoder, Segmenter):
    """Gives every point of a cloud, whose category is known, the log-probability of each part.

    Args:
        num_parts: parts of all categories together.
        num_categories: categories of shapes.
        trans_dim, encoder_dims: channels of the blocks and of the token embedding.
        depth: blocks, a multiple of 3: the tokens after each third of them are taken.
        num_heads: attention heads of each block.
        drop_path_rate: stochastic depth of the last block.
        num_group: tokens of a cloud.
        group_size: points of a token's neighbourhood.
        between: points of the two levels between all points and the tokens, the larger first.
        wide_dim: channels within a propagation.

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    loading = point_bert_rules(new=POINT_BERT_SEGMENTER_HEAD)

    def __init__(
        self,
        num_parts: int = 50,
        num_categories: int = 16,
        trans_dim: int = 384,
        encoder_dims: int = 256,
        depth: int = 12,
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        num_group: int = 128,
        group_size: int = 32,
        between: Sequence[int] = (512, 256),
        wide_dim: int = 1536,
    ):
        check_groups(num_group, group_size, least=NEIGHBOURS)
        check_segmenter(num_parts, num_categories, (wide_dim, trans_dim))
        if depth % NUM_TAPS:
            raise ValueError(f"depth must be a multiple of {NUM_TAPS}, got {depth}: each third of the blocks is tapped")
        if len(between) != 2 or not between[0] >= between[1] >= NEIGHBOURS:
            raise ValueError(f"between must hold 2 numbers ≥ {NEIGHBOURS}, the larger first, got {[*between]}")
        super().__init__(trans_dim, encoder_dims, depth, num_heads, drop_path_rate)
        self.num_groups, self.group_size = (num_group,), group_size
        self.num_parts, self.num_categories, self.between = num_parts, num_categories, tuple(between)
        self.taps = range(0, depth + 1, depth // NUM_TAPS)
        dims = (wide_dim, trans_dim)
        self.propagation_2, self.propagation_1 = (PointPropagation(trans_dim, dims) for _ in range(2))
        self.propagation_0 = PointPropagation(trans_dim, dims, given_dim=num_categories)
        self.dgcnn_pro_1, self.dgcnn_pro_2 = (GraphPropagation(trans_dim) for _ in range(2))
        self.conv1 = nn.Conv1d(trans_dim, HEAD_DIM, 1)
        self.bn1 = nn.BatchNorm1d(HEAD_DIM)
        self.dropout = nn.Dropout(0.5)
        self.conv2 = nn.Conv1d(HEAD_DIM, num_parts, 1)

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
        one_hot = self.one_hot(category, points)
        group = group_points(points, *self.num_groups, self.group_size)
        taps = self.tap(self.embed(group.neighborhoods), group.centers)
        fine, features = self.climb(points, group.centers, taps)
        of_points = one_hot.unsqueeze(1).expand(-1, points.shape[1], -1)
        x = self.propagation_0(points, fine, features, of_points)  # (B, C, N)
        x = self.dropout(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return log_probabilities(self.conv2(x))

    def tap(self, tokens: Tensor, centers: Tensor) -> list[Tensor]:
        """Transform (B, G, C) tokens at (B, G, 3) centres; returns them after each third of the blocks, normalised."""
        tapped = []
        tokens, position = self.with_class_token(tokens, centers)
        for first, last in pairwise(self.taps):
            tokens = self.blocks(tokens, position, first=first, last=last)
            tapped.append(self.norm(tokens)[:, 1:])
        return tapped

    def climb(self, points: Tensor, centers: Tensor, taps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Carry tokens up two levels of farthest points, each fed by another depth.

        Args:
            points: (B, N, 3).
            centers: (B, G, 3) of the tokens.
            taps: three of (B, G, C), the first depth first.

        Returns:
            The points of the upper level (B, M, 3) and their features (B, M, C).
        """
        early, middle, late = taps
        fine = take(points, furthest_point_sample(points, self.between[0]))
        coarse = fine[:, : self.between[1]]  # the first that are picked are those of a smaller pick
        in_coarse = self.propagation_2(coarse, centers, middle).transpose(1, 2)
        in_fine = self.propagation_1(fine, centers, early).transpose(1, 2)
        in_coarse = self.dgcnn_pro_2(centers, late, coarse, in_coarse)
        return fine, self.dgcnn_pro_1(coarse, in_coarse, fine, in_fine)
