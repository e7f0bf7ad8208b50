"""Probes of frozen features: linear SVMs and nearest neighbours; and the file in which features are kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from tools.evaluation.kept import check_rows, load_arrays, save_arrays
from tools.evaluation.svm import (
    Solver,
    best_candidate,
    check_features,
    choose_C,
    linear_svm_accuracy,
    stratified_folds,
)

NEIGHBORS = (1, 3, 5, 10, 20, 50)


class Features(NamedTuple):
    """Frozen features of a data set.

    Attributes:
        train_features: (n, C) float32.
        train_labels: (n,) int64.
        test_features: (m, C) float32.
        test_labels: (m,) int64.
    """

    train_features: np.ndarray
    train_labels: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray


def probe(features: Features, C: float, solver: Solver = "SVC") -> dict[str, float]:
    """Measure features in every way; what is chosen is chosen by cross-validation on the training features.

    Args:
        features: of both splits.
        C: penalty of the linear SVM that is given rather than chosen.
        solver: of that SVM.

    Returns:
        Accuracies on the test features and cross-validated ones in percent, beside the C and the k that they belong to,
        and the effective rank of the training features.

    Raises:
        ValueError: if a feature is not finite, there is only one class, or a class has only one training cloud.
    """
    chosen_C, C_cross_validated = choose_C(*features[:2])
    chosen_k, k_cross_validated = choose_k(*features[:2])
    return {
        "C": C,
        "accuracy": linear_svm_accuracy(*features, C, solver),
        "chosen_C": chosen_C,
        "chosen_C_cross_validated_accuracy": C_cross_validated,
        "chosen_C_accuracy": linear_svm_accuracy(*features, chosen_C),
        "nearest_neighbor_accuracy": knn_accuracy(*features, k=1),
        "chosen_k": chosen_k,
        "chosen_k_cross_validated_accuracy": k_cross_validated,
        "chosen_k_accuracy": knn_accuracy(*features, chosen_k),
        "effective_rank": effective_rank(features.train_features),
    }


def probe_table(results: dict[str, Any]) -> list[list[object]]:
    """Rows of what `probe` returned: a name and an accuracy on the test features in percent."""
    cross_validated = "cross-validated on the training split"
    return [
        [f"linear SVM, C = {results['C']:g}, from the config", results["accuracy"]],
        [f"linear SVM, C = {results['chosen_C']:g}, {cross_validated}", results["chosen_C_accuracy"]],
        ["nearest neighbour", results["nearest_neighbor_accuracy"]],
        [f"{results['chosen_k']} nearest neighbours, {cross_validated}", results["chosen_k_accuracy"]],
    ]


def effective_rank(features: np.ndarray) -> float:
    """In how many directions features differ, however few of their channels say so: small where they have collapsed.

    The exponential of the entropy of the singular values' shares in their sum (Roy and Vetterli, "The effective rank: a
    measure of effective dimensionality", 2007), of channels that are standardised; those that are constant count for
    nothing.

    Args:
        features: (n, C).

    Returns:
        From 1 to the smaller of n and C; 0 where all features are equal.

    Raises:
        ValueError: if a feature is not finite.
    """
    values = np.linalg.svd(StandardScaler().fit_transform(check_features(features, "training")), compute_uv=False)
    shares = values[values > 0] / max(values.sum(), np.finfo(float).tiny)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def knn_accuracy(
    train_features: np.ndarray, train_labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray, k: int
) -> float:
    """Accuracy on the test clouds of a vote of the k nearest training clouds by cosine distance.

    Args:
        train_features: (n, C).
        train_labels: (n,) int.
        test_features: (m, C).
        test_labels: (m,) int.
        k: neighbours that vote, 1 to n; equal numbers of votes go to the lowest label.

    Returns:
        Overall accuracy in percent.

    Raises:
        ValueError: if a feature is not finite.
    """
    train, test = check_features(train_features, "training"), check_features(test_features, "test")
    return 100.0 * _fit_knn(train, train_labels, k).score(test, test_labels)


def choose_k(
    train_features: np.ndarray, train_labels: np.ndarray, candidates: Sequence[int] = NEIGHBORS, folds: int = 5
) -> tuple[int, float]:
    """Choose the number of neighbours by stratified cross-validation on the training clouds.

    Args:
        train_features: (n, C).
        train_labels: (n,) int.
        candidates: values of k to try; those beyond the clouds of a fold are left out.
        folds: parts to split into; fewer where the rarest class has fewer clouds.

    Returns:
        The best candidate, the smallest of equals, and its cross-validated accuracy in percent.

    Raises:
        ValueError: if a feature is not finite, there is only one class, a class has only one cloud, or no candidate is
            left.
    """
    features = check_features(train_features, "training")
    splits = stratified_folds(train_labels, folds)
    fewest = min(len(fit) for fit, _ in splits)
    usable = sorted(k for k in candidates if k <= fewest)
    if not usable:
        raise ValueError(f"no k of {list(candidates)} is at most {fewest}, the training clouds of a fold")
    accuracies = [  # (folds, candidates)
        [_fit_knn(features[fit], train_labels[fit], k).score(features[rest], train_labels[rest]) for k in usable]
        for fit, rest in splits
    ]
    k, accuracy = best_candidate(usable, accuracies)
    return int(k), accuracy


def _fit_knn(features: np.ndarray, labels: np.ndarray, k: int) -> KNeighborsClassifier:
    return KNeighborsClassifier(k, metric="cosine").fit(features, labels)


def save_features(path: Path, features: Features, origin: dict[str, Any]) -> None:
    """Keep features in an .npz file, which is whole or absent; see `save_arrays`."""
    save_arrays(path, features._asdict(), origin)


def load_features(path: Path, origin: dict[str, Any]) -> Features:
    """Read features that were kept.

    Args:
        path: file of `save_features`.
        origin: what they must belong to.

    Raises:
        ValueError: if they belong to something else, or the file holds no features.
    """
    arrays = load_arrays(path, Features._fields, origin, "features", "--save_features")
    return Features(*check_rows(path, *arrays[:2]), *check_rows(path, *arrays[2:]))
