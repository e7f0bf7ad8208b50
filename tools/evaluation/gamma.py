"""The accuracy of a memory bank at thousands of values of γ, found without trying each.

The score of a class, L(γ) = log Σ exp(γ·d) over its entries with d = S − max S ≤ 0, is a convex function of γ. Between
two values its chord lies above it and its tangents below. Where the tangents of the class that wins at both ends stay
above the chords of all others, it wins everywhere between, and nothing between has to be computed. Elsewhere the range
is halved. What is found is what trying each value would find.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

FLOOR = -700.0  # of an exponent: what is smaller counts nothing, and is slow to compute with
MARGIN = 1e-9  # of a score, far above its rounding


class _Scores(NamedTuple):
    """Some rows at one γ.

    Attributes:
        scores: (r, C) L of each class.
        winner: (r,) class of the largest, the lowest of equals.
        slope: (r,) dL/dγ of that class.
    """

    scores: np.ndarray
    winner: np.ndarray
    slope: np.ndarray

    def of(self, rows: np.ndarray) -> "_Scores":
        """Keep some rows."""
        return _Scores(*(part[rows] for part in self))

    def best(self) -> np.ndarray:
        """L of the winner, (r,)."""
        return np.take_along_axis(self.scores, self.winner[:, None], 1)[:, 0]


class GammaSearch:
    """Queries against a bank, at every γ of a grid.

    Args:
        similarities: (r, n) cosines of r queries with the n entries.
        labels: (n,) class of each entry, ascending.
        truth: (r,) class of each query.
        gammas: (G,) ascending, ≥ 0.
        own: (r,) the entry of each query that does not count, itself; None = all count.

    Attributes:
        right: (G,) int64, how many queries get their class at each γ.
    """

    def __init__(
        self,
        similarities: np.ndarray,
        labels: np.ndarray,
        truth: np.ndarray,
        gammas: np.ndarray,
        own: np.ndarray | None = None,
    ) -> None:
        similarities, rows = similarities.astype(np.float64), np.arange(len(truth))
        if own is not None:
            similarities[rows, own] = -np.inf
        self.distances = similarities - similarities.max(axis=1, keepdims=True)
        if own is not None:
            self.distances[rows, own] = 0.0
        self._taken, self._weights = (
            np.empty_like(self.distances),
            np.empty_like(self.distances),
        )  # used again and again
        self.classes, self.starts = np.unique(labels, return_index=True)
        self.truth, self.gammas, self.own = truth, np.asarray(gammas, dtype=np.float64), own
        self.right = np.zeros(len(gammas), dtype=np.int64)
        last = len(gammas) - 1
        places = sorted({0, last, *(4**power for power in range(last.bit_length()) if 4**power < last)})
        left = self._at(rows, places[0])
        for low, high in pairwise(places):
            right = self._at(rows, high)
            self._between(rows, low, high, left, right)
            left = right

    def _between(self, rows: np.ndarray, low: int, high: int, left: _Scores, right: _Scores) -> None:
        """Count the right among the places strictly between two of the grid, whose scores are known."""
        if high - low < 2:
            return
        settled = _one_wins(left, right, self.gammas[high] - self.gammas[low])
        self.right[low + 1 : high] += np.sum(self.classes[left.winner[settled]] == self.truth[rows[settled]])
        if settled.all():
            return
        rows, left, right = rows[~settled], left.of(~settled), right.of(~settled)
        middle = (low + high) // 2
        found = self._at(rows, middle)
        self._between(rows, low, middle, left, found)
        self._between(rows, middle, high, found, right)

    def _at(self, rows: np.ndarray, place: int) -> _Scores:
        """Compute the scores of rows at a place of the grid, and count the right ones."""
        distances = np.take(self.distances, rows, axis=0, out=self._taken[: len(rows)], mode="clip")  # (r, n); no copy
        weights = np.multiply(distances, self.gammas[place], out=self._weights[: len(rows)])
        np.exp(np.maximum(weights, FLOOR, out=weights), out=weights)
        each = np.arange(len(rows))
        if self.own is not None:
            weights[each, self.own[rows]] = 0.0
        sums = np.add.reduceat(weights, self.starts, axis=1)  # (r, C)
        drifts = np.add.reduceat(np.multiply(weights, distances, out=weights), self.starts, axis=1)
        winner = sums.argmax(axis=1)
        self.right[place] += np.sum(self.classes[winner] == self.truth[rows])
        scores = np.log(np.maximum(sums, np.exp(FLOOR)))
        return _Scores(scores, winner, drifts[each, winner] / sums[each, winner])


def _one_wins(left: _Scores, right: _Scores, width: float) -> np.ndarray:
    """Whether the class that wins at both ends wins between them too: (r,) bool, False where that is not certain.

    The larger of its two tangents, less the chord of another class, is lowest where they meet, or at an end. Where
    another class wins at the right, that one is a rival there, and nothing is certain.
    """
    best_left, best_right = left.best(), right.best()
    bend = right.slope - left.slope  # ≥ 0
    meet = np.divide(best_left - best_right + right.slope * width, bend, out=np.zeros_like(bend), where=bend > 0)
    meet = np.clip(meet, 0.0, width)  # distance from the left end
    tangent = np.maximum(best_left + left.slope * meet, best_right - right.slope * (width - meet))
    share = (meet / width)[:, None]
    chords = (1 - share) * left.scores + share * right.scores
    certain = np.ones(len(meet), dtype=bool)
    for bound, others in ((best_left, left.scores), (tangent, chords), (best_right, right.scores)):
        rivals = others.copy()
        np.put_along_axis(rivals, left.winner[:, None], -np.inf, 1)
        certain &= bound > rivals.max(axis=1) + MARGIN
    return certain
