"""Parity with the official Point-MAE: names, shapes, features, losses, gradients, costs, schedules."""

import numpy as np
import pytest
import torch
from torch import Tensor

from extensions.pointnet2_ops.pointnet2_utils import furthest_point_sample
from models import build_model
from models.masking import Packing
from tests.golden.fixtures import clouds, coarse_mask, golden_tensor
from tests.golden_numbers import (
    assert_close,
    assert_figure,
    assert_keys,
    assert_summary,
    exempt_by_name,
    gradient_norm,
    load,
    released,
)

LOSS_TOLERANCE, TOTAL_GRADIENT_TOLERANCE, GRADIENT_TOLERANCE = 2e-6, 3e-5, 1e-4
SEGMENTER_GRADIENT_TOLERANCE = 2e-4
HEAD_OF_ACT = ("label_conv", "propagation_0", "convs1", "convs2", "convs3", "bns1", "bns2")


@pytest.fixture(scope="module")
def golden() -> dict:
    return load("point_mae_pretrain")


@pytest.fixture(scope="module")
def points() -> Tensor:
    return clouds(3, 1024, seed=103)


@pytest.fixture(scope="module")
def mask() -> Tensor:
    return coarse_mask(3, 64, 26, seed=99)


def test_state_dict_of_the_pre_training_model(golden):
    model = build_model(golden["config"])
    assert_keys(model, golden["keys"])
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    assert sum(p.numel() for p in model.MAE_encoder.parameters()) == golden["params_encoder"]
    assert exempt_by_name(model) == golden["no_decay_beyond_1d_and_bias"]


def test_groups_and_tokens(golden, points):
    model = released(golden["config"])
    assert furthest_point_sample(points, 20).tolist() == golden["fps_first20"]
    group = model.group(points)
    assert_summary(group.centers, golden["centers"])
    with torch.no_grad():
        assert_summary(model.MAE_encoder.encoder(group.neighborhoods), golden["group_tokens_eval"])


def test_features_with_nothing_masked(golden, points):
    model = released(golden["config"])
    with torch.no_grad():
        tokens = model.MAE_encoder.encode_group(model.group(points))
        other = model.MAE_encoder.encode_group(model.group(clouds(2, 1024, seed=43)))
        feature = model.encode(points)
    assert_summary(tokens, golden["encoder_unmasked_eval"])
    assert_close(tokens[:, 63, :8], golden["encoder_unmasked_eval_last_token"])
    assert_summary(other, golden["encoder_unmasked_eval_seed43"])
    torch.testing.assert_close(feature, torch.cat([tokens.mean(1), tokens.max(1).values], dim=1))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_losses_and_gradients(golden, points, mask, mode):
    official = golden[f"{mode}_mode"]
    assert [torch.nonzero(~row).flatten().tolist() for row in mask] == golden["mask_visible_indices"]
    model = released(golden["config"], training=mode == "train")
    group = model.group(points)
    visible, masked = Packing.of_levels([mask, ~mask])
    encoded = model.MAE_encoder.encode_group(group, visible)
    assert_summary(encoded, official["visible_tokens_after_norm"])
    assert_summary(model.decode(group, encoded, visible, masked), official["predicted_points"])

    model = released(golden["config"], training=mode == "train")  # BatchNorm has seen no batch
    losses = model(points, mask)
    losses["loss"].backward()
    assert_figure(losses["loss"], official["loss"], LOSS_TOLERANCE)
    assert_figure(losses["loss_3d"], official["loss"], LOSS_TOLERANCE)
    assert losses["visible_tokens"] == 26
    assert sum(p.grad is not None for p in model.parameters()) == official["n_params_with_grad"]
    assert_figure(gradient_norm(model), official["grad_norm_total"], TOTAL_GRADIENT_TOLERANCE)
    for name, norm in official["grad_norms"].items():
        assert_figure(model.get_parameter(name).grad.norm(), norm, GRADIENT_TOLERANCE)
    if mode == "train":
        for name, statistics in golden["running_stats_after_train_forward"].items():
            assert_summary(model.get_buffer(name), statistics)


def test_the_loss_of_distances_not_squared(golden, points, mask):
    model = released(golden["config"] | {"loss": "cdl1"})
    with torch.no_grad():
        assert_figure(model(points, mask)["loss"], golden["eval_mode"]["loss_cdl1"], LOSS_TOLERANCE)


@pytest.mark.parametrize(("name", "seed"), [("finetune_modelnet", 41), ("finetune_scan_hardest", 54)])
def test_classifiers(name, seed):
    cases = load("point_mae_finetune")
    golden, keys = cases[name], {key: rest for key, *rest in cases["finetune_modelnet"]["keys"]}
    keys |= {key: rest for key, *rest in golden.get("keys_that_differ", [])}
    model = released(golden["config"])
    assert_keys(model, [[key, *rest] for key, rest in keys.items()])
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    assert exempt_by_name(model) == golden["no_decay_beyond_1d_and_bias"]
    points = clouds(3, golden["npoints"], seed=seed)
    with torch.no_grad():
        assert_close(model(points), golden["logits_eval"])
    model.double().train()  # in float32 rounding alone moves the total by 4e-5
    loss = model.loss(model(points.double()), torch.tensor([1, 7, 3]))
    loss.backward()
    assert_figure(loss, golden["loss_train"], LOSS_TOLERANCE)
    assert_figure(gradient_norm(model), golden["grad_norm_total"], TOTAL_GRADIENT_TOLERANCE)
    for parameter, norm in golden["grad_norms"].items():
        assert_figure(model.get_parameter(parameter).grad.norm(), norm, GRADIENT_TOLERANCE)


def test_the_segmenter():
    """Point-MAE's is ACT's under names without `_cls`: the golden weights are seeded by ACT's names."""
    golden = load("act_part_segmentation")
    model = build_model({"NAME": "Point_MAE_SEG", "drop_path_rate": 0.0}).eval()
    assert_keys(model, [[key.replace("_cls.", "."), *rest] for key, *rest in golden["keys"]])
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            first, _, rest = key.partition(".")
            tensor.copy_(golden_tensor(f"{first}_cls.{rest}" if first in HEAD_OF_ACT else key, tensor))
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    assert exempt_by_name(model) == golden["no_decay_beyond_1d_and_bias"]
    points, category = clouds(2, 2048, seed=31), torch.tensor([4, 15])
    with torch.no_grad():
        log_probs = model(points, category)
    assert_summary(log_probs, golden["log_probs"])
    assert_close(log_probs[:, :5], golden["log_probs_points_0_to_4"])
    assert log_probs.argmax(-1).flatten().bincount(minlength=50).tolist() == golden["argmax_hist"]
    model.train().dropout.p = 0.0
    parts = torch.from_numpy(np.random.RandomState(5).randint(0, 50, (2, 2048)))
    loss = model.loss(model(points, category), parts)
    loss.backward()
    assert_figure(loss, golden["loss_train"], LOSS_TOLERANCE)
    assert_figure(gradient_norm(model), golden["grad_norm_total"], SEGMENTER_GRADIENT_TOLERANCE)
