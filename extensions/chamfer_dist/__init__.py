"""Chamfer distance between point clouds, under the interface of the chamfer_dist package.

For clouds X and Y, each point pays its squared distance to the nearest point of the other cloud; derivatives of every
order and mode hold these nearest pairs constant. The kernels serve the forward and the first backward pass; what is
beyond them is computed in plain PyTorch from the pairs. With `ignore_zeros`, all-zero points are padding and dropped;
the batch must then hold one pair.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extensions.chamfer_dist import reference
from extensions.checks import check_pair_of_a_mean
from extensions.cuda_runtime import Kernels, blocks, contiguous_float32
from extensions.derivatives import beyond_backward
from extensions.knn_cuda.reference import distance_dtype

KERNELS = Kernels(Path(__file__).with_name("kernels.cu"))
THREADS = 256
LARGE_THREADS = 128  # of a block that shares tiles
SMALL = 32  # points up to which a cloud is read through the cache, without tiles


def chamfer(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared distance of each point to its nearest in the other cloud; differentiable through the distances.

    The kernels take float32; float64 runs in plain PyTorch.

    Args:
        xyz1: (B, n, 3), n ≥ 1, float32 or float64.
        xyz2: (B, m, 3), m ≥ 1, of the same type.

    Returns:
        Distances (B, n) from `xyz1` to `xyz2` and (B, m) from `xyz2` to `xyz1`, and the int64 indices of the nearest,
        (B, n) and (B, m).
    """
    if beyond_backward(xyz1, xyz2):
        _, _, idx1, idx2 = _chamfer(xyz1.detach(), xyz2.detach())
        return *reference.distances_of_pairs(xyz1, xyz2, idx1, idx2), idx1, idx2
    return _chamfer(xyz1, xyz2)


@torch.library.custom_op("i2p_mae::chamfer", mutates_args=())
def _chamfer(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not _suits_kernels(xyz1):
        return reference.chamfer(xyz1, xyz2)
    (batch, n, _), m = xyz1.shape, xyz2.shape[1]
    outputs = _empty_outputs(xyz1, xyz2)
    clouds = contiguous_float32(xyz1, xyz2)
    if max(n, m) <= SMALL:
        KERNELS.launch("chamfer_small", blocks(batch * (n + m), THREADS), THREADS, *clouds, *outputs, batch, n, m)
    else:
        grid = batch * (blocks(n, LARGE_THREADS) + blocks(m, LARGE_THREADS))
        KERNELS.launch("chamfer_large", grid, LARGE_THREADS, *clouds, *outputs, n, m)
    return outputs


@_chamfer.register_fake
def _empty_outputs(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dist1, dist2 = xyz1.new_empty(xyz1.shape[:2]), xyz2.new_empty(xyz2.shape[:2])
    return dist1, dist2, torch.empty_like(dist1, dtype=torch.int64), torch.empty_like(dist2, dtype=torch.int64)


@torch.library.custom_op("i2p_mae::chamfer_backward", mutates_args=())
def chamfer_backward(
    grad_dist1: Tensor, grad_dist2: Tensor, xyz1: Tensor, xyz2: Tensor, idx1: Tensor, idx2: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `chamfer` for both clouds; deterministic where torch.use_deterministic_algorithms asks for it.

    Args:
        grad_dist1: (B, n), gradient of the first distances.
        grad_dist2: (B, m), gradient of the second.
        xyz1: (B, n, 3).
        xyz2: (B, m, 3).
        idx1: (B, n) int64, as `chamfer` gave them.
        idx2: (B, m) int64, as `chamfer` gave them.

    Returns:
        (B, n, 3) and (B, m, 3).
    """
    if not _suits_kernels(xyz1):
        return reference.chamfer_backward(grad_dist1, grad_dist2, xyz1, xyz2, idx1, idx2)
    (batch, n, _), m = xyz1.shape, xyz2.shape[1]
    gather = max(n, m) <= SMALL or torch.are_deterministic_algorithms_enabled()
    allocate = torch.empty_like if gather else torch.zeros_like
    clouds = contiguous_float32(xyz1, xyz2)
    grad1, grad2 = allocate(clouds[0]), allocate(clouds[1])
    KERNELS.launch(
        "chamfer_backward_gather" if gather else "chamfer_backward_scatter",
        blocks(batch * (n + m), THREADS),
        THREADS,
        *contiguous_float32(grad_dist1, grad_dist2),
        *clouds,
        *(idx1.contiguous(), idx2.contiguous(), grad1, grad2, batch, n, m),
    )
    return grad1, grad2


@chamfer_backward.register_fake
def _(
    grad_dist1: Tensor, grad_dist2: Tensor, xyz1: Tensor, xyz2: Tensor, idx1: Tensor, idx2: Tensor
) -> tuple[Tensor, Tensor]:
    return xyz1.new_empty(xyz1.shape), xyz2.new_empty(xyz2.shape)


def _suits_kernels(xyz: Tensor) -> bool:
    return xyz.dtype == torch.float32 and xyz.numel() > 0 and KERNELS.ready(xyz)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[2:])


def _backward(ctx: Any, grad_dist1: Tensor, grad_dist2: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    compute = reference.chamfer_backward if torch.is_grad_enabled() else chamfer_backward  # enabled: to differentiate
    return compute(grad_dist1, grad_dist2, *ctx.saved_tensors)


_chamfer.register_autograd(_backward, setup_context=_save_for_backward)


class _ChamferDistance(nn.Module):
    def __init__(self, ignore_zeros: bool = False):
        super().__init__()
        self.ignore_zeros = ignore_zeros

    def _distances(self, xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor]:
        check_pair_of_a_mean(xyz1, xyz2)
        if self.ignore_zeros:
            xyz1, xyz2 = self._without_padding(xyz1, "xyz1"), self._without_padding(xyz2, "xyz2")
        dtype = distance_dtype(xyz1, xyz2)
        dist1, dist2, _, _ = chamfer(xyz1.to(dtype), xyz2.to(dtype))
        return dist1, dist2

    @staticmethod
    def _without_padding(points: Tensor, name: str) -> Tensor:
        if points.shape[0] != 1:
            raise ValueError(f"ignore_zeros works on one pair of clouds at a time, got a batch of {points.shape[0]}")
        kept = points[:, points[0].ne(0).any(-1)]
        if kept.shape[1] == 0:
            raise ValueError(f"ignore_zeros leaves nothing of {name}: all its points are zero")
        return kept


class ChamferDistanceL2(_ChamferDistance):
    """Mean over X plus mean over Y of the squared nearest distances."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """Compare (B, n, 3) with (B, m, 3); returns a 0-d tensor, the means taken over the whole batch."""
        dist1, dist2 = self._distances(xyz1, xyz2)
        return dist1.mean() + dist2.mean()


class ChamferDistanceL2_split(_ChamferDistance):
    """The two means of `ChamferDistanceL2`, one by one."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor]:
        """Compare (B, n, 3) with (B, m, 3); returns two 0-d tensors, X to Y and Y to X."""
        dist1, dist2 = self._distances(xyz1, xyz2)
        return dist1.mean(), dist2.mean()


class ChamferDistanceL1(_ChamferDistance):
    """Half the sum of the mean nearest distances, not squared."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """Compare (B, n, 3) with (B, m, 3); returns a 0-d tensor."""
        dist1, dist2 = self._distances(xyz1, xyz2)
        return (_safe_sqrt(dist1).mean() + _safe_sqrt(dist2).mean()) / 2


def _safe_sqrt(squared: Tensor) -> Tensor:
    """Square root whose gradient at zero is zero, so that coincident points do not give NaN."""
    positive = squared > 0
    return torch.where(positive, squared, 1.0).sqrt() * positive
