"""The downstream classifier: pooling, loss, head and settings."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import build_model
from models.classifier import Classifier
from models.tokenizer import group_levels

SMALL: dict[str, Any] = {
    "num_groups": (32, 16, 8),
    "group_sizes": (8, 4, 4),
    "encoder_dims": (24, 48, 96),
    "encoder_depths": (1, 1, 1),
    "num_heads": 3,
}


def classifier(num_classes: int = 5, pooling: str = "sum", **settings: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(num_classes, pooling, **SMALL | settings)


@pytest.fixture
def points() -> Tensor:
    return torch.randn(3, 64, 3, generator=torch.Generator().manual_seed(0))


# Two clouds of three tokens with two channels.
TOKENS = torch.tensor([[[9.0, 1], [0, 2], [3, 6]], [[0.0, -1], [3, -2], [0, -3]]])


def test_sum_pooling_by_hand():
    assert classifier(pooling="sum").pool(TOKENS).tolist() == [[13, 9], [4, -3]]


def test_concat_pooling_by_hand():
    assert classifier(pooling="concat").pool(TOKENS).tolist() == [[4, 3, 9, 6], [1, -2, 3, -1]]


def test_the_first_token_is_left_out_of_the_max_only():
    pooled = classifier(pooling="concat", skip_first_token=True).pool(TOKENS)
    assert pooled.tolist() == [[4, 3, 3, 6], [1, -2, 3, -2]]


def explicit_loss(logits: Tensor, labels: Tensor, smooth: float) -> float:
    """The true class weighs 1 − smooth, every other smooth / (classes − 1)."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        for c, value in enumerate(row):
            weight = 1 - smooth if c == label else smooth / (len(row) - 1)
            total -= weight * (value - log_sum)
    return total / len(labels)


@pytest.mark.parametrize("num_classes", [2, 5, 40])
@pytest.mark.parametrize("smooth", [0.0, 0.2, 0.3])
def test_loss_is_the_smoothed_cross_entropy(num_classes, smooth):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, num_classes, generator=generator)
    labels = torch.randint(num_classes, (6,), generator=generator)
    loss = classifier(num_classes, smooth=smooth).loss(logits, labels)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(explicit_loss(logits, labels, smooth), rel=1e-5)


def test_smoothing_that_takes_most_from_the_true_class():
    logits, labels = torch.tensor([[0.5, -1.0]]), torch.tensor([0])
    loss = classifier(2, smooth=0.75).loss(logits, labels)
    assert loss.item() == pytest.approx(explicit_loss(logits, labels, 0.75), rel=1e-5)


@pytest.mark.parametrize("pooling", ["sum", "concat"])
def test_logits_have_a_column_per_class(points, pooling):
    logits = classifier(7, pooling)(points)
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()


def test_logits_follow_the_steps_of_the_method(points):
    model = classifier(local_radius=(0.5, 0, 0)).eval()
    groups = group_levels(points, SMALL["num_groups"], SMALL["group_sizes"])
    tokens = model.norm(model.h_encoder.forward_all(groups, (0.5, 0, 0))[-1])
    expected = model.cls_head_finetune(tokens.mean(1) + tokens.max(1).values)
    torch.testing.assert_close(model(points), expected)


def test_logits_of_a_cloud_do_not_depend_on_its_batch(points):
    model = classifier().eval()
    torch.testing.assert_close(model(points)[1:2], model(points[1:2]), rtol=1e-4, atol=1e-5)


def test_the_local_radius_is_used(points):
    model = classifier().eval()
    local = classifier(local_radius=(0.3, 0.6, 1.2)).eval()
    local.load_state_dict(model.state_dict())
    assert not torch.allclose(local(points), model(points))


def test_the_gradient_reaches_every_parameter(points):
    model = classifier()
    model.loss(model(points), torch.tensor([0, 1, 4])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_head_has_two_hidden_layers_with_half_of_them_dropped():
    head = classifier(pooling="concat").cls_head_finetune
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert [type(layer) for layer in head] == [*kinds, *kinds, nn.Linear]
    sizes = [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)]
    assert sizes == [(192, 256), (256, 256), (256, 5)]
    assert [layer.p for layer in head if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def test_the_encoder_has_no_norms_of_its_own():
    assert not any("encoder_norms" in name for name in classifier().state_dict())


@pytest.mark.parametrize(
    ("name", "num_classes", "pooling", "smooth", "skip_first_token"),
    [
        ("I2P_MAE_ModelNet40", 40, "sum", 0.2, False),
        ("I2P_MAE_ScanObjectNN", 15, "concat", 0.0, False),
        ("Point_M2AE_ModelNet40", 40, "sum", 0.3, False),
        ("Point_M2AE_ScanObjectNN", 15, "concat", 0.0, True),
    ],
)
def test_the_official_names(name, num_classes, pooling, smooth, skip_first_token):
    model = build_model({"NAME": name, **SMALL})
    assert model.cls_head_finetune[-1].out_features == num_classes
    assert (model.pooling, model.smooth, model.skip_first_token) == (pooling, smooth, skip_first_token)


def test_a_config_may_set_classes_and_smoothing():
    model = build_model({"NAME": "I2P_MAE_ModelNet40", "num_classes": 10, "smooth": 0.1, **SMALL})
    assert (model.cls_head_finetune[-1].out_features, model.smooth) == (10, 0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "pooling must be 'sum' or 'concat', got 'max'"),
        ({"smooth": 1.0}, r"smooth must be in \[0, 1\), got 1.0"),
        ({"smooth": -0.1}, "got -0.1"),
        ({"num_heads": 5}, "24 channels do not divide into 5 heads"),
        ({"local_radius": (0.1,)}, "local_radius must hold 3 values"),
        ({"group_sizes": (8, 40, 4)}, "level 1 makes 16 groups of 40 out of 32 tokens"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        classifier(**settings)
