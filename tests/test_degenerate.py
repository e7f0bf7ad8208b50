"""Clouds that no scanner delivers: finite results and gradients, or an error that says what is wrong."""

import pytest
import torch

from datasets.transforms import normalize_unit_sphere, random_subset, scale_and_rotate, scale_and_translate
from extensions.chamfer_dist import ChamferDistanceL1, ChamferDistanceL2, ChamferDistanceL2_split, chamfer
from extensions.emd import earth_mover_distance, emd, exact_earth_mover_distance
from extensions.knn_cuda import KNN
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
from models import build_model
from models.projection import project
from models.propagation import interpolate_features
from models.tokenizer import group_levels
from tests.playground import AUTOENCODER, ENCODER, TEACHER

POINTS, GROUPS, GROUP_SIZES = 96, ENCODER["num_groups"], ENCODER["group_sizes"]
ORDINARY = torch.randn(3, POINTS, 3, generator=torch.Generator().manual_seed(0))

CLOUDS = {
    "ordinary": ORDINARY,
    "fewer points than groups": ORDINARY[:, : GROUPS[0] // 3],
    "all equal": ORDINARY[:, :1].expand(-1, POINTS, -1),
    "all at the origin": torch.zeros(3, POINTS, 3),
    "two different": ORDINARY[:, :2].repeat(1, POINTS // 2, 1),
    "one that differs": torch.cat([ORDINARY[:, :1], ORDINARY[:, 1:2].expand(-1, POINTS - 1, -1)], dim=1),
    "flat": ORDINARY * torch.tensor([1.0, 1.0, 0.0]),
    "on a line": ORDINARY * torch.tensor([0.0, 1.0, 0.0]),
    "one far away": torch.cat([ORDINARY[:, :1] * 1e6, ORDINARY[:, 1:]], dim=1),
}
SCALES = [1e-40, 1e-30, 1e-20, 1e20, 1e30, 8e37]
NOT_A_NUMBER = ORDINARY.index_fill(1, torch.tensor([3]), float("nan"))
INFINITE = ORDINARY.index_fill(1, torch.tensor([3]), float("inf"))


def loss_of(name, model, points):
    labels = torch.arange(len(points))
    if name == "segmenter":
        return model.loss(model(points, labels), labels[:, None].expand(-1, points.shape[1]))
    return model.loss(model(points), labels) if "classifier" in name else model(points)["loss"]


MODELS = {
    "I2P-MAE": {"NAME": "I2P_MAE", **AUTOENCODER, "clip_config": TEACHER},
    "Point-M2AE": {"NAME": "Point_M2AE", **AUTOENCODER},
    "ModelNet40 classifier": {"NAME": "I2P_MAE_ModelNet40", **ENCODER, "num_classes": 4},
    "ScanObjectNN classifier": {"NAME": "Point_M2AE_ScanObjectNN", **ENCODER, "local_radius": [0.32, 0.64, 1.28]},
    "segmenter": {"NAME": "Point_M2AE_SEG", **ENCODER, "point_dims": [64, 48]},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """Name and model."""
    torch.manual_seed(0)
    return request.param, build_model(MODELS[request.param])


# ---------------------------------------------------------------------------------------------------- models


@pytest.mark.filterwarnings("ignore:the 2D teacher is untrained")
@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("normalized", [True, False], ids=["normalised", "as it is"])
def test_models_stay_finite_forward_and_backward(model, cloud, normalized):
    name, network = model
    points = normalize_unit_sphere(CLOUDS[cloud]) if normalized else CLOUDS[cloud]
    network.zero_grad()
    loss = loss_of(name, network.train(), points)
    loss.backward()
    assert loss.isfinite()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("count", [1, GROUP_SIZES[0] - 1])
def test_models_refuse_fewer_points_than_neighbours(model, count):
    name, network = model
    with pytest.raises(ValueError, match=f"{GROUP_SIZES[0]} neighbours asked of clouds with {count} points"):
        loss_of(name, network, ORDINARY[:, :count])


@pytest.mark.parametrize("points", [NOT_A_NUMBER, INFINITE], ids=["NaN", "infinite"])
def test_points_that_are_no_numbers_give_a_loss_that_is_not_finite(model, points):
    """Readers refuse them; what gets past ends the run with the batch and the epoch, see test_faults.py."""
    name, network = model
    assert not loss_of(name, network.train(), points).isfinite()


# ---------------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("cloud", CLOUDS)
def test_images_are_finite_and_every_point_has_a_pixel(cloud):
    points = CLOUDS[cloud]
    images, projection = project(points, 64)
    assert images.isfinite().all()
    pixels = projection.pixels(points)
    assert ((pixels >= 0) & (pixels < 64)).all()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_groups_are_of_points_of_the_cloud(cloud):
    points = CLOUDS[cloud]
    for finer, group in zip([points.shape[1], *GROUPS], group_levels(points, GROUPS, GROUP_SIZES), strict=False):
        assert group.centers.isfinite().all()
        assert group.neighborhoods.isfinite().all()
        assert ((group.index >= 0) & (group.index < finer)).all()


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("distance", [ChamferDistanceL1, ChamferDistanceL2, earth_mover_distance])
def test_distances_and_their_gradients_are_finite(cloud, distance):
    points = CLOUDS[cloud].clone().requires_grad_()
    others = ORDINARY.clone().requires_grad_()
    value = distance()(points, others) + distance()(points, points.detach())
    value.backward()
    assert value.isfinite()
    assert value >= 0
    assert points.grad.isfinite().all()
    assert others.grad.isfinite().all()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_neighbours_are_in_range(cloud):
    points = CLOUDS[cloud].contiguous()
    count = points.shape[1]
    nearest = three_nn(ORDINARY, points)
    found = KNN(4, transpose_mode=True)(points, ORDINARY)
    sampled = furthest_point_sample(points, 2 * count)  # more than there are
    for distances, indices in (nearest, found, (points, sampled), (points, ball_query(0.5, 4, points, ORDINARY))):
        assert distances.isfinite().all()
        assert ((indices >= 0) & (indices < count)).all()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_interpolated_features_are_finite(cloud):
    points = CLOUDS[cloud]
    features = torch.ones(*points.shape[:2], 5, requires_grad=True)
    interpolated = interpolate_features(ORDINARY, points, features)
    torch.testing.assert_close(interpolated.detach(), torch.ones(3, POINTS, 5))
    interpolated.sum().backward()
    assert features.grad.isfinite().all()


def no(*shape):
    """Clouds or features of an empty batch."""
    return torch.empty(0, *shape, requires_grad=True)


def no_index(*shape):
    return torch.empty(0, *shape, dtype=torch.int64)


EMPTY = {  # the call, and the shape of each result after B = 0
    "furthest_point_sample": (lambda: furthest_point_sample(no(5, 3), 2), [(2,)]),
    "ball_query": (lambda: ball_query(1.0, 4, no(5, 3), no(2, 3)), [(2, 4)]),
    "three_nn": (lambda: three_nn(no(5, 3), no(4, 3)), [(5, 3), (5, 3)]),
    "gather_operation": (lambda: gather_operation(no(6, 5), no_index(2)), [(6, 2)]),
    "grouping_operation": (lambda: grouping_operation(no(6, 5), no_index(2, 4)), [(6, 2, 4)]),
    "three_interpolate": (lambda: three_interpolate(no(6, 5), no_index(2, 3), no(2, 3)), [(6, 2)]),
    "QueryAndGroup": (lambda: QueryAndGroup(1.0, 4)(no(5, 3), no(2, 3), no(6, 5)), [(9, 2, 4)]),
    "GroupAll": (lambda: GroupAll()(no(5, 3), None, no(6, 5)), [(9, 1, 5)]),
    "KNN": (lambda: KNN(4, transpose_mode=True)(no(5, 3), no(2, 3)), [(2, 4), (2, 4)]),
    "chamfer": (lambda: chamfer(no(5, 3), no(4, 3)), [(5,), (4,), (5,), (4,)]),
    "emd": (lambda: emd(no(5, 3), no(4, 3)), [(), (10, 5), (10, 4)]),
    "exact_earth_mover_distance": (lambda: exact_earth_mover_distance(no(5, 3), no(5, 3)), [()]),
}


@pytest.mark.parametrize("operation", EMPTY)
def test_an_empty_batch_gives_empty_results_and_gradients(operation):
    call, shapes = EMPTY[operation]
    results = call()
    results = results if isinstance(results, tuple) else (results,)
    assert [tuple(result.shape) for result in results] == [(0, *shape) for shape in shapes]
    for result in results:
        if result.requires_grad:
            result.sum().backward(retain_graph=True)


@pytest.mark.parametrize(
    "metric", [ChamferDistanceL1, ChamferDistanceL2, ChamferDistanceL2_split, earth_mover_distance]
)
def test_there_is_no_mean_over_an_empty_batch(metric):
    with pytest.raises(ValueError, match=r"there is no mean over an empty batch: xyz1 is \(0, 5, 3\)"):
        metric()(no(5, 3), no(4, 3))


# ---------------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("scale", SCALES)
def test_a_cloud_of_any_size_is_scaled_to_the_unit_sphere(scale):
    expected = normalize_unit_sphere(ORDINARY)
    precision = 1e-4 if scale < 1e-38 else 1e-6  # float32 itself holds four digits there
    torch.testing.assert_close(normalize_unit_sphere(ORDINARY * scale), expected, atol=precision, rtol=0)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_normalised_clouds_are_in_the_unit_sphere(cloud):
    normalized = normalize_unit_sphere(CLOUDS[cloud])
    radius = normalized.norm(dim=-1).amax(1)
    zero = cloud in ("all equal", "all at the origin")
    torch.testing.assert_close(radius, torch.full((3,), 0.0 if zero else 1.0))


def test_a_single_point_goes_to_the_origin():
    assert not normalize_unit_sphere(ORDINARY[:, :1]).any()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_augmented_clouds_are_finite(cloud):
    points = normalize_unit_sphere(CLOUDS[cloud])
    for augment in (scale_and_translate, scale_and_rotate):
        assert augment(points, torch.Generator().manual_seed(0)).isfinite().all()
    assert random_subset(points, 1, torch.Generator().manual_seed(0)).shape == (3, 1, 3)
