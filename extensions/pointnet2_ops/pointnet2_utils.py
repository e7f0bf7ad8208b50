"""The operations and modules of the pointnet2_ops package, with its call signatures; indices are int64."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions.cuda_runtime import Kernels, blocks, contiguous_float32
from extensions.derivatives import beyond_backward, transformed
from extensions.pointnet2_ops import reference

KERNELS = Kernels(Path(__file__).with_name("kernels.cu"))
POINTS_PER_THREAD = 8  # OWN in kernels.cu
REGISTER_POINTS = 1024 * POINTS_PER_THREAD  # clouds up to this size are sampled within registers
QUERIES_PER_BLOCK = 128
INDEX_TYPES = (torch.int64, torch.int32, torch.int16)


def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    """Pick points one by one, each the farthest from those already picked.

    Args:
        xyz: (B, N, 3) coordinates, any unit.
        npoint: points to pick per cloud, at least 1; indices repeat once the candidates run out.

    Returns:
        (B, npoint) int64 indices into `xyz`, in the order picked, starting with 0. Ties go to the lowest index.
        As in PointNet++, a point with squared norm ≤ 1e-3 is padding and never picked after the start.

    Raises:
        ValueError: if `xyz` is not (B, N, 3) or `npoint` < 1.
    """
    _check_cloud(xyz, "xyz")
    if npoint < 1:
        raise ValueError(f"npoint must be at least 1, got {npoint}")
    return _furthest_point_sample(xyz.detach(), npoint)


def gather_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Take columns of `features` by index; differentiable in `features`.

    Args:
        features: (B, C, N).
        idx: (B, M) integer indices, 0 ≤ idx < N.

    Returns:
        (B, C, M).

    Raises:
        ValueError: if shapes, types or devices do not fit, or on a CPU an index is out of range; on a GPU that is a
            device-side assertion of PyTorch.
    """
    _check_index(features, idx, 2)
    return _columns(features, idx)


def grouping_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Take columns of `features` by groups of indices; differentiable in `features`.

    Args:
        features: (B, C, N).
        idx: (B, M, k) integer indices, 0 ≤ idx < N, such as those of `ball_query`.

    Returns:
        (B, C, M, k).

    Raises:
        ValueError: as for `gather_operation`.
    """
    _check_index(features, idx, 3)
    return _columns(features, idx.flatten(1)).unflatten(2, idx.shape[1:])


def _columns(features: Tensor, idx: Tensor) -> Tensor:
    return features.gather(2, idx.long().unsqueeze(1).expand(-1, features.shape[1], -1))


def ball_query(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    """Find points around each query, in the order of the cloud.

    Args:
        radius: of the ball, positive, in the unit of the points; a point is inside if it is strictly nearer.
        nsample: points per query, at least 1.
        xyz: (B, N, 3) points.
        new_xyz: (B, M, 3) queries.

    Returns:
        (B, M, nsample) int64 indices into `xyz`: the first `nsample` points inside. The first of them fills the slots
        that are left; all are 0 where no point is inside.

    Raises:
        ValueError: if a shape or device does not fit, or `radius` or `nsample` is not positive.
    """
    _check_clouds(xyz, new_xyz, "xyz", "new_xyz")
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    if nsample < 1:
        raise ValueError(f"nsample must be at least 1, got {nsample}")
    return _ball_query(radius, nsample, xyz.detach(), new_xyz.detach())


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Find the three nearest known points of each unknown point.

    Args:
        unknown: (B, N, 3) query points.
        known: (B, M, 3) reference points, M ≥ 3.

    Returns:
        Euclidean distances (B, N, 3), ascending, and int64 indices (B, N, 3) into `known`; ties go to the lowest index.
        No gradient flows.

    Raises:
        ValueError: if a shape or device does not fit or `known` has fewer than three points.
    """
    _check_clouds(unknown, known, "unknown", "known")
    if known.shape[1] < 3:
        raise ValueError(f"known must have at least 3 points, got {known.shape[1]}")
    return _three_nn(unknown.detach(), known.detach())


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum of three features per point; differentiable in `features` and `weight`.

    Args:
        features: (B, C, M) features of the known points.
        idx: (B, N, 3) integer indices, 0 ≤ idx < M.
        weight: (B, N, 3) weights.

    Returns:
        (B, C, N), of the type of `features`.

    Raises:
        ValueError: as for `gather_operation`, and if the weights do not fit.
    """
    if idx.shape != weight.shape or features.dim() != 3 or idx.shape[::2] != (features.shape[0], 3):
        raise ValueError(
            "features, idx and weight must be (B, C, M), (B, N, 3) and (B, N, 3), got "
            f"{tuple(features.shape)}, {tuple(idx.shape)} and {tuple(weight.shape)}"
        )
    if weight.device != features.device:
        raise ValueError(f"features and weight must be on one device, got {features.device} and {weight.device}")
    _check_index(features, idx, 3)
    batch, channels, num_known = features.shape
    dtype = torch.promote_types(features.dtype, weight.dtype)
    rows = features.transpose(1, 2).reshape(batch * num_known, channels).to(dtype)
    # Looked up rather than added to the index: one that is out of range does not pass, on a GPU neither.
    row_of = torch.arange(batch * num_known, device=idx.device).view(batch, num_known)
    row = row_of.gather(1, idx.long().flatten(1)).view(-1, 3)
    summed = _sum_of_rows(rows, row, weight.to(dtype).reshape(-1, 3))  # (B·N, C)
    return summed.view(*idx.shape[:2], channels).transpose(1, 2).to(features.dtype)


def _sum_of_rows(rows: Tensor, row: Tensor, weight: Tensor) -> Tensor:
    """`reference.sum_of_rows` without anything of its size times three; the backward pass adds in a fixed order."""
    if beyond_backward(rows, weight):
        return reference.sum_of_rows(rows, row, weight)
    summed = F.embedding_bag(row, rows, mode="sum", per_sample_weights=weight)
    if torch.compiler.is_compiling():  # PyTorch refuses a second backward pass through what it compiled
        return summed
    return _TwiceDifferentiable.apply(summed, rows, row, weight)


class _TwiceDifferentiable(torch.autograd.Function):
    """Leaves the backward pass to embedding_bag, unless it is to be differentiated: embedding_bag's cannot be."""

    @staticmethod
    def forward(ctx: Any, summed: Tensor, rows: Tensor, row: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, row, weight)
        return summed.view_as(summed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return grad, None, None, None
        grad_rows, grad_weight = reference.sum_of_rows_backward(grad, *ctx.saved_tensors)
        return None, grad_rows, None, grad_weight


class QueryAndGroup(nn.Module):
    """Groups of the points around each centre, by `ball_query`; differentiable in coordinates and features.

    Args:
        radius: of the ball, positive, in the unit of the points.
        nsample: points of a group, at least 1.
        use_xyz: put the coordinates, relative to the centre, before the features.
        ret_grouped_xyz: return these coordinates a second time, alone.
    """

    def __init__(self, radius: float, nsample: int, use_xyz: bool = True, ret_grouped_xyz: bool = False):
        super().__init__()
        self.radius = radius
        self.nsample = nsample
        self.use_xyz = use_xyz
        self.ret_grouped_xyz = ret_grouped_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor, features: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Group a cloud.

        Args:
            xyz: (B, N, 3) points.
            new_xyz: (B, npoint, 3) centres.
            features: (B, C, N) of the points, or None.

        Returns:
            (B, 3 + C, npoint, nsample), without the 3 unless `use_xyz`; with `ret_grouped_xyz` also (B, 3, npoint,
            nsample). A centre with no point inside its ball gets the first point of the cloud.

        Raises:
            ValueError: if shapes or devices do not fit, or there is nothing to return.
        """
        index = ball_query(self.radius, self.nsample, xyz, new_xyz)
        _check_features(xyz, features)
        grouped_xyz = grouping_operation(xyz.transpose(1, 2), index) - new_xyz.transpose(1, 2).unsqueeze(-1)
        grouped = None if features is None else grouping_operation(features, index)
        joined = _join(grouped_xyz, grouped, self.use_xyz)
        return (joined, grouped_xyz) if self.ret_grouped_xyz else joined


class GroupAll(nn.Module):
    """The whole cloud as one group, its coordinates as they are.

    Args:
        use_xyz: put the coordinates before the features.
        ret_grouped_xyz: return the coordinates a second time, alone.
    """

    def __init__(self, use_xyz: bool = True, ret_grouped_xyz: bool = False):
        super().__init__()
        self.use_xyz = use_xyz
        self.ret_grouped_xyz = ret_grouped_xyz

    def forward(
        self, xyz: Tensor, new_xyz: Tensor | None, features: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Group a cloud.

        Args:
            xyz: (B, N, 3) points.
            new_xyz: not used, in the place that `QueryAndGroup` has for the centres.
            features: (B, C, N) of the points, or None.

        Returns:
            (B, 3 + C, 1, N), without the 3 unless `use_xyz`; with `ret_grouped_xyz` also (B, 3, 1, N).

        Raises:
            ValueError: if the shapes do not fit, or there is nothing to return.
        """
        _check_cloud(xyz, "xyz")
        _check_features(xyz, features)
        grouped_xyz = xyz.transpose(1, 2).unsqueeze(2)
        joined = _join(grouped_xyz, None if features is None else features.unsqueeze(2), self.use_xyz)
        return (joined, grouped_xyz) if self.ret_grouped_xyz else joined


def _join(grouped_xyz: Tensor, grouped: Tensor | None, use_xyz: bool) -> Tensor:
    if grouped is None:
        if not use_xyz:
            raise ValueError("without features there is nothing to group: pass features, or use_xyz=True")
        return grouped_xyz
    return torch.cat([grouped_xyz, grouped], 1) if use_xyz else grouped


@torch.library.custom_op("i2p_mae::furthest_point_sample", mutates_args=())
def _furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    if not _use_kernels(xyz):
        return reference.furthest_point_sample(xyz, npoint)
    (xyz,) = contiguous_float32(xyz)
    batch, num_points, _ = xyz.shape
    picked = xyz.new_empty(batch, npoint, dtype=torch.int64)
    if num_points <= REGISTER_POINTS:
        threads = 32 * blocks(num_points, 32 * POINTS_PER_THREAD)
        KERNELS.launch("furthest_point_sample_registers", batch, threads, xyz, picked, num_points, npoint)
    else:
        distances = xyz.new_empty(batch, num_points)
        KERNELS.launch("furthest_point_sample_global", batch, 1024, xyz, distances, picked, num_points, npoint)
    return picked


@_furthest_point_sample.register_fake
def _(xyz: Tensor, npoint: int) -> Tensor:
    return xyz.new_empty(xyz.shape[0], npoint, dtype=torch.int64)


@torch.library.custom_op("i2p_mae::ball_query", mutates_args=())
def _ball_query(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    if not _use_kernels(xyz, new_xyz):
        return reference.ball_query(radius, nsample, xyz, new_xyz)
    xyz, new_xyz = contiguous_float32(xyz, new_xyz)
    (batch, num_points, _), num_queries = xyz.shape, new_xyz.shape[1]
    index = xyz.new_empty(batch, num_queries, nsample, dtype=torch.int64)
    grid = (batch, blocks(num_queries, QUERIES_PER_BLOCK))
    arguments = (xyz, new_xyz, index, num_points, num_queries, nsample, radius * radius)
    KERNELS.launch("ball_query", grid, QUERIES_PER_BLOCK, *arguments)
    return index


@_ball_query.register_fake
def _(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    return xyz.new_empty(*new_xyz.shape[:2], nsample, dtype=torch.int64)


@torch.library.custom_op("i2p_mae::three_nn", mutates_args=())
def _three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    if not _use_kernels(unknown, known):
        return reference.three_nn(unknown, known)
    unknown, known = contiguous_float32(unknown, known)
    batch, num_unknown, _ = unknown.shape
    distance = torch.empty_like(unknown)
    index = torch.empty_like(unknown, dtype=torch.int64)
    grid = (batch, blocks(num_unknown, QUERIES_PER_BLOCK))
    arguments = (unknown, known, distance, index, num_unknown, known.shape[1])
    KERNELS.launch("three_nn", grid, QUERIES_PER_BLOCK, *arguments)
    return distance, index


@_three_nn.register_fake
def _(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(unknown.dtype, known.dtype), torch.float32)
    distance = unknown.new_empty(unknown.shape, dtype=dtype)
    return distance, torch.empty_like(distance, dtype=torch.int64)


def _use_kernels(*points: Tensor) -> bool:
    """Kernels measure in float32, and a grid has at least one block."""
    fit = all(tensor.dtype != torch.float64 and tensor.numel() > 0 for tensor in points)
    return fit and KERNELS.ready(points[0])


def _check_index(features: Tensor, idx: Tensor, dimensions: int) -> None:
    """Refuse an index of other dimensions, type, batch or device than it must have or, on a CPU, out of range.

    On a GPU, values are not looked at here, as that would wait for it.
    """
    if features.dim() != 3 or idx.dim() != dimensions or features.shape[0] != idx.shape[0]:
        expected = "(B, M)" if dimensions == 2 else "(B, M, k)"
        raise ValueError(
            f"features and idx must be (B, C, N) and {expected}, got {tuple(features.shape)} and {tuple(idx.shape)}"
        )
    if idx.dtype not in INDEX_TYPES:
        raise ValueError(f"idx must be int64, int32 or int16, got {idx.dtype}")
    if idx.device != features.device:
        raise ValueError(f"features and idx must be on one device, got {features.device} and {idx.device}")
    values_are_at_hand = idx.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed()
    if values_are_at_hand and idx.numel() > 0:
        lowest, highest = (bound.item() for bound in idx.aminmax())
        if lowest < 0 or highest >= features.shape[2]:
            raise ValueError(
                f"idx must lie in 0 … {features.shape[2] - 1}, as features has {features.shape[2]} columns, "
                f"got values from {lowest} to {highest}"
            )


def _check_cloud(points: Tensor, name: str) -> None:
    if points.dim() != 3 or points.shape[-1] != 3 or points.shape[1] < 1:
        raise ValueError(f"{name} must be (B, N, 3) with at least one point, got {tuple(points.shape)}")


def _check_features(xyz: Tensor, features: Tensor | None) -> None:
    if features is not None and (features.dim() != 3 or features.shape[::2] != xyz.shape[:2]):
        raise ValueError(
            f"xyz and features must be (B, N, 3) and (B, C, N), got {tuple(xyz.shape)} and {tuple(features.shape)}"
        )


def _check_clouds(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    _check_cloud(first, first_name)
    _check_cloud(second, second_name)
    if first.shape[0] != second.shape[0] or first.device != second.device:
        raise ValueError(
            f"{first_name} and {second_name} must have the same batch size and device, got "
            f"{first.shape[0]} on {first.device} and {second.shape[0]} on {second.device}"
        )
