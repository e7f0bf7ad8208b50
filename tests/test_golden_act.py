"""Parity with the official ACT: names, shapes, features, losses, gradients of both stages."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models import build_model
from models.act_autoencoder import ACTPromptedDiscreteVAEwithVIT
from tests.golden.fixtures import clouds
from tests.golden_numbers import assert_figure, assert_keys, assert_summary, gradient_norm, load
from tests.test_golden_point_bert import GRADIENT_TOLERANCE, KL_TOLERANCE, LOSS_TOLERANCE, TOTAL_GRADIENT_TOLERANCE
from tests.test_golden_point_mae import exempt_by_name, released

SMALL_VIT = {
    "visual_embed_type": {"embed_dim": 192, "depth": 3, "num_heads": 3},
    "visual_embed_pretrained": "untrained",
}
READ_BY_NOTHING = ("visual_embed_pos",)

pytestmark = pytest.mark.filterwarnings("ignore:the 2D transformer is untrained")


def ours(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a golden autoencoder as one of this project: without what the official code never reads."""
    return {key: value for key, value in config.items() if key not in READ_BY_NOTHING} | SMALL_VIT


@pytest.fixture(scope="module")
def golden() -> dict:
    return load("act_autoencoder_small_vit")


@pytest.fixture(scope="module")
def points() -> Tensor:
    return clouds(2, 1024, seed=101)


@pytest.fixture(scope="module")
def none() -> Tensor:
    return torch.zeros(2, 64, 8192)


def autoencoder(golden: dict, training: bool = False, **changes: Any) -> ACTPromptedDiscreteVAEwithVIT:
    return released(ours(golden["config"]) | changes, training)


def test_state_dict_of_the_autoencoder(golden):
    model = build_model(ours(golden["config"]))
    assert_keys(model, golden["keys"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in model.parameters()) == golden["params"] == 30_841_691
    assert trained == golden["params_trainable"]
    assert sum(p.numel() for p in model.visual_embed.parameters()) == golden["params_frozen_vit"]
    assert exempt_by_name(model) == golden["no_decay_beyond_1d_and_bias"]


def test_words_and_what_the_transformer_makes_of_them(golden, points):
    model = autoencoder(golden)
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
def test_other_prompts(golden, points, case, changes):
    model = autoencoder(golden, **changes)
    gone = {key for key, *_ in golden["keys"]} - model.state_dict().keys()
    shared = {"deep_prompt_tokens", "deep_prompt_pos"}
    assert gone == (shared if case == "shallow_prompt" else shared | {"visual_prompt_token", "visual_prompt_pos"})
    with torch.no_grad():
        codes = model.codebook[model.tokenize(points)]
        assert_summary(model.look(codes, model.group(points).centers), golden[f"visual_embedding_{case}"])


@pytest.mark.parametrize(
    ("case", "temperature", "hard", "training"),
    [("eval_soft_tau1", 1.0, False, False), ("eval_hard", 1.0, True, False), ("train_soft_tau05", 0.5, False, True)],
)
def test_losses_points_and_gradients(golden, points, none, case, temperature, hard, training):
    official, model = golden[case], autoencoder(golden, training)
    found = model(points, temperature, hard, none, kl_weight=0.1)
    assert_figure(found["recon"], official["loss_recon"], LOSS_TOLERANCE)
    assert_figure(found["kl"], official["loss_klv"], KL_TOLERANCE)
    assert_summary(found["fine"], official["fine"], atol=8e-5 if training else 2e-5)
    found["loss"].backward()
    assert_figure(gradient_norm(model), official["grad_norm_total"], TOTAL_GRADIENT_TOLERANCE)
    for name, norm in official["grad_norms"].items():
        assert_figure(model.get_parameter(name).grad.norm(), norm, GRADIENT_TOLERANCE)
    assert all(p.grad is None for p in model.visual_embed.parameters())
