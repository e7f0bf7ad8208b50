"""The kernels of pointnet2_ops against their reference, and the operations that came with them."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from extensions.knn_cuda import reference as knn_reference
from extensions.pointnet2_ops import pointnet2_utils, reference
from extensions.pointnet2_ops.pointnet2_utils import (
    GroupAll,
    QueryAndGroup,
    ball_query,
    furthest_point_sample,
    gather_operation,
    grouping_operation,
    three_interpolate,
    three_nn,
)
from tests.emulation import BACKENDS, EmulatedKernels, kernel_names, use_backend

SOURCE = pointnet2_utils.KERNELS.source
seeds = st.integers(0, 2**32 - 1)


def random_points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lattice(*shape: int, seed: int = 0) -> Tensor:
    """Points with small integer coordinates: many at the origin, many twice, many equally far."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def on_a_line(*x: float) -> Tensor:
    """One cloud (1, n, 3) of points on the x axis."""
    return torch.tensor([[[value, 0.0, 0.0] for value in x]])


@pytest.fixture(params=BACKENDS)
def device(request, monkeypatch) -> Iterator[str]:
    """Where points go for the operations to use kernels; what an operation allocates is filled with NaN or nonsense."""
    device = use_backend(request.param, pointnet2_utils, monkeypatch)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield device
    torch.use_deterministic_algorithms(False)


# Farthest point sampling


@pytest.mark.parametrize("cloud", [random_points, lattice])
@pytest.mark.parametrize(
    ("num_points", "npoint"), [(1, 3), (2, 2), (31, 40), (32, 9), (33, 9), (256, 30), (257, 30), (700, 12), (2048, 6)]
)
def test_fps_is_that_of_the_reference(device, cloud, num_points, npoint):
    points = cloud(2, num_points, 3)
    points[1, ::3] *= 0.01  # at or near the origin: padding
    picked = furthest_point_sample(points.to(device), npoint)
    assert torch.equal(picked.cpu(), reference.furthest_point_sample(points, npoint))


@pytest.mark.parametrize("cloud", [random_points, lattice])
@pytest.mark.parametrize(("num_points", "npoint"), [(5, 8), (1025, 5)])
def test_fps_out_of_global_memory_is_that_of_the_reference(device, monkeypatch, cloud, num_points, npoint):
    monkeypatch.setattr(pointnet2_utils, "REGISTER_POINTS", 0)
    points = cloud(2, num_points, 3)
    points[1, ::3] *= 0.01
    picked = furthest_point_sample(points.to(device), npoint)
    assert torch.equal(picked.cpu(), reference.furthest_point_sample(points, npoint))


@pytest.mark.parametrize("num_points", [8192, 8193])
def test_fps_on_both_sides_of_the_register_limit(device, num_points):
    points = random_points(1, num_points, 3)
    picked = furthest_point_sample(points.to(device), 4)
    assert torch.equal(picked.cpu(), reference.furthest_point_sample(points, 4))


@pytest.mark.parametrize("register_points", [0, 8192])
@pytest.mark.parametrize("cloud", [on_a_line(0), on_a_line(0, 0, 0.01), on_a_line(2, 2, 2), on_a_line(0, 0, 3, 3)])
def test_fps_of_padding_and_duplicates(device, monkeypatch, register_points, cloud):
    monkeypatch.setattr(pointnet2_utils, "REGISTER_POINTS", register_points)
    assert torch.equal(furthest_point_sample(cloud.to(device), 5).cpu(), reference.furthest_point_sample(cloud, 5))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds, num_points=st.integers(1, 80), npoint=st.integers(1, 20))
def test_fps_agrees_with_the_reference_on_any_lattice(device, seed, num_points, npoint):
    points = lattice(1, num_points, 3, seed=seed)
    picked = furthest_point_sample(points.to(device), npoint)
    assert torch.equal(picked.cpu(), reference.furthest_point_sample(points, npoint))


# Ball query


@pytest.mark.parametrize("cloud", [random_points, lattice])
@pytest.mark.parametrize("radius", [0.05, 1.0, 2.5, float("inf")])
@pytest.mark.parametrize(
    ("num_points", "num_queries", "nsample"), [(1, 1, 1), (5, 2, 8), (513, 129, 16), (1100, 300, 32)]
)
def test_ball_query_is_that_of_the_reference(device, cloud, radius, num_points, num_queries, nsample):
    points, queries = cloud(2, num_points, 3), cloud(2, num_queries, 3, seed=1)
    index = ball_query(radius, nsample, points.to(device), queries.to(device))
    assert torch.equal(index.cpu(), reference.ball_query(radius, nsample, points, queries))


def test_ball_query_by_hand(device):
    points, queries = on_a_line(9, 1, 5, 2, 3), on_a_line(2.5, 9, 20)
    index = ball_query(1.5, 3, points.to(device), queries.to(device))
    # 1 is exactly as far as the radius, hence outside
    assert index.tolist() == [[[3, 4, 3], [0, 0, 0], [0, 0, 0]]]
    assert ball_query(2, 2, points.to(device), queries.to(device)).tolist() == [[[1, 3], [0, 0], [0, 0]]]


@settings(max_examples=30)
@given(seed=seeds, nsample=st.integers(1, 12), radius=st.sampled_from([0.5, 1.0, 1.5, 2.0]), data=st.data())
def test_ball_query_against_its_definition(seed, nsample, radius, data):
    num_points, num_queries = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 5))
    points, queries = lattice(2, num_points, 3, seed=seed), lattice(2, num_queries, 3, seed=seed ^ 1)
    index = ball_query(radius, nsample, points, queries)
    for b, m in itertools.product(range(2), range(num_queries)):
        inside = [n for n in range(num_points) if (points[b, n] - queries[b, m]).norm() < radius][:nsample]
        assert index[b, m].tolist() == inside + (inside or [0])[:1] * (nsample - len(inside))


# Three nearest neighbours


@pytest.mark.parametrize("cloud", [random_points, lattice])
@pytest.mark.parametrize(("num_unknown", "num_known"), [(1, 3), (2, 5), (129, 64), (300, 513), (40, 1100)])
def test_three_nn_are_those_of_the_reference(device, cloud, num_unknown, num_known):
    unknown, known = cloud(2, num_unknown, 3), cloud(2, num_known, 3, seed=1)
    distance, index = three_nn(unknown.to(device), known.to(device))
    expected_distance, expected_index = reference.three_nn(unknown, known)
    assert torch.equal(index.cpu(), expected_index)
    torch.testing.assert_close(distance.cpu(), expected_distance, rtol=2e-7, atol=0)  # vectorised roots may round up


def test_three_nn_gives_ties_to_the_lowest_index(device):
    unknown, known = on_a_line(0, 5), on_a_line(1, -1, 3, -1, 1, 5, 5)
    distance, index = three_nn(unknown.to(device), known.to(device))
    assert index.tolist() == [[[0, 1, 3], [5, 6, 2]]]
    assert distance.tolist() == [[[1, 1, 1], [0, 0, 2]]]


# All kernels


def call_each_operation(points: Tensor, queries: Tensor) -> list[Tensor]:
    """Every launch of the family; at least 3 points (B, N, 3) and queries (B, M, 3)."""
    return [furthest_point_sample(points, 4), ball_query(1.0, 3, points, queries), *three_nn(queries, points)]


def test_every_kernel_is_launched(monkeypatch):
    emulated = EmulatedKernels(SOURCE)
    monkeypatch.setattr(pointnet2_utils, "KERNELS", emulated)
    call_each_operation(random_points(1, 9, 3), random_points(1, 4, 3))
    monkeypatch.setattr(pointnet2_utils, "REGISTER_POINTS", 8)
    furthest_point_sample(random_points(1, 9, 3), 2)
    assert emulated.launched == set(kernel_names(SOURCE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_kernels_take_other_types_and_strides_and_inputs_with_gradient(device, dtype):
    points = random_points(2, 3, 50).to(device, dtype).transpose(1, 2).requires_grad_()
    queries = random_points(2, 20, 6, seed=1).to(device, dtype)[..., ::2].requires_grad_()
    results = call_each_operation(points, queries)
    expected = call_each_operation(points.detach().float().contiguous(), queries.detach().float().contiguous())
    assert not points.is_contiguous()
    assert not any(result.requires_grad for result in results)
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize("register_points", [0, 8192])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_kernels_survive_points_that_are_no_numbers(device, monkeypatch, register_points, value):
    monkeypatch.setattr(pointnet2_utils, "REGISTER_POINTS", register_points)
    points = random_points(2, 40, 3).to(device)
    points[0, ::2, 1] = value
    points[1] = value
    picked, inside, _, nearest = call_each_operation(points, points[:, :5])
    assert all(((index >= 0) & (index < 40)).all() for index in (picked, inside, nearest))


def test_float64_points_are_measured_in_float64(device):
    known = torch.tensor(
        [[[1 + 3e-12, 0, 0], [1 + 2e-12, 0, 0], [1 + 1e-12, 0, 0]]], dtype=torch.float64, device=device
    )
    distance, index = three_nn(torch.zeros_like(known[:, :1]), known)
    assert distance.dtype == torch.float64
    assert index.tolist() == [[[2, 1, 0]]]


def test_operations_of_an_empty_batch(device):
    points = torch.empty(0, 5, 3, device=device)
    shapes = [tuple(result.shape) for result in call_each_operation(points, points)]
    assert shapes == [(0, 4), (0, 5, 3), (0, 5, 3), (0, 5, 3)]


def test_searches_in_chunks_are_the_same(monkeypatch):
    points, queries = lattice(3, 30, 3), lattice(3, 11, 3, seed=1)
    expected = call_each_operation(points, queries)
    for max_distances in (1, 200, 1000):
        monkeypatch.setattr(knn_reference, "MAX_DISTANCES", max_distances)
        assert all(map(torch.equal, call_each_operation(points, queries), expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_opcheck(device, dtype):
    points, queries = random_points(2, 12, 3).to(device, dtype), random_points(2, 5, 3).to(device, dtype)
    torch.library.opcheck(pointnet2_utils._furthest_point_sample, (points, 4))
    torch.library.opcheck(pointnet2_utils._ball_query, (1.0, 3, points, queries))
    torch.library.opcheck(pointnet2_utils._three_nn, (queries, points))


def test_operations_compile_into_one_graph(device):
    points, queries = random_points(2, 12, 3).to(device), random_points(2, 5, 3, seed=1).to(device)
    compiled = torch.compile(call_each_operation, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, compiled(points, queries), call_each_operation(points, queries)))


def test_on_a_gpu_kernels_run_on_the_current_stream():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here, hence no streams")
    points = random_points(4, 4000, 3)
    expected = reference.furthest_point_sample(points, 50)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would run before the points arrive
        picked = furthest_point_sample(points.pin_memory().to("cuda", non_blocking=True), 50)
    stream.synchronize()
    assert torch.equal(picked.cpu(), expected)


# Grouping, interpolation


def test_grouping_operation_against_a_loop():
    features, idx = random_points(2, 4, 9), torch.randint(9, (2, 5, 3), generator=torch.Generator().manual_seed(0))
    grouped = grouping_operation(features, idx.int())
    assert grouped.shape == (2, 4, 5, 3)
    for b, m, k in itertools.product(range(2), range(5), range(3)):
        assert torch.equal(grouped[b, :, m, k], features[b, :, idx[b, m, k]])


def test_gradients_of_grouping_operation():
    features = random_points(2, 3, 5).double().requires_grad_()
    idx = torch.tensor([[[0, 4], [4, 4]], [[1, 1], [2, 0]]])  # a repeated index collects all gradients
    assert torch.autograd.gradcheck(lambda x: grouping_operation(x, idx), (features,))


def test_query_and_group_by_hand(device):
    points, centres = on_a_line(9, 1, 5, 2, 3).to(device), on_a_line(2.5, 20).to(device)
    features = torch.tensor([[[90.0, 10, 50, 20, 30]]], device=device)
    grouped, grouped_xyz = QueryAndGroup(1.5, 3, ret_grouped_xyz=True)(points, centres, features)
    assert grouped.shape == (1, 4, 2, 3)
    assert grouped[0, 0].tolist() == [[-0.5, 0.5, -0.5], [-11, -11, -11]]  # x less the centre's
    assert not grouped[0, 1:3].any()  # y and z
    assert grouped[0, 3].tolist() == [[20, 30, 20], [90, 90, 90]]
    assert torch.equal(grouped_xyz, grouped[:, :3])
    assert torch.equal(QueryAndGroup(1.5, 3)(points, centres), grouped_xyz)
    assert torch.equal(QueryAndGroup(1.5, 3, use_xyz=False)(points, centres, features), grouped[:, 3:])


def test_query_and_group_against_a_loop(device):
    points, centres, features = random_points(2, 50, 3), random_points(2, 7, 3, seed=1), random_points(2, 5, 50, seed=2)
    grouped = QueryAndGroup(1.0, 4)(*(tensor.to(device) for tensor in (points, centres, features))).cpu()
    index = reference.ball_query(1.0, 4, points, centres)
    assert grouped.shape == (2, 8, 7, 4)
    for b, m, k in itertools.product(range(2), range(7), range(4)):
        n = index[b, m, k]
        assert torch.equal(grouped[b, :, m, k], torch.cat([points[b, n] - centres[b, m], features[b, :, n]]))


def test_group_all_is_the_whole_cloud():
    points, features = random_points(2, 9, 3), random_points(2, 5, 9)
    grouped, grouped_xyz = GroupAll(ret_grouped_xyz=True)(points, None, features)
    assert torch.equal(grouped.squeeze(2), torch.cat([points.transpose(1, 2), features], 1))
    assert grouped.shape == (2, 8, 1, 9)
    assert torch.equal(grouped_xyz, grouped[:, :3])
    assert torch.equal(GroupAll()(points, points[:, :2]), grouped_xyz)
    assert torch.equal(GroupAll(use_xyz=False)(points, None, features), grouped[:, 3:])


@pytest.mark.parametrize("group", [QueryAndGroup(1.0, 2, use_xyz=False), GroupAll(use_xyz=False)])
def test_groups_of_nothing_are_refused(group):
    with pytest.raises(ValueError, match="without features there is nothing to group: pass features, or use_xyz=True"):
        group(torch.zeros(1, 5, 3), torch.zeros(1, 2, 3))


@pytest.mark.parametrize("group", [QueryAndGroup(1.0, 2), GroupAll()])
@pytest.mark.parametrize("features", [(1, 4, 6), (2, 4, 5), (4, 5)])
def test_groups_refuse_features_of_another_cloud(group, features):
    with pytest.raises(
        ValueError, match=rf"xyz and features must be .* got \(1, 5, 3\) and \({features[0]}, {features[1]}"
    ):
        group(torch.zeros(1, 5, 3), torch.zeros(1, 2, 3), torch.zeros(features))


def test_three_interpolate_takes_half_precision_features_beside_float32_weights():
    features, weight = random_points(2, 4, 6).bfloat16(), random_points(2, 5, 3, seed=1)
    idx = torch.randint(6, (2, 5, 3), generator=torch.Generator().manual_seed(0))
    result = three_interpolate(features, idx.int(), weight)
    assert torch.equal(result, three_interpolate(features.float(), idx, weight).bfloat16())


def test_gather_and_interpolate_take_any_strides():
    features, idx = random_points(2, 9, 4).transpose(1, 2), torch.arange(30).view(2, 3, 5).transpose(1, 2) % 9
    weight = random_points(2, 3, 5).transpose(1, 2)
    expected = three_interpolate(features.contiguous(), idx.contiguous(), weight.contiguous())
    assert torch.equal(three_interpolate(features, idx, weight), expected)
    expected = gather_operation(features.contiguous(), idx[..., 0].contiguous())
    assert torch.equal(gather_operation(features, idx[..., 0]), expected)


# Errors


@pytest.mark.parametrize(
    ("radius", "nsample", "xyz", "new_xyz", "message"),
    [
        (0.0, 2, (1, 5, 3), (1, 4, 3), "radius must be positive, got 0"),
        (float("nan"), 2, (1, 5, 3), (1, 4, 3), "radius must be positive, got nan"),
        (1.0, 0, (1, 5, 3), (1, 4, 3), "nsample must be at least 1, got 0"),
        (1.0, 2, (5, 3), (1, 4, 3), r"xyz must be \(B, N, 3\).*\(5, 3\)"),
        (1.0, 2, (1, 5, 3), (1, 4, 2), r"new_xyz must be \(B, N, 3\).*\(1, 4, 2\)"),
        (1.0, 2, (2, 5, 3), (1, 4, 3), "xyz and new_xyz must have the same batch size and device, got 2 on cpu and 1"),
    ],
)
def test_ball_query_refuses(radius, nsample, xyz, new_xyz, message):
    with pytest.raises(ValueError, match=message):
        ball_query(radius, nsample, torch.zeros(xyz), torch.zeros(new_xyz))


def test_searches_refuse_points_on_two_devices():
    with pytest.raises(ValueError, match="1 on cpu and 1 on meta"):
        three_nn(torch.zeros(1, 5, 3), torch.zeros(1, 5, 3, device="meta"))


def test_three_interpolate_refuses_weights_on_another_device():
    idx = torch.zeros(2, 5, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="features and weight must be on one device, got cpu and meta"):
        three_interpolate(torch.zeros(2, 4, 6), idx, torch.zeros(2, 5, 3, device="meta"))


def test_three_interpolate_refuses_indices_of_another_batch():
    with pytest.raises(ValueError, match=r"got \(2, 4, 6\), \(1, 5, 3\) and \(1, 5, 3\)"):
        three_interpolate(torch.zeros(2, 4, 6), torch.zeros(1, 5, 3, dtype=torch.int64), torch.zeros(1, 5, 3))
