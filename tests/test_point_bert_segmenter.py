"""Point-BERT's part segmenter: what fills it, how it starts, what it sees, what it refuses."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions.pointnet2_ops.pointnet2_utils import furthest_point_sample
from models import build_model
from models.dgcnn import GraphPropagation
from tests.golden.fixtures import clouds
from tests.golden_numbers import load
from tests.test_point_bert import MODEL, TRANSFORMER
from tests.test_point_mae import first_names
from utils.checkpoint import load_weights

PRETRAINING = {**MODEL, "transformer_config": {**TRANSFORMER, "depth": 3}}
SEGMENTER = {
    "NAME": "Point_BERT_SEG",
    **{key: TRANSFORMER[key] for key in ("trans_dim", "num_heads")},
    "encoder_dims": MODEL["dvae_config"]["encoder_dims"],
    "depth": 3,
    "num_group": 8,
    "group_size": 6,
    "between": [24, 12],
    "wide_dim": 32,
}


@pytest.fixture
def pretrained(tmp_path) -> Path:
    """A pre-training checkpoint as a single process of the released code writes it."""
    state = {f"module.{key}": value for key, value in build_model(PRETRAINING).state_dict().items()}
    torch.save({"base_model": state, "epoch": 300}, tmp_path / "pre-train.pth")
    return tmp_path / "pre-train.pth"


@pytest.fixture
def points() -> Tensor:
    return clouds(2, 64, seed=1)


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(SEGMENTER).eval()


def test_a_pre_training_file_fills_it_but_for_its_head(pretrained):
    golden, model = load("checkpoint_loading")["Point-BERT"]["part_segmenter"], build_model(SEGMENTER)
    report = load_weights(model, pretrained)
    assert first_names(report.missing) == golden["missing_by_first_name"]
    left = first_names(report.ignored)
    assert not report.unexpected + report.mismatched
    assert {name: left[name] for name in golden["unexpected_by_first_name"]} == golden["unexpected_by_first_name"]
    dropped = {"cls_head", "transformer_k", "dvae", "queue", "queue_ptr"}  # the official loader does not look at them
    assert set(left) == golden["unexpected_by_first_name"].keys() | dropped
    state = torch.load(pretrained, weights_only=True)["base_model"]
    assert {"cls_token", "cls_pos", "reduce_dim.weight"} < set(report.loaded)
    for key in report.loaded:
        assert torch.equal(model.state_dict()[key], state[f"module.transformer_q.{key}"])
    text = str(report)
    for part in ("heads (6)", "mask token (1)", "queue of keys (2)", "momentum encoder (", "tokenizer ("):
        assert part in text


def test_checkpoints_are_told_apart(pretrained, tmp_path):
    torch.save({"model_state_dict": build_model(SEGMENTER).state_dict()}, tmp_path / "parts.pth")
    load_weights(build_model(SEGMENTER), tmp_path / "parts.pth", strict=True)
    with pytest.raises(ValueError, match="seems to hold a Point-BERT pre-training model"):
        load_weights(build_model(SEGMENTER), pretrained, strict=True)
    with pytest.raises(ValueError, match="seems to hold a Point-BERT part segmenter with 50 parts"):
        load_weights(build_model({"NAME": "Point_MAE_SEG"}), tmp_path / "parts.pth")
    message = "give a checkpoint of a Point-BERT part segmenter with 50 parts or a Point-BERT pre-training model"
    torch.save({"base_model": build_model({"NAME": "Point_MAE"}).state_dict()}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match=message):
        load_weights(build_model(SEGMENTER), tmp_path / "mae.pth")


def test_the_class_token_starts_at_nothing_and_its_place_anywhere():
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = build_model({**SEGMENTER, "trans_dim": 384, "num_heads": 6})
    assert not model.cls_token.any()
    assert model.cls_pos.std().item() == pytest.approx(1, abs=0.1)


def test_the_levels_between_are_farthest_points_of_the_cloud(points):
    model = small()
    taps = [torch.randn(2, 8, 24) for _ in range(3)]
    fine, features = model.climb(points, points[:, :8], taps)
    for cloud, found in zip(points, fine, strict=True):
        assert torch.equal(found, cloud[furthest_point_sample(cloud[None], 24)[0]])
        assert torch.equal(found[:12], cloud[furthest_point_sample(cloud[None], 12)[0]])
    assert features.shape == (2, 24, 24)


def test_every_point_that_carries_features_takes_them_from_its_four_nearest():
    torch.manual_seed(0)
    layer = GraphPropagation(8).double()
    sources, queries = torch.randn(1, 9, 3).double(), torch.randn(1, 5, 3).double()
    features, own = torch.randn(1, 9, 8).double(), torch.randn(1, 5, 8).double()

    def edges(module, at, carried, to, receiving):
        nearest = torch.cdist(to, at)[0].topk(4, largest=False).indices
        pairs = torch.cat([carried[0][nearest] - receiving[0][:, None], receiving[0][:, None].expand(-1, 4, -1)], -1)
        return module[2](module[1](module[0](pairs.permute(2, 0, 1)[None]))).amax(-1).transpose(1, 2)

    middle = edges(layer.layer1, sources, features, queries, own)
    expected = edges(layer.layer2, queries, middle, queries, middle)
    torch.testing.assert_close(layer(sources, features, queries, own), expected)


def test_the_category_moves_the_parts_and_one_hot_is_the_same(points):
    model = small()
    with torch.no_grad():
        found = model(points, torch.tensor([4, 15]))
        other = model(points, torch.tensor([4, 3]))
        one_hot = model(points, torch.nn.functional.one_hot(torch.tensor([4, 15]), 16))
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 64))
    assert torch.equal(found, one_hot)
    torch.testing.assert_close(found[0], other[0])
    assert (found[1] - other[1]).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"category has shape \(3,\); expected \(2,\)"):
        model(points, torch.tensor([1, 2, 3]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 4}, "depth must be a multiple of 3, got 4"),
        ({"between": [12, 24]}, r"between must hold 2 numbers ≥ 4, the larger first, got \[12, 24\]"),
        ({"between": [12]}, "between must hold 2 numbers"),
        ({"num_group": 3}, "num_group must be at least 4"),
        ({"num_parts": 1}, "num_parts must be at least 2"),
        ({"encoder_dims": 0}, "encoder_dims must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_model({**SEGMENTER, **settings})
