"""The predictions of a trained classifier and of a memory bank, added: P = λ·softmax(L) + (1 − λ)·P_bank.

P_bank are the bank's logits, divided by their sum. The released code of Point-NN has no plug-in; this is the
interpolation that the same authors write down for SN-Adapter (arXiv 2303.00703).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tools.evaluation.bank import Bank, accuracies, choose_gamma, match
from tools.evaluation.metrics import overall_accuracy

LAMBDAS = tuple(step / 20 for step in range(21))


class Clouds(NamedTuple):
    """What is known of the clouds of a split.

    Attributes:
        logits: (m, C) float32, of the classifier.
        features: (m, d) float32, of the bank's encoder.
        labels: (m,) int64.
    """

    logits: Tensor
    features: np.ndarray
    labels: Tensor


def combine(logits: Tensor, bank_logits: Tensor, share: float) -> Tensor:
    """Add the probabilities of a classifier and of a bank.

    Args:
        logits: (m, C) of the classifier.
        bank_logits: (m, K) ≥ 0, of the bank; of classes that one of both does not have it gives probability 0.
        share: λ, 0 to 1, the part of the classifier: 1 gives its own predictions, 0 those of the bank.

    Returns:
        (m, C) float64.
    """
    bank = torch.zeros(logits.shape, dtype=torch.float64)
    common = min(logits.shape[1], bank_logits.shape[1])
    bank[:, :common] = bank_logits[:, :common] / bank_logits.sum(dim=1, keepdim=True)
    return share * logits.double().softmax(dim=1) + (1 - share) * bank


def choose_lambda(logits: Tensor, bank_logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Choose λ by the accuracy of the sum.

    Args:
        logits: (m, C) of the classifier.
        bank_logits: (m, K) of the bank.
        labels: (m,) int64.

    Returns:
        The best of `LAMBDAS`, the largest of equals, which is nearest to the classifier; and its accuracy in percent.
    """
    found = [(overall_accuracy(combine(logits, bank_logits, share), labels), share) for share in LAMBDAS]
    accuracy, share = max(found)
    return share, accuracy


def measure(bank: Bank, held_out: Clouds, test: Clouds) -> dict[str, Any]:
    """Choose γ for the bank alone and then λ for the sum on held-out clouds; measure on the test clouds.

    Args:
        bank: holds neither.
        held_out: clouds that choose.
        test: clouds that are measured.

    Returns:
        γ and λ, and accuracies in percent: of the classifier, the bank and their sum, on the test clouds and, under
        "held_out_…", on those that chose.
    """
    gamma, _ = choose_gamma(accuracies(bank, held_out.features, held_out.labels.numpy()))
    held_bank, test_bank = (torch.from_numpy(match(bank, clouds.features, gamma)) for clouds in (held_out, test))
    share, _ = choose_lambda(held_out.logits, held_bank, held_out.labels)
    results: dict[str, Any] = {"gamma": gamma, "lambda": share}
    for prefix, clouds, matched in (("", test, test_bank), ("held_out_", held_out, held_bank)):
        for name, part in (("model_", 1.0), ("bank_", 0.0), ("", share)):
            summed = combine(clouds.logits, matched, part)
            results[f"{prefix}{name}accuracy"] = overall_accuracy(summed, clouds.labels)
    return results
