"""The linear SVM that measures frozen features: predictions of SVC(kernel="linear"), in less time.

Its solver gets the matrix of inner products between clouds (the Gram matrix), computed in one product, with the clouds
of a class side by side, where the solver looks for them. Predictions come from one weight vector per pair of classes
instead of inner products with all support vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import sklearn
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

CANDIDATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


Solver = Literal["SVC", "LinearSVC"]


def linear_svm_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    C: float,
    solver: Solver = "SVC",
) -> float:
    """Accuracy on the test clouds of a linear SVM fitted to the training clouds.

    "SVC" is SVC(kernel="linear", C=C): hinge loss, a vote of all pairs of classes. "LinearSVC" is LinearSVC(C=C):
    squared hinge loss, each class against all others.

    Args:
        train_features: (n, C).
        train_labels: (n,) int.
        test_features: (m, C).
        test_labels: (m,) int.
        C: penalty of the SVM, > 0.
        solver: which of the two.

    Returns:
        Overall accuracy in percent.

    Raises:
        ValueError: if a feature is not finite, or the training clouds are all of one class.
    """
    train, test = check_features(train_features, "training"), check_features(test_features, "test")
    _check_classes(train_labels)
    svm: LinearSVM | LinearSVC
    if solver == "LinearSVC":
        svm = LinearSVC(C=C, dual=False).fit(train, train_labels)  # the primal problem: exact, and draws nothing
    else:
        (svm,) = fit_linear_svms(train, train_labels, [C])
    return 100.0 * float(np.mean(svm.predict(test) == test_labels))


def choose_C(
    train_features: np.ndarray, train_labels: np.ndarray, candidates: Sequence[float] = CANDIDATES, folds: int = 5
) -> tuple[float, float]:
    """Choose C by stratified cross-validation on the training clouds, so without looking at the test clouds.

    Args:
        train_features: (n, C).
        train_labels: (n,) int.
        candidates: values of C to try.
        folds: parts to split into; fewer where the rarest class has fewer clouds.

    Returns:
        The best candidate, the smallest of equals, and its cross-validated accuracy in percent.

    Raises:
        ValueError: if a feature is not finite, there is only one class, or a class has only one cloud.
    """
    features = check_features(train_features, "training")
    candidates = sorted(candidates)
    accuracies = []  # (folds, candidates)
    for fit, held_out in stratified_folds(train_labels, folds):
        svms = fit_linear_svms(features[fit], train_labels[fit], candidates)
        accuracies.append([np.mean(svm.predict(features[held_out]) == train_labels[held_out]) for svm in svms])
    return best_candidate(candidates, accuracies)


def stratified_folds(labels: np.ndarray, folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split clouds for cross-validation, the same way each time.

    Args:
        labels: (n,) int.
        folds: parts to split into; fewer where the rarest class has fewer clouds.

    Returns:
        Of each fold the indices to fit to and those held out.

    Raises:
        ValueError: if there is only one class, or a class has only one cloud.
    """
    rarest = _check_classes(labels)
    if rarest < 2:
        raise ValueError("cross-validation needs two training clouds of every class, but a class has only one")
    splitter = StratifiedKFold(min(folds, rarest), shuffle=True, random_state=0)
    return list(splitter.split(labels, labels))


def best_candidate(candidates: Sequence[float], accuracies: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the candidate of the highest mean accuracy, the first of equals, and that accuracy in percent.

    Args:
        candidates: what was tried.
        accuracies: (folds, candidates) as fractions.
    """
    mean = np.mean(accuracies, axis=0)
    best = int(mean.argmax())
    return candidates[best], 100.0 * float(mean[best])


@dataclass(frozen=True)
class LinearSVM:
    """Linear SVMs between the pairs (0, 1), (0, 2), … of K classes, which vote.

    Attributes:
        classes: (K,) int labels, ascending.
        weights: (P, C), a row per pair; on its positive side lies the pair's first class.
        biases: (P,).
    """

    classes: np.ndarray
    weights: np.ndarray
    biases: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The labels (n,) of (n, C) features: the class of most votes, the lowest of equals."""
        first, second = (np.eye(len(self.classes))[side] for side in np.triu_indices(len(self.classes), 1))  # (P, K)
        won = features @ self.weights.T + self.biases > 0  # (n, P)
        return self.classes[(won @ first + ~won @ second).argmax(1)]


def fit_linear_svms(features: np.ndarray, labels: np.ndarray, candidates: Sequence[float]) -> list[LinearSVM]:
    """Fit the SVM of SVC(kernel="linear", C=C) for each C.

    Args:
        features: (n, C) float64, finite.
        labels: (n,) int, of two classes at least.
        candidates: values of C.
    """
    order = np.argsort(labels, kind="stable")
    features, labels = features[order], labels[order]
    gram = features @ features.copy().T  # a copy: NumPy fills half of a product with itself in one slow thread
    with sklearn.config_context(assume_finite=True):
        return [_to_primal(SVC(kernel="precomputed", C=C).fit(gram, labels), features) for C in candidates]


def _to_primal(svm: SVC, features: np.ndarray) -> LinearSVM:
    """Multiply the dual coefficients of a fitted SVC with its features (n, C), which are sorted by class."""
    num_classes = len(svm.classes_)
    sign = -1 if num_classes == 2 else 1  # scikit-learn turns the single pair of two classes round
    ends = np.cumsum(svm.n_support_)[:-1]
    parts = zip(
        np.split(sign * svm.dual_coef_, ends, axis=1), np.split(features[svm.support_], ends), strict=True
    )  # by class
    halves = np.stack([dual @ vectors for dual, vectors in parts])  # (K, K − 1, C): of a class, against each other one
    first, second = np.triu_indices(num_classes, 1)
    return LinearSVM(svm.classes_, halves[first, second - 1] + halves[second, first], sign * svm.intercept_)


def standardise(train_features: np.ndarray, test_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale each channel to mean 0 and standard deviation 1 over the training clouds.

    Args:
        train_features: (n, C).
        test_features: (m, C).

    Returns:
        Both, by the statistics of the first. A constant channel becomes zero in the training features.
    """
    scaler = StandardScaler().fit(train_features)
    return scaler.transform(train_features), scaler.transform(test_features)


def check_features(features: np.ndarray, which: str) -> np.ndarray:
    """Return (n, C) features as float64; ValueError if one is not finite, with what they are in the message."""
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(bad)} {which} features are not finite (first: cloud {bad.argmax()}); "
            "the encoder's weights have probably diverged"
        )
    return features.astype(np.float64)


def _check_classes(labels: np.ndarray) -> int:
    """Return the number of clouds of the rarest class."""
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2:
        raise ValueError(f"a linear SVM needs training clouds of at least two classes, got {len(counts)}")
    return int(counts.min())
