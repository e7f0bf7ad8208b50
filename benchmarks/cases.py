"""What is timed: each op at a size, beside what one would use instead of it where that is installed."""

import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from extensions.chamfer_dist import ChamferDistanceL2
from extensions.emd import earth_mover_distance
from extensions.knn_cuda import KNN
from extensions.pointnet2_ops.pointnet2_utils import ball_query, furthest_point_sample, three_nn

DISTANCE_FLOP = 8  # three differences, three products, two sums
NEIGHBOURS, RADIUS, BALL = 16, 0.2, 32
BUCKETS = "fpsample buckets"  # the farthest each time, but version 1.0.2 may start elsewhere than asked
MATRIX_LIMIT = 1 << 28  # entries of a distance matrix held at once: 1 GiB
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One op at one size.

    Args:
        work: the shapes in words.
        clouds: how many there are; 1 where their number is the size.
        flop: of the distances alone, so that rates are lower bounds.
        traffic: bytes of the inputs and outputs, each moved once.
        ours: runs the op; returns indices or the loss, after the backward pass if there is one.
        others: the same by other means.
    """

    work: str
    clouds: int
    flop: int
    traffic: int
    ours: Call
    others: dict[str, Call] = field(default_factory=dict)


def points(clouds: int, n: int, device: torch.device, seed: int = 0) -> Tensor:
    """Random clouds (clouds, n, 3) in the unit sphere; none near the origin, where FPS takes points for padding."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(clouds, n, 3, generator=generator), dim=-1)
    return (directions * (0.5 + 0.5 * torch.rand(clouds, n, 1, generator=generator))).to(device)


@functools.cache
def optional(name: str) -> ModuleType | None:
    """A module that may not be installed; says so once."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out: {error}")
        return None


def fps(n: int, clouds: int, device: torch.device) -> Case:
    """Farthest point sampling of a quarter of the points, 512 at most."""
    xyz, picks = points(clouds, n, device), min(n // 4, 512)
    others: dict[str, Call] = {}
    if device.type == "cpu" and (fpsample := optional("fpsample")):
        others["fpsample"] = lambda: stack(fpsample.fps_sampling(cloud, picks, start_idx=0) for cloud in xyz.numpy())
        others[BUCKETS] = lambda: stack(
            fpsample.bucket_fps_kdline_sampling(cloud, picks, h=3, start_idx=0) for cloud in xyz.numpy()
        )
    if torch_cluster := optional("torch_cluster"):
        flat, cloud_of = xyz.flatten(0, 1), torch.arange(clouds, device=device).repeat_interleave(n)
        others["torch_cluster"] = lambda: (
            torch_cluster.fps(flat, cloud_of, ratio=picks / n, random_start=False).view(clouds, picks) % n
        )
    return Case(
        work=f"{clouds} × {n} → {picks}",
        clouds=clouds,
        flop=DISTANCE_FLOP * clouds * n * picks,
        traffic=clouds * (12 * n + 8 * picks),
        ours=lambda: furthest_point_sample(xyz, picks),
        others=others,
    )


def knn(n: int, clouds: int, device: torch.device) -> Case:
    """The 16 nearest neighbours of a quarter of the points, 512 at most."""
    ref, query = points(clouds, n, device), points(clouds, min(n // 4, 512), device, seed=1)
    search = KNN(NEIGHBOURS, transpose_mode=True)
    return nearest_neighbours(ref, query, NEIGHBOURS, lambda: search(ref, query)[1])


def three_nearest(n: int, clouds: int, device: torch.device) -> Case:
    """The three nearest of a quarter of the points, 512 at most, to each point."""
    known, unknown = points(clouds, min(n // 4, 512), device), points(clouds, n, device, seed=1)
    return nearest_neighbours(known, unknown, 3, lambda: three_nn(unknown, known)[1])


def nearest_neighbours(ref: Tensor, query: Tensor, k: int, ours: Call) -> Case:
    """A case whose result is the indices (B, M, k) of nearest neighbours."""
    (clouds, n, _), m = ref.shape, query.shape[1]
    others: dict[str, Call] = {}
    if ref.device.type == "cpu" and (spatial := optional("scipy.spatial")):
        others["scipy cKDTree"] = lambda: stack(
            spatial.cKDTree(cloud).query(q, k, workers=torch.get_num_threads())[1]
            for cloud, q in zip(ref.numpy(), query.numpy(), strict=True)
        )
    if ref.device.type == "cpu" and (neighbors := optional("sklearn.neighbors")):
        others["scikit-learn"] = lambda: stack(
            neighbors.NearestNeighbors(n_neighbors=k).fit(cloud).kneighbors(q, return_distance=False)
            for cloud, q in zip(ref.numpy(), query.numpy(), strict=True)
        )
    if torch_cluster := optional("torch_cluster"):
        cloud_of = torch.arange(clouds, device=ref.device)
        of_ref, of_query = cloud_of.repeat_interleave(n), cloud_of.repeat_interleave(m)
        others["torch_cluster"] = lambda: (
            torch_cluster.knn(ref.flatten(0, 1), query.flatten(0, 1), k, of_ref, of_query)[1].view(clouds, m, k) % n
        )
    return Case(
        work=f"{clouds} × ({m} among {n}), k {k}",
        clouds=clouds,
        flop=DISTANCE_FLOP * clouds * n * m,
        traffic=clouds * (12 * (n + m) + 12 * m * k),
        ours=ours,
        others=others,
    )


def balls(n: int, clouds: int, device: torch.device) -> Case:
    """Up to 32 points within a radius of a quarter of the points, 512 at most."""
    xyz, centres = points(clouds, n, device), points(clouds, min(n // 4, 512), device, seed=1)
    others: dict[str, Call] = {}

    def padded(found: list[int]) -> list[int]:
        return (found + found[:1] * BALL if found else [0] * BALL)[:BALL]

    if device.type == "cpu" and (spatial := optional("scipy.spatial")):
        others["scipy cKDTree"] = lambda: stack(
            np.array(
                [padded(found) for found in spatial.cKDTree(cloud).query_ball_point(c, RADIUS, return_sorted=True)]
            )
            for cloud, c in zip(xyz.numpy(), centres.numpy(), strict=True)
        )
    return Case(
        work=f"{clouds} × ({centres.shape[1]} among {n}), radius {RADIUS}, {BALL} at most",
        clouds=clouds,
        flop=DISTANCE_FLOP * clouds * n * centres.shape[1],
        traffic=clouds * (12 * (n + centres.shape[1]) + 8 * BALL * centres.shape[1]),
        ours=lambda: ball_query(RADIUS, BALL, xyz, centres),
        others=others,
    )


def chamfer_tiny(n: int, clouds: int, device: torch.device) -> Case:
    """Chamfer distance of n pairs of 8 points, forward and backward: the loss of pre-training."""
    return replace(chamfer(8, n, device), clouds=1)


def chamfer(n: int, clouds: int, device: torch.device) -> Case:
    """Chamfer distance, forward and backward."""
    x, y = (points(clouds, n, device, seed).requires_grad_() for seed in (0, 1))
    distance = ChamferDistanceL2()
    others: dict[str, Call] = {}

    def by_matrix() -> Tensor:
        matrix = torch.cdist(x, y).square()
        return backward(matrix.amin(2).mean() + matrix.amin(1).mean(), x, y)

    def by_trees(spatial: ModuleType) -> Tensor:
        a, b = x.detach().numpy(), y.detach().numpy()
        to_y = stack(spatial.cKDTree(q).query(p)[1] for p, q in zip(a, b, strict=True))
        to_x = stack(spatial.cKDTree(p).query(q)[1] for p, q in zip(a, b, strict=True))
        return backward(pairs(x, y, to_y) + pairs(y, x, to_x), x, y)

    if clouds * n * n <= MATRIX_LIMIT:
        others["torch.cdist"] = by_matrix
    if device.type == "cpu" and (spatial := optional("scipy.spatial")):
        others["scipy cKDTree"] = lambda: by_trees(spatial)
    return Case(
        work=f"{clouds} × ({n}, {n}), forward and backward",
        clouds=clouds,
        flop=DISTANCE_FLOP * 2 * clouds * n * n,
        traffic=clouds * 2 * n * (2 * 12 + 2 * 12),  # points twice, a distance with its index, a gradient
        ours=lambda: backward(distance(x, y), x, y),
        others=others,
    )


def emd(n: int, clouds: int, device: torch.device) -> Case:
    """Approximate earth mover's distance, forward and backward."""
    x, y = (points(clouds, n, device, seed).requires_grad_() for seed in (0, 1))
    distance = earth_mover_distance()
    others: dict[str, Call] = {}

    def by_assignment(optimize: ModuleType) -> Tensor:
        costs = torch.cdist(x.detach(), y.detach()).square().numpy()
        chosen = stack(optimize.linear_sum_assignment(cost)[1] for cost in costs)
        return backward(pairs(x, y, chosen), x, y)

    if device.type == "cpu" and clouds * n * n <= MATRIX_LIMIT and (optimize := optional("scipy.optimize")):
        others["scipy assignment"] = lambda: by_assignment(optimize)
    return Case(
        work=f"{clouds} × ({n}, {n}), forward and backward",
        clouds=clouds,
        flop=DISTANCE_FLOP * 23 * clouds * n * n,  # two passes in each of ten rounds, one more, two for the gradients
        traffic=clouds * 2 * n * (2 * 12 + 12),
        ours=lambda: backward(distance(x, y), x, y),
        others=others,
    )


def pairs(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """Mean squared distance of points of `x` to those of `y` that `index` (B, N) names."""
    return (x - y.gather(1, index.unsqueeze(-1).expand(-1, -1, 3))).square().sum(-1).mean()


def backward(loss: Tensor, *inputs: Tensor) -> Tensor:
    """Run the backward pass; returns the loss."""
    torch.autograd.grad(loss, inputs)
    return loss.detach()


def stack(indices: Iterable[np.ndarray]) -> Tensor:
    """Indices of several clouds as one int64 tensor."""
    return torch.from_numpy(np.stack(list(indices)).astype(np.int64))


SIZES = (256, 1024, 2048, 4096, 16384, 65536)
# Name → how to make a case of a size, and the points of all its clouds together: 64 clouds of 2,048, for example.
CASES: dict[str, tuple[Callable[[int, int, torch.device], Case], int]] = {
    "farthest point sampling": (fps, 1 << 17),
    "kNN": (knn, 1 << 17),
    "three_nn": (three_nearest, 1 << 17),
    "ball_query": (balls, 1 << 17),
    "Chamfer, many tiny clouds": (chamfer_tiny, 1 << 16),
    "Chamfer": (chamfer, 1 << 16),
    "earth mover's distance": (emd, 1 << 16),
}
