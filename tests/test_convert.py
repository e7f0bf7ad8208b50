"""Converted checkpoints: tensors bit for bit, names as the official code wants them, what is said kept."""

import numpy as np
import pytest
import torch

from models import load_encoder
from tests.golden.fixtures import clouds
from tests.golden_numbers import load
from tests.test_library import FEATURES_ONLY, RELEASED, model_of, released, saved
from tools.convert import main
from utils.checkpoint import read_checkpoint


def convert(*words: object) -> int:
    return main([str(word) for word in words])


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


@pytest.fixture
def ours(tmp_path):
    """A checkpoint as a run writes it, with values that only bits tell apart."""
    state = model_of(FEATURES_ONLY).state_dict()
    state["mask_token"][0, :4] = torch.tensor([torch.nan, -0.0, torch.inf, 1e-45])
    about = {"epoch": 7, "metrics": {"accuracy": 50.5}, "chosen_by": "nobody", "config": {"model": FEATURES_ONLY}}
    torch.save({"base_model": state, "optimizer": {"state": {}}, "rng": [1], **about}, tmp_path / "ours.pth")
    return tmp_path / "ours.pth"


def test_to_safetensors_and_back_bit_for_bit(ours, tmp_path, capsys):
    assert convert(ours, tmp_path / "a.safetensors") == 0
    assert capsys.readouterr().out.endswith("beside them: epoch, metrics, chosen_by, config\n")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth")
    before, after = (torch.load(path, weights_only=True) for path in (ours, tmp_path / "b.pth"))
    assert {key: bits(value) for key, value in after["base_model"].items()} == {
        key: bits(value) for key, value in before["base_model"].items()
    }
    assert {key: value.dtype for key, value in after["base_model"].items()} == {
        key: value.dtype for key, value in before["base_model"].items()
    }
    for key in ("optimizer", "rng", "base_model"):
        del before[key]
    del after["base_model"]
    assert after == before
    points = clouds(2, 50, seed=0)
    assert torch.equal(load_encoder(tmp_path / "a.safetensors")(points).feature, load_encoder(ours)(points).feature)


def test_official_layout_and_back(ours, tmp_path):
    convert(ours, tmp_path / "a.pth", "--module_prefix")
    convert(tmp_path / "a.pth", tmp_path / "b.pth")
    first, official, back = (torch.load(p, weights_only=True) for p in (ours, tmp_path / "a.pth", tmp_path / "b.pth"))
    assert list(official["base_model"]) == [f"module.{key}" for key in first["base_model"]]
    assert {key: bits(value) for key, value in back["base_model"].items()} == {
        key: bits(value) for key, value in first["base_model"].items()
    }


def clip_file(path, keys: list, prefix: str = ""):
    """The whole CLIP: the image tower of a golden list, something of the text tower, OpenAI's numbers."""
    names = {key.removeprefix("clip_model."): shape for key, shape, _ in keys if key.startswith("clip_model.")}
    state = {prefix + key: torch.zeros(shape) for key, shape in names.items()}
    state |= {f"{prefix}transformer.resblocks.0.ln_1.weight": torch.ones(8), f"{prefix}logit_scale": torch.ones(())}
    if not prefix:
        state["context_length"] = torch.tensor(77)
    torch.save(state, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module.clip_model."], ids=["OpenAI", "released"])
def test_with_clip_a_file_has_the_official_names_and_no_others(tmp_path, prefix):
    keys = load("i2p_mae_pretrain_keys")["keys"]
    ours = released(tmp_path / "a.pth", [entry for entry in keys if not entry[0].startswith("clip_model.")], prefix="")
    convert(ours, tmp_path / "b.pth", "--module_prefix", "--clip", clip_file(tmp_path / "clip.pt", keys, prefix))
    found = torch.load(tmp_path / "b.pth", weights_only=True)["base_model"]
    text = {"module.clip_model.transformer.resblocks.0.ln_1.weight", "module.clip_model.logit_scale"}
    assert text <= set(found)
    assert {key: list(value.shape) for key, value in found.items() if key not in text} == {
        f"module.{key}": shape for key, shape, _ in keys
    }
    convert(tmp_path / "b.pth", tmp_path / "c.pth")
    assert set(torch.load(tmp_path / "c.pth", weights_only=True)["base_model"]) == {
        key for key, *_ in keys if not key.startswith("clip_model.")
    }


@pytest.mark.parametrize("name", ["Point_M2AE", "Point_MAE", "Point_M2AE_SEG"])
def test_of_a_released_file_the_config_is_written_down(tmp_path, name):
    path = released(tmp_path / "a.pth", RELEASED[name]())
    content = torch.load(path, weights_only=True) | {"metrics": {"acc": np.float32(93.5)}}
    torch.save(content, path)
    convert(path, tmp_path / "b.safetensors")
    found = read_checkpoint(tmp_path / "b.safetensors")
    assert set(found["base_model"]) == {key for key, *_ in RELEASED[name]()}
    assert found["config"]["model"]["NAME"] == name
    assert found["metrics"] == {"acc": 93.5}


def test_what_cannot_be_converted_is_told(ours, tmp_path, capsys):
    keys = load("point_m2ae_pretrain")["keys"]
    m2ae, clip = released(tmp_path / "m2ae.pth", keys), tmp_path / "clip.pt"
    torch.save({"visual.proj": torch.zeros(2)}, clip)
    with pytest.raises(ValueError, match="no I2P-MAE pre-training model, which alone has CLIP beside it: drop --clip"):
        convert(m2ae, tmp_path / "b.pth", "--clip", clip)
    with pytest.raises(ValueError, match=r"has no clip_model\.transformer\.\*: the official code wants both towers"):
        convert(ours, tmp_path / "b.pth", "--clip", clip)
    for output, message in ((ours, "which exists"), (tmp_path / "a.onnx", "must end in .pth or .safetensors")):
        with pytest.raises(SystemExit):
            convert(ours, output)
        assert message in capsys.readouterr().err
    bare = saved(tmp_path / "bare.pth", model_of(FEATURES_ONLY), None)
    convert(bare, tmp_path / "c.pth")
    assert "the config is not known" in capsys.readouterr().out
    assert "config" not in read_checkpoint(tmp_path / "c.pth")
