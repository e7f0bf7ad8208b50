"""Chamfer distance between point clouds, under the interface of the chamfer_dist package.

For clouds X and Y, each point pays its squared distance to the nearest point of the other cloud; gradients flow through
these nearest pairs. With `ignore_zeros`, all-zero points are padding and dropped; the batch must then hold one pair.
"""

import torch
from torch import Tensor, nn

from extensions.chamfer_dist.reference import nearest_squared_distance


class _ChamferDistance(nn.Module):
    def __init__(self, ignore_zeros: bool = False):
        super().__init__()
        self.ignore_zeros = ignore_zeros

    def _distances(self, xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor]:
        for name, points in (("xyz1", xyz1), ("xyz2", xyz2)):
            if points.dim() != 3 or points.shape[-1] != 3 or points.shape[1] < 1:
                raise ValueError(f"{name} must be (B, n, 3) with at least one point, got {tuple(points.shape)}")
        if xyz1.shape[0] != xyz2.shape[0]:
            raise ValueError(f"xyz1 and xyz2 must have the same batch size, got {xyz1.shape[0]} and {xyz2.shape[0]}")
        if self.ignore_zeros:
            xyz1, xyz2 = self._without_padding(xyz1, "xyz1"), self._without_padding(xyz2, "xyz2")
        dtype = torch.promote_types(xyz1.dtype, torch.float32)  # half precision is too coarse for distances
        return nearest_squared_distance(xyz1.to(dtype), xyz2.to(dtype))

    @staticmethod
    def _without_padding(points: Tensor, name: str) -> Tensor:
        if points.shape[0] != 1:
            raise ValueError(f"ignore_zeros works on one pair of clouds at a time, got a batch of {points.shape[0]}")
        kept = points[:, points[0].ne(0).any(-1)]
        if kept.shape[1] == 0:
            raise ValueError(f"ignore_zeros leaves nothing of {name}: all its points are zero")
        return kept


class ChamferDistanceL2(_ChamferDistance):
    """Mean over X plus mean over Y of the squared nearest distances."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """Compare (B, n, 3) with (B, m, 3); returns a 0-d tensor, the means taken over the whole batch."""
        dist1, dist2 = self._distances(xyz1, xyz2)
        return dist1.mean() + dist2.mean()


class ChamferDistanceL2_split(_ChamferDistance):
    """The two means of `ChamferDistanceL2`, one by one."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor]:
        """Compare (B, n, 3) with (B, m, 3); returns two 0-d tensors, X to Y and Y to X."""
        dist1, dist2 = self._distances(xyz1, xyz2)
        return dist1.mean(), dist2.mean()


class ChamferDistanceL1(_ChamferDistance):
    """Half the sum of the mean nearest distances, not squared."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """Compare (B, n, 3) with (B, m, 3); returns a 0-d tensor."""
        dist1, dist2 = self._distances(xyz1, xyz2)
        return (_safe_sqrt(dist1).mean() + _safe_sqrt(dist2).mean()) / 2


def _safe_sqrt(squared: Tensor) -> Tensor:
    """Square root whose gradient at zero is zero, so that coincident points do not give NaN."""
    positive = squared > 0
    return torch.where(positive, squared, 1.0).sqrt() * positive
