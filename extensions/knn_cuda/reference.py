"""k nearest neighbours in plain PyTorch: exact, in chunks, on any device."""

import torch
from torch import Tensor

MAX_DISTANCES = 1 << 24  # distances held at a time: 64 MiB in float32


def k_nearest(reference: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the `k` nearest reference points of each query by Euclidean distance.

    Args:
        reference: (B, N, D) coordinates.
        query: (B, M, D) coordinates.
        k: neighbours per query, 1 ≤ k ≤ N.

    Returns:
        Distances (B, M, k), ascending, and indices (B, M, k) int64 into `reference`. No gradient flows.
    """
    dtype = distance_dtype(reference, query)
    reference, query = reference.detach().to(dtype).contiguous(), query.detach().to(dtype).contiguous()
    batch, num_queries, num_points = query.shape[0], query.shape[1], reference.shape[1]
    distance = query.new_empty(batch, num_queries, k)
    index = torch.empty(batch, num_queries, k, dtype=torch.int64, device=query.device)
    rows = max(1, min(num_queries, MAX_DISTANCES // max(1, num_points)))
    clouds = max(1, MAX_DISTANCES // (rows * max(1, num_points)))
    for b in range(0, batch, clouds):
        for m in range(0, num_queries, rows):
            block = torch.cdist(
                query[b : b + clouds, m : m + rows],
                reference[b : b + clouds],
                compute_mode="donot_use_mm_for_euclid_dist",  # the expanded square loses digits of near points
            )
            nearest = block.min(-1, keepdim=True) if k == 1 else block.topk(k, largest=False, sorted=True)
            distance[b : b + clouds, m : m + rows], index[b : b + clouds, m : m + rows] = nearest
    return distance, index


def distance_dtype(reference: Tensor, query: Tensor) -> torch.dtype:
    """The type in which distances are measured: half precision is too coarse."""
    return torch.promote_types(torch.promote_types(reference.dtype, query.dtype), torch.float32)
