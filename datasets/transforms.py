"""Normalisation and augmentation of point clouds, in batches and on any device. No function changes its input."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def normalize_unit_sphere(points: Tensor) -> Tensor:
    """Move each cloud's mean to the origin and scale its farthest point to norm 1.

    Args:
        points: (..., N, 3) coordinates, any unit.

    Returns:
        (..., N, 3). A cloud whose points are all equal becomes all zeros.
    """
    exponent = torch.frexp(points.abs().amax(dim=(-2, -1), keepdim=True)).exponent.clamp_min(-126)
    points = torch.ldexp(points, -exponent)  # exact, and no square of what follows leaves the range of float32
    shifted = points - points[..., :1, :]  # equal points become exact zeros before a mean can round
    centred = shifted - shifted.mean(dim=-2, keepdim=True)
    radius = centred.norm(dim=-1, keepdim=True).amax(dim=-2, keepdim=True)  # (..., 1, 1)
    return centred / radius.clamp_min(torch.finfo(points.dtype).tiny)


def scale_and_translate(
    points: Tensor,
    generator: torch.Generator | None,
    scale: tuple[float, float] = (2 / 3, 3 / 2),
    shift: float = 0.2,
    axes: int = 3,
) -> Tensor:
    """Scale, then shift, each cloud and axis by its own uniform draws.

    Args:
        points: (B, N, 3) coordinates.
        generator: source of the draws; None takes PyTorch's global one.
        scale: range of the factors.
        shift: the offsets lie in ±shift, in the unit of `points`.
        axes: 3 = a factor for each axis, 1 = one factor for all axes of a cloud.

    Returns:
        (B, N, 3).
    """
    factors = _uniform(points, *scale, generator, axes)
    return points * factors + _uniform(points, -shift, shift, generator)


def scale_and_rotate(
    points: Tensor, generator: torch.Generator | None, scale: tuple[float, float] = (0.9, 1.1)
) -> Tensor:
    """Scale each cloud and axis by its own uniform draw, then turn the whole batch by one random angle about y.

    Args:
        points: (B, N, 3) coordinates.
        generator: source of the draws; None takes PyTorch's global one.
        scale: range of the factors.

    Returns:
        (B, N, 3).
    """
    scaled = points * _uniform(points, *scale, generator)
    return _turned(scaled, 2 * math.pi * _rand((), points, generator))


def rotate(points: Tensor, generator: torch.Generator | None) -> Tensor:
    """Turn each cloud by an angle of its own, uniform over the circle, about y.

    Args:
        points: (B, N, 3) coordinates.
        generator: source of the draws; None takes PyTorch's global one.

    Returns:
        (B, N, 3).
    """
    return _turned(points, _uniform(points, 0.0, 2 * math.pi, generator, axes=1).squeeze(-1))


def random_subset(points: Tensor, num_points: int, generator: torch.Generator | None, shared: bool = False) -> Tensor:
    """Take `num_points` different points of each cloud at random.

    Args:
        points: (B, N, C), coordinates first.
        num_points: from 1 to N.
        generator: source of the draws; None takes PyTorch's global one.
        shared: draw one set of positions for the whole batch instead of one for each cloud.

    Returns:
        (B, num_points, C), in random order.

    Raises:
        ValueError: if `num_points` is not between 1 and N.
    """
    batch, available, channels = points.shape
    if not 1 <= num_points <= available:
        raise ValueError(f"cannot take {num_points} different points of clouds with {available} points; lower npoints")
    draws = _rand((1 if shared else batch, available), points, generator)
    order = draws.topk(num_points, dim=1, largest=False).indices
    return points.gather(1, order.unsqueeze(-1).expand(batch, -1, channels))


def scale_and_translate_small(points: Tensor, generator: torch.Generator | None) -> Tensor:
    """`scale_and_translate` as in part segmentation: one factor U(0.8, 1.25) a cloud, an offset within ±0.1 an axis."""
    return scale_and_translate(points, generator, scale=(0.8, 1.25), shift=0.1, axes=1)


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    "scale_and_translate": scale_and_translate,
    "scale_and_rotate": scale_and_rotate,
    "scale_and_translate_small": scale_and_translate_small,
    "rotate": rotate,
    "none": lambda points, generator: points,
}


def _turned(points: Tensor, angle: Tensor) -> Tensor:
    """Turn (B, N, 3) points about y by one angle, or by (B, 1) angles; a quarter turn takes z to x and x to −z."""
    cos, sin = angle.cos(), angle.sin()
    x, y, z = points.unbind(dim=-1)
    return torch.stack([cos * x + sin * z, y, cos * z - sin * x], dim=-1)


def _rand(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from U(0, 1) on the generator's device, in the dtype and on the device of `like`."""
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def _uniform(points: Tensor, low: float, high: float, generator: torch.Generator | None, axes: int = 3) -> Tensor:
    """Draw (B, 1, axes) values from U(low, high), one per cloud and axis."""
    if points.ndim != 3 or points.shape[-1] != 3:
        raise ValueError(f"points have shape {tuple(points.shape)}; expected (B, N, 3)")
    return low + (high - low) * _rand((points.shape[0], 1, axes), points, generator)
