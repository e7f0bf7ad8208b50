"""Parity with the official Point-BERT, its pre-training and its segmenter: names, features, losses, gradients."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models import build_model
from models.corruption import Corruption, Draws
from models.masking import block_mask
from models.point_bert import Point_BERT
from models.single_scale import group_points
from tests.golden.fixtures import clouds, coarse_mask, fill_parameters
from tests.golden_numbers import assert_figure, assert_keys, assert_summary, gradient_norm, load
from tests.test_golden_point_mae import SEGMENTER_GRADIENT_TOLERANCE, assert_close, exempt_by_name

LOSS_TOLERANCE, TOTAL_GRADIENT_TOLERANCE, GRADIENT_TOLERANCE = 2e-6, 3e-5, 1e-4

pytestmark = pytest.mark.filterwarnings("ignore:model.dvae_config.ckpt is untrained")


@pytest.fixture(scope="module")
def golden() -> dict:
    return load("point_bert_pretrain")


@pytest.fixture(scope="module")
def points() -> Tensor:
    return clouds(4, 1024, seed=41)


def untrained(config: dict) -> dict:
    return {**config, "dvae_config": {**config["dvae_config"], "ckpt": "untrained"}}


@pytest.fixture(scope="module")
def filled(golden) -> tuple[Point_BERT, dict[str, Tensor]]:
    """A model with the momentum contrast on, and the golden weights."""
    config = untrained(golden["config"])
    config["transformer_config"] = {**config["transformer_config"], "moco_loss": True}
    model = fill_parameters(build_model(config))
    return model, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def released(filled: tuple[Point_BERT, dict[str, Tensor]], training: bool = False) -> Point_BERT:
    model, state = filled
    model.load_state_dict(state)
    model.zero_grad()
    return model.train(training)


def draws(golden: dict) -> Draws:
    """The masks and the mixture of the golden steps."""
    masks = [coarse_mask(4, 64, visible, seed) for seed, visible in enumerate((42, 45, 40), start=1)]
    for mask, visible in zip(masks, golden["masks"].values(), strict=True):
        assert [torch.nonzero(~row).flatten().tolist() for row in mask] == visible
    own = torch.zeros(4, 64, dtype=torch.bool)
    for row, kept in zip(own, golden["mixup_from_self_indices"], strict=True):
        row[kept] = True
    return Draws(*map(Corruption, masks), torch.tensor(golden["mixup_ratio"]), own)


def test_state_dict(golden):
    with torch.device("meta"):
        model = build_model(untrained(golden["config"]))
    encoder = [key for key in golden["keys"] if key[0].startswith("transformer_q.")]
    keys = [
        *golden["keys"],
        *([name.replace("transformer_q.", "transformer_k."), *rest] for name, *rest in encoder),
        *([f"dvae.{name}", *rest] for name, *rest in load("point_bert_dvae")["keys"]),
    ]
    assert_keys(model, keys)
    sizes = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in ("", "transformer_q")}
    assert sizes == {"": golden["params"], "transformer_q": golden["params_transformer_q"]}
    assert golden["params"] == 78_566_683
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(map(torch.numel, trained)) == golden["params_trainable"] == 25_472_896


@pytest.mark.slow
def test_names_without_weight_decay(golden, filled):
    assert exempt_by_name(filled[0]) == golden["no_decay_beyond_1d_and_bias"]


@pytest.mark.slow
def test_the_feature_of_the_linear_svm(golden, filled, points):
    with torch.no_grad():
        feature = released(filled).encode(points)
    assert_summary(feature, golden["svm_feature"])
    assert_close(feature[:, :4], golden["svm_feature_first4"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_step(golden, filled, points, mode):
    official, model = golden[f"{mode}_mode"], released(filled, training=mode == "train")
    outputs: dict[str, list[Tensor]] = {name: [] for name in ("q.cls_head", "q.lm_head", "k.cls_head")}
    hooks = [
        model.get_submodule(f"transformer_{name}").register_forward_hook(lambda *hook, to=to: to.append(hook[-1]))
        for name, to in outputs.items()
    ]
    group = model.group(points)
    found = model.learn(group, draws(golden))
    for hook in hooks:
        hook.remove()
    features = (*outputs["q.cls_head"], *outputs["q.lm_head"], *outputs["k.cls_head"])
    names = ("query_cls", "mixup_cls", "query_masked_logits", "mixup_masked_logits", "key_cls")
    for name, feature in zip(names, features, strict=True):
        assert_summary(feature, official[name])
    assert_figure(found["dvae_loss"], official["loss_1"], LOSS_TOLERANCE)
    assert_figure(found["cutmix_loss"], official["loss_2_cutmix"], LOSS_TOLERANCE)
    assert found["visible_tokens"] == 42

    (found["dvae_loss"] + found["cutmix_loss"]).backward(retain_graph=mode == "eval")
    assert_figure(gradient_norm(model), official["grad_norm_total"], TOTAL_GRADIENT_TOLERANCE)
    for name, norm in official["grad_norms"].items():
        assert_figure(model.get_parameter(name).grad.norm(), norm, GRADIENT_TOLERANCE)
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"transformer_q"}
    if mode == "eval":
        official_moco = golden["eval_mode_moco"]
        found["moco_loss"].backward()
        assert_figure(found["dvae_loss"] + found["moco_loss"], official_moco["loss_1"], LOSS_TOLERANCE)
        assert_figure(found["loss"], official_moco["loss_1"] + official_moco["loss_2_cutmix"], LOSS_TOLERANCE)
        assert_figure(gradient_norm(model), official_moco["grad_norm_total"], TOTAL_GRADIENT_TOLERANCE)

    assert_summary(model.transformer_k.lm_head.weight, official["key_lm_head_after"])
    assert_summary(model.queue[:, :4], official["queue_first4_columns_after"])
    assert torch.equal(model.queue[:, 4:], filled[1]["queue"][:, 4:])
    assert model.queue_ptr.tolist() == [official["queue_ptr_after"]]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_words(golden, filled, points, mode):
    model = released(filled, training=mode == "train")
    assert model.dvae.words(model.group(points)).tolist() == golden[f"{mode}_mode"]["labels"]


def test_block_mask(golden, points):
    official = golden["block_mask"]
    with torch.device("meta"):
        model = build_model(untrained(golden["config"]))
    centers, ratio = model.group(points).centers, np.array(official["ratio"])
    mask = block_mask(centers, torch.tensor(official["seed_index"]), torch.from_numpy((ratio * 64).astype(int)))
    assert [torch.nonzero(row).flatten().tolist() for row in mask] == official["masked_indices"]


@pytest.mark.slow
def test_the_segmenter():
    golden = load("point_bert_part_segmentation")
    config = {key: value for key, value in golden["config"].items() if key != "cls_dim"}
    model = build_model({"NAME": "Point_BERT_SEG", "num_parts": golden["config"]["cls_dim"], **config})
    assert_keys(model, golden["keys"])
    assert sum(map(torch.numel, model.parameters())) == golden["params"] == 27_085_874
    assert exempt_by_name(model) == golden["no_decay_beyond_1d_and_bias"]
    fill_parameters(model).eval()
    points, category = clouds(2, 2048, seed=70), torch.tensor([4, 15])
    group = group_points(points, 128, 32)
    with torch.no_grad():
        log_probs = model(points, category)
        last = model.tap(model.embed(group.neighborhoods), group.centers)[-1]
    assert_summary(last.transpose(1, 2), golden["last_tap_normed"])
    assert_summary(log_probs, golden["log_probs"])
    assert_close(log_probs[:, :5], golden["log_probs_points_0_to_4"])
    assert log_probs.argmax(-1).flatten().bincount(minlength=50).tolist() == golden["argmax_hist"]
    model.train().dropout.p = 0.0
    parts = torch.from_numpy(np.random.RandomState(5).randint(0, 50, (2, 2048)))
    loss = model.loss(model(points, category), parts)
    loss.backward()
    assert_figure(loss, golden["loss_train"], LOSS_TOLERANCE)
    assert_figure(gradient_norm(model), golden["grad_norm_total"], SEGMENTER_GRADIENT_TOLERANCE)
