"""Parity with the official ACT: names, shapes, features, losses, gradients of both stages."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import build_model
from models.act import ACT_PointDistillation
from models.act_autoencoder import ACTPromptedDiscreteVAEwithVIT
from models.masking import Packing
from tests.golden.fixtures import clouds, coarse_mask, golden_tensor
from tests.golden_numbers import assert_figure, assert_keys, assert_summary, gradient_norm, load
from tests.test_golden_point_bert import GRADIENT_TOLERANCE, KL_TOLERANCE, LOSS_TOLERANCE, TOTAL_GRADIENT_TOLERANCE
from tests.test_golden_point_mae import GRADIENT_TOLERANCE as PRE_TRAINING_GRADIENT_TOLERANCE
from tests.test_golden_point_mae import TOTAL_GRADIENT_TOLERANCE as PRE_TRAINING_TOLERANCE
from tests.test_golden_point_mae import exempt_by_name, released

SMALL_VIT = {
    "visual_embed_type": {"embed_dim": 192, "depth": 3, "num_heads": 3},
    "visual_embed_pretrained": "untrained",
}
WEIGHTLESS = {"ckpt": "untrained"}
READ_BY_NOTHING = ("encoder_dims", "replace_pob", "return_all_tokens")

pytestmark = pytest.mark.filterwarnings("ignore:.*is untrained")


def ours(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a golden autoencoder as one of this project: without what the official code never reads."""
    return {key: value for key, value in config.items() if key != "visual_embed_pos"} | SMALL_VIT


def distilling(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same of a golden pre-training model, some of its `transformer_config` changed."""
    transformer = {key: value for key, value in config["transformer_config"].items() if key not in READ_BY_NOTHING}
    return {
        **config,
        "transformer_config": transformer | changes,
        "dvae_config": ours(config["dvae_config"]) | WEIGHTLESS,
    }


def in_mode(model: nn.Module, training: bool) -> Any:
    """A copy in a mode, dropout without effect."""
    return copy.deepcopy(model).train(training)


@pytest.fixture(scope="module")
def golden() -> dict:
    return load("act_autoencoder_small_vit")


@pytest.fixture(scope="module")
def points() -> Tensor:
    return clouds(2, 1024, seed=101)


@pytest.fixture(scope="module")
def none() -> Tensor:
    return torch.zeros(2, 64, 8192)


@pytest.fixture(scope="module")
def filled(golden) -> ACTPromptedDiscreteVAEwithVIT:
    """The autoencoder with the golden weights, in evaluation mode; a test that changes it takes a copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return released(ours(golden["config"]))


def test_state_dict_of_the_autoencoder(golden):
    model = build_model(ours(golden["config"]))
    assert_keys(model, golden["keys"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in model.parameters()) == golden["params"] == 30_841_691
    assert trained == golden["params_trainable"]
    assert sum(p.numel() for p in model.visual_embed.parameters()) == golden["params_frozen_vit"]
    assert exempt_by_name(model) == golden["no_decay_beyond_1d_and_bias"]


def test_words_and_what_the_transformer_makes_of_them(golden, points, filled):
    model = filled
    group, words = model.group(points), model.tokenize(points)
    assert words.tolist() == golden["labels_eval"]
    with torch.no_grad():
        codes = model.codebook[words]
        assert_summary(codes, golden["codes_hard"])
        seen = model.look(codes, group.centers)
        assert_summary(seen, golden["visual_embedding_of_codes"])
        assert seen[0, 0, :4].tolist() == pytest.approx(golden["visual_embedding_first4"], abs=1e-5)
        assert_summary(model.features(codes, group.centers), golden["tokenizer_features"])


@pytest.mark.parametrize(
    ("case", "changes"), [("shallow_prompt", {"use_deep_prompt": False}), ("no_prompt", {"num_prompt_token": 0})]
)
def test_other_prompts(golden, points, filled, case, changes):
    model = build_model(ours(golden["config"]) | changes).eval()
    missing, gone = model.load_state_dict(filled.state_dict(), strict=False)
    assert not missing
    shared = {"deep_prompt_tokens", "deep_prompt_pos"}
    assert set(gone) == (shared if case == "shallow_prompt" else shared | {"visual_prompt_token", "visual_prompt_pos"})
    with torch.no_grad():
        codes = model.codebook[model.tokenize(points)]
        assert_summary(model.look(codes, model.group(points).centers), golden[f"visual_embedding_{case}"])


@pytest.mark.parametrize(
    ("case", "temperature", "hard", "training"),
    [("eval_soft_tau1", 1.0, False, False), ("eval_hard", 1.0, True, False), ("train_soft_tau05", 0.5, False, True)],
)
def test_losses_points_and_gradients(golden, points, none, filled, case, temperature, hard, training):
    official, model = golden[case], in_mode(filled, training)
    found = model(points, temperature, hard, none, kl_weight=0.1)
    assert_figure(found["recon"], official["loss_recon"], LOSS_TOLERANCE)
    assert_figure(found["kl"], official["loss_klv"], KL_TOLERANCE)
    assert_summary(found["fine"], official["fine"], atol=8e-5 if training else 2e-5)
    found["loss"].backward()
    assert_figure(gradient_norm(model), official["grad_norm_total"], TOTAL_GRADIENT_TOLERANCE)
    for name, norm in official["grad_norms"].items():
        assert_figure(model.get_parameter(name).grad.norm(), norm, GRADIENT_TOLERANCE)
    assert all(p.grad is None for p in model.visual_embed.parameters())


# pre-training


@pytest.fixture(scope="module")
def official() -> dict:
    return load("act_pretrain_small_vit")


@pytest.fixture(scope="module")
def mask() -> Tensor:
    return coarse_mask(2, 64, 13, seed=99)


@pytest.fixture(scope="module")
def distiller(official) -> ACT_PointDistillation:
    """The pre-training model with the golden weights, in evaluation mode; a test that changes it takes a copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return released(distilling(official["config"]))


def test_state_dict_of_the_pre_training_model(official, golden, distiller):
    model = distiller
    teacher = [[f"dvae_tokenizer.{key}", *rest] for key, *rest in golden["keys"]]
    assert_keys(model, official["keys"] + teacher)
    sizes = {part: sum(p.numel() for p in model.get_submodule(part).parameters()) for part in ("", "ACT_encoder")}
    assert sizes == {"": official["params"], "ACT_encoder": official["params_student_encoder"]}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == official["params_trainable"] == 29_185_152
    assert sum(p.numel() for p in model.dvae_tokenizer.parameters()) == official["params_teacher"]
    assert not any(p.requires_grad for p in model.dvae_tokenizer.parameters())
    assert exempt_by_name(model) == official["no_decay_beyond_1d_and_bias"]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_losses_features_and_gradients_of_pre_training(official, points, mask, none, distiller, mode):
    expected, training = official[f"{mode}_mode"], mode == "train"
    assert [torch.nonzero(~row).flatten().tolist() for row in mask] == official["mask_visible_indices"]
    model = in_mode(distiller, training)
    group = model.group(points)
    visible, masked = Packing.of_levels([mask, ~mask])
    with torch.no_grad():
        tokens = model.ACT_encoder(group, visible)[0][:, 1:]
        assert_summary(tokens, expected["visible_tokens"])
        assert_summary(model.predict(group, tokens, visible, masked), expected["student_features"])
        assert_summary(model.dvae_tokenizer(group, none), expected["teacher_features_all_groups"])

    model = in_mode(distiller, training)  # BatchNorm has seen no batch
    found = model(points, mask, none)
    found["loss"].backward()
    assert_figure(found["loss"], expected["loss"], LOSS_TOLERANCE)
    assert found["visible_tokens"] == 13
    assert_figure(gradient_norm(model), expected["grad_norm_total"], PRE_TRAINING_TOLERANCE)
    for name, norm in expected["grad_norms"].items():
        assert_figure(model.get_parameter(name).grad.norm(), norm, PRE_TRAINING_GRADIENT_TOLERANCE)
    idle = {".".join(name.split(".")[:2]) for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert sorted(idle) == official["parameters_without_gradient"]


def test_other_losses(official, points, mask, none, distiller, monkeypatch):
    """The model is built once: `loss` changes nothing but what is compared."""
    for loss in ("l2", "smoothl1"):
        monkeypatch.setattr(distiller, "loss_type", loss)
        with torch.no_grad():
            assert_figure(distiller(points, mask, none)["loss"], official[f"loss_{loss}_eval"], LOSS_TOLERANCE)


def test_the_loss_of_the_class_token(official, points, mask, none, distiller):
    expected = official["cls_loss_true_eval"]
    model = build_model(distilling(official["config"], cls_loss=True)).eval()
    missing, extra = model.load_state_dict(distiller.state_dict(), strict=False)
    assert [[key, list(model.state_dict()[key].shape), "float32"] for key in missing] == expected["extra_keys"]
    assert not extra
    with torch.no_grad():
        model.cls_pos.copy_(golden_tensor("cls_pos", model.cls_pos))
        found = model(points, mask, none)
    assert_figure(found["loss"], expected["loss"], LOSS_TOLERANCE)
    assert_figure(found["loss_token"], official["eval_mode"]["loss"], LOSS_TOLERANCE)


def test_the_class_feature_with_nothing_masked(official, points, distiller):
    model = distiller
    with torch.no_grad():
        tokens = model.ACT_encoder(model.group(points))[0]
        assert_summary(model.ACT_encoder.cls_head(tokens[:, 0]), official["forward_eval_feature"])
        feature = model.encode(points)
    torch.testing.assert_close(feature, torch.cat([tokens[:, 1:].mean(1), tokens[:, 1:].max(1).values], dim=1))
