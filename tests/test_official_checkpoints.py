"""Files shaped as the released ones: official names under `module.`, the teacher inside, and what must be refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model
from tests.checkpoint_files import rewrite_for_another_numpy
from tests.golden.fixtures import clouds, golden_tensor
from tests.golden_numbers import assert_summary, load
from utils.checkpoint import load_weights, read_checkpoint

SMALL_TOWER = {"embed_dim": 64, "image_size": 224, "patch_size": 16, "width": 192, "layers": 3, "heads": 3}
FEATURES_ONLY = {"NAME": "I2P_MAE", "clip_config": {"visual_encoder": None, "feat_dim": 64}}
CLASSIFIER = {"NAME": "I2P_MAE_ScanObjectNN"}


def official_tensors(name: str) -> dict[str, torch.Tensor]:
    """The official state dict of a golden file, filled as the golden models were."""
    return {
        key: golden_tensor(key, torch.empty(shape, dtype=getattr(torch, dtype)))
        for key, shape, dtype in load(name)["keys"]
    }


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A pre-training checkpoint as released: saved from several GPUs, the teacher with its text tower inside."""
    tensors = official_tensors("i2p_mae_pretrain_small_teacher")
    tensors["clip_model.transformer.resblocks.0.ln_1.weight"] = torch.ones(8)  # of the text tower
    tensors["clip_model.logit_scale"] = torch.ones(())
    path = tmp_path_factory.mktemp("ckpts") / "pre-train.pth"
    state = {f"module.{key}": value for key, value in tensors.items()}
    metrics = {"acc": np.float64(93.3)}  # what scikit-learn's score returns
    torch.save({"base_model": state, "optimizer": {}, "epoch": 300, "metrics": metrics, "best_metrics": metrics}, path)
    return path


def test_loads_strictly_into_pretraining(released):
    model = build_model(FEATURES_ONLY).eval()
    report = load_weights(model, released, strict=True)
    assert set(report.loaded) == set(model.state_dict())
    assert not report.missing
    assert not report.mismatched
    assert not report.unexpected
    assert all(key.startswith("clip_model.") for key in report.ignored)
    with torch.no_grad():
        feature = model.encode(clouds(3, 2048, seed=11))
    assert_summary(feature, load("i2p_mae_pretrain_small_teacher")["svm_feature_2048"])


def test_loads_its_encoder_into_a_classifier(released):
    model = build_model(CLASSIFIER)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_weights(model, released)
    encoder = {key for key in before if key.startswith("h_encoder.")}
    assert set(report.loaded) == encoder
    assert set(report.missing) == set(before) - encoder
    tensors = official_tensors("i2p_mae_pretrain_small_teacher")
    for key, value in model.state_dict().items():
        assert torch.equal(value, tensors[key] if key in encoder else before[key]), key


def test_its_teacher_needs_no_download(released):
    clip_config = {"visual_encoder": SMALL_TOWER, "feat_dim": 64, "pretrained": str(released)}
    model = build_model({"NAME": "I2P_MAE", "clip_config": clip_config})
    for key, value in model.teacher.visual.state_dict().items():
        assert torch.equal(value, golden_tensor(f"clip_model.visual.{key}", value)), key


def test_a_released_classifier_loads_strictly(tmp_path):
    golden = load("i2p_mae_finetune")["scan_pb"]
    tensors = {key: golden_tensor(key, torch.empty(s, dtype=getattr(torch, d))) for key, s, d in golden["keys"]}
    torch.save({"base_model": tensors, "epoch": 3}, tmp_path / "scan_pb.pth")
    report = load_weights(build_model(golden["config"]), tmp_path / "scan_pb.pth", strict=True)
    assert len(report.loaded) == len(tensors)


@pytest.mark.parametrize("config", [FEATURES_ONLY, CLASSIFIER], ids=["pre-training", "classifier"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_file_with_none_of_our_tensors_is_refused(config, strict, tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"base_model": {"module.layer1.weight": torch.ones(3, 3)}}, path)
    model = build_model(config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"resnet\.pth .*none of our models"):
        load_weights(model, path, strict=strict)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_model_is_refused(released, tmp_path):
    torch.save({"base_model": official_tensors("point_m2ae_pretrain")}, tmp_path / "m2ae.pth")
    with pytest.raises(ValueError, match="Point-M2AE"):
        load_weights(build_model(FEATURES_ONLY), tmp_path / "m2ae.pth")
    with pytest.raises(ValueError, match="I2P-MAE"):
        load_weights(build_model({"NAME": "Point_M2AE"}), released)


def test_metrics_pickled_by_another_numpy_are_read(tmp_path):
    torch.save({"base_model": {}, "metrics": {"acc": np.float64(93.3)}}, tmp_path / "released.pth")
    rewrite_for_another_numpy(tmp_path / "released.pth", tmp_path / "other.pth")
    for name in ("released.pth", "other.pth"):
        assert read_checkpoint(tmp_path / name)["metrics"] == {"acc": 93.3}
