"""The `model` section of a config: every shipped file builds, every slip is named."""

from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from models import MODELS, build_model, check_model_config, model_of
from utils.config import load_config

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(path.relative_to(ROOT) for path in ROOT.glob("cfgs/*/*.yaml") if path.parent.name != "dataset")
LEARNED = [name for name in MODELS if name != "Point_NN"]  # which has no parameters
POINT_BERT = {"dvae_config": {"ckpt": "untrained"}}
SMALL_VIT = {"visual_embed_type": {"embed_dim": 8, "depth": 1, "num_heads": 1}, "visual_embed_pretrained": "untrained"}
SMALL_TEACHER = SMALL_VIT | {"ckpt": "untrained"}
I2P = {"NAME": "I2P_MAE", "clip_config": {"visual_encoder": None, "feat_dim": 8}}


@pytest.mark.filterwarnings("ignore:.*is untrained")
@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_the_model_of_every_shipped_config_builds(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(path).model
    if "clip_config" in config and config.clip_config.visual_encoder is not None:
        config.clip_config.pretrained = "untrained"  # the released one has CLIP's weights, which are downloaded
    if "visual_embed_type" in config:
        config.visual_embed_pretrained = "untrained"
    if "dvae_config" in config:
        config.dvae_config.ckpt = "untrained"  # the released one names a file
    with torch.random.fork_rng():
        model = build_model(config)
    assert any(True for _ in model.parameters()) == (config.NAME in LEARNED)
    assert isinstance(model, getattr(model_of(config), "func", model_of(config)))


@pytest.mark.parametrize(
    "name", [name for name in LEARNED if "DiscreteVAE" not in name]
)  # which have no blocks of ours
def test_stochastic_depth_rises_over_all_blocks_of_every_model(name):
    settings = {
        "I2P_MAE": I2P | {"drop_path_rate": 0.28},
        "Point_MAE": {"transformer_config": {"drop_path_rate": 0.28}},
        "Point_BERT": POINT_BERT | {"transformer_config": {"drop_path_rate": 0.28}},
        "PointTransformer": {"cls_dim": 2, "drop_path_rate": 0.28},
        "ACT_PointDistillation": {"transformer_config": {"drop_path_rate": 0.28}, "dvae_config": SMALL_TEACHER},
    }
    with torch.device("meta"):
        model = build_model(settings.get(name, {"drop_path_rate": 0.28}) | {"NAME": name})
    rates = {
        part: [module.drop_prob for module in blocks.modules() if isinstance(module, DropPath)]
        for part, blocks in model.named_children()
    }
    depths = {"h_encoder": 15, "h_decoder": 2, "MAE_encoder": 12, "blocks": 12, "MAE_decoder": 4}
    depths |= {"transformer_q": 12, "transformer_k": 12}
    depths |= {"ACT_encoder": 12, "ACT_decoder": 2}
    stacks = {part: found for part, found in rates.items() if found}
    assert stacks
    for part, found in stacks.items():
        last = depths[part] - 1
        assert found == pytest.approx([0.28 * i / last for i in range(last + 1)])


@pytest.mark.filterwarnings("ignore:.*is untrained")
@pytest.mark.parametrize("name", LEARNED)
def test_norms_of_every_model_have_the_released_settings(name):
    settings = {"I2P_MAE": I2P, "PointTransformer": {"cls_dim": 2}, "Point_BERT": POINT_BERT}
    settings |= {"ACTPromptedDiscreteVAEwithVIT": SMALL_VIT}
    settings |= {"ACT_PointDistillation": {"dvae_config": SMALL_TEACHER}}
    with torch.device("meta"):
        model = build_model(settings.get(name, {}) | {"NAME": name})
    batch_norms = {(m.momentum, m.eps) for m in model.modules() if isinstance(m, nn.BatchNorm1d)}
    assert batch_norms == {(0.1, 1e-5)}
    visual = getattr(getattr(model, "dvae_tokenizer", model), "visual_embed", nn.Module())
    of_images = set(visual.modules())  # timm's
    assert {m.eps for m in of_images if isinstance(m, nn.LayerNorm)} <= {1e-6}
    norms = {m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)} - of_images
    assert {m.eps for m in norms} == {1e-5}


def test_all_kinds_of_configs_are_shipped():
    assert {path.parent.name for path in SHIPPED} >= {"pre-training", "linear-svm", "fine-tuning", "demo"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"NAME": "I2P_MAEE"}, r"model\.NAME: unknown name 'I2P_MAEE'; did you mean 'I2P_MAE'"),
        ({**I2P, "encodr_dims": [1, 2, 3]}, r"unknown key 'model\.encodr_dims'; did you mean 'encoder_dims'"),
        ({**I2P, "mask_ratio": "high"}, r"model\.mask_ratio is 'high'; expected float"),
        ({**I2P, "num_heads": 3.0}, r"model\.num_heads is 3\.0; expected int"),
        ({**I2P, "num_heads": True}, r"model\.num_heads is True; expected int"),
        ({**I2P, "num_groups": 512}, r"model\.num_groups is 512; expected .*Sequence\[int\]"),
        ({**I2P, "num_groups": [512, "256", 64]}, r"model\.num_groups is \[512, '256', 64\]"),
        ({**I2P, "teacher": "ViT-B/16"}, r"unknown key 'model\.teacher'"),
        ({**I2P, "clip_config": "ViT-B/16"}, r"model\.clip_config is 'ViT-B/16'"),
        ({**I2P, "clip_config": {"feat_dim": 8}}, r"model\.clip_config lacks visual_encoder"),
        (
            {**I2P, "clip_config": {"visual_encoder": "timm:test_vit", "normalisation": "none"}},
            r"model\.clip_config\.normalisation is 'none'; expected .*'imagenet', 'own'",
        ),
        (
            {**I2P, "clip_config": {"visual_encoder": "timm:test_vit", "image_size": "big"}},
            r"model\.clip_config\.image_size is 'big'; expected int",
        ),
        (
            {**I2P, "clip_config": {"feat_dim": 8, "visual_enc": None}},
            r"clip_config\.visual_enc'; did you mean 'visual_encoder'",
        ),
        (
            {"NAME": "Point_MAE", "transformer_config": {"mask_rato": 0.5}},
            r"model\.transformer_config\.mask_rato'; did you mean 'mask_ratio'",
        ),
        (
            {"NAME": "Point_BERT", "dvae_config": {"statistics": "none"}},
            r"model\.dvae_config\.statistics is 'none'; expected .*'batch', 'running'",
        ),
        (
            {"NAME": "Point_BERT", "dvae_config": {"num_token": 8}},
            r"dvae_config\.num_token'; did you mean 'num_tokens'",
        ),
        ({"NAME": "Point_MAE", "loss": "emd"}, r"model\.loss is 'emd'; expected .*'cdl1', 'cdl2'"),
        ({"NAME": "PointTransformer"}, r"model lacks cls_dim"),
        ({"NAME": "I2P_MAE_ModelNet40", "pooling": "max"}, r"model\.pooling is 'max'; expected .*'sum', 'concat'"),
    ],
)
def test_a_slip_is_named_with_its_place_and_the_way_out(config, message):
    with pytest.raises(ValueError, match=message):
        check_model_config(config)


def test_an_i2p_mae_without_a_teacher_section_is_refused():
    with pytest.raises(ValueError, match=r"model\.clip_config"):
        build_model({"NAME": "I2P_MAE"})


def test_whole_numbers_pass_for_floats():
    check_model_config({**I2P, "local_radius": [0, 0, 0], "drop_path_rate": 0})
