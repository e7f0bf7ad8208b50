"""The figures of part segmentation by hand, and against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from torch import Tensor

from tools.evaluation.metrics import own_argmax, present_part_ious, segmentation_scores, shape_ious

# Three categories, with the parts 0–1, 2–4 and 5.
OWN = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)


def test_the_most_probable_part_is_one_of_the_category():
    log_probs = torch.tensor([[0.0, 1, 9, 3, 9, 9], [2, 1, 9, 9, 9, 9]]).log_softmax(-1).expand(3, 2, 6)
    assert own_argmax(log_probs, OWN).tolist() == [[1, 0], [2, 2], [5, 5]]


@pytest.mark.parametrize(
    ("true", "predicted", "category", "iou"),
    [
        ([0, 0, 1, 1], [0, 1, 1, 1], 0, (1 / 2 + 2 / 3) / 2),
        ([0, 0, 0, 0], [1, 1, 1, 1], 0, 0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0, 1),  # part 1 is absent from both and counts 1
        ([0, 0, 0, 0], [0, 0, 0, 1], 0, (3 / 4 + 0) / 2),  # a part that is predicted only counts 0
        ([2, 2, 3, 3], [2, 2, 3, 3], 1, 1),
        ([2, 2, 3, 3], [2, 3, 3, 4], 1, (1 / 2 + 1 / 3 + 0) / 3),
        ([2, 2, 2, 3], [2, 2, 3, 2], 1, (2 / 4 + 0 + 1) / 3),
        ([5, 5, 5, 5], [5, 5, 5, 5], 2, 1),
    ],
)
def test_a_shape_by_hand(true, predicted, category, iou):
    found = shape_ious(torch.tensor([predicted]), torch.tensor([true]), OWN[[category]])
    assert found.tolist() == pytest.approx([iou])


@pytest.mark.parametrize(
    ("true", "predicted", "iou"),
    [
        ([0, 0, 1, 1], [0, 1, 1, 1], (1 / 2 + 2 / 3) / 2),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1),
        ([0, 0, 0, 0], [0, 0, 0, 1], 3 / 4),  # a part that is predicted only is left out
        ([2, 2, 3, 3], [2, 3, 3, 4], (1 / 2 + 1 / 3) / 2),
        ([2, 2, 2, 3], [3, 3, 3, 2], 0),
    ],
)
def test_parts_that_are_present_by_hand(true, predicted, iou):
    assert present_part_ious(torch.tensor([predicted]), torch.tensor([true]), 6).tolist() == pytest.approx([iou])


def test_scores_by_hand():
    true = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [2, 2, 3, 3], [0, 1, 0, 1]])
    predicted = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [2, 2, 3, 3], [0, 1, 0, 1]])
    scores = segmentation_scores(predicted, true, torch.tensor([0, 0, 1, 0]), OWN)
    first = 100 * (7 / 12 + 0 + 1) / 3  # of category 0
    assert scores["category_mIoU"] == pytest.approx([first, 100, None])
    assert scores["class_mIoU"] == pytest.approx((first + 100) / 2)  # category 2 has no shape
    assert scores["instance_mIoU"] == pytest.approx(100 * (7 / 12 + 0 + 1 + 1) / 4)
    assert scores["present_part_mIoU"] == pytest.approx(100 * (7 / 12 + 0 + 1 + 1) / 4)
    assert scores["point_accuracy"] == pytest.approx(100 * 11 / 16)


def draw(seed: int, shapes: int, points: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random categories, and for each point two random parts of its category."""
    generator = torch.Generator().manual_seed(seed)
    categories = torch.randint(len(OWN), (shapes,), generator=generator)
    parts = [
        torch.multinomial(OWN[categories].float(), points, replacement=True, generator=generator) for _ in range(2)
    ]
    return categories, parts[0], parts[1]


@given(seed=st.integers(0, 2**32 - 1), shapes=st.integers(1, 12), points=st.integers(1, 9))
def test_against_sklearn(seed, shapes, points):
    categories, true, predicted = draw(seed, shapes, points)
    expected = torch.tensor(
        [
            jaccard_score(t, p, labels=np.flatnonzero(OWN[c]), average="macro", zero_division=1)
            for c, t, p in zip(categories, true.numpy(), predicted.numpy(), strict=True)
        ]
    )
    scores = segmentation_scores(predicted, true, categories, OWN)
    assert scores["instance_mIoU"] == pytest.approx(100 * expected.mean().item())
    of_categories = [expected[categories == c].mean().item() for c in categories.unique()]
    assert scores["class_mIoU"] == pytest.approx(100 * np.mean(of_categories))
    assert scores["point_accuracy"] == pytest.approx(100 * (true == predicted).double().mean().item())


@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_shapes_and_points_does_not_matter(seed):
    categories, true, predicted = draw(seed, 6, 8)
    generator = torch.Generator().manual_seed(seed)
    shapes, points = torch.randperm(6, generator=generator), torch.randperm(8, generator=generator)
    moved = segmentation_scores(predicted[shapes][:, points], true[shapes][:, points], categories[shapes], OWN)
    scores = segmentation_scores(predicted, true, categories, OWN)
    assert {**moved, "category_mIoU": 0} == pytest.approx({**scores, "category_mIoU": 0})
    assert moved["category_mIoU"] == pytest.approx(scores["category_mIoU"])
