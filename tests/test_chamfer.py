"""Chamfer distances by hand, against brute force, and their gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from extensions.chamfer_dist import ChamferDistanceL1, ChamferDistanceL2, ChamferDistanceL2_split

ALL = [ChamferDistanceL1, ChamferDistanceL2, ChamferDistanceL2_split]

# On the x axis: 0 → 1 (1), 4 → 1 (9); 1 → 0 (1), 10 → 4 (36), −3 → 0 (9).
X = torch.tensor([[[0.0, 0, 0], [4, 0, 0]]])
Y = torch.tensor([[[1.0, 0, 0], [10, 0, 0], [-3, 0, 0]]])


def pair(n: int = 6, m: int = 9, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, size, 3, generator=generator, dtype=torch.float64) for size in (n, m))


def total(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The distance as one number, that of the split form being the sum."""
    distance = module(x, y)
    return sum(distance) if isinstance(distance, tuple) else distance


def brute_force(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    squared = np.square(x.numpy()[:, :, None] - y.numpy()[:, None]).sum(-1)  # (B, n, m)
    return squared.min(2), squared.min(1)


def test_l2_by_hand():
    assert ChamferDistanceL2()(X, Y).item() == pytest.approx((1 + 9) / 2 + (1 + 36 + 9) / 3)


def test_l1_by_hand():
    assert ChamferDistanceL1()(X, Y).item() == pytest.approx(((1 + 3) / 2 + (1 + 6 + 3) / 3) / 2)


def test_split_by_hand():
    forward, backward = ChamferDistanceL2_split()(X, Y)
    assert (forward.item(), backward.item()) == pytest.approx(((1 + 9) / 2, (1 + 36 + 9) / 3))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 12), m=st.integers(1, 12), batch=st.integers(1, 3))
def test_all_agree_with_brute_force(seed, n, m, batch):
    x, y = pair(n, m, batch, seed)
    forward, backward = brute_force(x, y)
    np.testing.assert_allclose(ChamferDistanceL2()(x, y), forward.mean() + backward.mean(), rtol=1e-10)
    np.testing.assert_allclose(ChamferDistanceL2_split()(x, y), (forward.mean(), backward.mean()), rtol=1e-10)
    roots = (np.sqrt(forward).mean() + np.sqrt(backward).mean()) / 2
    np.testing.assert_allclose(ChamferDistanceL1()(x, y), roots, rtol=1e-10)


@pytest.mark.parametrize("metric", [ChamferDistanceL1, ChamferDistanceL2])
def test_symmetric(metric):
    x, y = pair()
    torch.testing.assert_close(metric()(x, y), metric()(y, x), rtol=1e-12, atol=0)


def test_split_swaps_with_its_arguments():
    x, y = pair()
    assert ChamferDistanceL2_split()(x, y) == ChamferDistanceL2_split()(y, x)[::-1]


@pytest.mark.parametrize("metric", ALL)
def test_zero_between_a_cloud_and_itself_in_another_order(metric):
    x, _ = pair()
    assert total(metric(), x, x.flip(1)) == 0


@pytest.mark.parametrize("metric", ALL)
def test_moving_both_clouds_changes_nothing(metric):
    x, y = pair()
    shift = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(total(metric(), x + shift, y + shift), total(metric(), x, y))


def test_half_precision_is_measured_in_float32():
    x, y = (points.half() for points in pair())
    distance = ChamferDistanceL2()(x, y)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, ChamferDistanceL2()(x.float(), y.float()))


@pytest.mark.parametrize("metric", ALL)
def test_gradients(metric):
    x, y = (points.requires_grad_() for points in pair(4, 5))
    assert torch.autograd.gradcheck(metric(), (x, y))


def test_gradient_pulls_along_the_nearest_pairs():
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    forward, _ = ChamferDistanceL2_split()(x, y)
    forward.backward()
    # d mean((x − y)²) = (x − y) for two points
    assert x.grad[0, :, 0].tolist() == [-1, 3]
    assert y.grad[0, :, 0].tolist() == [1 - 3, 0, 0]


def test_l1_gradient_is_finite_at_coincident_points():
    x, _ = pair()
    x.requires_grad_()
    ChamferDistanceL1()(x, x.detach().clone()).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("metric", ALL)
def test_ignore_zeros_drops_the_padding_of_both(metric):
    x, y = pair(batch=1)
    zeros = torch.zeros(1, 3, 3, dtype=x.dtype)
    padded = total(metric(ignore_zeros=True), torch.cat([zeros, x], 1), torch.cat([y, zeros], 1))
    torch.testing.assert_close(padded, total(metric(), x, y))


def test_ignore_zeros_keeps_points_with_one_zero_coordinate():
    assert ChamferDistanceL2(ignore_zeros=True)(Y, Y + 1) == ChamferDistanceL2()(Y, Y + 1)


def test_zeros_count_by_default():
    assert ChamferDistanceL2()(torch.zeros(1, 1, 3), torch.ones(1, 1, 3)) == 6


def test_ignore_zeros_refuses_a_batch():
    x, y = pair(batch=2)
    with pytest.raises(ValueError, match="one pair of clouds at a time, got a batch of 2"):
        ChamferDistanceL2(ignore_zeros=True)(x, y)


@pytest.mark.parametrize("name", ["xyz1", "xyz2"])
def test_ignore_zeros_refuses_a_cloud_of_nothing_else(name):
    clouds = {"xyz1": X, "xyz2": Y, name: torch.zeros(1, 4, 3)}
    with pytest.raises(ValueError, match=f"leaves nothing of {name}"):
        ChamferDistanceL1(ignore_zeros=True)(**clouds)


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((1, 4, 2), (1, 4, 3), r"xyz1 must be \(B, n, 3\).*\(1, 4, 2\)"),
        ((1, 4, 3), (4, 3), r"xyz2 must be .*\(4, 3\)"),
        ((1, 0, 3), (1, 4, 3), "at least one point"),
        ((2, 4, 3), (1, 4, 3), "same batch size, got 2 and 1"),
        ((0, 4, 3), (0, 5, 3), r"no mean over an empty batch: xyz1 is \(0, 4, 3\)"),
    ],
)
def test_shapes_are_checked(metric, x, y, message):
    with pytest.raises(ValueError, match=message):
        metric()(torch.zeros(x), torch.zeros(y))
