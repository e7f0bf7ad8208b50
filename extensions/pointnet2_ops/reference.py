"""Farthest point sampling in plain PyTorch."""

import torch
from torch import Tensor

PADDING_SQUARED_NORM = 1e-3  # PointNet++ takes points this near the origin for padding


@torch.no_grad()
def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    """See `pointnet2_utils.furthest_point_sample`; arguments are taken as checked."""
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
