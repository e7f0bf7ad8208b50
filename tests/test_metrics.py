import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from tools.evaluation.metrics import mean_class_accuracy, overall_accuracy


def logits_of(predictions, classes=4):
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


def test_by_hand():
    # class 0: 3 of 4 right, class 1: 0 of 1, class 2: 1 of 1; class 3 has no cloud
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    logits = logits_of([0, 0, 0, 3, 2, 2])
    assert overall_accuracy(logits, labels) == pytest.approx(100 * 4 / 6)
    assert mean_class_accuracy(logits, labels) == pytest.approx(100 * (3 / 4 + 0 + 1) / 3)


def test_against_sklearn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 7, generator=generator)
    labels = torch.randint(0, 7, (200,), generator=generator)
    predictions = logits.argmax(dim=1)
    assert overall_accuracy(logits, labels) == pytest.approx(100 * accuracy_score(labels, predictions))
    assert mean_class_accuracy(logits, labels) == pytest.approx(100 * balanced_accuracy_score(labels, predictions))
