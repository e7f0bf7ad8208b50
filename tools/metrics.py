"""Classification metrics, in percent."""

import torch
from torch import Tensor


def overall_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of clouds whose largest logit is at their class.

    Args:
        logits: (n, classes).
        labels: (n,) int64 in 0 … classes − 1.

    Returns:
        Percent, 0 to 100.
    """
    return 100.0 * (logits.argmax(dim=1) == labels).double().mean().item()


def mean_class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the accuracy within each; classes without a cloud are left out.

    Args:
        logits: (n, classes).
        labels: (n,) int64 in 0 … classes − 1.

    Returns:
        Percent, 0 to 100.
    """
    right = (logits.argmax(dim=1) == labels).double()
    count = torch.bincount(labels)
    present = count > 0
    return 100.0 * (torch.bincount(labels, weights=right)[present] / count[present]).mean().item()
