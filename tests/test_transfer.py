"""The classifiers of Point-BERT and ACT: which is which, how they start, what learns, what they take of a file."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import build_model, check_model_config, model_of
from models.loading import POINT_BERT_SEGMENTER_HEAD, point_bert_rules
from models.point_transformer import ACTClassifier, PointBERTClassifier, PointTransformer
from tests.golden.fixtures import clouds, golden_tensor
from tests.golden_numbers import assert_keys, load
from tools.evaluation import profiler
from tools.training.builder import build_optimizer
from utils.checkpoint import load_weights

SIZES = {"NAME": "PointTransformer", "cls_dim": 4, "depth": 2, "num_heads": 3, "num_group": 10, "group_size": 8}
BERT = {**SIZES, "trans_dim": 24, "encoder_dims": 16}
ACT = {**SIZES, "embed_dim": 24, "encoder_dims": 24}
WIDE_BERT = {"NAME": "PointTransformer", "cls_dim": 40, "trans_dim": 384, "encoder_dims": 256}
WIDE_ACT = {"NAME": "PointTransformer", "cls_dim": 40, "embed_dim": 384}
SEGMENTER = {"num_group": 10, "group_size": 8, "trans_dim": 24, "encoder_dims": 24, "depth": 3, "num_heads": 3}


@pytest.fixture(scope="module")
def points() -> Tensor:
    return clouds(3, 64, seed=5)


# one name, three classifiers


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, PointTransformer),
        ({"trans_dim": 384}, PointTransformer),
        ({"trans_dim": 384, "encoder_dims": 384}, PointTransformer),
        ({"trans_dim": 384, "encoder_dims": 256}, PointBERTClassifier),
        ({"encoder_dims": 256}, PointBERTClassifier),
        ({"trans_dim": 192}, PointBERTClassifier),  # of tokens as wide as published, 384
        ({"embed_dim": 384, "encoder_dims": 384}, ACTClassifier),
        ({"embed_dim": 384, "encoder_dims": 256}, ACTClassifier),
        ({"transfer_type": "full"}, ACTClassifier),
    ],
)
def test_its_keys_tell_whose_classifier_a_point_transformer_is(settings, kind):
    config = {"NAME": "PointTransformer", "cls_dim": 4, **settings}
    assert model_of(config) is kind
    with torch.device("meta"):
        assert type(build_model(config)) is kind


def test_a_layer_lies_between_embedding_and_blocks_only_where_their_widths_differ():
    names = {
        width: {key for key in build_model(ACT | {"encoder_dims": width}).state_dict() if "reduce" in key}
        for width in (24, 16)
    }
    assert names == {24: set(), 16: {"reduce_dim.weight", "reduce_dim.bias"}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ACT | {"transfer_type": "linaer"},
            r"model\.transfer_type is 'linaer'; did you mean 'linear'\? expected",
        ),
        (ACT | {"transfer_type": "bit-fit"}, r"model\.transfer_type is 'bit-fit'; expected"),
        (ACT | {"trans_dim": 24}, r"unknown key 'model\.trans_dim'"),
        (BERT | {"embd_dim": 24}, r"unknown key 'model\.embd_dim'; did you mean"),
        (BERT | {"smooth": "yes"}, r"model\.smooth is 'yes'; expected float"),
        (BERT | {"encoder_dims": 24, "smooth": 0.2}, r"unknown key 'model\.smooth'"),  # Point-MAE's has none
        ({"NAME": "PointTransformer", "embed_dim": 24}, "model lacks cls_dim"),
    ],
)
def test_a_slip_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        check_model_config(config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ACTClassifier(4, transfer_type="side"),
            "transfer_type must be one of full, .* got 'side'",
        ),
        (lambda: PointBERTClassifier(4, smooth=1.0), r"smooth must be in \[0, 1\), got 1\.0"),
        (lambda: PointBERTClassifier(1), "cls_dim must be at least 2, got 1"),
        (lambda: PointBERTClassifier(4, encoder_dims=0), "encoder_dims must be at least 1, got 0"),
        (lambda: ACTClassifier(4, embed_dim=0), "depth must be at least 1, got 0 and 12"),
        (lambda: ACTClassifier(4, num_group=0), "num_group must be at least 1"),
    ],
)
def test_values_are_refused_without_a_config_too(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_classes_start_as_each_method_lets_them():
    torch.manual_seed(0)
    bert, act = build_model(WIDE_BERT | {"depth": 1}), build_model(WIDE_ACT | {"depth": 1})
    assert not bert.cls_token.any()
    assert float(bert.cls_pos.detach().std()) == pytest.approx(1.0, rel=0.2)
    for parameter in (act.cls_token, act.cls_pos):
        assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_acts_segmenter_starts_truncated_normal_throughout():
    torch.manual_seed(0)
    layers = [m for m in build_model({"NAME": "ACT_SEG"}).modules() if isinstance(m, nn.Linear | nn.Conv1d)]
    for layer in layers:
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
        assert layer.bias is None or not layer.bias.any()
    assert len(layers) > 50


@pytest.mark.parametrize("name", ["ACT_SEG", "Point_MAE_SEG"])
def test_without_categories_a_segmenter_takes_points_alone(points, name):
    model = build_model({"NAME": name, **SEGMENTER, "num_parts": 13, "num_categories": 0}).eval()
    with torch.no_grad():
        log_probs = model(points)
    assert log_probs.shape == (3, 64, 13)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 64))
    with pytest.raises(ValueError, match="num_categories 0: give a cloud with no category"):
        model(points, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="num_categories 16: give a cloud with its category"):
        build_model({"NAME": name, **SEGMENTER})(points)


def test_acts_segmenter_has_the_released_names():
    with torch.device("meta"):
        assert_keys(build_model({"NAME": "ACT_SEG"}), load("act_part_segmentation")["keys"])


def test_the_released_sizes_of_the_segmenter_of_rooms():
    config = {"NAME": "ACT_SEG", "num_parts": 13, "num_categories": 0}
    model = build_model(config)
    assert model.state_dict()["convs1_cls.weight"].shape == (512, 3328, 1)
    stages = profiler.profile(model, clouds(1, 2048, seed=0))
    assert sum(stage.parameters for stage in stages) == 27_020_301
    assert round(sum(stage.macs for stage in stages) / 1e9, 2) == 15.36


def test_a_loss_with_weights_counts_each_point_as_its_part(points):
    model = build_model({"NAME": "ACT_SEG", **SEGMENTER, "num_parts": 3, "num_categories": 0})
    log_probs = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    parts, weights = torch.tensor([[0, 1, 1]]), torch.tensor([3.0, 1.0, 2.0])
    by_hand = -(3 * log_probs[0, 0, 0] + log_probs[0, 1, 1] + log_probs[0, 2, 1]) / 5
    torch.testing.assert_close(model.loss(log_probs, parts, weights), by_hand)


def test_smoothing_leaves_the_true_class_the_rest():
    """The released weights: .8 for the true class, .2 / 39 for each other of 40."""
    model = build_model(BERT | {"cls_dim": 40, "smooth": 0.2})
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    weights = torch.full((3, 40), 0.2 / 39).scatter(1, torch.tensor([[1], [7], [3]]), 0.8)
    expected = -(weights * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model.loss(logits, torch.tensor([1, 7, 3])), expected)


# what learns


@pytest.mark.parametrize("transfer_type", ["linear", "mlp-3"])
def test_a_frozen_body_stays_while_the_class_learns(points, transfer_type):
    torch.manual_seed(0)
    model = build_model(ACT | {"transfer_type": transfer_type}).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = build_optimizer(model, {"kwargs": {"lr": 0.1, "weight_decay": 0.05}})
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in model.named_parameters() if "cls" in name}
    model.loss(model(points), torch.tensor([1, 0, 3])).backward()
    optimizer.step()
    parameters = dict(model.named_parameters())
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key in moved if key in parameters} == {key for key in parameters if "cls" in key}
    assert "encoder.first_conv.1.running_mean" in moved  # it runs as in training


def test_a_full_transfer_lets_all_learn():
    assert all(parameter.requires_grad for parameter in build_model(ACT).parameters())


def test_a_linear_head_is_one_layer_over_the_class_token_and_the_largest_of_the_others(points):
    model = build_model(ACT | {"transfer_type": "linear"}).eval()
    seen = {}
    model.norm.register_forward_hook(lambda module, args, output: seen.update(tokens=output))
    with torch.no_grad():
        logits = model(points)
    tokens, layer = seen["tokens"], model.cls_head_finetune[0]
    assert [type(module) for module in model.cls_head_finetune] == [nn.Linear]
    feature = torch.cat([tokens[:, 0], tokens[:, 1:].max(1).values], 1)
    torch.testing.assert_close(logits, feature @ layer.weight.T + layer.bias)


def test_a_profile_says_how_many_parameters_learn():
    counted = profiler.count({"npoints": 64, "dataset": {}, "model": ACT | {"transfer_type": "linear"}}, "c.yaml", 0)
    assert counted["trainable"] == 24 + 24 + 48 * 4 + 4
    total = counted["total"]["parameters"]
    assert f"of {total:,} parameters 244 learn, the others are frozen" in profiler.table(counted)
    full = profiler.count({"npoints": 64, "dataset": {}, "model": ACT}, "c.yaml", 0)
    assert full["trainable"] == full["total"]["parameters"]
    assert "learn" not in profiler.table(full)


# checkpoints


def released_file(folder: Path, tensors: dict[str, Tensor]) -> Path:
    path = folder / "pretrain.pth"
    state = {f"module.{key}": value for key, value in tensors.items()}
    torch.save({"base_model": state, "optimizer": {}, "epoch": 300, "metrics": 0.0, "best_metrics": 0.0}, path)
    return path


def official(file: str, case: str | None = None) -> dict[str, Tensor]:
    golden = load(file) if case is None else load(file)[case]
    return {
        key: golden_tensor(key, torch.empty(shape, dtype=getattr(torch, dtype))) for key, shape, dtype in golden["keys"]
    }


@pytest.fixture(scope="module")
def of_bert(tmp_path_factory) -> Path:
    """A pre-training file of Point-BERT, with a shorter queue and a tensor each of tokenizer and momentum encoder."""
    tensors = official("point_bert_pretrain")
    tensors["queue"] = torch.zeros(512, 4)
    tensors["transformer_k.norm.weight"] = torch.zeros(384)  # the names are those of transformer_q
    tensors["dvae.codebook"] = torch.zeros(8192, 4)
    return released_file(tmp_path_factory.mktemp("bert"), tensors)


@pytest.fixture(scope="module")
def of_act(tmp_path_factory) -> Path:
    tensors = official("act_pretrain_small_vit")
    tensors["dvae_tokenizer.encoder.first_conv.0.weight"] = torch.zeros(128, 3, 1)
    return released_file(tmp_path_factory.mktemp("act"), tensors)


def first_names(keys: tuple[str, ...], known: str = "") -> Counter:
    """How many tensors of each first name, without counters and what is `known` by other names to be left behind."""
    skipped = tuple(known.split())
    keys = tuple(key for key in keys if not key.endswith("num_batches_tracked") and not key.startswith(skipped))
    return Counter(key.split(".")[0] for key in keys)


def without_counters(keys: tuple[str, ...]) -> list[str]:
    return sorted(key for key in keys if not key.endswith("num_batches_tracked"))


def assert_taken(model: nn.Module, path: Path, loaded: tuple[str, ...], prefix: str) -> None:
    state = torch.load(path, weights_only=True)["base_model"]
    for key in loaded:
        assert torch.equal(model.state_dict()[key], state[f"module.{prefix}.{key}"]), key


def test_a_file_of_point_bert_fills_its_classifier(of_bert):
    golden = load("checkpoint_loading")["Point-BERT"]["classifier"]
    model = build_model(WIDE_BERT)
    report = load_weights(model, of_bert)
    assert len(report.loaded) == golden["loaded"]
    assert without_counters(report.missing) == golden["missing"]
    assert not report.unexpected
    assert not report.mismatched
    unseen = "transformer_k. dvae. queue cls_head."  # the official loader drops them without a word
    assert first_names(report.ignored, unseen) == golden["unexpected_by_first_name"]
    assert_taken(model, of_bert, report.loaded, "transformer_q")
    text = str(report)
    assert "kept as initialised: cls_head_finetune (4); not needed from the file: " in text
    for left in ("momentum encoder (1)", "queue of keys (2)", "tokenizer (1)", "mask token (1)", "heads (6)"):
        assert left in text


def test_the_rules_of_point_berts_segmenter_take_and_leave_the_same(of_bert):
    """The network around them is stood in for by tensors of its names; of them the golden file counts so many."""
    golden = load("checkpoint_loading")["Point-BERT"]["part_segmenter"]
    model = build_model(WIDE_BERT)
    del model.cls_head_finetune
    for name, count in golden["missing_by_first_name"].items():
        model.add_module(name, nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(count)))
    model.loading = point_bert_rules(POINT_BERT_SEGMENTER_HEAD)
    report = load_weights(model, of_bert)
    assert first_names(report.missing) == golden["missing_by_first_name"]
    unseen = "transformer_k. dvae. queue cls_head."
    assert first_names(report.ignored, unseen) == golden["unexpected_by_first_name"]


def test_a_file_of_act_fills_its_classifier(of_act):
    golden = load("checkpoint_loading")["ACT"]["classifier"]
    model = build_model(WIDE_ACT)
    report = load_weights(model, of_act)
    assert len(report.loaded) == golden["loaded"]
    assert without_counters(report.missing) == golden["missing"]
    assert not report.unexpected
    assert first_names(report.ignored) == golden["unexpected_by_first_name"] | {"dvae_tokenizer": 1}
    assert_taken(model, of_act, report.loaded, "ACT_encoder")
    text = str(report)
    assert "not needed from the file: " in text
    for left in ("decoder (31)", "heads (6)", "teacher (1)"):
        assert left in text


def test_a_file_of_act_fills_its_segmenter(of_act):
    golden = load("checkpoint_loading")["ACT"]["part_segmenter"]
    model = build_model({"NAME": "ACT_SEG"})
    report = load_weights(model, of_act)
    assert first_names(report.missing) == golden["missing_by_first_name"]
    assert first_names(report.ignored) == golden["unexpected_by_first_name"] | {"dvae_tokenizer": 1}
    assert_taken(model, of_act, report.loaded, "ACT_encoder")
    assert "class token (2)" in str(report)


@pytest.mark.parametrize("categories", [0, 16])
@pytest.mark.parametrize(("name", "other"), [("ACT_SEG", "Point_MAE_SEG"), ("Point_MAE_SEG", "ACT_SEG")])
def test_a_segmenter_of_either_names_fills_the_other(points, name, other, categories, tmp_path):
    sizes = SEGMENTER | {"num_categories": categories}
    saved = build_model(sizes | {"NAME": other})
    with_cls = {key for key in saved.state_dict() if "_cls." in key}
    assert len(with_cls) == (0 if other == "Point_MAE_SEG" else 36 if categories else 30)
    model = build_model(sizes | {"NAME": name})
    report = load_weights(model, released_file(tmp_path, saved.state_dict()), strict=True)
    assert len(report.loaded) == len(saved.state_dict())
    for key, value in model.state_dict().items():
        theirs = key.replace("_cls.", ".") if name == "ACT_SEG" else key
        theirs = next(k for k in saved.state_dict() if k.replace("_cls.", ".") == theirs)
        assert torch.equal(value, saved.state_dict()[theirs]), key
    category = [torch.tensor([4, 15, 0])] if categories else []
    with torch.no_grad():
        assert torch.equal(model.eval()(points, *category), saved.eval()(points, *category))


def test_the_class_position_of_acts_decoder_does_not_take_the_place_of_the_encoders(tmp_path):
    """With `cls_loss` a file has both `ACT_encoder.cls_pos` and `cls_pos`."""
    tensors = {f"ACT_encoder.{key}": value for key, value in build_model(ACT).state_dict().items()}
    tensors["cls_pos"] = torch.full((1, 1, 24), 7.0)
    model = build_model(ACT)
    load_weights(model, released_file(tmp_path, tensors))
    assert torch.equal(model.cls_pos, tensors["ACT_encoder.cls_pos"])


@pytest.mark.parametrize("config", [BERT, ACT, ACT | {"transfer_type": "linear"}], ids=["bert", "act", "linear"])
def test_a_trained_classifier_loads_strictly(config, tmp_path):
    tensors = build_model(config).state_dict()
    report = load_weights(build_model(config), released_file(tmp_path, tensors), strict=True)
    assert len(report.loaded) == len(tensors)


def test_what_is_wrapped_as_base_model_is_taken_too(tmp_path):
    for config in (BERT, ACT):
        tensors = {f"base_model.{key}": value for key, value in build_model(config).state_dict().items()}
        report = load_weights(build_model(config), released_file(tmp_path, tensors))
        assert len(report.loaded) == len(tensors)


def test_files_of_the_others_are_named_and_refused(of_bert, of_act, tmp_path):
    wanted = "give a checkpoint of a single-scale classifier with 40 classes or an ACT pre-training model"
    with pytest.raises(ValueError, match=f"seems to hold a Point-BERT pre-training model; {wanted}"):
        load_weights(build_model(WIDE_ACT), of_bert)
    wanted = "give a checkpoint of a Point-BERT classifier with 40 classes or a Point-BERT pre-training model"
    with pytest.raises(ValueError, match=f"seems to hold an ACT pre-training model; {wanted}"):
        load_weights(build_model(WIDE_BERT), of_act)
    with pytest.raises(ValueError, match="seems to hold a Point-BERT classifier with 4 classes; give a checkpoint of"):
        load_weights(build_model(SIZES), released_file(tmp_path, build_model(BERT).state_dict()))
