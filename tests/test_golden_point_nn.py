"""Parity with the official Point-NN: codes, deviations, features, the toy banks."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import models.point_nn
from models.point_nn import Point_NN, deviation, pool
from tests.golden.fixtures import clouds
from tests.golden_numbers import GOLDEN, assert_figure, assert_summary
from tools.evaluation.metrics import present_part_ious
from tools.evaluation.prototypes import PrototypeBank, PrototypeSegmenter

ATOL = 2e-4  # of values up to 91; the official float32 figures differ from float64 by up to 1.1e-4
NORM_TOLERANCE = 1e-6
golden = json.loads((GOLDEN / "point_nn.json").read_text())
CLASSIFICATION = [
    pytest.param("classification_small", 256, 52, id="small"),
    pytest.param("classification", 1024, 51, id="full"),
]


def released(case: str) -> Point_NN:
    """The encoder of a golden config, with one deviation a batch."""
    config = golden[case]["config"]
    return Point_NN(
        *(config[key] for key in ("num_stages", "embed_dim", "k_neighbors", "alpha", "beta")),
        normalise="batch",
        neighbours=config.get("de_neighbors", 6),
    )


def encode(model: Point_NN, points: Tensor, batch: int) -> Tensor:
    return torch.cat([model.encode(some) for some in points.split(batch)])


def cosines(features: Tensor) -> Tensor:
    unit = F.normalize(features, dim=-1)
    return unit @ unit.T


def test_code_of_one_point():
    """Angles of float32, as the official ones, are off by 1e-6 radians."""
    case = golden["embedding_of_one_point"]
    code = Point_NN().code(torch.tensor(case["point"]).view(1, 1, 3), case["dim"])
    np.testing.assert_allclose(torch.view_as_real(code).flatten(), case["values"], rtol=0, atol=1e-6)


def test_weighing_of_one_neighbour():
    """Of a centre at the origin without other neighbours, maximum plus mean is twice the weighed feature."""
    case = golden["weighting_of_one_neighbour"]
    points = torch.tensor([[0.0, 0, 0], case["normalised_offset"]])
    offset, own = torch.tensor(case["feature_before"]).chunk(2)
    code = Point_NN().code(points[None], case["dim"])[0]
    rows = torch.zeros(1, dtype=torch.long), torch.ones(1, 1, dtype=torch.long)
    pooled = pool(own.expand(2, -1), torch.stack([torch.zeros(6), offset]), code, *rows)
    np.testing.assert_allclose(pooled[0] / 2, case["feature_after"], atol=1e-6)


@pytest.mark.parametrize(("case", "size", "seed"), CLASSIFICATION)
def test_every_stage(case, size, seed, monkeypatch):
    expected, found, sums = golden[case], [], []

    def noting(x: Tensor, center: Tensor, neighbour: Tensor, across: bool) -> Tensor:
        found.append(deviation(x, center, neighbour, across))
        sums.append(x.flatten(0, 1)[neighbour].double().sum().item())
        return found[-1]

    monkeypatch.setattr(models.point_nn, "deviation", noting)
    start, *levels = released(case).levels(clouds(3, size, seed))
    assert_summary(start.features.mT, expected["raw_embedding"], ATOL)
    for level, stage in zip(levels, expected["stages"], strict=True):
        assert_summary(level.points, stage["centres"])
        assert_summary(level.features.mT, stage["out"], ATOL)
    for stage, *deviations, total in zip(expected["stages"], found[::2], found[1::2], sums[::2], strict=True):
        assert_figure(deviations[0] - 1e-5, stage["std_xyz"], 1e-7)
        assert_figure(deviations[1] - 1e-5, stage["std_x"], 1e-7)
        assert total == pytest.approx(stage["neighbour_coordinate_sum"], abs=1e-3)


@pytest.mark.parametrize(("case", "size", "seed"), CLASSIFICATION)
def test_features(case, size, seed):
    expected, points, model = golden[case], clouds(3, size, seed), released(case)
    features = model(points)
    assert list(features.shape) == expected["feature_shape"]
    assert_summary(features, expected["feature"], ATOL)
    np.testing.assert_allclose(features.norm(dim=1), expected["feature_norms"], rtol=NORM_TOLERANCE)
    np.testing.assert_allclose(cosines(features), expected["cosine_matrix"], atol=1e-6)
    alone, official = model(points[:1]), expected["feature_of_cloud_0_alone"]
    assert_figure(alone.norm(), official["norm"], NORM_TOLERANCE)
    np.testing.assert_allclose(alone[0, :6], official["first"], atol=ATOL)
    difference = (alone[0] - features[0]).norm() / features[0].norm()
    assert_figure(difference, official["relative_difference_to_batched"], 1e-4)
    assert_figure(F.cosine_similarity(alone[0], features[0], dim=0), official["cosine_to_batched"], 1e-6)


@pytest.mark.parametrize(("case", "size", "seed"), CLASSIFICATION[:1])
def test_features_in_double_precision(case, size, seed):
    features = released(case)(clouds(3, size, seed).double())
    assert features.dtype == torch.float64
    np.testing.assert_allclose(features.norm(dim=1), golden[case]["float64_feature_norms"], rtol=2e-8)


def noisy(batch: int, seed: int) -> Tensor:
    noise = np.random.RandomState(1000 + seed).standard_normal((batch, 256, 3)).astype(np.float32)
    return clouds(batch, 256, seed) + golden["memory_bank"]["noise"] * torch.from_numpy(noise)


def test_similarities_in_the_toy_bank():
    """The formula of the memory bank, as published, over features of ours."""
    case, model = golden["memory_bank"], released("classification_small")
    bank, queries = encode(model, noisy(30, 61), 16), encode(model, noisy(24, 62), 16)
    np.testing.assert_allclose(bank[:4].norm(dim=1), case["bank_feature_norms_first_4"], rtol=NORM_TOLERANCE)
    np.testing.assert_allclose(queries[:4].norm(dim=1), case["test_feature_norms_first_4"], rtol=NORM_TOLERANCE)
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    assert_summary(similarity, case["sim"], 1e-6)
    np.testing.assert_allclose(similarity[0], case["sim_row_0"], atol=1e-6)
    classes, truth = F.one_hot(torch.arange(30) % 3, 3).double(), torch.arange(24) % 3

    def logits(gamma: float) -> Tensor:
        return torch.exp(-gamma * (1 - similarity.double())) @ classes

    def accuracy(gamma: float) -> float:
        return 100 * (logits(gamma).argmax(1) == truth).double().mean().item()

    np.testing.assert_allclose(logits(100), case["logits_gamma_100"], rtol=1e-4)
    assert logits(100).argmax(1).tolist() == case["prediction_gamma_100"]
    for gamma, official in case["gamma_accuracy"]:
        assert accuracy(gamma) == pytest.approx(official)
    accuracies = {gamma: accuracy(gamma) for gamma in range(0, 10000, 2)}
    best = max(accuracies, key=accuracies.__getitem__)  # the first of equals
    assert accuracies[best] == pytest.approx(case["best_accuracy"])
    assert abs(best - case["first_gamma_of_best"]) <= 10
    nearest = (similarity.argmax(1) % 3 == truth).double().mean().item()
    assert 100 * nearest == pytest.approx(case["nearest_neighbour_accuracy"])


def test_how_far_a_feature_moves():
    """With its batch, with the order of its points, with the cloud."""
    case, model, points = golden["variation"], released("classification_small"), clouds(16, 256, 91)
    features = encode(model, points, 16)

    def lowest(others: Tensor) -> float:
        return F.cosine_similarity(others, features).min().item()

    similar, shape = cosines(features), torch.arange(16) % 3
    same = (shape == shape.unsqueeze(1)) & ~torch.eye(16, dtype=torch.bool)
    other = shape != shape.unsqueeze(1)
    found = {
        "one_cloud_per_batch": lowest(encode(model, points, 1)),
        "four_per_batch": lowest(encode(model, points, 4)),
        "scaled_by_2": lowest(model(2 * points)),
        "shifted_by_0.3": lowest(model(points + 0.3)),
        "rotated_90_degrees_about_z": lowest(model(points[..., [1, 0, 2]] * torch.tensor([-1, 1, 1]))),
        "mean_cosine_same_shape": similar[same].mean().item(),
        "mean_cosine_other_shape": similar[other].mean().item(),
    }
    assert found == pytest.approx({key: case[key] for key in found}, abs=2e-6)


@pytest.mark.parametrize(
    ("case", "size", "seed"),
    [
        pytest.param("part_segmentation_small", 256, 72, id="small"),
        pytest.param("part_segmentation", 1024, 71, id="full"),
    ],
)
def test_features_of_points(case, size, seed):
    expected = golden[case]
    features = released(case).encode_points(clouds(1, size, seed))
    assert list(features.mT.shape) == expected["shape"]
    assert_summary(features.mT, expected["feature"], ATOL)
    blocks = features.split(expected["level_channels_fine_to_coarse"], dim=-1)
    norms = [block.double().norm() for block in blocks]
    np.testing.assert_allclose(norms, expected["block_norms_in_channel_order"], rtol=NORM_TOLERANCE)
    np.testing.assert_allclose(features[0, :4].norm(dim=1), expected["point_norms_first_4"], rtol=NORM_TOLERANCE)
    np.testing.assert_allclose(cosines(features[0, :4]), expected["cosine_of_points_0_to_3"], atol=2e-6)


def test_prototypes_of_the_toy_shapes():
    case, model = golden["part_memory_bank"], released("part_segmentation_small")

    def shapes(first: int, count: int) -> tuple[Tensor, Tensor]:
        points = torch.cat([clouds(3, 256, first + i)[:1] for i in range(count)])
        return points, 12 + 2 * (points[..., 0] > 0).long() + (points[..., 1] > 0).long()

    (bank_points, bank_parts), (points, true) = shapes(81, 8), shapes(181, 4)
    chairs = torch.full((8,), 4)
    bank = PrototypeBank()
    for one, parts in zip(bank_points.split(1), bank_parts.split(1), strict=True):
        bank.add(model.encode_points(one), chairs[:1], parts)
    prototypes, labels = bank.of_category(4)
    assert list(prototypes.shape) == case["prototypes"]
    assert labels[:8].tolist() == case["prototype_labels_first_8"]

    features = torch.cat([model.encode_points(one) for one in points.split(1)])
    assert_summary(F.normalize(features[0], dim=-1) @ prototypes.T, case["sim_0"], 2e-6)
    segmenter = PrototypeSegmenter(model, bank, gamma=300)
    log_logits = torch.cat([segmenter(one, chairs[:1]) for one in points.split(1)])
    logits = log_logits.exp()
    assert_summary(logits, case["logits"], 2e-5)
    np.testing.assert_allclose(logits[0, :3, 12:16], case["logits_shape_0_points_0_to_2_parts_12_to_15"], rtol=1e-3)
    predicted = log_logits.argmax(-1)
    assert predicted.flatten().bincount(minlength=50)[12:16].tolist() == case["prediction_histogram_12_to_15"]
    assert true.flatten().bincount(minlength=50)[12:16].tolist() == case["label_histogram_12_to_15"]
    assert 100 * (predicted == true).double().mean().item() == pytest.approx(case["accuracy"])
    ious = present_part_ious(predicted, true, 50)
    np.testing.assert_allclose(ious, case["iou_per_shape"], rtol=1e-7)
    assert 100 * ious.mean().item() == pytest.approx(case["mIoU"])
