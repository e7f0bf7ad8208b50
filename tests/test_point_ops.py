"""Farthest point sampling, nearest neighbours, gathering and interpolation against definitions written out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from extensions.chamfer_dist import chamfer
from extensions.knn_cuda import KNN
from extensions.knn_cuda import reference as knn_reference
from extensions.pointnet2_ops.pointnet2_utils import (
    furthest_point_sample,
    gather_operation,
    grouping_operation,
    three_interpolate,
    three_nn,
)


def random_points(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def on_a_line(*x: float) -> Tensor:
    """One cloud (1, n, 3) of points on the x axis."""
    return torch.tensor([[[value, 0.0, 0.0] for value in x]])


seeds = st.integers(0, 2**32 - 1)


# Farthest point sampling


def test_fps_by_hand():
    # From 1 the farthest is 9; then 5, 4 from both; then 7 and 3, each 2 from the picked, by index; 2 is left.
    assert furthest_point_sample(on_a_line(1, 2, 9, 5, 7, 3), 6).tolist() == [[0, 2, 3, 4, 5, 1]]


@settings(deadline=None, max_examples=40)
@given(seed=seeds, num_points=st.integers(2, 40))
def test_each_pick_of_fps_is_the_farthest_left(seed, num_points):
    points = 2 + random_points(2, num_points, 3, seed=seed)
    points = points / points.norm(dim=-1, keepdim=True)  # none near the origin
    picked = furthest_point_sample(points, num_points)
    assert picked[:, 0].tolist() == [0, 0]
    for cloud, order in zip(points.double(), picked, strict=True):
        distance = torch.cdist(cloud, cloud)
        for i in range(1, num_points):
            to_picked = distance[:, order[:i]].amin(1)
            assert to_picked[order[i]] >= to_picked.max() - 1e-6


def test_fps_never_picks_padding_after_the_start():
    inside, outside = 0.9e-3**0.5, 1.1e-3**0.5
    assert furthest_point_sample(on_a_line(1, inside, outside, 0, 0.5), 3).tolist() == [[0, 2, 4]]


def test_fps_counts_a_squared_norm_of_one_thousandth_as_padding():
    limit = torch.tensor(1e-3)
    x = torch.tensor(0.0316)
    y = (limit - x * x).sqrt()
    assert x * x + y * y == limit  # in float32, to the last bit
    assert furthest_point_sample(torch.tensor([[[1.0, 0, 0], [x, y, 0], [0.9, 0, 0]]]), 2).tolist() == [[0, 2]]
    above = torch.nextafter(y, torch.tensor(1.0))
    while x * x + above * above <= limit:
        above = torch.nextafter(above, torch.tensor(1.0))
    assert furthest_point_sample(torch.tensor([[[1.0, 0, 0], [x, above, 0], [0.9, 0, 0]]]), 2).tolist() == [[0, 1]]


def test_fps_starts_at_index_zero_even_if_it_is_padding():
    assert furthest_point_sample(on_a_line(0, 1, 3), 3).tolist() == [[0, 2, 1]]


def test_fps_repeats_indices_once_the_candidates_run_out():
    assert furthest_point_sample(on_a_line(1, 3, 0), 5).tolist() == [[0, 1, 0, 0, 0]]


def test_fps_breaks_ties_by_the_lowest_index():
    square = torch.tensor([[[1.0, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]]])
    assert furthest_point_sample(square, 4).tolist() == [[0, 3, 1, 2]]


@pytest.mark.parametrize("cloud", [on_a_line(1), on_a_line(0), on_a_line(2, 2, 2), on_a_line(0, 0, 0)])
def test_fps_of_one_place_repeats_the_start(cloud):
    assert furthest_point_sample(cloud, 4).tolist() == [[0, 0, 0, 0]]


def test_fps_samples_each_cloud_of_a_batch_alone():
    points = random_points(3, 30, 3)
    alone = torch.cat([furthest_point_sample(cloud.unsqueeze(0), 12) for cloud in points])
    assert torch.equal(furthest_point_sample(points, 12), alone)


def test_fps_takes_non_contiguous_points():
    points = random_points(2, 3, 30).transpose(1, 2)
    assert not points.is_contiguous()
    assert torch.equal(furthest_point_sample(points, 10), furthest_point_sample(points.contiguous(), 10))


def test_fps_measures_bfloat16_points_in_float32():
    points = random_points(1, 500, 3).bfloat16()
    assert torch.equal(furthest_point_sample(points, 200), furthest_point_sample(points.float(), 200))


def test_fps_leaves_its_input_alone_and_gives_int64():
    points = random_points(1, 20, 3)
    before = points.clone()
    assert furthest_point_sample(points, 5).dtype == torch.int64
    assert torch.equal(points, before)


@pytest.mark.parametrize(
    ("points", "npoint", "message"),
    [
        (torch.zeros(5, 3), 2, r"xyz must be \(B, N, 3\).*\(5, 3\)"),
        (torch.zeros(1, 5, 4), 2, r"\(1, 5, 4\)"),
        (torch.zeros(1, 0, 3), 2, "at least one point"),
        (torch.zeros(1, 5, 3), 0, "npoint must be at least 1, got 0"),
    ],
)
def test_fps_refuses(points, npoint, message):
    with pytest.raises(ValueError, match=message):
        furthest_point_sample(points, npoint)


# k nearest neighbours


def brute_force(ref: Tensor, query: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    distance = np.linalg.norm(query.double().numpy()[:, :, None] - ref.double().numpy()[:, None], axis=-1)
    index = distance.argsort(-1, kind="stable")[..., :k]
    return np.take_along_axis(distance, index, -1), index


@settings(deadline=None, max_examples=40)
@given(seed=seeds, num_ref=st.integers(1, 30), num_query=st.integers(1, 12), data=st.data())
def test_knn_agrees_with_brute_force(seed, num_ref, num_query, data):
    k = data.draw(st.integers(1, num_ref))
    ref, query = random_points(2, num_ref, 3, seed=seed), random_points(2, num_query, 3, seed=seed ^ 1)
    distance, index = KNN(k, transpose_mode=True)(ref, query)
    expected_distance, expected_index = brute_force(ref, query, k)
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-5, atol=1e-6)
    assert np.array_equal(index, expected_index)


def test_knn_distances_ascend_and_belong_to_the_indices():
    ref, query = random_points(2, 40, 3), random_points(2, 7, 3, seed=1)
    distance, index = KNN(9, transpose_mode=True)(ref, query)
    assert (distance.diff(dim=-1) >= 0).all()
    gathered = torch.stack([cloud[i] for cloud, i in zip(ref, index, strict=True)])  # (B, M, k, 3)
    torch.testing.assert_close(distance, (gathered - query.unsqueeze(2)).norm(dim=-1))


def test_knn_tells_points_apart_that_are_near_each_other_and_far_from_the_origin():
    ref = torch.tensor([[[1000.0, 0, 0], [1000.0, 0.01, 0], [1000.0, 0, 0.02]]])
    distance, index = KNN(3, transpose_mode=True)(ref, ref[:, 1:2])
    assert index[0, 0].tolist()[:2] == [1, 0]
    np.testing.assert_allclose(distance[0, 0], [0, 0.01, np.hypot(0.01, 0.02)], rtol=1e-5)


def test_knn_without_transpose_mode_has_the_points_along_the_last_axis():
    ref, query = random_points(2, 20, 3), random_points(2, 6, 3, seed=1)
    expected = KNN(4, transpose_mode=True)(ref, query)
    distance, index = KNN(4)(ref.transpose(1, 2), query.transpose(1, 2))
    assert distance.shape == index.shape == (2, 4, 6)
    assert torch.equal(distance.transpose(1, 2), expected[0])
    assert torch.equal(index.transpose(1, 2), expected[1])


@pytest.mark.parametrize("max_distances", [1, 25, 60, 300])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("digits", [7, 0])  # rounded to whole numbers, points are equally far
def test_knn_in_chunks_is_the_same(monkeypatch, max_distances, k, digits):
    ref, query = (random_points(5, n, 3, seed=n).round(decimals=digits) for n in (20, 7))
    expected = KNN(k, transpose_mode=True)(ref, query)
    monkeypatch.setattr(knn_reference, "MAX_DISTANCES", max_distances)
    distance, index = KNN(k, transpose_mode=True)(ref, query)
    assert torch.equal(distance, expected[0])
    assert torch.equal(index, expected[1])


def test_knn_measures_half_precision_in_float32():
    ref = random_points(1, 30, 3).half()
    distance, index = KNN(4, transpose_mode=True)(ref, ref)
    expected = KNN(4, transpose_mode=True)(ref.float(), ref.float())
    assert distance.dtype == torch.float32
    assert torch.equal(index, expected[1])


def test_knn_finds_all_duplicates_at_distance_zero():
    cloud = torch.ones(1, 6, 3)
    distance, index = KNN(6, transpose_mode=True)(cloud, cloud[:, :1])
    assert distance.flatten().tolist() == [0] * 6
    assert index.flatten().tolist() == list(range(6))


def lattice(num_points: int, axes: int = 3) -> Tensor:
    """Two clouds of small integer coordinates, zero beyond the first `axes`: most queries have points equally far."""
    points = torch.randint(-3, 4, (2, num_points, 3), generator=torch.Generator().manual_seed(0)).float()
    points[..., axes:] = 0
    return points


def sorted_by_distance_and_index(ref: Tensor, query: Tensor) -> np.ndarray:
    squared = ((query.numpy()[:, :, None] - ref.numpy()[:, None]) ** 2).sum(-1)  # whole numbers: exact
    return np.lexsort((np.broadcast_to(np.arange(ref.shape[1]), squared.shape), squared))


TIED = {
    "lattice": lattice(300),
    "plane": lattice(300, axes=2),
    "line": lattice(60, axes=1),
    "duplicates": lattice(7).repeat(1, 9, 1),
    "one place": torch.ones(2, 40, 3),
}


@pytest.mark.parametrize("k", [1, 2, 8, 16, 40])
@pytest.mark.parametrize("cloud", TIED.values(), ids=TIED)
def test_knn_gives_ties_to_the_lowest_index(cloud, k):
    _, index = KNN(k, transpose_mode=True)(cloud, cloud[:, :30])
    assert np.array_equal(index, sorted_by_distance_and_index(cloud, cloud[:, :30])[..., :k])


@pytest.mark.parametrize("cloud", TIED.values(), ids=TIED)
def test_three_nn_gives_ties_to_the_lowest_index(cloud):
    assert np.array_equal(
        three_nn(cloud[:, :30], cloud)[1], sorted_by_distance_and_index(cloud, cloud[:, :30])[..., :3]
    )


@pytest.mark.parametrize("cloud", TIED.values(), ids=TIED)
def test_the_nearest_of_a_chamfer_distance_is_the_lowest_index(cloud):
    _, _, forth, back = chamfer(cloud[:, :30], cloud)
    assert np.array_equal(forth, sorted_by_distance_and_index(cloud, cloud[:, :30])[..., 0])
    assert np.array_equal(back, sorted_by_distance_and_index(cloud[:, :30], cloud)[..., 0])


def test_knn_puts_nan_last_by_its_index():
    ref = on_a_line(torch.nan, 2, 1, torch.nan, 2)
    for k in (4, 5):
        distance, index = KNN(k, transpose_mode=True)(ref, on_a_line(0))
        assert index.flatten().tolist() == [2, 1, 4, 0, 3][:k]
        np.testing.assert_array_equal(distance.flatten(), [1, 2, 2, np.nan, np.nan][:k])


@pytest.mark.parametrize(
    ("ref", "query", "message"),
    [
        ((2, 3, 3), (2, 5, 3), "4 neighbours asked of clouds with 3 points"),
        ((2, 9, 3), (1, 5, 3), r"\(2, 9, 3\) and \(1, 5, 3\)"),
        ((2, 9, 3), (2, 5, 2), r"\(2, 5, 2\)"),
        ((9, 3), (5, 3), r"\(9, 3\) and \(5, 3\)"),
    ],
)
@pytest.mark.parametrize("transpose_mode", [True, False])
def test_knn_refuses(ref, query, message, transpose_mode):
    ref, query = torch.zeros(ref), torch.zeros(query)
    if not transpose_mode and ref.dim() == 3:
        ref, query = ref.transpose(1, 2), query.transpose(1, 2)
    with pytest.raises(ValueError, match=message):
        KNN(4, transpose_mode)(ref, query)


def test_knn_refuses_no_neighbours():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        KNN(0)


# Gathering and interpolation


def test_gather_operation_against_a_loop():
    features, idx = random_points(2, 4, 9), torch.randint(9, (2, 5), generator=torch.Generator().manual_seed(0))
    gathered = gather_operation(features, idx.int())
    assert gathered.shape == (2, 4, 5)
    for b in range(2):
        for m in range(5):
            assert torch.equal(gathered[b, :, m], features[b, :, idx[b, m]])


def test_three_nn_are_the_three_nearest():
    unknown, known = random_points(2, 8, 3), random_points(2, 11, 3, seed=1)
    distance, index = three_nn(unknown, known)
    expected_distance, expected_index = brute_force(known, unknown, 3)
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-5, atol=1e-6)
    assert np.array_equal(index, expected_index)


@pytest.mark.parametrize(
    ("unknown", "known", "message"),
    [
        ((1, 4, 3), (1, 2, 3), "known must have at least 3 points, got 2"),
        ((4, 3), (1, 5, 3), r"unknown must be \(B, N, 3\)"),
        ((1, 4, 3), (1, 5, 2), r"known must be \(B, N, 3\)"),
    ],
)
def test_three_nn_refuses(unknown, known, message):
    with pytest.raises(ValueError, match=message):
        three_nn(torch.zeros(unknown), torch.zeros(known))


def test_three_interpolate_against_a_loop():
    features, weight = random_points(2, 4, 6), random_points(2, 5, 3, seed=1)
    idx = torch.randint(6, (2, 5, 3), generator=torch.Generator().manual_seed(0))
    result = three_interpolate(features, idx, weight)
    expected = torch.zeros(2, 4, 5)
    for b in range(2):
        for n in range(5):
            for j in range(3):
                expected[b, :, n] += weight[b, n, j] * features[b, :, idx[b, n, j]]
    torch.testing.assert_close(result, expected)


def test_gradients_of_gather_operation():
    features = random_points(2, 3, 5, dtype=torch.float64).requires_grad_()
    idx = torch.tensor([[0, 4, 4], [1, 1, 2]])  # a repeated index collects both gradients
    assert torch.autograd.gradcheck(lambda x: gather_operation(x, idx), (features,))


def test_gradients_of_three_interpolate():
    features = random_points(2, 3, 5, dtype=torch.float64).requires_grad_()
    weight = random_points(2, 2, 3, seed=1, dtype=torch.float64).requires_grad_()
    idx = torch.tensor([[[0, 1, 2], [2, 3, 3]], [[4, 4, 0], [1, 2, 3]]])
    assert torch.autograd.gradcheck(lambda x, w: three_interpolate(x, idx, w), (features, weight))


# Indices


FEATURES = random_points(2, 4, 6)
BY_INDEX = {  # an operation of features (B, C, N) and indices, and the shape of the indices after B
    "gather": (gather_operation, (5,)),
    "grouping": (grouping_operation, (5, 3)),
    "interpolate": (lambda features, idx: three_interpolate(features, idx, torch.ones(idx.shape)), (5, 3)),
}


@pytest.fixture(params=BY_INDEX)
def by_index(request):
    return BY_INDEX[request.param]


def indices(shape: tuple[int, ...], value: int = 0, batch: int = 2, dtype: torch.dtype = torch.int64) -> Tensor:
    """Zeros but for the last, which is `value`."""
    idx = torch.zeros(batch, *shape, dtype=dtype)
    idx[-1, ..., -1] = value
    return idx


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_indices_of_whole_numbers_up_to_the_last_column_are_taken(by_index, dtype):
    operation, shape = by_index
    wide = operation(FEATURES, indices(shape, value=5))
    assert torch.equal(operation(FEATURES, indices(shape, value=5, dtype=dtype)), wide)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_other_types_of_indices_are_refused(by_index, dtype):
    operation, shape = by_index
    with pytest.raises(ValueError, match=f"idx must be int64, int32 or int16, got {dtype}"):
        operation(FEATURES, indices(shape, dtype=dtype))


@pytest.mark.parametrize("batch", [1, 3])
def test_indices_of_another_batch_are_refused(by_index, batch):
    operation, shape = by_index
    with pytest.raises(ValueError, match=rf"got \(2, 4, 6\)(,| and) \({batch}, 5"):
        operation(FEATURES, indices(shape, batch=batch))


def test_features_and_indices_of_other_dimensions_are_refused(by_index):
    operation, shape = by_index
    with pytest.raises(ValueError, match=r"must be \(B, C, [NM]\)"):
        operation(FEATURES, indices((2, *shape)))
    with pytest.raises(ValueError, match=r"must be \(B, C, [NM]\)"):
        operation(FEATURES[..., 0], indices(shape))


def test_indices_on_another_device_are_refused(by_index):
    operation, shape = by_index
    with pytest.raises(ValueError, match="on one device, got cpu and meta"):
        operation(FEATURES, indices(shape).to("meta"))


@pytest.mark.parametrize("value", [-1, 6, 11])  # 6 is the first column of the next cloud, -1 the last of the one before
def test_indices_out_of_range_are_refused(by_index, value):
    operation, shape = by_index
    message = f"idx must lie in 0 … 5, as features has 6 columns, got values from {min(value, 0)} to {max(value, 0)}"
    with pytest.raises(ValueError, match=message):
        operation(FEATURES, indices(shape, value))


@pytest.mark.parametrize("value", [-1, 6])
def test_nothing_reads_another_cloud_where_values_are_not_looked_at(by_index, value):
    """Compiled, as on a GPU, PyTorch's own bounds are left to hold."""
    operation, shape = by_index
    compiled = torch.compile(operation, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(FEATURES, indices(shape, 5)), operation(FEATURES, indices(shape, 5)))
    with pytest.raises(RuntimeError, match="out of bounds"):
        compiled(FEATURES, indices(shape).fill_(value))


OUT_OF_RANGE = """
import torch
from extensions.pointnet2_ops.pointnet2_utils import {name}
features, idx = torch.zeros(2, 4, 6, device="cuda"), torch.full({shape}, 6, device="cuda")
{name}(features, idx{more})
torch.cuda.synchronize()
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU to assert on")
@pytest.mark.parametrize(
    ("name", "shape", "more"),
    [
        ("gather_operation", (2, 5), ""),
        ("grouping_operation", (2, 5, 3), ""),
        ("three_interpolate", (2, 5, 3), ", torch.ones(2, 5, 3, device='cuda')"),
    ],
)
def test_on_a_gpu_an_index_out_of_range_is_an_assertion(name, shape, more):
    command = [sys.executable, "-c", OUT_OF_RANGE.format(name=name, shape=shape, more=more)]
    outcome = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert "device-side assert" in outcome.stderr
