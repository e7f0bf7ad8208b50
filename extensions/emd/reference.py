"""Approximate earth mover's distance in plain PyTorch: the annealed soft matching of Fan et al. 2017.

Paper: A point set generation network for 3D object reconstruction from a single image. Pairs of points are worked on in
chunks of rows of the first cloud, of all clouds at once: about five tensors of at most max(MAX_PAIRS, B m) numbers.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

RATES = (*(-(4.0**power) for power in range(7, -2, -1)), 0.0)  # λ of each round
EPSILON = 1e-9
MAX_PAIRS = 1 << 20  # a tensor of so many numbers takes 4 MiB in float32: larger ones fall out of a CPU's caches


def transport(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Match two clouds in rounds, near pairs first; the matching is Σ_j exp(λ_j d²_kl) r_kj t_lj over the rounds j.

    Args:
        xyz1: (B, n, 3).
        xyz2: (B, m, 3).

    Returns:
        Cost (B,), the sum of matching × squared distance; r (B, rounds, n) and t (B, rounds, m).
    """
    (batch, n, _), m = xyz1.shape, xyz2.shape[1]
    supply, demand = initial_masses(xyz1, xyz2)
    cost = xyz1.new_zeros(batch)
    r, t = xyz1.new_empty(batch, len(RATES), n), xyz2.new_empty(batch, len(RATES), m)
    for j, rate in enumerate(RATES):
        offered = torch.zeros_like(demand)
        for rows, squared in _squared_distances(xyz1, xyz2):
            weight = squared.mul_(rate).exp_()  # (B, rows, m)
            r[:, j, rows] = supply[:, rows] / (EPSILON + (weight * demand.unsqueeze(1)).sum(2))
            offered += weight.mul_(r[:, j, rows, None]).sum(1)
        offered *= demand
        t[:, j] = demand * (demand / (offered + EPSILON)).clamp(max=1)
        demand = (demand - offered).clamp(min=0)
        for rows, squared in _squared_distances(xyz1, xyz2):
            match = (squared * rate).exp_().mul_(r[:, j, rows, None]).mul_(t[:, j, None])
            supply[:, rows] = (supply[:, rows] - match.sum(2)).clamp(min=0)
            cost += match.mul_(squared).sum((1, 2))
    return cost, r, t


def gradient(xyz1: Tensor, xyz2: Tensor, r: Tensor, t: Tensor, grad_cost: Tensor) -> Tensor:
    """Gradient of the cost with respect to `xyz1`, the matching held constant: 2 Σ_l match_kl (x_k − y_l).

    The matching is symmetric: with xyz1 and xyz2, r and t swapped, this is the gradient with respect to `xyz2`.

    Args:
        xyz1: (B, n, 3).
        xyz2: (B, m, 3).
        r: (B, rounds, n) of `transport`.
        t: (B, rounds, m) of `transport`.
        grad_cost: (B,) incoming gradient.

    Returns:
        (B, n, 3).
    """
    grad = torch.empty_like(xyz1, memory_format=torch.contiguous_format)
    for rows, squared in _squared_distances(xyz1, xyz2):
        match = torch.zeros_like(squared)
        for j, rate in enumerate(RATES):
            match += (squared * rate).exp_().mul_(r[:, j, rows, None]).mul_(t[:, j, None])
        for axis in range(3):
            difference = xyz1[:, rows, None, axis] - xyz2[:, None, :, axis]  # (B, rows, m)
            grad[:, rows, axis] = difference.mul_(match).sum(2)
    return grad * (2 * grad_cost[:, None, None])


def matching(xyz1: Tensor, xyz2: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """The matching (B, n, m) whole, as a constant of what it is used in."""
    squared = (xyz1.detach().unsqueeze(2) - xyz2.detach().unsqueeze(1)).square().sum(-1)
    match = torch.zeros_like(squared)
    for j, rate in enumerate(RATES):
        match = match + (squared * rate).exp() * r[:, j, :, None] * t[:, j, None]
    return match


def cost_of_matching(xyz1: Tensor, xyz2: Tensor, match: Tensor) -> Tensor:
    """Cost (B,), which can be differentiated in any mode and as often as one likes, the matching held constant."""
    return (match * (xyz1.unsqueeze(2) - xyz2.unsqueeze(1)).square().sum(-1)).sum((1, 2))


def gradients_of_matching(xyz1: Tensor, xyz2: Tensor, match: Tensor, grad_cost: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (B, n, 3) and (B, m, 3) of `cost_of_matching`, differentiable in turn."""
    flow = 2 * grad_cost[:, None, None, None] * match.unsqueeze(-1) * (xyz1.unsqueeze(2) - xyz2.unsqueeze(1))
    return flow.sum(2), -flow.sum(1)


def initial_masses(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor]:
    """What the points of each cloud have before the first round, (B, n) and (B, m): whole numbers, equal in a cloud."""
    (batch, n, _), m = xyz1.shape, xyz2.shape[1]
    return xyz1.new_full((batch, n), max(1, m // n)), xyz2.new_full((batch, m), max(1, n // m))


def _squared_distances(xyz1: Tensor, xyz2: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of `xyz1` and their (B, rows, m) squared distances, a chunk at a time."""
    per_chunk = max(1, MAX_PAIRS // max(1, xyz2.shape[0] * xyz2.shape[1]))
    for first in range(0, xyz1.shape[1], per_chunk):
        rows = slice(first, first + per_chunk)
        x, y, z = (xyz1[:, rows, None, axis] - xyz2[:, None, :, axis] for axis in range(3))
        yield rows, x.mul_(x).add_(y.mul_(y)).add_(z.mul_(z))
