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
    idx1, idx2 = (k_nearest(target, source, 1)[1].squeeze(-1) for source, target in ((xyz1, xyz2), (xyz2, xyz1)))
    return *distances_of_pairs(xyz1, xyz2, idx1, idx2), idx1, idx2


def distances_of_pairs(xyz1: Tensor, xyz2: Tensor, idx1: Tensor, idx2: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances (B, n) and (B, m) to the points of the other cloud that the indices name.

    They can be differentiated in any mode and as often as one likes, the pairs held constant.
    """
    difference1, difference2 = xyz1 - _rows(xyz2, idx1), xyz2 - _rows(xyz1, idx2)
    return difference1.square().sum(-1), difference2.square().sum(-1)


def chamfer_backward(
    grad_dist1: Tensor, grad_dist2: Tensor, xyz1: Tensor, xyz2: Tensor, idx1: Tensor, idx2: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients (B, n, 3) and (B, m, 3) of the clouds from those of the distances, (B, n) and (B, m).

    They are differentiable in turn, the pairs held constant.
    """
    xyz1, xyz2 = xyz1.contiguous(), xyz2.contiguous()
    pull1 = 2 * grad_dist1.unsqueeze(-1) * (xyz1 - _rows(xyz2, idx1))
    pull2 = 2 * grad_dist2.unsqueeze(-1) * (xyz2 - _rows(xyz1, idx2))
    return pull1.scatter_add(1, _of_rows(idx2), -pull2), pull2.scatter_add(1, _of_rows(idx1), -pull1)


def _rows(xyz: Tensor, idx: Tensor) -> Tensor:
    return xyz.gather(1, _of_rows(idx))  # (B, n, 3)


def _of_rows(idx: Tensor) -> Tensor:
    return idx.unsqueeze(-1).expand(-1, -1, 3)
