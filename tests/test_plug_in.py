"""A classifier and a memory bank together: the sum of their probabilities, and what chooses its share."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tools.evaluation.bank import Bank, match
from tools.evaluation.plug_in import LAMBDAS, Clouds, choose_lambda, combine, measure


def logits(seed: int, rows: int = 200, classes: int = 4) -> Tensor:
    return 5 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def test_the_sum_by_hand():
    model, bank = torch.tensor([[0.0, 0, 0, 0], [700, 0, 0, 0]]), torch.tensor([[3.0, 1], [0, 8]])
    expected = [[0.4 / 4 + 0.6 * 0.75, 0.4 / 4 + 0.6 * 0.25, 0.1, 0.1], [0.4, 0.6, 0, 0]]
    np.testing.assert_allclose(combine(model, bank, 0.4), expected, rtol=1e-12, atol=1e-12)


def test_classes_that_only_the_bank_has_are_left_out():
    assert combine(torch.zeros(1, 2), torch.tensor([[1.0, 1, 2]]), 0).tolist() == [[0.25, 0.25]]


def test_a_lambda_of_1_gives_the_classifiers_predictions_and_0_the_banks():
    model, bank = logits(0), logits(1).exp().double()
    model[:50] = 1e-6 * model[:50]  # float32 probabilities would tie
    assert torch.equal(combine(model, bank, 1.0).argmax(1), model.argmax(1))
    assert torch.equal(combine(model, bank, 0.0).argmax(1), bank.argmax(1))
    between = combine(model, bank, 0.5).argmax(1)
    assert not torch.equal(between, model.argmax(1))
    assert not torch.equal(between, bank.argmax(1))


def test_lambda_is_the_best_and_of_equals_the_largest():
    assert tuple(round(0.05 * step, 2) for step in range(21)) == LAMBDAS
    right, wrong = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])  # probabilities 0.12 and 0.88
    sure = torch.tensor([[0.0, 1.0]])
    assert choose_lambda(right, 1 - sure, torch.tensor([1])) == (1.0, 100.0)
    # λ·0.12 + (1 − λ) > 1/2 up to λ = 0.568
    assert choose_lambda(wrong, sure, torch.tensor([1])) == (0.55, 100.0)
    assert choose_lambda(wrong, 1 - sure, torch.tensor([1])) == (1.0, 0.0)


@pytest.fixture
def bank() -> Bank:
    angles = np.radians([0, 10, 80, 90])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return Bank(features, np.array([0, 0, 1, 1]), ["a", "b"])


def test_held_out_clouds_choose_and_test_clouds_are_measured(bank):
    known, unknown = torch.tensor([[4.0, 0], [0, 4.0]]), torch.tensor([[0.0, 4], [4, 0]])  # right, wrong
    near = np.array([[1, 0.1], [0.1, 1]], np.float32)
    labels = torch.tensor([0, 1])
    results = measure(bank, Clouds(unknown, near, labels), Clouds(known, near[::-1].copy(), labels))
    assert (results["held_out_model_accuracy"], results["held_out_bank_accuracy"]) == (0.0, 100.0)
    assert results["held_out_accuracy"] == 100.0
    assert (results["model_accuracy"], results["bank_accuracy"]) == (100.0, 0.0)
    assert results["lambda"] < 0.7
    summed = combine(known, torch.from_numpy(match(bank, near[::-1], results["gamma"])), results["lambda"])
    assert results["accuracy"] == 100 * (summed.argmax(1) == labels).double().mean()
