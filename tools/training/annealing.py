"""What changes in the course of a training run: weights along half a cosine, the momentum of BatchNorm in steps."""

import math
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

KL_BEGINS = 10_000  # updates of the released autoencoder before its divergence counts


def annealed(settings: Mapping[str, float], update: int, begins: int = 0) -> float:
    """Value in force during an update.

    Args:
        settings: `start`, `target` and `ntime`, the updates that the way takes.
        update: from 0.
        begins: the first update of the way; before it the value is `start`.

    Returns:
        `start` at first, `target` from begins + ntime on.
    """
    start, target = settings["start"], settings["target"]
    share = min(max(update - begins, 0) / settings["ntime"], 1.0)
    return target + (start - target) * (1 + math.cos(math.pi * share)) / 2


def set_batchnorm_momentum(model: nn.Module, settings: Mapping[str, float], epoch: int) -> None:
    """Set the share of a batch in the running statistics of every BatchNorm, for an epoch.

    Args:
        model: what is trained.
        settings: `start`, the share in epoch 0; `decay`, its factor after each `every` epochs; `lowest`, where it ends.
        epoch: from 0.
    """
    momentum = max(settings["start"] * settings["decay"] ** (epoch // settings["every"]), settings["lowest"])
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = momentum
