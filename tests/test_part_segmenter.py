"""The part segmenter: parity with the official model, its steps, and settings that do not fit."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import build_model
from models.part_segmenter import PartSegmenter
from models.propagation import interpolate_features
from models.tokenizer import group_levels
from tests.golden.fixtures import clouds, fill_parameters, golden_tensor
from tests.golden_numbers import TOLERANCE, assert_keys, assert_summary, load
from utils.checkpoint import load_weights

SMALL: dict[str, Any] = {
    "num_groups": (16, 12, 8),
    "group_sizes": (8, 4, 4),
    "encoder_dims": (24, 48, 96),
    "encoder_depths": (1, 1, 1),
    "num_heads": 3,
    "local_radius": (0.5, 1, 0),
    "point_dims": (64, 48),
}


def segmenter(**settings: Any) -> PartSegmenter:
    torch.manual_seed(0)
    return PartSegmenter(**{"num_parts": 6, "num_categories": 3} | SMALL | settings)


@pytest.fixture
def points() -> Tensor:
    return clouds(3, 40, seed=0)


CATEGORIES = torch.tensor([2, 0, 2])
PARTS = torch.arange(120).view(3, 40) % 6


# ---------------------------------------------------------------------------------------------------- parity


@pytest.fixture(scope="module")
def golden() -> dict:
    return load("part_segmentation")


def test_parity_with_the_official_model(golden):
    model = fill_parameters(build_model({"NAME": "Point_M2AE_SEG"})).eval()
    assert_keys(model, golden["keys"])
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    with torch.no_grad():
        log_probs = model(clouds(2, 2048, seed=31), F.one_hot(torch.tensor([4, 15]), 16))
    assert_summary(log_probs, golden["log_probs"])
    np.testing.assert_allclose(log_probs[:, :5], golden["log_probs_points_0_to_4"], atol=TOLERANCE)
    assert torch.bincount(log_probs.argmax(-1).flatten(), minlength=50).tolist() == golden["argmax_hist"]


def test_a_released_checkpoint_loads_strictly(golden, tmp_path):
    state = {
        f"module.{key}": golden_tensor(key, torch.empty(s, dtype=getattr(torch, d))) for key, s, d in golden["keys"]
    }
    torch.save({"epoch": 3, "model_state_dict": state, "test_acc": np.float64(0.9)}, tmp_path / "released.pth")
    model = build_model({"NAME": "Point_M2AE_SEG"})
    report = load_weights(model, tmp_path / "released.pth", strict=True)
    assert len(report.loaded) == len(state)
    assert all(torch.equal(tensor, state[f"module.{key}"]) for key, tensor in model.state_dict().items())


# ---------------------------------------------------------------------------------------------------- steps


def test_output_is_a_distribution_over_parts_for_every_point(points):
    log_probs = segmenter()(points, CATEGORIES)
    assert log_probs.shape == (3, 40, 6)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 40))


def literal(model: PartSegmenter, points: Tensor, categories: Tensor) -> Tensor:
    """The model in evaluation mode the literal way: everything expanded to the points and concatenated."""
    groups = group_levels(points, model.num_groups, model.group_sizes)
    levels = model.h_encoder.forward_all(groups, model.local_radius)
    local = []
    for propagation, group, tokens in zip(model.propagations, groups, levels, strict=True):
        x = torch.cat([points, interpolate_features(points, group.centers, tokens)], dim=-1).transpose(1, 2)
        x = F.relu(propagation.mlp_bns[0](propagation.mlp_convs[0](x)))
        local.append(F.relu(propagation.mlp_bns[1](propagation.mlp_convs[1](x))))
    x = torch.cat(local, dim=1)  # (B, 144, N)
    pooled = x.max(dim=2, keepdim=True)[0] + x.mean(dim=2, keepdim=True)
    one_hot = F.one_hot(categories, model.num_categories).to(points).unsqueeze(-1)
    category = model.label_conv(one_hot)
    x = torch.cat([pooled.expand_as(x), category.expand(-1, -1, points.shape[1]), x], dim=1)
    for conv, bn in ((model.convs1, model.bns1), (model.convs2, model.bns2), (model.convs3, model.bns3)):
        x = F.relu(bn(conv(x)))
    return model.convs4(x).log_softmax(dim=1).transpose(1, 2)


def test_the_split_product_equals_the_concatenation(points):
    model = fill_parameters(segmenter()).double().eval()
    expected = literal(model, points.double(), CATEGORIES)
    torch.testing.assert_close(model(points.double(), CATEGORIES), expected)
    assert expected.std() > 0.1


def test_half_of_the_first_layer_of_the_head_is_dropped(points):
    model, given = segmenter().eval(), []
    model.convs2.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model(points, CATEGORIES)
    model.dropout.train()
    model(points, CATEGORIES)
    whole, dropped = (tensor[given[0] > 0] for tensor in given)
    kept = dropped != 0
    assert 0.49 < kept.float().mean() < 0.51
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])


def test_category_as_number_and_as_one_hot(points):
    model = segmenter().eval()
    by_number = model(points, CATEGORIES)
    assert torch.equal(by_number, model(points, F.one_hot(CATEGORIES, 3)))
    assert not torch.allclose(by_number, model(points, torch.tensor([1, 0, 2])))


def test_as_many_clouds_as_categories(points):
    model = segmenter().eval()
    torch.testing.assert_close(model(points, CATEGORIES)[1:], model(points[1:], CATEGORIES[1:]), rtol=1e-4, atol=1e-5)


def test_the_output_follows_the_order_of_the_points(points):
    model = fill_parameters(segmenter()).eval()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(39)])  # sampling starts at point 0
    torch.testing.assert_close(
        model(points[:, order], CATEGORIES), model(points, CATEGORIES)[:, order], rtol=1e-4, atol=1e-4
    )


def test_repeated_points_get_the_same_parts(points):
    points[:, 20:] = points[:, :20]
    log_probs = fill_parameters(segmenter()).eval()(points, CATEGORIES)
    torch.testing.assert_close(log_probs[:, 20:], log_probs[:, :20])


def test_loss_by_hand():
    log_probs = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]).log()
    expected = -(np.log(0.25) + np.log(0.8)) / 2
    assert segmenter().loss(log_probs, torch.tensor([[1, 2]])).item() == pytest.approx(expected)


def test_the_gradient_reaches_every_parameter(points):
    model = segmenter()
    model.loss(model(points, CATEGORIES), PARTS).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_learns_the_parts_of_a_batch(points):
    model = segmenter(drop_path_rate=0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    parts = (points[..., 1] > points[..., 1].mean(1, keepdim=True)).long() + 2 * CATEGORIES.unsqueeze(1)
    for _ in range(12):
        optimizer.zero_grad()
        model.loss(model(points, CATEGORIES), parts).backward()
        optimizer.step()
    assert (model(points, CATEGORIES).argmax(-1) == parts).float().mean() > 0.9


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("shape", [(2,), (3, 2), (3, 3, 1), ()])
def test_categories_of_another_shape_are_refused(points, shape):
    with pytest.raises(ValueError, match=r"category has shape .*; expected \(3,\) or a one-hot \(3, 3\)"):
        segmenter()(points, torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_parts": 1}, "num_parts must be at least 2 and num_categories at least 1, got 1 and 3"),
        ({"num_categories": 0}, "got 6 and 0"),
        ({"num_groups": (16, 12, 2)}, r"3 tokens of each level, num_groups are \[16, 12, 2\]"),
        ({"point_dims": (64,)}, r"point_dims must hold 2 values ≥ 1, got \[64\]"),
        ({"local_radius": (0.1,)}, "local_radius must hold 3 values"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        segmenter(**settings)


def test_one_category_of_two_parts_is_enough(points):
    model = segmenter(num_parts=2, num_categories=1).eval()
    assert model(points, torch.zeros(3, dtype=torch.long)).shape == (3, points.shape[1], 2)
