"""k nearest neighbours under the interface of the KNN_CUDA package."""

from torch import Tensor, nn

from extensions.knn_cuda.reference import k_nearest


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

        Raises:
            ValueError: if the shapes do not fit or `ref` has fewer than `k` points.
        """
        if ref.dim() != 3 or query.dim() != 3:
            raise ValueError(
                f"ref and query must have 3 dimensions, got the shapes {tuple(ref.shape)} and {tuple(query.shape)}"
            )
        if not self.transpose_mode:
            ref, query = ref.transpose(1, 2), query.transpose(1, 2)
        if ref.shape[::2] != query.shape[::2]:
            raise ValueError(
                f"ref and query must be (B, N, D) and (B, M, D), got {tuple(ref.shape)} and {tuple(query.shape)}"
            )
        if ref.shape[1] < self.k:
            raise ValueError(f"{self.k} neighbours asked of clouds with {ref.shape[1]} points; use k ≤ {ref.shape[1]}")
        distance, index = k_nearest(ref, query, self.k)
        return (distance, index) if self.transpose_mode else (distance.transpose(1, 2), index.transpose(1, 2))
