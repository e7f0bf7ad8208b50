"""Point-NN in its literal formulation, as released: the baseline of `bench_point_nn`.

Whole tensors, channels first: each neighbour of each centre has all its channels and its own trigonometric code;
distances are the full matrix of the expanded formula. Farthest point sampling is ours, at every stage anew.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from extensions.pointnet2_ops.pointnet2_utils import furthest_point_sample
from models.point_nn import Point_NN


@torch.no_grad()
def encode(model: Point_NN, points: Tensor) -> Tensor:
    """Features (B, C) of (B, N, 3) points under the settings of a model, as `Point_NN.encode`."""
    features = code(model, points.transpose(1, 2), model.dim)  # (B, C, N)
    for _ in range(model.stages):
        points, features = stage(model, points, features)
    return features.max(-1).values + features.mean(-1)


def stage(model: Point_NN, points: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the neighbourhoods of half of the (B, N, 3) points with (B, C, N) features: (B, N/2, 3), (B, 2C, N/2)."""
    picked = furthest_point_sample(points, points.shape[1] // 2)
    centers, own = rows_of(points, picked), rows_of(features.transpose(1, 2), picked)  # (B, G, 3), (B, G, C)
    nearest = squared_distances(centers, points).topk(model.k, largest=False, sorted=False).indices  # (B, G, k)
    offsets = rows_of(points, nearest) - centers.unsqueeze(2)
    members = rows_of(features.transpose(1, 2), nearest) - own.unsqueeze(2)  # (B, G, k, C)
    members = members / (standard_deviation(model, members) + 1e-5)
    offsets = offsets / (standard_deviation(model, offsets) + 1e-5)
    members = torch.cat([members, own.unsqueeze(2).expand_as(members)], dim=-1).permute(0, 3, 1, 2)  # (B, 2C, G, k)
    weight = code(model, offsets.permute(0, 3, 1, 2), members.shape[1])
    members = (members + weight) * weight
    pooled = members.max(-1).values + members.mean(-1)
    return centers, F.gelu(pooled / math.sqrt(1 + 1e-5))


def code(model: Point_NN, points: Tensor, dim: int) -> Tensor:
    """Trigonometric code of points with the axes second, (B, 3, …) to (B, dim, …)."""
    steps = torch.arange(dim // 6, device=points.device, dtype=points.dtype)
    angle = model.beta * points.unsqueeze(-1) / torch.pow(model.alpha, steps / (dim // 6))  # (B, 3, …, dim / 6)
    both = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)  # (B, 3, …, dim / 3)
    return both.movedim(-1, 2).flatten(1, 2)


def squared_distances(centers: Tensor, points: Tensor) -> Tensor:
    """Squared distances (B, G, N) as a² − 2ab + b²."""
    product = centers @ points.transpose(1, 2)
    return centers.square().sum(-1).unsqueeze(2) - 2 * product + points.square().sum(-1).unsqueeze(1)


def standard_deviation(model: Point_NN, offsets: Tensor) -> Tensor:
    """Of all entries of (B, G, k, C) offsets, or of each cloud's, as the model says."""
    return offsets.std() if model.normalise == "batch" else offsets.std(dim=(1, 2, 3), keepdim=True)


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Take rows of each cloud: (B, N, C) at (B, …) to (B, …, C)."""
    cloud = torch.arange(len(x), device=x.device).view(-1, *[1] * (index.ndim - 1))
    return x[cloud, index]
