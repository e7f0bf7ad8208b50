"""Nearest neighbours beside the SVMs, and the file that keeps features."""

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from tools.evaluation.probes import (
    Features,
    choose_k,
    effective_rank,
    knn_accuracy,
    load_features,
    probe,
    probe_table,
    save_features,
)
from tools.evaluation.svm import choose_C, linear_svm_accuracy

ORIGIN = {"checkpoint_sha256": "abc", "model": {"NAME": "I2P_MAE", "num_groups": (8, 4, 4)}, "data": {"clouds": 60}}


@pytest.fixture
def features() -> Features:
    """Features of three overlapping classes."""
    rng = np.random.default_rng(0)
    centers, labels = rng.normal(size=(3, 8)), np.repeat(np.arange(3), 20)
    train, test = ((centers[labels] + rng.normal(size=(60, 8))).astype(np.float32) for _ in range(2))
    return Features(train, labels, test, labels)


# ---- nearest neighbours ----


def test_nearest_neighbour_by_hand():
    train, labels = np.array([[1.0, 0], [0, 1]], np.float32), np.array([5, 9])
    test = np.array([[100.0, 60], [0.1, 0.2], [3, 1], [-1, 5]], np.float32)  # angle decides, not length
    assert knn_accuracy(train, labels, test, np.array([5, 9, 5, 9]), k=1) == 100.0
    assert knn_accuracy(train, labels, test, np.array([9, 9, 9, 9]), k=1) == 50.0


def test_choose_k_is_the_cross_validation_of_scikit_learn(features):
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = {
        k: cross_val_score(KNeighborsClassifier(k, metric="cosine"), *features[:2], cv=folds).mean() for k in (1, 5, 10)
    }
    k, accuracy = choose_k(*features[:2], candidates=(10, 5, 1))
    assert len(set(scores.values())) > 1
    assert k == max(scores, key=scores.get)
    assert accuracy == pytest.approx(100 * scores[k])


def test_choose_k_leaves_out_what_a_fold_cannot_give(features):
    few = np.r_[0:4, 20:24]
    assert choose_k(features[0][few], features[1][few], candidates=(50, 3))[0] == 3
    with pytest.raises(ValueError, match=r"no k of \[50\] is at most 6"):
        choose_k(features[0][few], features[1][few], candidates=(50,))


def test_nearest_neighbours_refuse_features_that_are_not_finite(features):
    features.test_features[3, 2] = np.inf
    with pytest.raises(ValueError, match=r"1 of 60 test features are not finite \(first: cloud 3\)"):
        knn_accuracy(*features, k=1)


@pytest.mark.parametrize("solver", ["SVC", "LinearSVC"])
def test_probe_measures_each_way_on_the_same_features(features, solver):
    results = probe(features, 0.5, solver)
    assert results["accuracy"] == linear_svm_accuracy(*features, 0.5, solver)
    assert (results["chosen_C"], results["chosen_C_cross_validated_accuracy"]) == choose_C(*features[:2])
    assert results["nearest_neighbor_accuracy"] == knn_accuracy(*features, k=1)
    assert results["chosen_k_accuracy"] == knn_accuracy(*features, results["chosen_k"])
    assert results["effective_rank"] == effective_rank(features.train_features)
    keys = ("accuracy", "chosen_C_accuracy", "nearest_neighbor_accuracy", "chosen_k_accuracy")
    assert [row[1] for row in probe_table(results)] == [results[key] for key in keys]


# ---- effective rank ----


def test_effective_rank_counts_the_directions_in_which_features_differ():
    """Signs of a full factorial design are orthogonal: as many equal singular values as there are factors."""
    signs = np.array([[(row >> bit & 1) * 2 - 1 for bit in range(4)] for row in range(16)], np.float32)  # (16, 4)
    assert effective_rank(signs) == pytest.approx(4)
    assert effective_rank(signs * (1, 10, 100, 1000) + 5) == pytest.approx(4)  # the scale of a channel does not count
    assert effective_rank(np.repeat(signs[:, :1], 8, axis=1)) == pytest.approx(1, abs=1e-6)
    two = np.concatenate([np.repeat(signs[:, :1], 9, axis=1), signs[:, 1:2]], axis=1)  # singular values 3 : 1
    assert effective_rank(two) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))), abs=1e-6)
    assert effective_rank(np.ones((5, 3), np.float32)) == 0


def test_effective_rank_refuses_features_that_are_not_finite(features):
    features.train_features[0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 60 training features are not finite"):
        effective_rank(features.train_features)


# ---- kept features ----


def test_features_come_back_as_they_were(features, tmp_path):
    save_features(tmp_path / "features", features, ORIGIN)
    loaded = load_features(tmp_path / "features", ORIGIN)
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(loaded, features, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["features"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"checkpoint_sha256": "abd"}, "checkpoint_sha256 is 'abc' there and 'abd' here"),
        ({"model": {"NAME": "I2P_MAE", "num_groups": (8, 4, 2)}}, r"model\.num_groups is \[8, 4, 4\] there and"),
        ({"data": {"clouds": 61}}, r"data\.clouds is 60 there and 61 here"),
    ],
)
def test_features_of_another_origin_are_refused(features, tmp_path, change, difference):
    path = tmp_path / "features.npz"
    save_features(path, features, ORIGIN)
    with pytest.raises(ValueError, match=f"features.npz holds features of another origin: {difference}.*another file"):
        load_features(path, ORIGIN | change)


def _write(path, kind, features):
    if kind == "text":
        path.write_text("not features")
    elif kind == "empty":
        path.touch()
    elif kind == "pickle":
        np.savez(path, origin=np.array({"a": 1}, dtype=object), **features._asdict())
    elif kind == "other arrays":
        np.savez(path, points=np.zeros(3))
    else:
        save_features(path, features, ORIGIN)
        path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("kind", ["text", "empty", "pickle", "other arrays", "cut short"])
def test_a_file_without_features_is_refused(features, tmp_path, kind):
    path = tmp_path / "features.npz"
    _write(path, kind, features)
    with pytest.raises(ValueError, match=r"features\.npz holds no features .*delete this one"):
        load_features(path, ORIGIN)


@pytest.mark.parametrize(
    "wrong", [{"train_features": np.zeros((60, 8))}, {"test_labels": np.zeros(59, int)}], ids=["dtype", "length"]
)
def test_arrays_that_do_not_fit_are_refused(features, tmp_path, wrong):
    path = tmp_path / "features.npz"
    save_features(path, features._replace(**wrong), ORIGIN)
    with pytest.raises(ValueError, match="expected float32, a row each"):
        load_features(path, ORIGIN)
