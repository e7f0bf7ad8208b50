"""How fast the linear SVM is that runs after each epoch of pre-training, beside SVC(kernel="linear").

    python -m benchmarks.bench_svm [--quick] [--runs N] [--out FOLDER] [--note TEXT]

Random features of the size of ModelNet40's, of classes that lie well apart and of classes that overlap. Both fit and
predict in turns, so that a busy machine disturbs both alike; the first turn is not counted. Prints a table of medians
with the share of clouds for which both predict the same class, and writes results.json. `--quick`: fewer clouds.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.svm import SVC

from benchmarks.machine import time_on_cpu
from benchmarks.record import add_flags, write_results
from tools.evaluation.svm import check_features, fit_linear_svms
from utils.tables import format_table

PACKAGES = ("torch", "numpy", "scikit-learn", "scipy")
CLASSES, CHANNELS = 40, 384
CLOUDS = {False: (9843, 2468), True: (1000, 250)}  # training and test clouds; quick or not
SEPARATIONS = {"apart": 1.0, "overlapping": 0.15}  # deviation of the centres of classes in times of that within one
C = 0.01  # of pre-training
RUNS = 5

Data = tuple[np.ndarray, np.ndarray, np.ndarray]  # training features, training labels, test features


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both kinds of features and write the results."""
    parser = argparse.ArgumentParser(description="time the linear SVM beside scikit-learn's")
    parser.add_argument("--runs", type=int, default=RUNS, help="turns that count (%(default)s)")
    add_flags(parser, quick="fewer clouds")
    args = parser.parse_args(argv)
    sizes = CLOUDS[args.quick]
    rows = [measure(name, features(separation, *sizes), args.runs) for name, separation in SEPARATIONS.items()]
    print(format_table([list(row.values()) for row in rows], list(rows[0])))
    data = {"clouds": sizes, "channels": CHANNELS, "number_of_classes": CLASSES, "C": C, "runs": args.runs}
    write_results("bench_svm", argv, args, "svm", PACKAGES, args.runs != RUNS, **data, rows=rows)


def features(separation: float, train: int, test: int) -> Data:
    """Draw float32 features around a random centre per class."""
    rng = np.random.default_rng(0)
    centers = separation * rng.normal(size=(CLASSES, CHANNELS))
    labels = rng.permutation(np.arange(train + test) % CLASSES)
    points = (centers[labels] + rng.normal(size=(train + test, CHANNELS))).astype(np.float32)
    return points[:train], labels[:train], points[train:]


def measure(classes: str, data: Data, runs: int) -> dict[str, Any]:
    """Time both in turns; seconds and their ratio are medians over the turns."""
    found = {}

    def turn() -> list[float]:
        return [time_on_cpu(lambda way=way: found.update({way: way(data)})) for way in (ours, svc)]

    turns = [turn() for _ in range(runs + 1)][1:]
    seconds = [statistics.median(times) for times in zip(*turns, strict=True)]
    ratio = statistics.median(theirs / own for own, theirs in turns)
    same = 100 * float(np.mean(found[ours] == found[svc]))
    return {"classes": classes, "ours, s": seconds[0], "SVC, s": seconds[1], "SVC / ours": ratio, "same, %": same}


def ours(data: Data) -> np.ndarray:
    """What `linear_svm_accuracy` does to predict."""
    train, labels, test = data
    (svm,) = fit_linear_svms(check_features(train, "training"), labels, [C])
    return svm.predict(check_features(test, "test"))


def svc(data: Data) -> np.ndarray:
    """Let scikit-learn do it."""
    train, labels, test = data
    return SVC(kernel="linear", C=C).fit(train, labels).predict(test)


if __name__ == "__main__":
    main()
