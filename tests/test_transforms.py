"""Normalisation and augmentation: properties on random clouds, and degenerate clouds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datasets.transforms import (
    AUGMENTATIONS,
    normalize_unit_sphere,
    random_subset,
    rotate,
    scale_and_rotate,
    scale_and_translate,
)

SEEDS = st.integers(0, 2**32 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clouds(seed: int, batch: int = 4, num_points: int = 16) -> Tensor:
    """Random clouds well away from the origin and from zero size: (batch, num_points, 3)."""
    return torch.randn(batch, num_points, 3, generator=generator(seed)) * 5 + 3


ALL = {
    "normalize": lambda points, seed: normalize_unit_sphere(points),
    "subset": lambda points, seed: random_subset(points, 7, generator(seed)),
    "shared subset": lambda points, seed: random_subset(points, 7, generator(seed), shared=True),
} | {name: lambda points, seed, f=f: f(points, generator(seed)) for name, f in AUGMENTATIONS.items()}
RANDOM = [name for name in AUGMENTATIONS if name != "none"]


@pytest.mark.parametrize("name", ALL)
def test_input_is_unchanged(name):
    points = clouds(0)
    before = points.clone()
    ALL[name](points, 1)
    assert torch.equal(points, before)


@pytest.mark.parametrize("name", ALL)
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_same_seed_same_result_and_other_seed_another(name, seed):
    points = clouds(3)
    assert torch.equal(ALL[name](points, seed), ALL[name](points, seed))
    if name in RANDOM or "subset" in name:
        assert not torch.equal(ALL[name](points, seed), ALL[name](points, seed ^ 1))


@pytest.mark.parametrize("name", ALL)
def test_dtype_is_kept(name):
    assert ALL[name](clouds(0).double(), 0).dtype == torch.float64


@given(seed=SEEDS, num_points=st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_normalize_centres_and_reaches_the_unit_sphere(seed, num_points):
    normalized = normalize_unit_sphere(clouds(seed, num_points=num_points))
    torch.testing.assert_close(normalized.mean(dim=1), torch.zeros(4, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.norm(dim=-1).amax(dim=1), torch.ones(4))


@given(seed=SEEDS, factor=st.floats(0.01, 100), offset=st.floats(-10, 10))
@settings(max_examples=30, deadline=None)
def test_normalize_forgets_scale_and_position(seed, factor, offset):
    points = clouds(seed).double()
    torch.testing.assert_close(normalize_unit_sphere(points * factor + offset), normalize_unit_sphere(points))


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_normalize_of_one_cloud_equals_its_row_of_a_batch(seed):
    points = clouds(seed)
    torch.testing.assert_close(normalize_unit_sphere(points[1]), normalize_unit_sphere(points)[1])


@given(value=st.floats(-1e3, 1e3, width=32), num_points=st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_normalize_turns_equal_points_into_zeros(value, num_points):
    assert torch.equal(normalize_unit_sphere(torch.full((2, num_points, 3), value)), torch.zeros(2, num_points, 3))


def affine(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Recover factor and offset per cloud and axis from the two extreme points of an axis: (B, 3) each."""
    low, high = before.argmin(dim=1, keepdim=True), before.argmax(dim=1, keepdim=True)
    factor = (after.gather(1, high) - after.gather(1, low)) / (before.gather(1, high) - before.gather(1, low))
    offset = after.gather(1, low) - factor * before.gather(1, low)
    return factor.squeeze(1), offset.squeeze(1)


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_scale_and_shift_stay_in_range_and_explain_every_point(seed):
    points = clouds(seed).double()
    moved = scale_and_translate(points, generator(seed), scale=(0.5, 2.0), shift=0.3)
    factor, offset = affine(points, moved)
    assert factor.min() >= 0.5
    assert factor.max() <= 2.0
    assert offset.abs().max() <= 0.3 + 1e-9
    torch.testing.assert_close(moved, points * factor.unsqueeze(1) + offset.unsqueeze(1))


def test_scale_and_shift_are_drawn_per_cloud_and_axis_over_the_whole_range():
    points = clouds(0, batch=2000).double()
    factor, offset = affine(points, scale_and_translate(points, generator(0)))
    assert len(factor.unique()) == factor.numel()
    assert len(offset.unique()) == offset.numel()
    for axis in range(3):
        assert 2 / 3 <= factor[:, axis].min() < 0.68
        assert 1.48 < factor[:, axis].max() <= 1.5
        assert -0.2 - 1e-9 <= offset[:, axis].min() < -0.19
        assert 0.19 < offset[:, axis].max() <= 0.2 + 1e-9
    torch.testing.assert_close(factor.mean(dim=0), torch.full((3,), (2 / 3 + 3 / 2) / 2).double(), atol=0.02, rtol=0)


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_rotation_about_y_keeps_y_norms_and_handedness(seed):
    points = clouds(seed).double()
    turned = scale_and_rotate(points, generator(seed), scale=(1.0, 1.0))
    torch.testing.assert_close(turned[..., 1], points[..., 1])
    torch.testing.assert_close(turned.norm(dim=-1), points.norm(dim=-1))
    torch.testing.assert_close(torch.linalg.det(turned[:, :3]), torch.linalg.det(points[:, :3]))


def test_the_whole_batch_turns_by_one_angle_and_batches_by_any():
    east = torch.tensor([1.0, 0.0, 0.0]).expand(3, 1, 3)
    draws = torch.stack([scale_and_rotate(east, generator(seed), scale=(1.0, 1.0)) for seed in range(2000)])
    assert torch.equal(draws[:, 0], draws[:, 1])
    assert torch.equal(draws[:, 0], draws[:, 2])
    angles = torch.atan2(draws[:, 0, 0, 2], draws[:, 0, 0, 0])
    assert torch.histc(angles, bins=4, min=-math.pi, max=math.pi).min() > 420  # of 500, five standard deviations


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_rotate_turns_about_y_and_does_no_more(seed):
    points = clouds(seed).double()
    turned = rotate(points, generator(seed))
    assert torch.equal(turned[..., 1], points[..., 1])
    torch.testing.assert_close(torch.cdist(turned, turned), torch.cdist(points, points), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turned[:, :3]), torch.linalg.det(points[:, :3]))


def test_rotate_turns_each_cloud_by_an_angle_of_its_own_over_the_whole_circle():
    turned = rotate(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).expand(2000, 2, 3), generator(0))
    east, north = torch.atan2(turned[..., 2], turned[..., 0]).unbind(1)
    torch.testing.assert_close((north - east) % (2 * math.pi), torch.full((2000,), math.pi / 2))  # one angle a cloud
    assert len(east.unique()) > 1990
    assert torch.histc(east, bins=4, min=-math.pi, max=math.pi).min() > 420  # of 500, five standard deviations


def test_scale_and_rotate_scales_each_axis_within_its_range():
    points = clouds(0, batch=500)
    ratio = scale_and_rotate(points, generator(0))[..., 1] / points[..., 1]
    assert 0.9 - 1e-5 < ratio.min() < 0.91
    assert 1.09 < ratio.max() < 1.1 + 1e-5


@given(seed=SEEDS, num_points=st.integers(1, 16), shared=st.booleans())
@settings(max_examples=30, deadline=None)
def test_random_subset_takes_different_points_of_the_same_cloud(seed, num_points, shared):
    points = torch.arange(2 * 16 * 4, dtype=torch.float32).view(2, 16, 4)
    subset = random_subset(points, num_points, generator(seed), shared)
    assert subset.shape == (2, num_points, 4)
    for cloud, chosen in zip(points, subset, strict=True):
        rows = {tuple(row) for row in chosen.tolist()}
        assert len(rows) == num_points
        assert rows <= {tuple(row) for row in cloud.tolist()}


def test_random_subset_is_independent_per_cloud_and_even():
    points = torch.arange(10.0).view(1, 10, 1).expand(3000, 10, 1)
    counts = torch.bincount(random_subset(points, 3, generator(0)).flatten().long(), minlength=10)
    assert counts.sum() == 9000
    assert (counts - 900).abs().max() < 150


def test_a_shared_random_subset_takes_the_same_positions_of_every_cloud_and_is_even():
    source = generator(0)
    points = torch.arange(10.0).view(1, 10, 1).expand(3, 10, 1)
    draws = torch.stack([random_subset(points, 3, source, shared=True) for _ in range(3000)])
    assert torch.equal(draws, draws[:, :1].expand(-1, 3, -1, -1))
    counts = torch.bincount(draws[:, 0].flatten().long(), minlength=10)
    assert (counts - 900).abs().max() < 150


@pytest.mark.parametrize("num_points", [0, 17])
def test_random_subset_refuses_impossible_sizes(num_points):
    with pytest.raises(ValueError, match=f"cannot take {num_points} different points of clouds with 16"):
        random_subset(clouds(0), num_points, None)


@pytest.mark.parametrize("name", RANDOM)
def test_augmentations_refuse_anything_but_coordinates(name):
    with pytest.raises(ValueError, match=r"\(4, 16, 6\); expected \(B, N, 3\)"):
        AUGMENTATIONS[name](torch.zeros(4, 16, 6), None)


@pytest.mark.parametrize("name", RANDOM)
def test_without_a_generator_the_global_seed_decides(name):
    points = clouds(0)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = AUGMENTATIONS[name](points, None)
        torch.manual_seed(5)
        assert torch.equal(first, AUGMENTATIONS[name](points, None))
