"""The kernels of knn_cuda, emulated and on a GPU, against distances written out and the plain PyTorch reference."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from extensions import knn_cuda
from extensions.knn_cuda import KNN, k_nearest, reference
from tests.emulation import BACKENDS, EmulatedKernels, kernel_names, use_backend

SOURCE = Path(knn_cuda.__file__).with_name("kernels.cu")
BRANCHES = {"knn_32": (2, 50, 9, 32), "knn_64": (2, 50, 9, 33)}  # batch, reference points, queries, k
SIZES = [
    (1, 1, 1, 1),
    (3, 3, 7, 3),
    (2, 31, 8, 5),  # one block of queries
    (2, 33, 17, 32),  # a point more than a warp, a query more than two blocks
    (1, 1025, 3, 4),  # a point more than a tile
    (1, 2100, 2, 16),
    (1, 33, 1, 33),
    (2, 64, 3, 64),
    (1, 1100, 2, 50),
]


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernels run in this test."""
    return use_backend(request.param, knn_cuda, monkeypatch)


@pytest.fixture
def _poisoned() -> Iterator[None]:
    """PyTorch fills fresh memory with NaN and huge indices, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def random_points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lattice(*shape: int, seed: int = 0) -> Tensor:
    """Points with many ties and duplicates, the origin among them."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def flat(*shape: int, seed: int = 0) -> Tensor:
    """Points of a lattice in the plane z = 0."""
    return lattice(*shape, seed=seed) * torch.tensor([1.0, 1.0, 0.0])


def duplicates(batch: int, num_points: int, axes: int, seed: int = 0) -> Tensor:
    """Few places, and several points at each."""
    return random_points(batch, num_points // 5 + 1, axes, seed=seed).repeat(1, 5, 1)[:, :num_points]


def written_out(ref: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances summed in the order of the kernel, and a stable sort: ties by the lowest index."""
    x, y, z = (query.unsqueeze(2) - ref.unsqueeze(1)).unbind(-1)  # (B, M, N) each
    distance, index = (x * x + y * y + z * z).sort(dim=-1, stable=True)
    return distance[..., :k].double().sqrt().float(), index[..., :k]  # correctly rounded, as on a GPU


def assert_same(result: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(result[0].cpu(), expected[0])
    assert torch.equal(result[1].cpu(), expected[1])


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("make", [random_points, lattice])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_neighbours_and_their_order_are_exact(device, make, size):
    batch, n, m, k = size
    ref, query = make(batch, n, 3), make(batch, m, 3, seed=1)
    assert_same(k_nearest(ref.to(device), query.to(device), k), written_out(ref, query, k))


@pytest.mark.parametrize("make", [random_points, lattice, flat, duplicates])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernels_agree_with_the_reference(device, make, size):
    batch, n, m, k = size
    ref, query = make(batch, n, 3), make(batch, m, 3, seed=1)
    distance, index = k_nearest(ref.to(device), query.to(device), k)
    expected_distance, expected_index = reference.k_nearest(ref, query, k)
    torch.testing.assert_close(distance.cpu(), expected_distance)
    assert torch.equal(index.cpu(), expected_index)


@pytest.mark.parametrize("cloud", [torch.ones(1, 70, 3), torch.zeros(1, 70, 3)], ids=["duplicates", "origin"])
@pytest.mark.parametrize("k", [20, 64])
def test_among_equal_points_the_first_are_nearest(device, cloud, k):
    distance, index = k_nearest(cloud.to(device), cloud[:, :2].to(device), k)
    assert index.tolist() == [[list(range(k))] * 2]
    assert not distance.any()


def test_points_in_descending_order_of_distance_all_enter_the_list(device):
    ref = torch.arange(200.0, 0, -1).reshape(1, -1, 1).expand(1, -1, 3).contiguous()
    for k in (1, 32, 64):
        _, index = k_nearest(ref.to(device), torch.zeros(1, 1, 3, device=device), k)
        assert index.flatten().tolist() == list(range(199, 199 - k, -1))


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 80), m=st.integers(1, 10), data=st.data())
def test_no_point_left_out_is_nearer(device, seed, n, m, data):
    k = data.draw(st.integers(1, min(n, 64)))
    ref, query = lattice(2, n, 3, seed=seed), random_points(2, m, 3, seed=seed ^ 1)
    distance, index = (x.cpu() for x in k_nearest(ref.to(device), query.to(device), k))
    left = torch.cdist(query.double(), ref.double()).scatter(-1, index, torch.inf)
    assert (distance.diff(dim=-1) >= 0).all()
    assert (left.amin(-1) >= distance[..., -1] - 1e-5).all()
    assert (index.sort(dim=-1).values.diff(dim=-1) > 0).all()  # none twice


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("k", [5, 40])
def test_points_without_a_finite_distance_come_last(device, value, k):
    ref = random_points(1, 40, 3)
    ref[0, 3::2] = value
    distance, index = (x.cpu() for x in k_nearest(ref.to(device), random_points(1, 3, 3, seed=1).to(device), k))
    assert torch.isfinite(distance).sum(-1).tolist() == [[min(k, 21)] * 3]
    assert (index.sort(dim=-1).values.diff(dim=-1) > 0).all()
    assert index.min() >= 0
    assert index.max() < 40


def test_a_query_that_is_nan_gets_valid_indices(device):
    distance, index = k_nearest(random_points(1, 9, 3).to(device), torch.full((1, 1, 3), torch.nan, device=device), 4)
    assert distance.isnan().all()
    assert index.flatten().tolist() == [0, 1, 2, 3]


def test_non_contiguous_points(device):
    ref, query = random_points(2, 3, 40), random_points(2, 3, 9, seed=1)
    expected_distance, expected_index = written_out(ref.transpose(1, 2), query.transpose(1, 2), 6)
    distance, index = KNN(6)(ref.to(device), query.to(device))
    assert_same((distance.transpose(1, 2), index.transpose(1, 2)), (expected_distance, expected_index))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(device, dtype):
    ref, query = random_points(2, 40, 3).to(dtype), random_points(2, 9, 3, seed=1).to(dtype)
    result = KNN(6, transpose_mode=True)(ref.to(device), query.to(device))
    assert_same(result, written_out(ref.float(), query.float(), 6))


def test_no_gradient_flows(device):
    points = random_points(1, 9, 3).to(device).requires_grad_()
    distance, _ = KNN(3, transpose_mode=True)(points, points)
    assert not distance.requires_grad


@pytest.mark.parametrize("name", BRANCHES)
def test_the_number_of_neighbours_chooses_the_kernel(monkeypatch, name):
    kernels = EmulatedKernels(SOURCE)
    monkeypatch.setattr(knn_cuda, "KERNELS", kernels)
    batch, n, m, k = BRANCHES[name]
    k_nearest(random_points(batch, n, 3), random_points(batch, m, 3), k)
    assert kernels.launched == {name}


def test_every_kernel_is_a_branch():
    assert set(BRANCHES) == set(kernel_names(SOURCE))


@pytest.mark.parametrize(
    ("shape", "dtype", "k"),
    [
        ((2, 70, 3), torch.float32, 65),
        ((2, 70, 3), torch.float64, 4),
        ((2, 70, 2), torch.float32, 4),
        ((0, 70, 3), torch.float32, 4),
    ],
    ids=["many neighbours", "float64", "2-D", "empty"],
)
def test_the_rest_runs_in_the_reference(monkeypatch, shape, dtype, k):
    kernels = EmulatedKernels(SOURCE)
    monkeypatch.setattr(knn_cuda, "KERNELS", kernels)
    points = random_points(*shape).to(dtype)
    assert_same(k_nearest(points, points, k), reference.k_nearest(points, points, k))
    assert not kernels.launched


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(device, dtype):
    ref, query = random_points(2, 3, 9).to(device, dtype).transpose(1, 2), random_points(2, 5, 3).to(device, dtype)
    torch.library.opcheck(k_nearest, (ref, query, 4))


def test_compiles_into_one_graph(device):
    ref, query = random_points(2, 40, 3).to(device), random_points(2, 9, 3, seed=1).to(device)
    knn = KNN(6, transpose_mode=True)
    result = torch.compile(knn, backend="aot_eager", fullgraph=True)(ref, query)
    assert_same(result, tuple(x.cpu() for x in knn(ref, query)))


def test_devices_must_match():
    with pytest.raises(ValueError, match="ref and query must be on one device, got cpu and meta"):
        KNN(2, transpose_mode=True)(torch.zeros(1, 5, 3), torch.zeros(1, 5, 3, device="meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_another_stream_of_a_gpu(monkeypatch):
    monkeypatch.setenv("I2P_MAE_KERNELS", "cuda")
    ref, query = random_points(64, 2048, 3), random_points(64, 512, 3, seed=1)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        result = k_nearest(ref.cuda(), query.cuda(), 16)
    stream.synchronize()
    assert_same(result, written_out(ref, query, 16))
