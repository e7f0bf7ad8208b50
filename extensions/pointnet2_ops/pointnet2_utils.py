"""The operations of the pointnet2_ops package, with its call signatures."""

import torch
from torch import Tensor

from extensions.knn_cuda.reference import k_nearest
from extensions.pointnet2_ops import reference


def _check_cloud(points: Tensor, name: str) -> None:
    if points.dim() != 3 or points.shape[-1] != 3 or points.shape[1] < 1:
        raise ValueError(f"{name} must be (B, N, 3) with at least one point, got {tuple(points.shape)}")


def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    """Pick points one by one, each the farthest from those already picked.

    Args:
        xyz: (B, N, 3) coordinates, any unit.
        npoint: points to pick per cloud, at least 1; indices repeat once the candidates run out.

    Returns:
        (B, npoint) int64 indices into `xyz`, in the order picked, starting with 0. Ties go to the lowest index.
        As in PointNet++, a point with squared norm ≤ 1e-3 is padding and never picked after the start.

    Raises:
        ValueError: if `xyz` is not (B, N, 3) or `npoint` < 1.
    """
    _check_cloud(xyz, "xyz")
    if npoint < 1:
        raise ValueError(f"npoint must be at least 1, got {npoint}")
    return reference.furthest_point_sample(xyz, npoint)


def gather_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Take columns of `features` by index; differentiable in `features`.

    Args:
        features: (B, C, N).
        idx: (B, M) integer indices into N.

    Returns:
        (B, C, M).
    """
    return features.gather(2, idx.long().unsqueeze(1).expand(-1, features.shape[1], -1))


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Find the three nearest known points of each unknown point.

    Args:
        unknown: (B, N, 3) query points.
        known: (B, M, 3) reference points, M ≥ 3.

    Returns:
        Euclidean distances (B, N, 3), ascending, and int64 indices (B, N, 3) into `known`.

    Raises:
        ValueError: if a shape does not fit or `known` has fewer than three points.
    """
    _check_cloud(unknown, "unknown")
    _check_cloud(known, "known")
    if known.shape[1] < 3:
        raise ValueError(f"known must have at least 3 points, got {known.shape[1]}")
    return k_nearest(known, unknown, 3)


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum of three features per point; differentiable in `features` and `weight`.

    Args:
        features: (B, C, M) features of the known points.
        idx: (B, N, 3) indices into M.
        weight: (B, N, 3) weights.

    Returns:
        (B, C, N).
    """
    taken = gather_operation(features, idx.flatten(1)).unflatten(2, idx.shape[1:])  # (B, C, N, 3)
    return torch.einsum("bcnk,bnk->bcn", taken, weight)
