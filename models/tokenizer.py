"""Grouping a cloud into local neighbourhoods and embedding each as one token (Point-M2AE, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions.knn_cuda import KNN
from extensions.pointnet2_ops.pointnet2_utils import furthest_point_sample


@dataclass(frozen=True)
class Group:
    """The neighbourhoods of one level.

    Attributes:
        centers: (B, G, 3) coordinates of the group centres.
        index: (B, G, k) int64; each group's members among the points it was made from, nearest first.
        points: (B, G, k, 3) coordinates of the members.
        neighborhoods: (B, G, k, 3) the same, relative to the centre.
    """

    centers: Tensor
    index: Tensor
    points: Tensor
    neighborhoods: Tensor


class PointwiseConv(nn.Conv1d):
    """A linear layer over the last dimension, stored as the 1×1 convolution that released checkpoints hold."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_channels) to (…, out_channels)."""
        return F.linear(x, self.weight.squeeze(-1), self.bias)


class ColumnConv(nn.Conv1d):
    """A 1×1 convolution over the columns of one sample that holds the rows of all clouds, (1, C, M).

    With the channels first and everything in one sample, BatchNorm, ReLU and the maximum over neighbours run along
    contiguous memory, forward and backward, and BatchNorm sums in double precision on a CPU.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (1, in_channels, M) to (1, out_channels, M)."""
        return apply_columns(self.weight, x, self.bias)


def apply_columns(weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply (1, C, M) columns by a (D, C, 1) weight, one matrix product; returns (1, D, M)."""
    matrix, columns = weight.squeeze(-1), x.squeeze(0)
    product = matrix @ columns if bias is None else torch.addmm(bias.unsqueeze(1), matrix, columns)
    return product.unsqueeze(0)


class TokenEmbed(nn.Module):
    """A mini-PointNet: each group's members become one token, by shared layers and two max-poolings.

    Args:
        in_dim: channels of a member.
        hidden_dims: channels of the two layers before the first pooling and of the one after it.
        dim: channels of the token.
    """

    def __init__(self, in_dim: int, hidden_dims: tuple[int, int, int], dim: int):
        super().__init__()
        first, second, wide = hidden_dims
        self.first_conv = nn.Sequential(
            ColumnConv(in_dim, first), nn.BatchNorm1d(first), nn.ReLU(inplace=True), ColumnConv(first, second)
        )
        self.second_conv = nn.Sequential(
            ColumnConv(2 * second, wide), nn.BatchNorm1d(wide), nn.ReLU(inplace=True), ColumnConv(wide, dim)
        )

    def forward(self, members: Tensor) -> Tensor:
        """Embed (B, G, k, in_dim) members as (B, G, dim) tokens."""
        batch, groups, k, _ = members.shape
        x = self.first_conv(members.flatten(0, 2).t().unsqueeze(0))  # (1, second, B·G·k)
        pooled = _max_over_members(x, k)  # (1, second, B·G)
        # The layer that mixes the concatenation [pooled, x], its pooled half computed once a group.
        mix = cast(ColumnConv, self.second_conv[0])
        for_pooled, for_members = mix.weight.chunk(2, dim=1)
        mixed = apply_columns(for_members, x).unflatten(2, (-1, k))  # (1, wide, B·G, k)
        mixed = (mixed + apply_columns(for_pooled, pooled, mix.bias).unsqueeze(-1)).flatten(2)
        tokens = _max_over_members(self.second_conv[1:](mixed), k)  # (1, dim, B·G)
        return tokens.squeeze(0).t().unflatten(0, (batch, groups))


def _max_over_members(x: Tensor, k: int) -> Tensor:
    """Maximum over the k members of each group: (1, C, M·k) to (1, C, M)."""
    return x.unflatten(2, (-1, k)).max(dim=-1).values  # unlike amax: its gradient goes to one member, in one pass


def group_levels(points: Tensor, num_groups: Sequence[int], group_sizes: Sequence[int]) -> list[Group]:
    """Group a cloud level by level, fine to coarse: level 0 groups the points, level i the centres of level i−1.

    Args:
        points: (B, N, 3) coordinates, N at least `group_sizes[0]`.
        num_groups: groups per level; farthest point sampling picks their centres.
        group_sizes: members per group and level, the nearest neighbours of the centre.

    Returns:
        One `Group` per level.

    Raises:
        ValueError: if `points` is not (B, N, 3) or a level has fewer points than a group needs.
    """
    levels = []
    for groups, size in zip(num_groups, group_sizes, strict=True):
        levels.append(group_by(points, *choose_groups(points, groups, size)))
        points = levels[-1].centers
    return levels


def choose_groups(points: Tensor, num_groups: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Sample the centres of groups and search their members among (B, N, 3) points: (B, G) and (B, G, k) int64."""
    sample = furthest_point_sample(points, num_groups)
    return sample, KNN(group_size, transpose_mode=True)(points, take(points, sample))[1]


def group_by(points: Tensor, sample: Tensor, index: Tensor) -> Group:
    """Group (B, N, 3) points around those that `sample` (B, G) says, with the members that `index` (B, G, k) says."""
    centers, members = take(points, sample), take(points, index)
    return Group(centers, index, members, members - centers.unsqueeze(2))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Gather rows of each sample.

    Args:
        x: (B, N, C).
        index: (B, …) int64 into N.

    Returns:
        (B, …, C).
    """
    rows = index.flatten(1).unsqueeze(-1).expand(-1, -1, x.shape[-1])
    return x.gather(1, rows).unflatten(1, index.shape[1:])
