import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import SVC, LinearSVC

from tools.evaluation.svm import choose_C, fit_linear_svms, linear_svm_accuracy


@pytest.fixture
def clouds():
    """Features of four overlapping classes: (train x, train y, test x, test y)."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 12))
    labels = np.repeat(np.arange(4), 30)
    train, test = (centres[labels] + 1.3 * rng.normal(size=(120, 12)) for _ in range(2))
    return train.astype(np.float32), labels, test.astype(np.float32), labels


@pytest.mark.parametrize("C", [0.0093, 0.3, 10.0])
def test_same_as_the_linear_kernel(clouds, C):
    train, train_labels, test, test_labels = clouds
    expected = SVC(kernel="linear", C=C).fit(train, train_labels)
    assert linear_svm_accuracy(*clouds, C) == pytest.approx(100 * expected.score(test, test_labels))
    # and cloud by cloud: as "labels", the expected predictions are all hit
    assert linear_svm_accuracy(train, train_labels, test, expected.predict(test), C) == 100.0


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_same_as_the_linear_svm_of_squared_hinges(clouds, C):
    """The dual problem of the same SVM, which scikit-learn once solved by default, has its optimum there."""
    train, train_labels, test, test_labels = clouds
    expected = LinearSVC(C=C, dual=True, max_iter=200_000, tol=1e-6, random_state=0).fit(train, train_labels)
    assert (expected.predict(test) != SVC(kernel="linear", C=C).fit(train, train_labels).predict(test)).any()
    assert linear_svm_accuracy(train, train_labels, test, expected.predict(test), C, "LinearSVC") == 100.0
    assert linear_svm_accuracy(*clouds, C, "LinearSVC") == pytest.approx(100 * expected.score(test, test_labels))


def test_choose_C_is_the_cross_validation_of_the_linear_kernel(clouds):
    train, labels, _, _ = clouds
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    candidates = (0.001, 0.01, 0.1)
    expected = {C: cross_val_score(SVC(kernel="linear", C=C), train, labels, cv=folds).mean() for C in candidates}
    C, accuracy = choose_C(train, labels, candidates)
    assert len(set(expected.values())) > 1
    assert max(expected, key=expected.get) == C
    assert accuracy == pytest.approx(100 * expected[C])


def test_choose_C_is_repeatable_and_takes_the_smallest_of_equals(clouds):
    train, labels, _, _ = clouds
    easy = np.eye(4, 12, dtype=np.float32)[labels] * 10 + train * 1e-3
    assert choose_C(easy, labels, candidates=(10.0, 1.0, 5.0)) == (1.0, 100.0)
    assert choose_C(train, labels) == choose_C(train, labels)


def test_choose_C_uses_fewer_folds_for_a_rare_class(clouds):
    train, labels, _, _ = clouds
    few = np.r_[0:30, 30:32]  # 30 clouds of class 0, 2 of class 1
    C, accuracy = choose_C(train[few], labels[few], candidates=(1.0,))
    assert C == 1.0
    assert 50.0 <= accuracy <= 100.0


def test_refuses_features_that_are_not_finite(clouds):
    train, labels, test, test_labels = clouds
    test[7, 3] = np.nan
    with pytest.raises(ValueError, match=r"1 of 120 test features are not finite \(first: cloud 7\)"):
        linear_svm_accuracy(train, labels, test, test_labels, 1.0)


def test_refuses_too_few_classes_or_clouds(clouds):
    train, labels, test, test_labels = clouds
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        linear_svm_accuracy(train, labels * 0, test, test_labels, 1.0)
    with pytest.raises(ValueError, match="a class has only one"):
        choose_C(train[:31], labels[:31])


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1), st.integers(2, 7), st.sampled_from([0.0, 0.3, 2.0]), st.sampled_from([0.01, 1.0, 30.0])
)
def test_predictions_are_those_of_the_linear_kernel(seed, num_classes, separation, C):
    rng = np.random.default_rng(seed)
    labels = 3 * np.r_[np.arange(num_classes).repeat(2), rng.integers(num_classes, size=60)]  # any order, any labels
    centers = rng.normal(size=(3 * num_classes, 10))
    features = separation * centers[labels] + rng.normal(size=(len(labels), 10))
    test = separation * centers[rng.choice(labels, 200)] + rng.normal(size=(200, 10))
    (ours,) = fit_linear_svms(features, labels, [C])
    expected = SVC(kernel="linear", C=C).fit(features, labels)
    assert np.array_equal(ours.predict(test), expected.predict(test))
