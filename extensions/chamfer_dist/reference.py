"""Chamfer distance and its gradient in plain PyTorch."""

from torch import Tensor

from extensions.knn_cuda.reference import k_nearest


def chamfer(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared distance of each point to its nearest in the other cloud.

    Args:
        xyz1: (B, n, 3).
        xyz2: (B, m, 3).

    Returns:
        Distances (B, n) from `xyz1` to `xyz2` and (B, m) from `xyz2` to `xyz1`, and the int64 indices of the nearest.
    """
    xyz1, xyz2 = xyz1.contiguous(), xyz2.contiguous()
    (dist1, idx1), (dist2, idx2) = _to_nearest(xyz1, xyz2), _to_nearest(xyz2, xyz1)
    return dist1, dist2, idx1, idx2


def chamfer_backward(
    grad_dist1: Tensor, grad_dist2: Tensor, xyz1: Tensor, xyz2: Tensor, idx1: Tensor, idx2: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients (B, n, 3) and (B, m, 3) of the clouds from those of the distances, (B, n) and (B, m)."""
    xyz1, xyz2 = xyz1.contiguous(), xyz2.contiguous()
    index1, index2 = idx1.unsqueeze(-1).expand(-1, -1, 3), idx2.unsqueeze(-1).expand(-1, -1, 3)
    pull1 = 2 * grad_dist1.unsqueeze(-1) * (xyz1 - xyz2.gather(1, index1))
    pull2 = 2 * grad_dist2.unsqueeze(-1) * (xyz2 - xyz1.gather(1, index2))
    return pull1.scatter_add(1, index2, -pull2), pull2.scatter_add(1, index1, -pull1)


def _to_nearest(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    _, index = k_nearest(target, source, 1)
    distance = (source - target.gather(1, index.expand(-1, -1, 3))).square().sum(-1)
    return distance, index.squeeze(-1)
