"""Approximate earth mover's distance between point clouds, under the interface of the emd package.

The backward pass computes the matching again from 10 (n + m) numbers per pair of clouds, which is all that is kept. The
kernels hold no n × m matrix; the plain PyTorch reference goes through it in chunks, see there.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extensions.cuda_runtime import Kernels, blocks, contiguous_float32
from extensions.emd import reference
from extensions.emd.reference import RATES, initial_masses

KERNELS = Kernels(Path(__file__).with_name("kernels.cu"))
BLOCK = 256  # threads, of which LANES work on the same point, as in kernels.cu
LANES = 8


class earth_mover_distance(nn.Module):
    """What it costs to move cloud X onto cloud Y, per point of X: squared distances, weighted by a soft matching.

    Each point of X has mass max(1, m // n), each of Y max(1, n // m). Gradients hold the matching constant.
    Computed in float32; in float64, if a cloud is, and then by plain PyTorch on any device.
    """

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """Compare two clouds.

        Args:
            xyz1: (B, n, 3) coordinates in the unit sphere, for which the matching's radii are made.
            xyz2: (B, m, 3).

        Returns:
            0-d: mean over the batch of cost / n.

        Raises:
            ValueError: if shapes or devices do not fit.
        """
        for name, points in (("xyz1", xyz1), ("xyz2", xyz2)):
            if points.dim() != 3 or points.shape[-1] != 3 or points.numel() == 0:
                raise ValueError(f"{name} must be (B, n, 3) with B and n at least 1, got {tuple(points.shape)}")
        if xyz1.shape[0] != xyz2.shape[0]:
            raise ValueError(f"xyz1 and xyz2 must have the same batch size, got {xyz1.shape[0]} and {xyz2.shape[0]}")
        if xyz1.device != xyz2.device:
            raise ValueError(f"xyz1 and xyz2 must be on one device, got {xyz1.device} and {xyz2.device}")
        dtype = torch.promote_types(torch.promote_types(xyz1.dtype, xyz2.dtype), torch.float32)
        cost, _, _ = emd(xyz1.to(dtype), xyz2.to(dtype))
        return cost.mean() / xyz1.shape[1]


@torch.library.custom_op("i2p_mae::emd", mutates_args=())
def emd(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.transport` of (B, n, 3) and (B, m, 3), both float32 or both float64; the cost is differentiable."""
    if not _use_kernels(xyz1):
        return reference.transport(xyz1, xyz2)
    (batch, n, _), m = xyz1.shape, xyz2.shape[1]
    xyz1, xyz2 = contiguous_float32(xyz1, xyz2)
    supply, demand = initial_masses(xyz1, xyz2)
    cost = torch.zeros_like(supply)  # of each point
    r, t = xyz1.new_empty(batch, len(RATES), n), xyz2.new_empty(batch, len(RATES), m)
    givers, takers = (batch, blocks(n, BLOCK // LANES)), (batch, blocks(m, BLOCK // LANES))
    for j in range(len(RATES)):
        KERNELS.launch("emd_give", givers, BLOCK, xyz1, xyz2, demand, t, supply, cost, r, j, n, m)
        KERNELS.launch("emd_take", takers, BLOCK, xyz1, xyz2, r, demand, t, j, n, m)
    KERNELS.launch("emd_give", givers, BLOCK, xyz1, xyz2, demand, t, supply, cost, r, len(RATES), n, m)
    return cost.sum(1), r, t


@emd.register_fake
def _(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (batch, n, _), m = xyz1.shape, xyz2.shape[1]
    return xyz1.new_empty(batch), xyz1.new_empty(batch, len(RATES), n), xyz1.new_empty(batch, len(RATES), m)


@torch.library.custom_op("i2p_mae::emd_gradient", mutates_args=())
def emd_gradient(xyz1: Tensor, xyz2: Tensor, r: Tensor, t: Tensor, grad_cost: Tensor) -> Tensor:
    """`reference.gradient`: that of the cost with respect to `xyz1`, (B, n, 3)."""
    if not _use_kernels(xyz1):
        return reference.gradient(xyz1, xyz2, r, t, grad_cost)
    (batch, n, _), m = xyz1.shape, xyz2.shape[1]
    grad = xyz1.new_empty(batch, n, 3)
    inputs = contiguous_float32(xyz1, xyz2, r, t, grad_cost)
    KERNELS.launch("emd_gradient", (batch, blocks(n, BLOCK // LANES)), BLOCK, *inputs, grad, n, m)
    return grad


@emd_gradient.register_fake
def _(xyz1: Tensor, xyz2: Tensor, r: Tensor, t: Tensor, grad_cost: Tensor) -> Tensor:
    return xyz1.new_empty(xyz1.shape)


def _use_kernels(points: Tensor) -> bool:
    return points.dtype == torch.float32 and KERNELS.ready(points)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, r, t = output
    ctx.mark_non_differentiable(r, t)
    ctx.save_for_backward(*inputs, r, t)


def _backward(ctx: Any, grad_cost: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None]:
    xyz1, xyz2, r, t = ctx.saved_tensors
    return (
        emd_gradient(xyz1, xyz2, r, t, grad_cost) if ctx.needs_input_grad[0] else None,
        emd_gradient(xyz2, xyz1, t, r, grad_cost) if ctx.needs_input_grad[1] else None,
    )


emd.register_autograd(_backward, setup_context=_keep)
