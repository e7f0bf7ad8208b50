"""k nearest neighbours in plain PyTorch: exact, in chunks, on any device."""

from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor

MAX_DISTANCES = 1 << 20  # distances held at a time, unless one query per cloud needs more


@torch.no_grad()
def k_nearest(reference: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the `k` nearest reference points of each query by Euclidean distance.

    Args:
        reference: (B, N, D) coordinates.
        query: (B, M, D) coordinates.
        k: neighbours per query, 1 ≤ k ≤ N.

    Returns:
        Distances (B, M, k), ascending, and indices (B, M, k) int64 into `reference`; ties go to the lowest index.
        No gradient flows.
    """
    chunks = []
    for squared in squared_distances(query, reference):
        chunks.append(squared.min(-1, keepdim=True) if k == 1 else _smallest(squared, k))  # min is the first of equals
    squared, index = (torch.cat(parts, 1) for parts in zip(*chunks, strict=True))
    return squared.sqrt_(), index


def squared_distances(query: Tensor, points: Tensor) -> Iterator[Tensor]:
    """Squared distances from some queries (B, M, D) at a time to all points (B, N, D): (B, m, N)."""
    dtype = distance_dtype(points, query)
    axes = points.to(dtype).permute(2, 0, 1).contiguous().unsqueeze(2)  # (D, B, 1, N)
    rows = max(1, MAX_DISTANCES // max(1, points.shape[0] * points.shape[1]))
    for chunk in query.to(dtype).split(rows, 1):
        squares = ((x.unsqueeze(-1) - axis).square_() for x, axis in zip(chunk.unbind(-1), axes, strict=True))
        yield reduce(Tensor.add_, squares)


def distance_dtype(reference: Tensor, query: Tensor) -> torch.dtype:
    """The type in which distances are measured: half precision is too coarse."""
    return torch.promote_types(torch.promote_types(reference.dtype, query.dtype), torch.float32)


def _smallest(distance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` smallest of each row (B, m, N), ascending, equal ones by their index: values and indices (B, m, k)."""
    nearest, index = distance.topk(k, largest=False)
    left = distance.scatter(-1, index, torch.inf).amin(-1, keepdim=True)
    ascending = torch.cat([nearest, left], -1).diff(dim=-1) > 0  # (B, m, k); not where NaN or infinities meet
    if not ascending.all():
        cut = ~ascending[..., -1]  # (B, m): chance took some of the points that are as far as the last
        index[cut] = _first_of_equals(distance[cut], nearest[cut][..., -1:], k)
        index = index.sort(dim=-1).values
        nearest, order = distance.gather(-1, index).sort(dim=-1, stable=True)
        index = index.gather(-1, order)
    return nearest, index


def _first_of_equals(distance: Tensor, last: Tensor, k: int) -> Tensor:
    """Which `k` of each row (R, N) are nearer than `last` (R, 1), the k-th nearest, or the first ones as far; (R, k).

    NaN counts as infinitely far.
    """
    distance, last = (x.nan_to_num(nan=torch.inf, posinf=torch.inf) for x in (distance, last))
    size = distance.shape[-1]
    rank = torch.arange(size, dtype=torch.int32, device=distance.device)
    rank = torch.where(distance < last, rank - size, rank.where(distance == last, size))  # (R, N)
    return rank.topk(k, largest=False, sorted=False).indices
