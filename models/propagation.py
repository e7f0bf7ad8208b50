"""Carrying features from coarse tokens to finer ones (Point-M2AE, section 3.3), or to the points themselves."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions.pointnet2_ops.pointnet2_utils import three_interpolate, three_nn
from models.tokenizer import ColumnConv


def interpolate_features(centers: Tensor, coarse_centers: Tensor, coarse_features: Tensor) -> Tensor:
    """Features at `centers`: the three nearest coarse ones weighted by inverse squared distance.

    Args:
        centers: (B, N, 3).
        coarse_centers: (B, M, 3), M ≥ 3.
        coarse_features: (B, M, C).

    Returns:
        (B, N, C).
    """
    distance, index = three_nn(centers, coarse_centers)
    weight = 1 / (distance.square() + 1e-8)
    weight = weight / weight.sum(-1, keepdim=True)
    return three_interpolate(coarse_features.transpose(1, 2), index, weight).transpose(1, 2)


class _Fuse(nn.Module):
    """A shared layer, BatchNorm and GELU over (1, C, M) columns."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.net = nn.Sequential(ColumnConv(in_dim, dim), nn.BatchNorm1d(dim), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Residual(nn.Module):
    """Two shared layers beside the identity, GELU after the sum."""

    def __init__(self, dim: int):
        super().__init__()
        self.net1 = nn.Sequential(ColumnConv(dim, dim), nn.BatchNorm1d(dim), nn.GELU())
        self.net2 = nn.Sequential(ColumnConv(dim, dim), nn.BatchNorm1d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.net2(self.net1(x)) + x)


class _Extraction(nn.Module):
    """Residual layers in a row."""

    def __init__(self, dim: int, num_blocks: int):
        super().__init__()
        self.operation = nn.Sequential(*(_Residual(dim) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


class TokenPropagation(nn.Module):
    """Fuses the tokens of a level with what is interpolated from the coarser one.

    Args:
        coarse_dim: channels of the coarser tokens.
        dim: channels of this level's tokens.
        num_blocks: residual layers after the fusion.
    """

    def __init__(self, coarse_dim: int, dim: int, num_blocks: int):
        super().__init__()
        self.fuse = _Fuse(dim + coarse_dim, dim)
        self.extraction = _Extraction(dim, num_blocks)

    def forward(self, centers: Tensor, coarse_centers: Tensor, tokens: Tensor, coarse_tokens: Tensor) -> Tensor:
        """Bring (B, M, coarse_dim) tokens to this level.

        Args:
            centers: (B, N, 3).
            coarse_centers: (B, M, 3).
            tokens: (B, N, dim), zeros where masked.
            coarse_tokens: (B, M, coarse_dim).

        Returns:
            (B, N, dim).
        """
        interpolated = interpolate_features(centers, coarse_centers, coarse_tokens)
        x = torch.cat([tokens, interpolated], dim=-1).flatten(0, 1).t()  # (dim + coarse_dim, B·N)
        x = self.extraction(self.fuse(x.unsqueeze(0)))
        return x.squeeze(0).t().unflatten(0, tokens.shape[:2])


class PointPropagation(nn.Module):
    """Carries tokens to all points of a cloud: interpolation beside the coordinates, then two shared layers.

    Args:
        dim: channels of the tokens.
        point_dims: channels of the two layers.
        given_dim: channels of what is given of the points beside their coordinates.
    """

    def __init__(self, dim: int, point_dims: Sequence[int], given_dim: int = 0):
        super().__init__()
        wide, out = point_dims
        self.mlp_convs = nn.ModuleList([nn.Conv1d(given_dim + 3 + dim, wide, 1), nn.Conv1d(wide, out, 1)])
        self.mlp_bns = nn.ModuleList([nn.BatchNorm1d(wide), nn.BatchNorm1d(out)])

    def forward(self, points: Tensor, centers: Tensor, tokens: Tensor, given: Tensor | None = None) -> Tensor:
        """Carry tokens to points.

        Args:
            points: (B, N, 3).
            centers: (B, G, 3) of the tokens.
            tokens: (B, G, dim).
            given: (B, N, given_dim), which stands before the coordinates; None where there is nothing.

        Returns:
            (B, point_dims[-1], N).
        """
        own = points if given is None else torch.cat([given, points], dim=-1)
        interpolated = interpolate_features(points, centers, tokens)
        x = torch.cat([own, interpolated], dim=-1).transpose(1, 2)  # (B, given_dim + 3 + dim, N)
        for conv, bn in zip(self.mlp_convs, self.mlp_bns, strict=True):
            x = F.relu(bn(conv(x)), inplace=True)
        return x
