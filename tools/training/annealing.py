"""Weights that change from update to update of a training run, along half a cosine."""

import math
from collections.abc import Mapping

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
