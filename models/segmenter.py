"""What part segmenters share: the embedding of the category, the layer that mixes cloud and points, the loss."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CATEGORY_DIM = 64


class Segmenter(nn.Module):
    """Gives every point of a cloud, whose category is known, the log-probability of each part; a subclass says how.

    Attributes:
        num_parts: parts of all categories together.
        num_categories: categories of shapes; 0 = a cloud has none, as a part of a room.
    """

    num_parts: int
    num_categories: int

    def one_hot(self, category: Tensor, points: Tensor) -> Tensor:
        """The categories of (B, N, 3) points as (B, num_categories).

        Args:
            category: (B,) int from 0 to num_categories − 1, or (B, num_categories) one-hot.
            points: their number and type are taken.

        Raises:
            ValueError: if `category` has another shape.
        """
        if category.shape not in ((len(points),), (len(points), self.num_categories)):
            raise ValueError(
                f"category has shape {tuple(category.shape)}; expected ({len(points)},) or a one-hot "
                f"({len(points)}, {self.num_categories})"
            )
        one_hot = category if category.ndim == 2 else F.one_hot(category.long(), self.num_categories)
        return one_hot.to(points.dtype)

    def loss(self, log_probs: Tensor, parts: Tensor, weights: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of (B, N) parts under (B, N, num_parts) log-probabilities, mean over all points.

        With (num_parts,) weights each point counts as much as that of its part.
        """
        return F.nll_loss(log_probs.flatten(0, 1), parts.flatten(), weights)


class CloudAwareSegmenter(Segmenter):
    """A segmenter that mixes features of the whole cloud into those of each point.

    Attributes:
        local_dim: channels of a point's own features, among the input of `convs1`.
        local_first: whether they stand before those of the cloud there.
    """

    local_dim: int
    local_first: ClassVar[bool] = False
    label_conv: nn.Sequential
    convs1: nn.Conv1d

    def embed_category(self, category: Tensor, points: Tensor) -> Tensor:
        """Embed the categories of (B, N, 3) points, given as for `one_hot`; returns (B, CATEGORY_DIM)."""
        return self.label_conv(self.one_hot(category, points).unsqueeze(-1)).squeeze(-1)

    def mix(self, of_cloud: Tensor, local: Tensor) -> Tensor:
        """`convs1` over the concatenation of both, the part of the cloud computed once a cloud, not once a point.

        Args:
            of_cloud: (B, C), the same for all points of a cloud.
            local: (B, local_dim, N).

        Returns:
            (B, D, N).
        """
        sizes = [of_cloud.shape[1], self.local_dim]
        if self.local_first:
            for_point, for_cloud = self.convs1.weight.split(sizes[::-1], dim=1)
        else:
            for_cloud, for_point = self.convs1.weight.split(sizes, dim=1)
        shared = F.linear(of_cloud, for_cloud.squeeze(-1), self.convs1.bias)
        return F.conv1d(local, for_point) + shared.unsqueeze(-1)


def category_embedding(num_categories: int) -> nn.Sequential:
    """The layers that embed a one-hot category, (B, num_categories, 1) to (B, CATEGORY_DIM, 1)."""
    return nn.Sequential(
        nn.Conv1d(num_categories, CATEGORY_DIM, 1, bias=False), nn.BatchNorm1d(CATEGORY_DIM), nn.LeakyReLU(0.2)
    )


def log_probabilities(scores: Tensor) -> Tensor:
    """Turn (B, num_parts, N) scores into (B, N, num_parts) log-probabilities."""
    logits = scores.transpose(1, 2)
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))  # not in bfloat16


def check_segmenter(num_parts: int, num_categories: int, point_dims: Sequence[int], least_categories: int = 1) -> None:
    """Refuse sizes of a head that make no sense.

    Args:
        num_parts, num_categories, point_dims: of the segmenter.
        least_categories: 0 where it may do without.

    Raises:
        ValueError: naming the value.
    """
    if num_parts < 2 or num_categories < least_categories:
        raise ValueError(
            f"num_parts must be at least 2 and num_categories at least {least_categories}, got {num_parts} and "
            f"{num_categories}"
        )
    if len(point_dims) != 2 or min(point_dims) < 1:
        raise ValueError(f"point_dims must hold 2 values ≥ 1, got {[*point_dims]}")
