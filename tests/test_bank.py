"""The memory bank: logits, the search of γ against the plain formula, leave-one-out, the file that keeps a bank."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.evaluation import bank as bank_module
from tools.evaluation.bank import (
    GAMMAS,
    Bank,
    accuracies,
    accuracies_left_out,
    bank_table,
    choose_gamma,
    load_bank,
    match,
    measure,
    nearest_neighbors,
    normalised,
    save_bank,
)
from tools.evaluation.gamma import GammaSearch

ORIGIN = {
    "checkpoint_sha256": None,
    "model": {"NAME": "Point_NN", "k": 24},
    "data": {"clouds": 3},
    "versions": {"a": "1"},
}
PAIRS = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)


def clouds(seed: int, count: int, classes: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Features of unit length about as close to each other as `spread`, and labels; some classes may have none."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    centers = np.random.default_rng(0).normal(size=(classes, 12))
    return normalised(1 + spread * (centers[labels] + 2 * rng.normal(size=(count, 12))), "drawn"), labels


def plainly(bank: Bank, queries: np.ndarray, labels: np.ndarray, gamma: float, leave_out: bool = False) -> float:
    """The formula as it stands."""
    similarities = (queries @ bank.features.T).astype(np.float64)
    counts = ~np.eye(len(queries), dtype=bool) if leave_out else np.ones_like(similarities, dtype=bool)
    weights = np.exp(gamma * (similarities - similarities.max(1, keepdims=True, where=counts, initial=-1))) * counts
    logits = [weights[:, bank.labels == label].sum(1) for label in range(len(bank.class_names))]
    return np.mean(np.argmax(logits, axis=0) == labels)


# ---- matching ----


def test_logits_by_hand():
    bank = Bank(PAIRS, np.array([0, 1, 1]), ["a", "b", "c"])
    logits = match(bank, np.array([[5, 0], [0, 1]], np.float32), gamma=2)
    expected = [[1, math.exp(-2) + math.exp(-0.8), 0], [math.exp(-2), 1 + math.exp(-0.4), 0]]
    np.testing.assert_allclose(logits, expected, rtol=1e-6)


def test_a_gamma_of_0_counts_entries():
    bank = Bank(PAIRS, np.array([2, 0, 0]), ["a", "b", "c"])
    assert match(bank, PAIRS[:1], 0).tolist() == [[2, 0, 1]]


def test_no_row_vanishes_however_far_its_entries():
    """In float32, exp(-9998 · 0.4) is 0 for both classes, which would leave it to class 0."""
    bank = Bank(PAIRS[1:], np.array([1, 0]), ["a", "b"])
    query = np.array([[-1, 0.3]], np.float32)
    assert match(bank, query, 9998)[0] == pytest.approx([0, 1])
    assert match(bank, query, 9998)[0, 0] > 0


def test_queries_are_matched_in_parts_to_the_same_logits(monkeypatch):
    features, labels = clouds(1, 40, 4, 0.1)
    bank, (queries, _) = Bank(features, labels, list("abcd")), clouds(2, 11, 4, 0.1)
    whole = match(bank, queries, 300), nearest_neighbors(bank, queries)
    monkeypatch.setattr(bank_module, "QUERIES", 4)
    np.testing.assert_allclose(match(bank, queries, 300), whole[0], rtol=1e-3)
    assert np.array_equal(nearest_neighbors(bank, queries), whole[1])


def test_of_equally_near_entries_most_win_and_then_the_lowest_class():
    bank = Bank(PAIRS[[0, 0, 0, 1, 1, 2]], np.array([2, 1, 2, 1, 0, 2]), ["a", "b", "c"])
    assert nearest_neighbors(bank, PAIRS).tolist() == [2, 0, 2]
    assert match(bank, PAIRS[1:2], 9998).argmax() == 0


def test_features_without_direction_are_refused():
    with pytest.raises(ValueError, match="the bank feature of cloud 1 is zero"):
        normalised(np.array([[1, 0], [0, 0]]), "bank")
    with pytest.raises(ValueError, match="1 of 2 query features are not finite"):
        match(Bank(PAIRS, np.array([0, 0, 0]), ["a"]), np.array([[1, 0], [np.nan, 0]]), 1)


# ---- the search of γ ----


@settings(max_examples=15)
@given(seed=st.integers(1, 2**32 - 2), classes=st.integers(2, 6), spread=st.sampled_from([0.003, 0.05, 0.3, 3.0]))
def test_accuracies_are_those_of_the_plain_formula(seed, classes, spread):
    features, labels = clouds(seed, 30, classes, spread)
    queries, true = clouds(seed + 1, 20, classes, spread)
    bank, gammas = Bank(features, labels, [str(label) for label in range(classes)]), range(0, 400, 2)
    found, left_out = accuracies(bank, queries, true, gammas), accuracies_left_out(bank, gammas)
    for place in (0, 1, 2, 3, 30, 31, 77, 199):
        assert found[place] == plainly(bank, queries, true, gammas[place])
        assert left_out[place] == plainly(bank, features, labels, gammas[place], leave_out=True)


def test_predictions_that_change_often_are_all_found(monkeypatch):
    monkeypatch.setattr(bank_module, "QUERIES", 7)
    features, labels = clouds(3, 60, 5, 0.05)
    bank, (queries, true) = Bank(features, labels, list("abcde")), clouds(4, 50, 5, 0.05)
    gammas = [*range(0, 3000, 20), 9998]
    found = accuracies(bank, queries, true, gammas)
    assert len(set(found)) > 8
    assert found.tolist() == [plainly(bank, queries, true, gamma) for gamma in gammas]


def test_hardly_any_gamma_is_computed(monkeypatch):
    counted, at = [], GammaSearch._at
    monkeypatch.setattr(
        GammaSearch, "_at", lambda self, rows, place: counted.append(len(rows)) or at(self, rows, place)
    )
    features, labels = clouds(5, 200, 5, 0.05)
    accuracies_left_out(Bank(features, labels, list("abcde")))
    assert 10 <= sum(counted) / 200 < 60  # of 5000


def test_leave_one_out_is_a_bank_without_the_cloud():
    features, labels = clouds(6, 25, 3, 0.1)
    gammas = [0, 10, 100, 1000, 9000]
    predicted = []
    for cloud in range(25):
        rest = np.delete(np.arange(25), cloud)
        bank = Bank(features[rest], labels[rest], list("abc"))
        predicted.append([match(bank, features[[cloud]], gamma)[0].argmax() == labels[cloud] for gamma in gammas])
    expected = np.mean(predicted, axis=0)
    assert 0 < expected.min() < expected.max() < 1
    assert accuracies_left_out(Bank(features, labels, list("abc")), gammas).tolist() == expected.tolist()


def test_leave_one_out_needs_two_clouds_of_a_class():
    with pytest.raises(ValueError, match="leave-one-out on the bank, which needs a class with two clouds"):
        accuracies_left_out(Bank(PAIRS, np.arange(3), list("abc")))
    assert accuracies_left_out(Bank(PAIRS, np.array([0, 1, 1]), list("ab")), [0, 5]).tolist() == [0, 2 / 3]


def test_the_published_grid_and_its_lowest_best():
    assert (len(GAMMAS), GAMMAS[0], GAMMAS[1], GAMMAS[-1]) == (5000, 0, 2, 9998)
    shares = np.zeros(5000)
    shares[[30, 40]] = 0.75
    assert choose_gamma(shares) == (60, 75.0)


@pytest.mark.parametrize(("select_on", "which"), [("val", "leave_one_out"), ("test", "best")])
def test_every_figure_is_measured_and_one_is_the_accuracy(select_on, which):
    features, labels = clouds(7, 60, 4, 0.1)
    bank, (queries, true) = Bank(features, labels, list("abcd")), clouds(8, 40, 4, 0.1)
    results = measure(bank, queries, true, select_on)
    on_test, on_bank = accuracies(bank, queries, true), accuracies_left_out(bank)
    assert results["leave_one_out_gamma"] == 2 * on_bank.argmax() != results["best_gamma"] == 2 * on_test.argmax()
    assert results["leave_one_out_bank_accuracy"] == 100 * on_bank.max()
    assert results["leave_one_out_accuracy"] == 100 * on_test[on_bank.argmax()] < results["best_accuracy"]
    assert results["nearest_neighbor_accuracy"] == 100 * np.mean(nearest_neighbors(bank, queries) == true)
    assert (results["accuracy"], results["gamma"]) == (results[f"{which}_accuracy"], results[f"{which}_gamma"])
    assert [row[1] for row in bank_table(results)] == [
        results[f"{name}_accuracy"] for name in ("leave_one_out", "best", "nearest_neighbor")
    ]
    assert ("test split" in results["gamma_chosen_on"]) == (select_on == "test")


# ---- the file ----


@pytest.fixture
def kept(tmp_path):
    bank = Bank(PAIRS, np.array([0, 1, 1]), ["a", "b"], ORIGIN)
    save_bank(tmp_path / "bank.npz", bank)
    return tmp_path / "bank.npz", bank


def test_a_bank_comes_back_as_it_was(kept):
    path, bank = kept
    loaded = load_bank(path, ORIGIN)
    assert np.array_equal(loaded.features, bank.features)
    assert loaded.features.dtype == np.float32
    assert loaded.labels.tolist() == [0, 1, 1]
    assert (loaded.class_names, loaded.origin) == (["a", "b"], ORIGIN)
    assert [file.name for file in path.parent.iterdir()] == ["bank.npz"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"model": {"NAME": "Point_NN", "k": 90}}, r"model\.k is 24 there and 90 here"),
        ({"checkpoint_sha256": "abc"}, "checkpoint_sha256 is None there and 'abc' here"),
        ({"data": {"clouds": 4}}, r"data\.clouds is 3 there and 4 here"),
    ],
)
def test_a_bank_of_something_else_is_refused(kept, change, difference):
    with pytest.raises(ValueError, match=rf"bank\.npz holds a bank of another origin: {difference}; give --save_bank"):
        load_bank(kept[0], ORIGIN | change)


def test_a_bank_of_other_versions_is_taken_with_a_warning(kept, caplog):
    load_bank(kept[0], ORIGIN)
    assert not caplog.text
    load_bank(kept[0], ORIGIN | {"versions": {"a": "2"}})
    assert "holds a bank of other software: versions.a is '1' there and '2' here" in caplog.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "holds no bank"),
        (lambda path: path.write_text("no bank"), "it is no .npz file"),
        (lambda path: save_bank(path, Bank(2 * PAIRS, np.zeros(3, int), ["a"], ORIGIN)), "not of length 1"),
        (lambda path: np.savez(path, origin=np.array("[]"), features=PAIRS, labels=[0], class_names=["a"]), "holds no"),
        (
            lambda path: np.savez(
                path, origin=np.array('{"a": 1}'), features=PAIRS, labels=np.array([{}]), class_names=["a"]
            ),
            "allow_pickle",
        ),
    ],
    ids=["cut short", "text", "lengths", "no origin", "pickle"],
)
def test_a_damaged_bank_is_refused(kept, damage, message):
    damage(kept[0])
    with pytest.raises(ValueError, match=message) as refused:
        load_bank(kept[0], ORIGIN)
    assert str(kept[0]) in str(refused.value)


def test_labels_beyond_the_class_names_are_refused(kept):
    path, bank = kept
    arrays = {"features": bank.features, "labels": np.array([0, 1, 2]), "class_names": np.array(["a", "b"])}
    bank_module.save_arrays(path, arrays, ORIGIN)
    with pytest.raises(ValueError, match="label 2 of cloud 2; expected an integer from 0 to below 2"):
        load_bank(path, ORIGIN)
