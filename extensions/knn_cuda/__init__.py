"""k nearest neighbours under the interface of the KNN_CUDA package."""

from pathlib import Path

import torch
from torch import Tensor, nn

from extensions.cuda_runtime import Kernels, blocks, contiguous_float32
from extensions.knn_cuda import reference

KERNELS = Kernels(Path(__file__).with_name("kernels.cu"))
THREADS = 256
WARPS = THREADS // 32  # each searches for one query
MAX_K = 64


@torch.library.custom_op("i2p_mae::k_nearest", mutates_args=())
def k_nearest(ref: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the `k` nearest reference points of each query by Euclidean distance.

    The kernel takes up to 64 neighbours of 3-D points in float32; anything else runs in plain PyTorch.

    Args:
        ref: (B, N, D) coordinates, N ≥ k.
        query: (B, M, D) coordinates.
        k: neighbours per query, at least 1.

    Returns:
        Distances (B, M, k), ascending, in the type of the points but at least float32, and int64 indices (B, M, k) into
        `ref`; ties go to the lowest index. No gradient flows.
    """
    (batch, num_queries, dimensions), num_points = query.shape, ref.shape[1]
    dtype = reference.distance_dtype(ref, query)
    suits = dimensions == 3 and k <= MAX_K and dtype == torch.float32 and query.numel() > 0
    if not suits or not KERNELS.ready(query):
        return reference.k_nearest(ref, query, k)
    distance = query.new_empty(batch, num_queries, k, dtype=dtype)
    index = torch.empty_like(distance, dtype=torch.int64)
    KERNELS.launch(
        "knn_32" if k <= 32 else "knn_64",
        batch * blocks(num_queries, WARPS),
        THREADS,
        *contiguous_float32(ref, query),
        *(distance, index, num_points, num_queries, k),
    )
    return distance, index


@k_nearest.register_fake
def _(ref: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distance = query.new_empty(*query.shape[:2], k, dtype=reference.distance_dtype(ref, query))
    return distance, torch.empty_like(distance, dtype=torch.int64)


class KNN(nn.Module):
    """Exact k nearest neighbours of each query among the reference points of its cloud.

    Args:
        k: neighbours per query.
        transpose_mode: True for points as (B, N, 3), False for (B, 3, N).
    """

    def __init__(self, k: int, transpose_mode: bool = False):
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k
        self.transpose_mode = transpose_mode

    def forward(self, ref: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Search `ref` for the neighbours of `query`.

        Args:
            ref: (B, N, 3) reference points, (B, 3, N) unless `transpose_mode`.
            query: (B, M, 3) query points, (B, 3, M) unless `transpose_mode`.

        Returns:
            Euclidean distances, ascending, and int64 indices into `ref`; (B, M, k) each, or (B, k, M) as the points.
            Ties go to the lowest index. No gradient flows.

        Raises:
            ValueError: if the shapes or devices do not fit or `ref` has fewer than `k` points.
        """
        if ref.dim() != 3 or query.dim() != 3:
            raise ValueError(
                f"ref and query must have 3 dimensions, got the shapes {tuple(ref.shape)} and {tuple(query.shape)}"
            )
        if ref.device != query.device:
            raise ValueError(f"ref and query must be on one device, got {ref.device} and {query.device}")
        if not self.transpose_mode:
            ref, query = ref.transpose(1, 2), query.transpose(1, 2)
        if ref.shape[::2] != query.shape[::2]:
            raise ValueError(
                f"ref and query must be (B, N, D) and (B, M, D), got {tuple(ref.shape)} and {tuple(query.shape)}"
            )
        if ref.shape[1] < self.k:
            raise ValueError(f"{self.k} neighbours asked of clouds with {ref.shape[1]} points; use k ≤ {ref.shape[1]}")
        distance, index = k_nearest(ref.detach(), query.detach(), self.k)
        return (distance, index) if self.transpose_mode else (distance.transpose(1, 2), index.transpose(1, 2))
