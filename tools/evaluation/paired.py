"""Differences between two ways of training, of runs with the same seed."""

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """What one way is above another.

    Attributes:
        values: of each seed, by ascending seed.
        interval: ends of the 95 % confidence interval of their mean by Student's t, which takes the differences as
            draws from one normal distribution; None for a single seed.
    """

    values: tuple[float, ...]
    interval: tuple[float, float] | None

    @property
    def shown(self) -> bool:
        """Whether all of the interval is on one side of zero."""
        return self.interval is not None and self.interval[0] * self.interval[1] > 0

    def __str__(self) -> str:
        """The mean ± its standard error."""
        mean = f"{statistics.fmean(self.values):+.1f}"
        return mean if self.interval is None else f"{mean} ± {standard_error(self.values):.1f}"


def difference(ones: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """Compare the seeds that both have; None where there is none.

    Args:
        ones, others: seed → accuracy.
    """
    values = tuple(ones[seed] - others[seed] for seed in sorted(ones.keys() & others.keys()))
    if len(values) < 2:
        return Difference(values, None) if values else None
    from scipy.stats import t  # takes half a second to import

    mean = statistics.fmean(values)
    half = t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * standard_error(values)
    return Difference(values, (float(mean - half), float(mean + half)))


def standard_error(values: tuple[float, ...]) -> float:
    """Of the mean of two values at least."""
    return statistics.stdev(values) / math.sqrt(len(values))
