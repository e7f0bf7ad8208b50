"""Point-NN (Zhang et al., CVPR 2023): an encoder of point clouds in which nothing is learned."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions.knn_cuda import KNN
from extensions.pointnet2_ops.pointnet2_utils import furthest_point_sample
from models.tokenizer import take

DEVIATION_FLOOR = 1e-5  # added to each standard deviation
BATCH_NORM = (1 + 1e-5) ** -0.5  # what the released BatchNorm, which is never trained, multiplies by
CHUNK = 1 << 15  # elements pooled at a time on a CPU: they fit a core's cache, and no operation waits for other cores
ACCELERATOR_CHUNK = 1 << 23  # elsewhere, where starting an operation is what takes time


@dataclass(frozen=True)
class Level:
    """A cloud as one stage leaves it.

    Attributes:
        points: (B, N, 3).
        features: (B, N, C).
    """

    points: Tensor
    features: Tensor


class Point_NN(nn.Module):
    """Encodes clouds by farthest point sampling, nearest neighbours, trigonometric functions and pooling.

    It has no parameters. Geometry and features are float32 (float64 for points of that type), also under autocast; no
    gradient flows.

    Args:
        stages: each halves the number of points and doubles that of the channels.
        dim: channels of a point before the first stage, a multiple of 6.
        k: neighbours of a centre, among the points of the stage before; itself is one of them.
        alpha: the frequencies of the trigonometric code fall from β to nearly β / α.
        beta: the highest frequency, in radians by unit of length.
        normalise: what shares the deviation that offsets are divided by: "cloud" makes a feature independent of the
            rest of its batch, "batch" is as released.
        neighbours: coarser points from which `encode_points` interpolates.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(
        self,
        stages: int = 4,
        dim: int = 72,
        k: int = 90,
        alpha: float = 1000,
        beta: float = 100,
        normalise: Literal["cloud", "batch"] = "cloud",
        neighbours: int = 6,
    ):
        super().__init__()
        if min(stages, k, neighbours) < 1:
            raise ValueError(f"stages, k and neighbours must be at least 1, got {stages}, {k} and {neighbours}")
        if dim < 6 or dim % 6:
            raise ValueError(f"dim must be a multiple of 6, a sine and a cosine for each of three axes, got {dim}")
        if not (alpha > 0 and beta > 0):
            raise ValueError(f"alpha and beta must be positive, got {alpha} and {beta}")
        if normalise not in ("cloud", "batch"):
            raise ValueError(f"normalise must be 'cloud' or 'batch', got {normalise!r}")
        self.stages, self.dim, self.k, self.neighbours = stages, dim, k, neighbours
        self.alpha, self.beta = alpha, beta
        self.normalise = normalise

    def forward(self, points: Tensor) -> Tensor:
        """As `encode`."""
        return self.encode(points)

    def encode(self, points: Tensor) -> Tensor:
        """Encode clouds.

        Args:
            points: (B, N, 3) coordinates, any unit; N a multiple of 2^stages.

        Returns:
            (B, dim · 2^stages): maximum plus mean over the last level.

        Raises:
            ValueError: if `points` has another shape, or too few points for `k`.
        """
        features = self.levels(points)[-1].features
        return features.amax(1) + features.mean(1)

    def encode_points(self, points: Tensor) -> Tensor:
        """Encode every point by the features of all levels around it.

        Args:
            points: as for `encode`.

        Returns:
            (B, N, dim · (2^(stages + 1) − 1)): the channels of level 0 first, those of the last level at the end.

        Raises:
            ValueError: as for `encode`, and if the last level has fewer points than `neighbours`.
        """
        self._check(points)
        if (left := points.shape[1] >> self.stages) < self.neighbours:
            raise ValueError(
                f"after {self.stages} stages {points.shape[1]} points leave {left}, fewer than the {self.neighbours} "
                "to interpolate from; lower stages or neighbours, or give more points"
            )
        *finer, level = self.levels(points)
        for above in reversed(finer):
            interpolated = interpolate(above.points, level, self.neighbours)
            level = Level(above.points, torch.cat([above.features, interpolated], dim=-1))
        return level.features

    def levels(self, points: Tensor) -> list[Level]:
        """Encode (B, N, 3) points level by level, fine to coarse: the points, then what each stage leaves."""
        self._check(points)
        points = points.detach().to(torch.promote_types(points.dtype, torch.float32))
        levels = [Level(points, torch.view_as_real(self.code(points, self.dim)).flatten(2))]
        picked = furthest_point_sample(points, points.shape[1] // 2)
        for _ in range(self.stages):
            levels.append(self._stage(levels[-1], picked))
            # What is picked from points in the order of such a pick is the first of them.
            picked = torch.arange(picked.shape[1] // 2, device=points.device).expand(len(points), -1)
        return levels

    def _check(self, points: Tensor) -> None:
        if points.ndim != 3 or points.shape[-1] != 3:
            raise ValueError(f"points must be (B, N, 3), got {tuple(points.shape)}")
        num_points = points.shape[1]
        if num_points < 1 or num_points % (1 << self.stages):
            raise ValueError(
                f"{num_points} points cannot be halved {self.stages} times; give a multiple of {1 << self.stages}, or "
                "lower stages"
            )
        if self.k > (searched := num_points >> (self.stages - 1)):
            raise ValueError(
                f"k = {self.k}, but the last of {self.stages} stages searches {searched} of {num_points} points; lower "
                "k or stages, or give more points"
            )

    def code(self, points: Tensor, dim: int, unit: Tensor | float = 1.0) -> Tensor:
        """Trigonometric code of (B, N, 3) points, axis by axis: sin θ + i cos θ, (B, N, dim / 2) complex.

        Args:
            points: coordinates.
            dim: sines and cosines together.
            unit: of length, (B, 1, 1) or (1, 1, 1).
        """
        steps = torch.arange(dim // 6, dtype=torch.float64, device=points.device)
        frequency = self.beta * self.alpha ** (-6 / dim * steps) / unit  # (dim / 6,) or (…, 1, dim / 6)
        angle = points.double().unsqueeze(-1) * frequency.unsqueeze(-2)  # of hundreds of radians: not in float32
        return torch.complex(angle.sin(), angle.cos()).flatten(2).to(points.dtype.to_complex())

    def _stage(self, level: Level, picked: Tensor) -> Level:
        """Pool the neighbourhoods of the centres.

        Args:
            level: N points with C channels.
            picked: (B, G) the centres among them.

        Returns:
            G points with 2C channels.
        """
        points, features = level.points, level.features
        centers = take(points, picked)
        _, nearest = KNN(self.k, transpose_mode=True)(points, centers)  # (B, G, k)
        first_row = points.shape[1] * torch.arange(len(points), device=points.device).view(-1, 1)
        center, neighbour = (picked + first_row).flatten(), (nearest + first_row.unsqueeze(-1)).flatten(0, 1)
        across = self.normalise == "batch"
        code = self.code(points, 2 * features.shape[-1], deviation(points.double(), center, neighbour, across))
        offsets = (features / deviation(features, center, neighbour, across)).to(features.dtype)
        pooled = pool(features.flatten(0, 1), offsets.flatten(0, 1), code.flatten(0, 1), center, neighbour)
        return Level(centers, F.gelu(pooled * BATCH_NORM).unflatten(0, picked.shape))


def deviation(x: Tensor, center: Tensor, neighbour: Tensor, across: bool) -> Tensor:
    """Standard deviation of the offsets of all neighbours from their centres, all channels together.

    Args:
        x: (B, N, C).
        center: (B·G,) rows of all clouds' x.
        neighbour: (B·G, k) likewise.
        across: whether the whole batch has one deviation.

    Returns:
        (B, 1, 1), or (1, 1, 1): the unbiased one, plus a little.
    """
    batch, num_neighbours = len(x), neighbour.shape[1]
    x = (x - x.mean(1, keepdim=True)).flatten(0, 1)  # offsets stay what they are, and squares are smaller
    sums = F.embedding_bag(neighbour, x, mode="sum").double()  # (B·G, C), over the neighbours
    x = x.double()
    own, squares = x[center], x.square().sum(-1)
    total = (sums - num_neighbours * own).sum(-1)
    total_of_squares = squares[neighbour].sum(-1) + (own * (num_neighbours * own - 2 * sums)).sum(-1)
    clouds = 1 if across else batch
    total, total_of_squares = (of.view(clouds, -1).sum(-1) for of in (total, total_of_squares))
    count = neighbour.numel() * x.shape[-1] // clouds
    variance = (total_of_squares - total.square() / count) / (count - 1)
    return (variance.clamp_min(0).sqrt() + DEVIATION_FLOOR).view(-1, 1, 1)


def pool(features: Tensor, offsets: Tensor, code: Tensor, center: Tensor, neighbour: Tensor) -> Tensor:
    """Expand, weigh and pool the neighbourhoods of the centres, one neighbour of many centres after the other.

    A neighbour's weight is the code of its offset. Its angle is a difference of two, so that code is a product of the
    codes of the two points, which are made once a point instead of once a neighbour.

    Args:
        features: (R, C), the points of all clouds.
        offsets: (R, C), the features of which neighbours give the difference from their centre.
        code: (R, C) complex.
        center: (M,) rows.
        neighbour: (M, k) rows.

    Returns:
        (M, 2C): maximum plus mean over the neighbours.
    """
    channels, k = features.shape[1], neighbour.shape[1]
    halves = code.unflatten(1, (2, -1)).transpose(0, 1).contiguous()  # (2, R, C / 2): for the offsets, for the centres
    pooled = features.new_empty(len(center), 2, channels)
    elements = CHUNK if features.device.type == "cpu" else ACCELERATOR_CHUNK
    chunks = (x.split(max(1, elements // (2 * channels))) for x in (center, neighbour, pooled))
    for own, nearest, out in zip(*chunks, strict=True):  # (m,), (m, k), (m, 2, C)
        turn = halves.index_select(1, own)
        turn = torch.complex(turn.imag, turn.real)  # e^{iθ} of the centres: sin + i cos times it has their angle less
        shift, base = offsets[own], features[own].repeat(2, 1, 1)  # (m, C), (2, m, C)
        weight, weighed = torch.empty_like(turn), torch.empty_like(base)
        highest, total = torch.full_like(base, -torch.inf), torch.zeros_like(base)
        for rows in nearest.t().contiguous():
            torch.index_select(halves, 1, rows, out=weight).mul_(turn)
            torch.index_select(offsets, 0, rows, out=base[0]).sub_(shift)
            weights = torch.view_as_real(weight).flatten(2)  # (2, m, C)
            torch.add(base, weights, out=weighed).mul_(weights)
            torch.maximum(highest, weighed, out=highest)
            total.add_(weighed)
        out.copy_(highest.add_(total.div_(k)).transpose(0, 1))
    return pooled.flatten(1)


def interpolate(points: Tensor, coarser: Level, neighbours: int) -> Tensor:
    """Features (B, N, C) at (B, N, 3) points: those of the nearest of a coarser level by inverse squared distance."""
    distance, index = KNN(neighbours, transpose_mode=True)(coarser.points, points)  # (B, N, neighbours)
    weight = 1 / (distance.square() + 1e-8)
    weight = weight / weight.sum(-1, keepdim=True)
    first_row = coarser.points.shape[1] * torch.arange(len(points), device=points.device).view(-1, 1, 1)
    rows, features = (index + first_row).flatten(0, 1), coarser.features.flatten(0, 1)
    summed = F.embedding_bag(rows, features, mode="sum", per_sample_weights=weight.flatten(0, 1))
    return summed.unflatten(0, points.shape[:2])
