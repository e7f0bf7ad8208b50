"""The memory bank of Point-NN against the official code: the toy bank of tests/golden/point_nn.json."""

import numpy as np
import pytest
import torch

from models import build_model
from tests.golden.fixtures import clouds
from tests.golden_numbers import load
from tools.evaluation.bank import (
    GAMMAS,
    Bank,
    accuracies,
    choose_gamma,
    match,
    measure,
    nearest_neighbors,
    normalised,
)

golden = load("point_nn")["memory_bank"]


@pytest.fixture(scope="module")
def features() -> dict[int, np.ndarray]:
    """Features of the noisy clouds by their seed, in batches of 16, on which they depend."""
    model = build_model(
        {"NAME": "Point_NN", "stages": 3, "dim": 36, "k": 24, "alpha": 1000, "beta": 100, "normalise": "batch"}
    )
    found = {}
    for count, seed in ((30, 61), (24, 62)):
        noise = np.random.RandomState(1000 + seed).standard_normal((count, 256, 3)).astype(np.float32)
        points = clouds(count, 256, seed) + golden["noise"] * torch.from_numpy(noise)
        found[seed] = torch.cat([model.encode(batch) for batch in points.split(16)]).numpy()
    return found


@pytest.fixture(scope="module")
def bank(features) -> Bank:
    return Bank(normalised(features[61], "bank"), np.arange(30) % 3, ["box", "torus", "cone"])


TRUE = np.arange(24) % 3


def test_logits(bank, features):
    """The official ones are exp(−100 (1 − S))·Y; ours have another factor in each row."""
    logits = match(bank, features[62], 100)
    similarities = normalised(features[62], "query") @ bank.features.T
    np.testing.assert_allclose(similarities[0], golden["sim_row_0"], atol=2e-6)
    scale = np.exp(-100 * (1 - similarities.max(axis=1, keepdims=True).astype(np.float64)))
    np.testing.assert_allclose(scale * logits, golden["logits_gamma_100"], rtol=5e-4)
    assert logits.argmax(axis=1).tolist() == golden["prediction_gamma_100"]


def test_accuracies_at_nine_gammas(bank, features):
    gammas, official = zip(*golden["gamma_accuracy"], strict=True)
    assert len(gammas) == 9
    np.testing.assert_allclose(100 * accuracies(bank, features[62], TRUE, gammas), official)


def test_the_published_search(bank, features):
    shares = accuracies(bank, features[62], TRUE)
    assert len(shares) == len(GAMMAS) == 5000
    gamma, accuracy = choose_gamma(shares)
    assert accuracy == golden["best_accuracy"]
    assert abs(gamma - golden["first_gamma_of_best"]) <= 10
    results = measure(bank, features[62], TRUE, "test")
    assert (results["gamma"], results["accuracy"]) == (gamma, accuracy)


def test_nearest_neighbours(bank, features):
    found = nearest_neighbors(bank, features[62])
    assert 100 * np.mean(found == TRUE) == golden["nearest_neighbour_accuracy"]
