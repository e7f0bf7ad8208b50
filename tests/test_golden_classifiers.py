"""Parity with the official classifiers of Point-BERT and ACT: names, logits, losses, gradients, what learns."""

import pytest
import torch
from torch import nn

from models import build_model
from models.point_transformer import ACTClassifier, PointBERTClassifier
from tests.golden.fixtures import clouds, fill_parameters
from tests.golden_numbers import assert_close, assert_figure, assert_keys, exempt_by_name, gradient_norm, load, released
from tools.evaluation.profiler import profile

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 2e-6, 3e-5
LABELS = torch.tensor([1, 7, 3])
OF_BERT = {"ModelNet_models/PointTransformer": 41, "ModelNet_models/PointTransformer_2048point": 54}  # → seed of clouds
OF_ACT = ("finetune_modelnet", "finetune_scan_hardest", "finetune_modelnet_linear", "finetune_scan_objbg_mlp3")


def assert_step(model: nn.Module, logits: torch.Tensor, loss: float, gradient: float) -> None:
    """The loss of (3, classes) training logits agrees, and so does the length of its gradient."""
    model.zero_grad()
    ours = model.loss(logits, LABELS)
    ours.backward(retain_graph=True)
    assert_figure(ours, loss, LOSS_TOLERANCE)
    assert_figure(gradient_norm(model), gradient, GRADIENT_TOLERANCE)


def training_logits(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """What a model gives in training, in double precision: in float32 rounding alone moves gradients by 4e-5."""
    return model.double().train()(points.double())


@pytest.mark.parametrize("name", OF_BERT)
def test_point_bert(name):
    cases = load("point_bert_finetune")
    golden, keys = cases[name], cases["ModelNet_models/PointTransformer"]["keys"]
    model = released(golden["config"])
    assert isinstance(model, PointBERTClassifier)
    assert_keys(model, keys)
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    assert exempt_by_name(model) == golden["no_decay_beyond_1d_and_bias"]
    points = clouds(3, golden["npoints"], seed=OF_BERT[name])
    with torch.no_grad():
        assert_close(model(points), golden["logits_eval"])
    model = released(golden["config"] | {"smooth": 0.2})
    logits = training_logits(model, points)
    assert_step(model, logits, golden["train_smoothing"]["loss"], golden["train_smoothing"]["grad_norm_total"])
    model.smooth = 0.0
    assert_step(model, logits, golden["train_ce"]["loss"], golden["train_ce"]["grad_norm_total"])


def test_point_bert_has_one_network_for_both_data_sets():
    """ScanObjectNN has 15 classes; its released classifier 40 outputs and 64 groups of 1024 points."""
    cases = load("point_bert_finetune")
    scan = cases["ScanObjectNN_models/PointTransformer_hardest"]
    assert scan["same_as"] == "ModelNet_models/PointTransformer"
    assert scan["config"] == cases[scan["same_as"]]["config"]


@pytest.mark.parametrize("name", OF_ACT)
def test_act(name):
    golden = load("act_finetune")[name]
    model = released(golden["config"])
    assert isinstance(model, ACTClassifier)
    point_mae = load("point_mae_finetune")
    of_body = [key for key in point_mae["finetune_modelnet"]["keys"] if not key[0].startswith("cls_head_finetune")]
    assert_keys(model, of_body + golden["head_keys"])
    learning = {key: p.numel() for key, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    assert sum(learning.values()) == golden["params_trainable"]
    if golden["trainable"] == "all":
        assert set(learning) == {key for key, _ in model.named_parameters()}
    else:
        assert set(learning) == set(golden["trainable"])
    same = golden.get("same_keys_and_logits_as", "").removeprefix("point_mae_finetune.json: ")
    points = clouds(3, golden["npoints"], seed=41 if golden["npoints"] == 1024 else 54)
    with torch.no_grad():
        assert_close(model(points), (point_mae[same] if same else golden)["logits_eval"])
    if same == "finetune_modelnet":
        golden = point_mae[same]
        assert_step(model, training_logits(model, points), golden["loss_train"], golden["grad_norm_total"])


def test_the_misspelt_linear_of_act_is_its_full_transfer():
    """What was released as `linaer` is the network and, whatever its name, the training of `full`."""
    golden = load("act_finetune")["finetune_scan_objonly_linear"]
    assert golden["config"]["transfer_type"] == "linaer"
    model = build_model(golden["config"] | {"transfer_type": "full"})
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == golden["params_trainable"]
    fill_parameters(model).eval()
    with torch.no_grad():
        assert_close(model(clouds(3, 2048, seed=54)), golden["logits_eval"])


@pytest.mark.parametrize(
    ("file", "name"),
    [*(("point_bert_finetune", name) for name in OF_BERT), *(("act_finetune", name) for name in OF_ACT)],
)
def test_multiply_adds(file, name):
    golden = load(file)[name]
    stages = profile(build_model(golden["config"]), clouds(1, golden["npoints"], seed=0))
    assert sum(stage.macs for stage in stages) == golden["macs_per_cloud"]["macs"]
    assert sum(stage.products for stage in stages) == golden["macs_per_cloud"]["attn"]
