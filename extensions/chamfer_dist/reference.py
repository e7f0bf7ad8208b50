"""Chamfer distance in plain PyTorch."""

from torch import Tensor

from extensions.knn_cuda.reference import k_nearest


def nearest_squared_distance(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance of each point to its nearest in the other cloud; differentiable through the nearest pairs.

    Args:
        xyz1: (B, n, 3).
        xyz2: (B, m, 3).

    Returns:
        (B, n) from `xyz1` to `xyz2` and (B, m) from `xyz2` to `xyz1`.
    """
    return _to_nearest(xyz1, xyz2), _to_nearest(xyz2, xyz1)


def _to_nearest(source: Tensor, target: Tensor) -> Tensor:
    _, index = k_nearest(target, source, 1)
    return (source - target.gather(1, index.expand(-1, -1, 3))).square().sum(-1)
