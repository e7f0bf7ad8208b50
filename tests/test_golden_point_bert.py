"""Parity with the official Point-BERT: names, shapes, features, losses, gradients."""

import numpy as np
import pytest
import torch
from torch import Tensor

from extensions.knn_cuda import KNN
from models import build_model
from models.discrete_vae import DiscreteVAE
from tests.golden.fixtures import clouds, fill_parameters
from tests.golden_numbers import assert_figure, assert_keys, assert_summary, gradient_norm, load
from tests.test_golden_point_mae import exempt_by_name

LOSS_TOLERANCE, TOTAL_GRADIENT_TOLERANCE, GRADIENT_TOLERANCE = 2e-6, 5e-4, 2e-3
KL_TOLERANCE = 3e-6  # of the official float32: ours in double precision is 2.1e-6 away


@pytest.fixture(scope="module")
def golden() -> dict:
    return load("point_bert_dvae")


@pytest.fixture(scope="module")
def points() -> Tensor:
    return clouds(2, 1024, seed=41)


@pytest.fixture(scope="module")
def noise() -> Tensor:
    drawn = np.random.RandomState(7).standard_exponential((2, 64, 8192)).astype(np.float32)
    return -torch.from_numpy(drawn).log()


def released(golden: dict, training: bool = False) -> DiscreteVAE:
    return fill_parameters(build_model(golden["config"])).train(training)


def test_state_dict(golden):
    model = build_model(golden["config"])
    assert_keys(model, golden["keys"])
    assert sum(p.numel() for p in model.parameters()) == golden["params"] == 27_620_891
    assert exempt_by_name(model) == golden["no_decay_beyond_1d_and_bias"]
    assert model.decoder.seeds.T.tolist() == [pytest.approx(row) for row in golden["folding_seed"]]


def test_graph_logits_and_words(golden, points):
    model = released(golden)
    group = model.group(points)
    with torch.no_grad():
        assert_summary(model.encoder(group.neighborhoods), golden["group_tokens_eval"])
        assert_summary(model.logits(group), golden["logits_eval"])
    _, index = KNN(4, transpose_mode=True)(group.centers, group.centers)
    assert index[0, :8].tolist() == golden["graph_knn_sample0_first8_centres"]
    assert model.tokenize(points).tolist() == golden["labels_eval"]


@pytest.mark.parametrize(
    ("case", "temperature", "hard"),
    [("eval_soft_tau1", 1.0, False), ("eval_hard", 1.0, True)],
)
def test_losses_points_and_gradients(golden, points, noise, case, temperature, hard):
    compare(released(golden), points, golden[case], temperature, hard, torch.zeros_like(noise))


def test_a_low_temperature(golden, points, noise):
    """In double precision: the rounding of the logits is multiplied by 16, and moves a point by up to 5e-5."""
    none = torch.zeros_like(noise).double()
    compare(released(golden).double(), points.double(), golden["eval_soft_tau0625"], 0.0625, False, none)


def test_noise_is_added_to_the_logits(golden, points, noise):
    compare(released(golden), points, golden["eval_soft_tau05_noise"], 0.5, False, noise)


def compare(model: DiscreteVAE, points: Tensor, official: dict, temperature: float, hard: bool, noise: Tensor) -> None:
    found = model(points, temperature, hard, noise, kl_weight=0.1)
    assert_figure(found["recon"], official["loss_recon"], LOSS_TOLERANCE)
    assert_figure(found["kl"], official["loss_klv"], KL_TOLERANCE)
    centers = model.group(points).centers.unsqueeze(2)
    for name in ("coarse", "fine"):
        assert_summary(found[name], official[name])
        assert_summary((found[name] + centers).flatten(1, 2), official[f"whole_{name}"])
    assert found["loss"].item() == pytest.approx(official["loss_recon"] + 0.1 * official["loss_klv"], rel=1e-5)
    found["loss"].backward()
    assert_figure(gradient_norm(model), official["grad_norm_total"], TOTAL_GRADIENT_TOLERANCE)
    for name, norm in official["grad_norms"].items():
        assert_figure(model.get_parameter(name).grad.norm(), norm, GRADIENT_TOLERANCE)


def test_train_mode(golden, points, noise):
    official, model = golden["train_soft_tau05"], released(golden, training=True)
    found = model(points, 0.5, noise=torch.zeros_like(noise))
    assert_figure(found["recon"], official["loss_recon"], LOSS_TOLERANCE)
    assert_figure(found["kl"], official["loss_klv"], KL_TOLERANCE)
    found["loss"].backward()
    assert_figure(gradient_norm(model), official["grad_norm_total"], TOTAL_GRADIENT_TOLERANCE)
    assert released(golden, training=True).tokenize(points).tolist() == official["labels"]
