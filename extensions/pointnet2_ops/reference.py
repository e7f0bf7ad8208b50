"""Sampling and searching in plain PyTorch, on any device, memory bounded by chunks; interpolation with any derivative.

Arguments are taken as checked; see `pointnet2_utils` for what the functions compute.
"""

import torch
from torch import Tensor

from extensions.knn_cuda.reference import squared_distances

PADDING_SQUARED_NORM = 1e-3  # PointNet++ takes points this near the origin for padding


@torch.no_grad()
def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    """See `pointnet2_utils.furthest_point_sample`."""
    xyz = xyz.to(torch.promote_types(xyz.dtype, torch.float32))  # half precision is too coarse for distances
    x, y, z = (axis.contiguous() for axis in xyz.unbind(-1))  # (B, N) each
    is_padding = x * x + y * y + z * z <= PADDING_SQUARED_NORM
    distance = torch.full_like(x, torch.inf).masked_fill_(is_padding, -1.0)  # squared, to the nearest picked point
    picked = torch.zeros(xyz.shape[0], npoint, dtype=torch.int64, device=xyz.device)
    for i in range(1, npoint):
        last = picked[:, i - 1 : i]
        to_last = (x - x.gather(1, last)).square_()
        to_last.add_((y - y.gather(1, last)).square_()).add_((z - z.gather(1, last)).square_())
        torch.minimum(distance, to_last, out=distance)
        picked[:, i] = distance.argmax(1)
    return picked


@torch.no_grad()
def ball_query(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    """See `pointnet2_utils.ball_query`."""
    num_points = xyz.shape[1]
    order = torch.arange(num_points, dtype=torch.int32, device=xyz.device)
    chunks = []
    for distance in squared_distances(new_xyz, xyz):
        inside = order.where(distance < radius * radius, num_points)  # (B, m, N) the index, or N if outside
        chunks.append(inside.topk(min(nsample, num_points), largest=False, sorted=True).values)
    index = torch.cat(chunks, 1).long()
    index = torch.nn.functional.pad(index, (0, nsample - index.shape[-1]), value=num_points)
    index = index.where(index < num_points, index[..., :1])
    return index.where(index < num_points, 0)


@torch.no_grad()
def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """See `pointnet2_utils.three_nn`."""
    chunks = []
    for distance in squared_distances(unknown, known):
        nearest = []
        for _ in range(3):
            nearest.append(distance.min(-1, keepdim=True))  # the first of equals
            distance.scatter_(-1, nearest[-1].indices, torch.inf)
        chunks.append([torch.cat(parts, -1) for parts in zip(*nearest, strict=True)])  # (B, m, 3) each
    squared, index = (torch.cat(parts, 1) for parts in zip(*chunks, strict=True))
    return squared.sqrt_(), index


def sum_of_rows(rows: Tensor, row: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of three rows each; differentiable in any mode, as often as one likes.

    Args:
        rows: (R, C).
        row: (Q, 3) int64 indices into `rows`.
        weight: (Q, 3).

    Returns:
        (Q, C).
    """
    return (rows[row] * weight.unsqueeze(-1)).sum(1)


def sum_of_rows_backward(grad: Tensor, rows: Tensor, row: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `sum_of_rows` for the rows and the weights, from that of the sums (Q, C); differentiable in turn."""
    shares = grad.unsqueeze(1) * weight.unsqueeze(-1)  # (Q, 3, C)
    grad_rows = torch.zeros_like(rows).index_add(0, row.flatten(), shares.flatten(0, 1))
    return grad_rows, (grad.unsqueeze(1) * rows[row]).sum(-1)
