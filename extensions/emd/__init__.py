"""Approximate earth mover's distance between point clouds, under the interface of the emd package.

The backward pass computes the matching again from 10 (n + m) numbers per pair of clouds, which is all that is kept. The
kernels hold no n × m matrix; the plain PyTorch reference goes through it in chunks, see there. Derivatives of every
order and mode hold the matching constant; those beyond the first backward pass, computed in plain PyTorch, need a few
B × n × m matrices.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from extensions.checks import check_pair, check_pair_of_a_mean
from extensions.cuda_runtime import Kernels, blocks, contiguous_float32
from extensions.derivatives import beyond_backward
from extensions.emd import reference
from extensions.emd.reference import RATES, initial_masses

KERNELS = Kernels(Path(__file__).with_name("kernels.cu"))
BLOCK = 256  # threads, of which LANES work on the same point, as in kernels.cu
LANES = 8


class earth_mover_distance(nn.Module):
    """What it costs to move cloud X onto cloud Y, per point of X: squared distances, weighted by a soft matching.

    Each point of X has mass max(1, m // n), each of Y max(1, n // m). Derivatives hold the matching constant.
    Computed in float32; in float64, if a cloud is, and then by plain PyTorch on any device.

    A loss to train with, no metric: between unrelated clouds it is on average twice the optimum at 64 points, 2.6 times
    (in the ball) to 3.3 times (on the sphere) at 256, and more beyond. It is near the optimum only where one cloud is
    the other, slightly moved. To evaluate, use `exact_earth_mover_distance`.
    """

    def __init__(self, *clouds: Tensor, **options: bool):
        super().__init__()
        if clouds or options:  # the compiled package also has a function of this name, which takes the clouds at once
            raise TypeError("make the module first, then compare: earth_mover_distance()(xyz1, xyz2, transpose=False)")

    def forward(self, xyz1: Tensor, xyz2: Tensor, transpose: bool = False) -> Tensor:
        """Compare two clouds.

        Args:
            xyz1: (B, n, 3) coordinates in the unit sphere, for which the matching's radii are made.
            xyz2: (B, m, 3).
            transpose: True for clouds as (B, 3, n) and (B, 3, m). The compiled package's function has True by default.

        Returns:
            0-d: mean over the batch of cost / n.

        Raises:
            ValueError: if shapes or devices do not fit or the batch is empty.
        """
        if transpose:
            xyz1, xyz2 = _transposed(xyz1, "xyz1"), _transposed(xyz2, "xyz2")
        check_pair_of_a_mean(xyz1, xyz2)
        dtype = torch.promote_types(torch.promote_types(xyz1.dtype, xyz2.dtype), torch.float32)
        cost, _, _ = emd(xyz1.to(dtype), xyz2.to(dtype))
        return cost.mean() / xyz1.shape[1]


def exact_earth_mover_distance(xyz1: Tensor, xyz2: Tensor) -> Tensor:
    """The least mean squared distance between points assigned one to one: for evaluation.

    Time grows with the cube of the points, on one CPU core, cloud by cloud.

    Args:
        xyz1: (B, n, 3) finite coordinates, in any unit.
        xyz2: (B, n, 3), as many points.

    Returns:
        (B,) float64, in the squared unit of the coordinates: mean over the points of the squared distance, which is
        what `earth_mover_distance` approximates. No gradient flows.

    Raises:
        ValueError: if shapes or devices do not fit, sizes differ, or a coordinate is not finite.
    """
    check_pair(xyz1, xyz2)
    if xyz1.shape[1] != xyz2.shape[1]:
        raise ValueError(
            f"an exact assignment needs clouds of one size, got {xyz1.shape[1]} and {xyz2.shape[1]} points: sample"
        )
    for name, points in (("xyz1", xyz1), ("xyz2", xyz2)):
        if not points.isfinite().all():
            raise ValueError(f"an exact assignment needs finite coordinates, {name} has others")
    costs = [_cost_of_assignment(*pair) for pair in zip(_on_cpu(xyz1), _on_cpu(xyz2), strict=True)]
    return torch.tensor(costs, dtype=torch.float64, device=xyz1.device)


def emd(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.transport` of (B, n, 3) and (B, m, 3), both float32 or both float64; the cost is differentiable."""
    if beyond_backward(xyz1, xyz2):
        _, r, t = _emd(xyz1.detach(), xyz2.detach())
        return reference.cost_of_matching(xyz1, xyz2, reference.matching(xyz1, xyz2, r, t)), r, t
    return _emd(xyz1, xyz2)


@torch.library.custom_op("i2p_mae::emd", mutates_args=())
def _emd(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


@_emd.register_fake
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
    return points.dtype == torch.float32 and points.numel() > 0 and KERNELS.ready(points)


def _on_cpu(points: Tensor) -> np.ndarray:
    return points.detach().double().cpu().numpy()


def _cost_of_assignment(cloud1: np.ndarray, cloud2: np.ndarray) -> float:
    squared = cdist(cloud1, cloud2, "sqeuclidean")  # (n, n)
    return squared[linear_sum_assignment(squared)].mean()


def _transposed(points: Tensor, name: str) -> Tensor:
    if points.dim() != 3 or points.shape[1] != 3:
        raise ValueError(f"{name} must be (B, 3, n) where transpose is True, got {tuple(points.shape)}")
    return points.transpose(1, 2)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, r, t = output
    ctx.mark_non_differentiable(r, t)
    ctx.save_for_backward(*inputs, r, t)


def _backward(ctx: Any, grad_cost: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None]:
    xyz1, xyz2, r, t = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradients will be differentiated
        return reference.gradients_of_matching(xyz1, xyz2, reference.matching(xyz1, xyz2, r, t), grad_cost)
    return (
        emd_gradient(xyz1, xyz2, r, t, grad_cost) if ctx.needs_input_grad[0] else None,
        emd_gradient(xyz2, xyz1, t, r, grad_cost) if ctx.needs_input_grad[1] else None,
    )


_emd.register_autograd(_backward, setup_context=_keep)
