"""The linear SVM that measures frozen features.

Both functions work on the matrix of inner products between clouds (the Gram matrix), which is computed once: an SVC
with a linear kernel would compute the same products again for every C and fold.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

CANDIDATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def linear_svm_accuracy(
    train_features: np.ndarray, train_labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray, C: float
) -> float:
    """Accuracy on the test clouds of a linear SVM fitted to the training clouds; that of SVC(kernel="linear", C=C).

    Args:
        train_features: (n, C).
        train_labels: (n,) int.
        test_features: (m, C).
        test_labels: (m,) int.
        C: penalty of the SVM, > 0.

    Returns:
        Overall accuracy in percent.

    Raises:
        ValueError: if a feature is not finite, or the training clouds are all of one class.
    """
    train, test = _checked(train_features, "training"), _checked(test_features, "test")
    _check_classes(train_labels)
    svm = SVC(kernel="precomputed", C=C).fit(train @ train.T, train_labels)
    return 100.0 * float(np.mean(svm.predict(test @ train.T) == test_labels))


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
    features = _checked(train_features, "training")
    rarest = _check_classes(train_labels)
    if rarest < 2:
        raise ValueError("cross-validation needs two training clouds of every class, but a class has only one")
    gram = features @ features.T
    candidates = sorted(candidates)
    splitter = StratifiedKFold(min(folds, rarest), shuffle=True, random_state=0)
    accuracies = []  # (folds, candidates)
    for fit, held_out in splitter.split(features, train_labels):
        fit_gram, held_out_gram = gram[np.ix_(fit, fit)], gram[np.ix_(held_out, fit)]
        svms = (SVC(kernel="precomputed", C=C).fit(fit_gram, train_labels[fit]) for C in candidates)
        accuracies.append([svm.score(held_out_gram, train_labels[held_out]) for svm in svms])
    mean = np.mean(accuracies, axis=0)
    best = int(mean.argmax())
    return candidates[best], 100.0 * float(mean[best])


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


def _checked(features: np.ndarray, which: str) -> np.ndarray:
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
