"""A memory bank: the features of labelled clouds, to which others are matched by cosine similarity. Nothing is learned.

Logits are Σ exp(−γ(1 − S)) over the entries of a class (Point-NN, CVPR 2023), up to a factor: here the nearest entry
of a query counts exactly 1, so that they never all vanish. γ = 0 counts the entries of a class; the larger γ, the
closer to the nearest neighbour.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tools.evaluation.gamma import FLOOR, GammaSearch
from tools.evaluation.kept import check_rows, load_arrays, save_arrays
from tools.evaluation.svm import best_candidate, check_features

GAMMAS = range(0, 10_000, 2)  # as published
QUERIES = 128  # that are matched at a time
ALL_OTHERS = "leave-one-out on the bank"
ON_TEST = "the test split, as published"


@dataclass(frozen=True)
class Bank:
    """Features of labelled clouds.

    Attributes:
        features: (n, d) float32, each of length 1.
        labels: (n,) int64 in 0 … classes − 1.
        class_names: one per class, also of those without an entry.
        origin: what made it, as plain values: the encoder's config, its checkpoint, the data, versions.
    """

    features: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert len(self.features) == len(self.labels)
        assert self.labels.max(initial=-1) < len(self.class_names)


def normalised(features: np.ndarray, which: str) -> np.ndarray:
    """Scale features (n, d) to length 1, float32; ValueError if one is not finite or zero, `which` in the message."""
    rows = check_features(features, which)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"the {which} feature of cloud {int(lengths[:, 0].argmin())} is zero and has no direction")
    return (rows / lengths).astype(np.float32)


def save_bank(path: Path, bank: Bank) -> None:
    """Keep a bank in an .npz file, which is whole or absent."""
    arrays = {"features": bank.features, "labels": bank.labels, "class_names": np.array(bank.class_names, dtype=str)}
    save_arrays(path, arrays, bank.origin)


def load_bank(path: Path, origin: dict[str, Any]) -> Bank:
    """Read a bank that was kept.

    Args:
        path: file of `save_bank`.
        origin: what must have made it; where only its `versions` differ, that is a warning.

    Raises:
        ValueError: if something else made it, or the file holds no bank.
    """
    names = ("features", "labels", "class_names")
    features, labels, class_names = load_arrays(path, names, origin, "a bank", "--save_bank", may_differ=["versions"])
    features, labels = check_rows(path, features, labels, len(class_names))
    if not np.allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-5):
        raise ValueError(f"{path}: features that are not of length 1; delete this file to encode again")
    return Bank(features, labels, [str(name) for name in class_names], origin)


def match(bank: Bank, features: np.ndarray, gamma: float) -> np.ndarray:
    """Compute the logits of queries.

    Args:
        bank: of n entries.
        features: (m, d) of any length.
        gamma: ≥ 0.

    Returns:
        (m, classes) float64, exp(γ(S − max S))·Y with S the cosines of a query and Y the one-hot labels. Of equal ones
        the lowest class is the prediction.
    """
    one_hot = np.eye(len(bank.class_names))[bank.labels]
    return _by_query(bank, features, lambda nearness: np.exp(np.maximum(gamma * nearness, FLOOR)) @ one_hot)


def nearest_neighbors(bank: Bank, features: np.ndarray) -> np.ndarray:
    """Predict (m,) the class of the nearest entry; of exactly as near ones the class of most, the lowest of equals."""
    one_hot = np.eye(len(bank.class_names))[bank.labels]
    return _by_query(bank, features, lambda nearness: (nearness == 0).astype(np.float64) @ one_hot).argmax(axis=1)


def accuracies(bank: Bank, features: np.ndarray, labels: np.ndarray, gammas: Sequence[float] = GAMMAS) -> np.ndarray:
    """Share of queries that get their class, (G,), at each γ.

    Args:
        bank: of n entries.
        features: (m, d) of any length.
        labels: (m,) class of each query.
        gammas: (G,) ascending, ≥ 0.
    """
    queries = normalised(features, "query")
    return _accuracies(bank, queries, labels, gammas, leave_out=False)


def accuracies_left_out(bank: Bank, gammas: Sequence[float] = GAMMAS) -> np.ndarray:
    """Share of the bank's own clouds that get their class from all others, (G,), at each γ.

    Raises:
        ValueError: if no class has two clouds, so that none can get its class.
    """
    if np.bincount(bank.labels).max(initial=0) < 2:
        raise ValueError(f"γ is chosen by {ALL_OTHERS}, which needs a class with two clouds; give more, or choose γ")
    return _accuracies(bank, bank.features, bank.labels, gammas, leave_out=True)


def measure(bank: Bank, features: np.ndarray, labels: np.ndarray, select_on: str) -> dict[str, Any]:
    """Measure a bank in every way.

    Args:
        bank: of the training clouds.
        features: (m, d) of the test clouds.
        labels: (m,) theirs.
        select_on: what chooses the γ of `accuracy`: "val", leave-one-out on the bank, or "test", as published.

    Returns:
        Accuracies on the test clouds in percent, beside the γ they belong to.
    """
    on_test = accuracies(bank, features, labels)
    gamma, on_bank = choose_gamma(accuracies_left_out(bank))
    best_gamma, best = choose_gamma(on_test)
    chosen = {
        "leave_one_out_gamma": gamma,
        "leave_one_out_bank_accuracy": on_bank,
        "leave_one_out_accuracy": 100.0 * float(on_test[GAMMAS.index(gamma)]),
        "best_gamma": best_gamma,
        "best_accuracy": best,
        "nearest_neighbor_accuracy": 100.0 * float(np.mean(nearest_neighbors(bank, features) == labels)),
    }
    which, chooser = ("best", ON_TEST) if select_on == "test" else ("leave_one_out", ALL_OTHERS)
    result = {"accuracy": chosen[f"{which}_accuracy"], "gamma": chosen[f"{which}_gamma"], "gamma_chosen_on": chooser}
    return {**result, **chosen}


def choose_gamma(shares: np.ndarray) -> tuple[int, float]:
    """Return the γ of `GAMMAS` with the highest share, the lowest of equals, and that share in percent."""
    gamma, accuracy = best_candidate(GAMMAS, [shares])
    return int(gamma), accuracy


def bank_table(results: dict[str, Any]) -> list[list[object]]:
    """Rows of what `measure` returned: a name and an accuracy on the test clouds in percent."""
    return [
        [f"γ = {results['leave_one_out_gamma']}, chosen by {ALL_OTHERS}", results["leave_one_out_accuracy"]],
        [f"γ = {results['best_gamma']}, chosen on {ON_TEST}", results["best_accuracy"]],
        ["nearest neighbour", results["nearest_neighbor_accuracy"]],
    ]


def _accuracies(
    bank: Bank, queries: np.ndarray, labels: np.ndarray, gammas: Sequence[float], leave_out: bool
) -> np.ndarray:
    order = np.argsort(bank.labels, kind="stable")
    entries, classes, place = bank.features[order], bank.labels[order], np.argsort(order)
    right = np.zeros(len(gammas), dtype=np.int64)
    for rows in _chunks(len(queries)):
        own = place[rows] if leave_out else None
        right += GammaSearch(queries[rows] @ entries.T, classes, labels[rows], np.asarray(gammas), own).right
    return right / len(queries)


def _by_query(bank: Bank, features: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply `score` to S − max S of some queries at a time, (r, n) float64, and join the results."""
    queries = normalised(features, "query")
    parts = []
    for rows in _chunks(len(queries)):
        similarities = (queries[rows] @ bank.features.T).astype(np.float64)
        parts.append(score(similarities - similarities.max(axis=1, keepdims=True)))
    return np.concatenate(parts)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + QUERIES) for start in range(0, count, QUERIES))
