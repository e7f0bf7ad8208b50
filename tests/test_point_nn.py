"""Point-NN: what its features depend on, what it holds in memory, what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import models.point_nn
from models import build_model
from models.point_nn import Level, Point_NN, deviation, interpolate
from tests.golden.fixtures import clouds

SMALL: dict[str, Any] = {"stages": 3, "dim": 36, "k": 24}


@pytest.fixture(scope="module")
def points() -> Tensor:
    return clouds(3, 256, seed=52)


def test_nothing_is_learned():
    model = build_model({"NAME": "Point_NN"})
    assert model.state_dict() == {}


@pytest.mark.parametrize(("points", "shape"), [(1024, (1, 1152)), (2048, (1, 1152))])
def test_default_sizes(points, shape):
    assert Point_NN()(clouds(1, points, seed=1)).shape == shape


def test_a_feature_is_its_clouds_alone(points):
    model = Point_NN(**SMALL)
    together, alone = model(points), torch.cat([model(cloud) for cloud in points.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-5)
    assert (Point_NN(**SMALL, normalise="batch")(points) - alone).abs().max() > 0.1


@pytest.mark.parametrize("method", ["encode", "encode_points"])
@pytest.mark.parametrize("normalise", ["cloud", "batch"])
def test_no_result_depends_on_the_chunk(method, normalise, points, monkeypatch):
    encode = getattr(Point_NN(**SMALL, normalise=normalise), method)
    whole = encode(points)
    monkeypatch.setattr(models.point_nn, "CHUNK", 7 * 2 * 36)  # seven centres at a time
    torch.testing.assert_close(encode(points), whole, rtol=1e-6, atol=1e-6)


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation gives back."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [tensor for tensor in (out if isinstance(out, tuple | list) else [out]) if isinstance(tensor, Tensor)]
        self.elements = max([self.elements, *(tensor.untyped_storage().nbytes() // 4 for tensor in tensors)])
        return out


def test_the_features_of_all_neighbours_are_never_there_at_once():
    with Largest() as largest:
        Point_NN()(clouds(2, 1024, seed=3))
    codes = 2 * 1024 * 144 * 2  # of all points, as float64, before the first stage
    assert codes <= largest.elements <= 2 * codes < 2 * 512 * 90 * 144 / 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_at_the_door(dtype, points):
    model = Point_NN(**SMALL)
    coarse = points.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, of_points = model(coarse), model.encode_points(coarse)
    assert features.dtype == of_points.dtype == torch.float32
    assert torch.equal(features, model(coarse.float()))
    assert torch.equal(of_points, model.encode_points(coarse.float()))


def test_no_gradient_flows(points):
    assert not Point_NN(**SMALL)(points.clone().requires_grad_()).requires_grad


def test_deviation_is_that_of_all_offsets():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 4, generator=generator) * torch.tensor([1.0, 5]).view(2, 1, 1) + 300
    rows = 9 * torch.arange(2).repeat_interleave(3)
    center, neighbour = (torch.randint(9, size, generator=generator) for size in ((6,), (6, 5)))
    center, neighbour = center + rows, neighbour + rows.unsqueeze(1)
    of_rows = x.double().flatten(0, 1)
    offsets = (of_rows[neighbour] - of_rows[center].unsqueeze(1)).unflatten(0, (2, 3))
    expected = {False: offsets.flatten(1).std(1), True: offsets.std().view(1)}
    for across, deviations in expected.items():
        found = deviation(x, center, neighbour, across)
        torch.testing.assert_close(found.flatten(), deviations + 1e-5, rtol=1e-6, atol=0)


def test_features_are_interpolated_from_the_nearest():
    """At distances 1 and 2 the weights are as 4 to 1; a point on a coarser one has its feature."""
    coarser = Level(torch.tensor([[[0.0, 0, 0], [3, 0, 0], [9, 9, 9]]]), torch.tensor([[[10.0], [20.0], [500.0]]]))
    found = interpolate(torch.tensor([[[1.0, 0, 0], [3, 0, 0]]]), coarser, neighbours=2)
    torch.testing.assert_close(found, torch.tensor([[[12.0], [20.0]]]))


@pytest.mark.parametrize("cloud", ["one point", "few points", "far away"])
def test_features_of_unusual_clouds_are_finite(cloud, points):
    unusual = {
        "one point": torch.full((1, 256, 3), 0.5),
        "few points": points[:1, torch.arange(256) % 5],
        "far away": points[:1] + 1000,
    }[cloud]
    model = Point_NN(**SMALL)
    assert model(unusual).isfinite().all()
    assert model.encode_points(unusual).isfinite().all()


# what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 40}, "dim must be a multiple of 6, .*got 40"),
        ({"dim": 0}, "dim must be a multiple of 6"),
        ({"stages": 0}, "stages, k and neighbours must be at least 1, got 0, 90 and 6"),
        ({"k": 0}, "got 4, 0 and 6"),
        ({"neighbours": 0}, "got 4, 90 and 0"),
        ({"alpha": 0}, "alpha and beta must be positive, got 0 and 100"),
        ({"beta": -1}, "got 1000 and -1"),
        ({"normalise": "shape"}, "normalise must be 'cloud' or 'batch', got 'shape'"),
    ],
)
def test_values_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Point_NN(**settings)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1000, 3), "1000 points cannot be halved 4 times; give a multiple of 16"),
        ((1, 0, 3), "0 points cannot be halved"),
        ((1, 512, 3), "k = 90, but the last of 4 stages searches 64 of 512 points; lower k"),
        ((1, 1024, 6), r"points must be \(B, N, 3\), got \(1, 1024, 6\)"),
        ((1024, 3), r"points must be \(B, N, 3\), got \(1024, 3\)"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "encode_points"])
def test_clouds_that_do_not_fit_are_refused(method, shape, message):
    with pytest.raises(ValueError, match=message):
        getattr(Point_NN(), method)(torch.zeros(shape))


def test_too_few_points_to_interpolate_from_are_refused():
    model = Point_NN(stages=3, dim=6, k=2, neighbours=5)
    with pytest.raises(ValueError, match="after 3 stages 32 points leave 4, fewer than the 5 to interpolate from"):
        model.encode_points(torch.zeros(1, 32, 3))
