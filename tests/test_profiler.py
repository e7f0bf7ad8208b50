"""`--profile`: counts against counts by hand and against PyTorch's own counter."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import MODELS, build_model
from tests.test_model_configs import SMALL_TEACHER, SMALL_VIT
from tools import runner_profile
from tools.evaluation.profiler import OWN_PRODUCTS, TEACHER, StageCost, build_untrained, cloud_size, profile, stage_of
from utils.config import load_config

ROOT = Path(__file__).parent.parent
SIZES = {
    "num_groups": [8, 6, 4],
    "group_sizes": [5, 3, 2],
    "encoder_dims": [12, 24, 48],
    "encoder_depths": [2, 1, 1],
    "num_heads": 3,
}
DECODER = {"decoder_dims": [48, 24], "mask_ratio": 0.5}
TOWER = {"embed_dim": 16, "image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "heads": 3}
POINTS = 32


@pytest.fixture
def points():
    return torch.randn(1, POINTS, 3, generator=torch.Generator().manual_seed(0))


def costs(model: nn.Module, *inputs: torch.Tensor) -> dict[str, StageCost]:
    return {stage.name: stage for stage in profile(model, *inputs)}


def embedding(groups: int, members: int, in_dim: int, first: int, second: int, wide: int, dim: int) -> int:
    return groups * members * (in_dim * first + first * second + 2 * second * wide + wide * dim)


def blocks(tokens: int, dim: int, depth: int) -> int:
    return tokens * (3 * dim + dim * dim + depth * 12 * dim * dim)  # the positional embedding, then 3 + 1 + 4 + 4


def test_a_classifier_by_hand(points):
    stages = costs(build_model({"NAME": "I2P_MAE_ScanObjectNN", **SIZES}), points)
    assert {name: stage.macs for name, stage in stages.items()} == {
        "token embedding 0": embedding(8, 5, 3, 128, 256, 512, 12),
        "token embedding 1": embedding(6, 3, 12, 12, 12, 24, 24),
        "token embedding 2": embedding(4, 2, 24, 24, 24, 48, 48),
        "encoder blocks 0": blocks(8, 12, 2),
        "encoder blocks 1": blocks(6, 24, 1),
        "encoder blocks 2": blocks(4, 48, 1),
        "head": 96 * 256 + 256 * 256 + 256 * 15,
    }


def test_attention_is_two_products_of_tokens_by_tokens_in_each_block(points):
    stages = costs(build_model({"NAME": "I2P_MAE_ScanObjectNN", **SIZES}), points)
    products = {name: stage.products for name, stage in stages.items() if stage.products}
    assert products == {
        "encoder blocks 0": 2 * 2 * 8 * 8 * 12,
        "encoder blocks 1": 2 * 6 * 6 * 24,
        "encoder blocks 2": 2 * 4 * 4 * 48,
    }


def test_the_pooled_half_of_a_token_embedding_runs_once_a_group(points):
    stage = costs(build_model({"NAME": "I2P_MAE_ScanObjectNN", **SIZES}), points)["token embedding 0"]
    assert stage.macs - stage.run_macs == 8 * (5 - 1) * 256 * 512


def test_what_runs_agrees_with_the_counter_of_pytorch(points):
    model = build_model({"NAME": "Point_M2AE_ModelNet40", **SIZES, "local_radius": [0.5, 0.5, 0.5]}).eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(points)
    stages = profile(model, points)
    assert sum(stage.run_macs + stage.products for stage in stages) == counter.get_total_flops() / 2


def test_the_segmenter_counts_its_widest_layer_in_full_and_runs_its_constant_part_once(points):
    stages = costs(build_model({"NAME": "Point_M2AE_SEG", **SIZES}), points, torch.tensor([3]))
    head = 64 * 16 + POINTS * (6208 * 1024 + 1024 * 512 + 512 * 256 + 256 * 50)
    assert stages["head"].macs == head
    assert stages["head"].run_macs == head - (POINTS - 1) * (3072 + 64) * 1024
    assert stages["propagation 2"].macs == POINTS * ((3 + 48) * 1536 + 1536 * 1024)


def test_a_step_of_point_bert_is_three_passes_and_the_words(monkeypatch):
    monkeypatch.chdir(ROOT)
    results = run(Path("cfgs/demo/point-bert.yaml"))
    macs = {stage["name"]: stage["macs"] for stage in results["stages"]}
    assert results["pass"] == "forward, all three passes"
    groups = 32
    embed = embedding(groups, 16, 3, 128, 256, 512, 64) + groups * 64 * 96
    position, tokens = groups * (3 * 128 + 128 * 96), (groups + 1) * 3 * 12 * 96 * 96
    head = 96 * 128 + 128 * 128
    assert macs["token embedding"] == 2 * embed
    assert macs["encoder blocks"] == 2 * (position + tokens)
    assert macs["momentum encoder"] == embed + position + tokens + head
    masked, rest = divmod(macs["head"] - 2 * head - 128 * (512 + 1), 96 * 256)  # beside the words, keys are compared
    assert rest == 0
    assert 2 * int(0.25 * groups) <= masked <= 2 * int(0.45 * groups)
    graph = 64 * 128 + sum(4 * 2 * a * b for a, b in ((128, 256), (256, 512), (512, 512), (512, 1024))) + 2304 * 256
    assert macs["tokenizer (frozen)"] == embed - groups * 64 * 96 + groups * graph


def test_carrying_features_along_a_graph_by_hand(points):
    sizes = {"num_group": 8, "group_size": 6, "trans_dim": 12, "num_heads": 3, "depth": 3, "wide_dim": 20}
    model = build_model({"NAME": "Point_BERT_SEG", **sizes, "between": [16, 12]})
    stages = costs(model, points, torch.tensor([3]))
    layers = 2 * 12 * 512, 2 * 512 * 12
    up = {level: queries * (15 * 20 + 20 * 12) for level, queries in ((1, 16), (2, 12))}
    assert stages["propagation 2"].macs == up[2] + 12 * 4 * sum(layers)
    assert stages["propagation 2"].run_macs == up[2] + (8 + 12) * layers[0] // 2 + 12 * layers[1]
    assert stages["propagation 1"].macs == up[1] + 16 * 4 * sum(layers)
    assert stages["propagation 1"].run_macs == up[1] + (12 + 16) * layers[0] // 2 + 16 * layers[1]
    assert stages["propagation 0"].macs == POINTS * (31 * 20 + 20 * 12)
    assert stages["head"].macs == POINTS * (12 * 128 + 128 * 50)


def test_masked_tokens_cost_nothing_in_the_blocks(points):
    model = build_model({"NAME": "Point_M2AE", **SIZES, **DECODER})
    mask = torch.tensor([[False, True, True, True]])
    stages = costs(model, points, mask)
    assert stages["encoder blocks 2"].macs == blocks(1, 48, 1)
    assert stages["decoder"].macs > blocks(4, 48, 1) + blocks(6, 24, 1)


def test_the_teacher_stands_apart_and_none_of_its_layers_is_missed(points):
    model = build_untrained(
        {"NAME": "I2P_MAE", "clip_config": {"visual_encoder": TOWER, "feat_dim": 16}, **SIZES, **DECODER}
    )
    stages = costs(model, points, torch.tensor([[False, True, True, True]]))
    patches, width, views = 16, 24, 3
    tokens = patches + 1
    first_block = tokens * 12 * width * width
    last_block = tokens * 3 * width * width + patches * 9 * width * width  # of the class token only its query is used
    patchify, project = patches * 3 * 8 * 8 * width, patches * width * 16
    assert stages[TEACHER].macs == views * (patchify + first_block + last_block + project)
    assert stages[TEACHER].products == views * (2 * tokens * tokens + tokens + 2 * patches * tokens) * width
    assert stages[TEACHER].parameters == sum(parameter.numel() for parameter in model.teacher.parameters())
    assert stages[OWN_PRODUCTS].products > 0
    others = sum(stage.parameters for name, stage in stages.items() if name != TEACHER)
    assert others == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:the 2D transformer is untrained")
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_of_every_model_belongs_to_a_stage(name):
    needed = {"I2P_MAE": {"clip_config": {"visual_encoder": None, "feat_dim": 8}}, "PointTransformer": {"cls_dim": 2}}
    needed["Point_BERT"] = {"dvae_config": {"ckpt": "untrained"}}
    needed |= {"ACTPromptedDiscreteVAEwithVIT": SMALL_VIT, "ACT_PointDistillation": {"dvae_config": SMALL_TEACHER}}
    with torch.device("meta"):
        model = build_model({"NAME": name, **needed.get(name, {})})
    assert [name for name, _ in model.named_parameters() if stage_of(name) is None] == []


def test_what_was_changed_for_counting_is_put_back_after_an_error(points):
    model = build_model({"NAME": "I2P_MAE_ScanObjectNN", **SIZES})
    with pytest.raises(ValueError, match=r"must be \(B, N, 3\)"):
        profile(model, points[..., :2])
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def run(path: Path) -> dict:
    return runner_profile.run(load_config(path), Namespace(config=path, seed=0))


def test_a_config_for_features_runs_no_decoder(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    results = run(Path("cfgs/demo/linear-svm.yaml"))
    stages = {stage["name"]: stage for stage in results["stages"]}
    assert (results["points"], stages["decoder"]["macs"]) == (512, 0)
    assert stages["decoder"]["parameters"] > 0
    assert results["total"]["parameters"] == sum(stage["parameters"] for stage in results["stages"])
    assert "512 points, encode" in capsys.readouterr().out


def test_a_config_of_an_encoder_without_parameters_is_profiled(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    results = run(Path("cfgs/point-nn/part-segmentation.yaml"))
    total = {"name": "total", "parameters": 0, "macs": 0, "run_macs": 0, "products": 0}
    assert results == {"points": 1024, "pass": "encode", "stages": [], "total": total, "trainable": 0}
    assert "1024 points, encode" in capsys.readouterr().out


def test_a_profile_downloads_nothing_writes_nothing_and_repeats_itself(monkeypatch, tmp_path):
    monkeypatch.setattr("open_clip.download_pretrained", lambda *_: pytest.fail("downloads"))
    source = ROOT / "cfgs/demo/pre-train.yaml"
    text = source.read_text().replace("pretrained: untrained", "pretrained: openai")
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    results = run(tmp_path / "config.yaml")
    torch.rand(3)  # moves the global generator
    assert run(tmp_path / "config.yaml") == results
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_size_of_a_cloud_is_the_models_then_the_data_sets():
    entries = {"train": {"NAME": "x"}, "test": {"NAME": "x", "others": {"num_points": 7}}}
    assert cloud_size({"npoints": 5, "dataset": entries}, "c.yaml") == 5
    assert cloud_size({"dataset": entries}, "c.yaml") == 7
    with pytest.raises(ValueError, match=r"c\.yaml does not say how many points"):
        cloud_size({"dataset": {"train": {"NAME": "x"}}}, "c.yaml")
