"""The kernels of chamfer_dist, emulated and on a GPU, against distances written out and the plain PyTorch reference."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from extensions import chamfer_dist
from extensions.chamfer_dist import (
    ChamferDistanceL1,
    ChamferDistanceL2,
    ChamferDistanceL2_split,
    chamfer,
    chamfer_backward,
    reference,
)
from tests.emulation import BACKENDS, EmulatedKernels, kernel_names, use_backend

SOURCE = Path(chamfer_dist.__file__).with_name("kernels.cu")
SIZES = [  # batch, points of the first cloud, of the second
    (1, 1, 1),
    (40, 8, 8),  # several blocks of small pairs
    (3, 16, 8),
    (2, 5, 7),
    (1, 1, 32),
    (2, 32, 32),
    (2, 33, 1),
    (1, 2, 33),
    (2, 128, 129),  # a block and a point more
    (2, 300, 128),
    (1, 3, 1025),  # a point more than a tile
    (1, 2100, 5),
]
ALL = [ChamferDistanceL1, ChamferDistanceL2, ChamferDistanceL2_split]


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernels run in this test."""
    return use_backend(request.param, chamfer_dist, monkeypatch)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> EmulatedKernels:
    kernels = EmulatedKernels(SOURCE)
    monkeypatch.setattr(chamfer_dist, "KERNELS", kernels)
    return kernels


@pytest.fixture
def _deterministic() -> Iterator[None]:
    """Deterministic algorithms; PyTorch then also fills fresh memory with NaN, so that what is left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def random_pair(batch: int, n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n, 3, generator=generator), torch.randn(batch, m, 3, generator=generator)


def lattice_pair(batch: int, n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clouds with many ties and duplicates, the origin among them."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(-2, 3, (batch, size, 3), generator=generator).float() for size in (n, m))


def to(device: str, *tensors: Tensor) -> list[Tensor]:
    return [tensor.to(device) for tensor in tensors]


def written_out(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances to the nearest, summed in the order of the kernel, and the lowest index of the nearest."""
    x, y, z = (source.unsqueeze(2) - target.unsqueeze(1)).unbind(-1)
    distance, index = (x * x + y * y + z * z).sort(dim=-1, stable=True)
    return distance[..., 0], index[..., 0]


def backward_inputs(batch: int, n: int, m: int) -> list[Tensor]:
    """Two clouds with crowds around few nearest points, and random gradients of their distances."""
    xyz1, xyz2 = lattice_pair(batch, n, m)
    _, _, idx1, idx2 = reference.chamfer(xyz1, xyz2)
    grad1, grad2 = (cloud[..., 0].contiguous() for cloud in random_pair(batch, n, m, seed=1))
    return [grad1, grad2, xyz1 + 0.1 * random_pair(batch, n, m)[0], xyz2, idx1, idx2]


def assert_gradients(result: tuple[Tensor, Tensor], inputs: list[Tensor]) -> None:
    """Against the reference in double precision; crowds of up to 2100 terms of size 10 are summed."""
    expected = reference.chamfer_backward(*(x.double() if x.is_floating_point() else x for x in inputs))
    for grad, correct in zip(result, expected, strict=True):
        torch.testing.assert_close(grad.cpu().double(), correct, rtol=1e-5, atol=1e-3)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("make", [random_pair, lattice_pair])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_distances_and_indices_are_exact(device, make, size):
    xyz1, xyz2 = make(*size)
    dist1, dist2, idx1, idx2 = to("cpu", *chamfer(*to(device, xyz1, xyz2)))
    for result, expected in zip(
        (dist1, idx1, dist2, idx2), written_out(xyz1, xyz2) + written_out(xyz2, xyz1), strict=True
    ):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward_agrees_with_the_reference(device, size):
    pair = random_pair(*size)
    dist1, dist2, idx1, idx2 = to("cpu", *chamfer(*to(device, *pair)))
    expected = reference.chamfer(*pair)
    torch.testing.assert_close((dist1, dist2), expected[:2])
    assert torch.equal(idx1, expected[2])
    assert torch.equal(idx2, expected[3])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_backward_agrees_with_the_reference(device, size):
    inputs = backward_inputs(*size)
    assert_gradients(chamfer_backward(*to(device, *inputs)), inputs)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_deterministic_backward_agrees_with_the_reference(device, size):
    inputs = backward_inputs(*size)
    assert_gradients(chamfer_backward(*to(device, *inputs)), inputs)


@pytest.mark.usefixtures("_deterministic")
def test_deterministic_backward_repeats_bitwise(device):
    inputs = to(device, *backward_inputs(2, 300, 70))
    for first, second in zip(chamfer_backward(*inputs), chamfer_backward(*inputs), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("size", [(4, 8, 8), (2, 40, 150)], ids=str)
def test_modules_give_the_value_and_gradients_of_the_reference(device, metric, size):
    kernel, double = [x.to(device).requires_grad_() for x in random_pair(*size)], []
    for points in kernel:
        double.append(points.detach().cpu().double().requires_grad_())
    for points in (kernel, double):
        result = metric()(*points)
        total = 2 * result[0] + result[1] if isinstance(result, tuple) else result
        total.backward()
        points.append(total)
    torch.testing.assert_close(kernel[2].detach().cpu().double(), double[2].detach())
    for mine, correct in zip(kernel[:2], double[:2], strict=True):
        torch.testing.assert_close(mine.grad.cpu().double(), correct.grad, rtol=1e-5, atol=1e-6)


def test_gradient_of_one_direction_alone(device):
    xyz1, xyz2 = (x.to(device).requires_grad_() for x in random_pair(2, 4, 6))
    forward, _ = ChamferDistanceL2_split()(xyz1, xyz2)
    forward.backward()
    pull = 2 * (xyz1 - xyz2.gather(1, written_out(xyz1, xyz2)[1].unsqueeze(-1).expand(-1, -1, 3))) / 8
    torch.testing.assert_close(xyz1.grad, pull.detach())


@pytest.mark.parametrize("size", [(3, 9, 20), (1, 40, 70)], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0], ids=["origin", "duplicates"])
def test_coincident_points_choose_the_first(device, size, value):
    batch, n, m = size
    clouds = [torch.full((batch, count, 3), value, device=device, requires_grad=True) for count in (n, m)]
    dist1, dist2, idx1, idx2 = chamfer(*clouds)
    assert not any(x.any() for x in (dist1, dist2, idx1, idx2))
    (dist1.sum() + dist2.sum()).backward()
    assert not any(cloud.grad.any() for cloud in clouds)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 50), m=st.integers(1, 50), batch=st.integers(1, 3))
def test_moving_both_clouds_along_moves_nothing(device, seed, n, m, batch):
    """The pulls of the pairs cancel: what one cloud gains, the other loses."""
    clouds = [x.to(device).requires_grad_() for x in random_pair(batch, n, m, seed)]
    dist1, dist2, idx1, idx2 = chamfer(*clouds)
    assert (dist1.amin(1) == dist2.amin(1)).all()  # the nearest pair of all is found from both sides
    assert idx1.max() < m
    assert idx2.max() < n
    (dist1.sum() + dist2.sum()).backward()
    net = (clouds[0].grad.sum(1) + clouds[1].grad.sum(1)).cpu()
    torch.testing.assert_close(net, torch.zeros(batch, 3), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(2, 8, 8), (1, 40, 50)], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_a_point_that_is_not_finite_shows_and_its_index_is_valid(device, size, value):
    xyz1, xyz2 = random_pair(*size)
    xyz1[:, 2] = value
    dist1, dist2, idx1, idx2 = to("cpu", *chamfer(*to(device, xyz1, xyz2)))
    assert not dist1[:, 2].isfinite().any()
    assert dist2.isfinite().all()
    assert (idx2 != 2).all()
    assert idx1.min() >= 0
    assert idx1.max() < size[2]


@pytest.mark.parametrize("size", [(3, 8, 8), (2, 40, 50)], ids=str)
def test_non_contiguous_clouds_and_gradients(device, size):
    xyz1, xyz2 = to(device, *random_pair(*size))
    folded = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (xyz1, xyz2)]
    whole = [x.clone().requires_grad_() for x in (xyz1, xyz2)]
    for clouds in (folded, whole):
        dist1, dist2, _, _ = chamfer(*clouds)
        (dist1.sum() + 3 * dist2.sum()).backward()  # the gradients of a sum have stride 0
    for a, b in zip(folded, whole, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32_and_gets_its_gradient(device, dtype):
    half = [x.to(device, dtype).requires_grad_() for x in random_pair(2, 8, 9)]
    full = [x.detach().float().requires_grad_() for x in half]
    for clouds in (half, full):
        clouds.append(ChamferDistanceL2()(*clouds))
        clouds[-1].backward()
    assert half[2].dtype == torch.float32
    assert torch.equal(half[2], full[2])
    assert torch.equal(half[0].grad, full[0].grad.to(dtype))


def test_clouds_of_two_types_are_measured_in_the_wider(device):
    xyz1, xyz2 = to(device, *random_pair(2, 8, 9))
    distance = ChamferDistanceL2()(xyz1, xyz2.double())
    assert distance.dtype == torch.float64
    torch.testing.assert_close(distance.float(), ChamferDistanceL2()(xyz1, xyz2))


def test_autocast_changes_nothing(device):
    pair = to(device, *random_pair(2, 8, 9))
    with torch.autocast(device, dtype=torch.bfloat16):
        inside = ChamferDistanceL2()(*pair)
    assert torch.equal(inside, ChamferDistanceL2()(*pair))


BRANCHES = {  # size, deterministic algorithms
    ((2, 32, 32), False): {"chamfer_small", "chamfer_backward_gather"},
    ((2, 32, 33), False): {"chamfer_large", "chamfer_backward_scatter"},
    ((2, 33, 32), True): {"chamfer_large", "chamfer_backward_gather"},
}


@pytest.mark.parametrize(("size", "deterministic"), BRANCHES, ids=str)
def test_size_and_determinism_choose_the_kernels(emulated, request, size, deterministic):
    if deterministic:
        request.getfixturevalue("_deterministic")
    xyz1, xyz2 = (x.requires_grad_() for x in random_pair(*size))
    ChamferDistanceL2()(xyz1, xyz2).backward()
    assert emulated.launched == BRANCHES[size, deterministic]


def test_every_kernel_is_in_a_branch():
    assert set.union(*BRANCHES.values()) == set(kernel_names(SOURCE))


@pytest.mark.parametrize(("batch", "dtype"), [(2, torch.float64), (0, torch.float32)], ids=["float64", "empty"])
def test_the_rest_runs_in_the_reference(emulated, batch, dtype):
    xyz1, xyz2 = (x.to(dtype).requires_grad_() for x in random_pair(batch, 4, 5))
    dist1, dist2, _, _ = chamfer(xyz1, xyz2)
    (dist1.sum() + dist2.sum()).backward()
    assert (dist1.shape, dist2.shape) == ((batch, 4), (batch, 5))
    assert xyz1.grad.dtype == dtype
    assert not emulated.launched


@pytest.mark.parametrize("size", [(2, 3, 4), (1, 1, 5)], ids=str)
def test_gradcheck(size):
    xyz1, xyz2 = (x.double().requires_grad_() for x in random_pair(*size))
    assert torch.autograd.gradcheck(lambda x, y: chamfer(x, y)[:2], (xyz1, xyz2))


@pytest.mark.parametrize("size", [(2, 3, 4), (1, 33, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(device, size, dtype):
    folded = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in random_pair(*size)]
    torch.library.opcheck(chamfer_dist._chamfer, tuple(x.to(device, dtype).requires_grad_() for x in folded))
    inputs = backward_inputs(*size)
    torch.library.opcheck(
        chamfer_backward, tuple(x.to(device, dtype) for x in inputs[:4]) + tuple(to(device, *inputs[4:]))
    )


def test_compiles_into_one_graph(device):
    pair = to(device, *random_pair(2, 8, 9))
    compiled = torch.compile(ChamferDistanceL2(), backend="aot_eager", fullgraph=True)
    gradients = []
    for metric in (compiled, ChamferDistanceL2()):
        leaves = [x.clone().requires_grad_() for x in pair]
        metric(*leaves).backward()
        gradients.append([x.grad for x in leaves])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("size", [(2, 8, 9), (1, 40, 50)], ids=str)
def test_derivatives_beyond_the_backward_pass_are_those_of_the_reference(device, size):
    def derivatives(xyz1: Tensor, xyz2: Tensor) -> list[Tensor]:
        def distance(x: Tensor) -> Tensor:
            return ChamferDistanceL1()(x, xyz2)

        x = xyz1.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(distance(x), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), x)
        _, tangent = torch.func.jvp(distance, (xyz1,), (xyz1.cos(),))
        return [gradient.detach(), second, tangent, torch.func.grad(distance)(xyz1)]

    pair = random_pair(*size)
    expected = derivatives(*(x.double() for x in pair))
    for mine, correct in zip(derivatives(*to(device, *pair)), expected, strict=True):
        torch.testing.assert_close(mine.cpu().double(), correct, rtol=1e-4, atol=1e-6)


def test_devices_must_match():
    with pytest.raises(ValueError, match="xyz1 and xyz2 must be on one device, got cpu and meta"):
        ChamferDistanceL2()(torch.zeros(1, 5, 3), torch.zeros(1, 5, 3, device="meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [(10000, 8, 8), (4, 2048, 2000)], ids=str)
def test_on_another_stream_of_a_gpu(monkeypatch, size):
    monkeypatch.setenv("I2P_MAE_KERNELS", "cuda")
    xyz1, xyz2 = random_pair(*size)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        dist1, dist2, _, _ = chamfer(xyz1.cuda(), xyz2.cuda())
    stream.synchronize()
    assert torch.equal(dist1.cpu(), written_out(xyz1, xyz2)[0])
    assert torch.equal(dist2.cpu(), written_out(xyz2, xyz1)[0])
