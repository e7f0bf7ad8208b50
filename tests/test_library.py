"""The encoder of a checkpoint as others use it: what it computes, which files and clouds it takes, what it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models import Encoder, build_model, load_encoder
from models.released import CONFIGS
from tests.golden.fixtures import clouds, fill_parameters
from tests.golden_numbers import load
from tests.playground import CONFIGS as SMALL
from tests.playground import ENCODER
from tests.test_act import SMALL as ACT
from tests.test_point_bert import MODEL as POINT_BERT
from tests.test_point_mae import CLASSIFIER as POINT_MAE_CLASSIFIER
from tests.test_point_mae import PRETRAINING as POINT_MAE
from tests.test_point_mae import SEGMENTER as POINT_MAE_SEGMENTER
from utils.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[1]
I2P, M2AE, SEGMENTER = (SMALL[n]["model"] for n in ("pre-training/i2p", "pre-training/m2ae", "part-segmentation/small"))
FEATURES_ONLY = SMALL["linear-svm/scan"]["model"]
RADII = {"local_radius": [0.4, 0.6, 1.2]}
CLASSIFIERS = {
    "I2P classifier": {"NAME": "I2P_MAE_ModelNet40", **ENCODER, **RADII, "num_classes": 3},
    "M2AE classifier": {"NAME": "Point_M2AE_ScanObjectNN", **ENCODER, "num_classes": 3},
    "Point-MAE classifier": POINT_MAE_CLASSIFIER,
}
PRE_TRAINED = {"I2P": I2P, "M2AE": M2AE, "Point-MAE": POINT_MAE, "Point-BERT": POINT_BERT, "ACT": ACT}
PARTS = {"Point-MAE": "MAE_encoder", "Point-BERT": "transformer_q", "ACT": "ACT_encoder"}  # of others h_encoder
OTHERS = {"segmenter": {**SEGMENTER, **RADII}, "Point-MAE segmenter": POINT_MAE_SEGMENTER}
ALL = {**PRE_TRAINED, **CLASSIFIERS, **OTHERS}


def model_of(config: dict) -> nn.Module:
    return fill_parameters(build_model(config)).eval()


def saved(path: Path, model: nn.Module, config: dict | None) -> Path:
    """A checkpoint as a run writes it, or, without a config, as released."""
    said = {} if config is None else {"config": {"model": config}}
    torch.save({"base_model": model.state_dict(), "epoch": 3, **said}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ckpts")
    for name, config in ALL.items():
        saved(folder / f"{name}.pth", model_of(config), config)
    return folder


@pytest.fixture
def encoder(folder) -> Encoder:
    return load_encoder(folder / "I2P.pth")


@pytest.fixture(scope="module")
def points() -> Tensor:
    return clouds(3, 96, seed=5)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


# what it computes


@pytest.mark.parametrize("name", PRE_TRAINED)
def test_the_feature_is_that_of_the_linear_probe(folder, points, name):
    feature = load_encoder(folder / f"{name}.pth")(points).feature
    close(feature, model_of(ALL[name]).encode(points))
    assert feature.std(0).max() > 0.001  # clouds differ


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_feature_of_a_classifier_is_what_its_head_sees(folder, points, name):
    model = model_of(ALL[name])
    close(model.cls_head_finetune(load_encoder(folder / f"{name}.pth")(points).feature), model(points))


def test_tokens_of_a_segmenter_are_those_that_it_carries_to_the_points(folder, points):
    model, out = model_of(ALL["segmenter"]), load_encoder(folder / "segmenter.pth")(points)
    carried = [p(points, c, t) for p, c, t in zip(model.propagations, out.centers, out.tokens, strict=True)]
    close(torch.cat(carried, dim=1), model.point_features(points))
    close(out.feature, out.tokens[2].mean(1) + out.tokens[2].max(1).values)


def test_tokens_of_the_single_scale_segmenter_are_its_last_ones(folder, points):
    model, out = model_of(ALL["Point-MAE segmenter"]), load_encoder(folder / "Point-MAE segmenter.pth")(points)
    embedded = model.encoder(members_of(out.centers[0], points, 8))
    close(out.tokens[0], model.tap(embedded, model.pos_embed(out.centers[0]))[..., -24:])
    close(out.feature, torch.cat([out.tokens[0].mean(1), out.tokens[0].max(1).values], dim=1))


def members_of(centers: Tensor, points: Tensor, k: int) -> Tensor:
    """The k nearest points of each centre, relative to it, found by sorting all."""
    distance = (centers.unsqueeze(2) - points.unsqueeze(1)).norm(dim=-1)
    nearest = distance.argsort(dim=-1, stable=True)[..., :k]
    members = torch.stack([cloud[index] for cloud, index in zip(points, nearest, strict=True)])
    return members - centers.unsqueeze(2)


@pytest.mark.parametrize("name", PRE_TRAINED)
def test_no_decoder_no_head_and_no_teacher_are_kept(folder, name):
    encoder = load_encoder(folder / f"{name}.pth")
    kept = {key.split(".")[1] for key in encoder.state_dict()}
    assert kept == {PARTS.get(name, "h_encoder")}
    assert getattr(encoder.model, "teacher", None) is None
    assert not encoder.training


def test_finer_tokens_in_no_coarser_group_are_hidden_and_carry_nothing(tmp_path, points):
    config = FEATURES_ONLY | {"group_sizes": [8, 2, 2]}
    model = model_of(config)
    out = load_encoder(saved(tmp_path / "a.pth", model, config))(points, per_point=True)
    close(out.feature, model.encode(points))
    hidden = ~out.visible[0]
    assert 0 < hidden.sum() < hidden.numel() / 2
    assert (out.tokens[0][hidden] == 0).all()
    assert (out.tokens[0][~hidden].abs().sum(-1) > 0).all()
    assert out.visible[2].all()
    for cloud in range(len(points)):
        start = 0
        for tokens, centers, visible in zip(out.tokens, out.centers, out.visible, strict=True):
            places, features = centers[cloud][visible[cloud]], tokens[cloud][visible[cloud]]
            squared, nearest = torch.cdist(points[cloud], places).square().topk(3, largest=False)
            weight = 1 / (squared + 1e-8)
            expected = ((weight / weight.sum(1, keepdim=True)).unsqueeze(-1) * features[nearest]).sum(1)
            found = out.per_point[cloud, :, start : start + tokens.shape[-1]]
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
            start += tokens.shape[-1]
        assert start == out.per_point.shape[-1] == 24 + 48 + 96


@pytest.mark.parametrize("name", ALL)
def test_a_cloud_has_its_features_whatever_is_beside_it(folder, points, name):
    encoder = load_encoder(folder / f"{name}.pth")
    together, alone = encoder(points, per_point=True), encoder(points[1:2], per_point=True)
    close(together.feature[1:2], alone.feature)
    close(together.per_point[1:2], alone.per_point)


@pytest.mark.parametrize("name", ["I2P", "Point-MAE classifier"])
def test_the_order_of_points_after_the_first_does_not_matter(folder, points, name):
    encoder = load_encoder(folder / f"{name}.pth")
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(95, generator=torch.manual_seed(0))])
    straight, shuffled = encoder(points, per_point=True), encoder(points[:, order], per_point=True)
    close(shuffled.feature, straight.feature)
    close(shuffled.per_point, straight.per_point[:, order])


# which clouds it takes


def test_clouds_of_different_sizes(encoder, points):
    cut = [points[0], points[1, :40].numpy(), points[2], points[1, :1]]
    out = encoder(cut, per_point=True)
    for i, cloud in enumerate(cut):
        alone = encoder(torch.as_tensor(cloud)[None], per_point=True)
        for ours, theirs in [(out.feature, alone.feature), *zip(out.tokens, alone.tokens, strict=True)]:
            close(ours[i], theirs[0])
        close(out.per_point[i], alone.per_point[0])
        assert torch.equal(out.centers[1][i], alone.centers[1][0])
    assert [len(rows) for rows in out.per_point] == [96, 40, 96, 1]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 31])
@pytest.mark.parametrize("name", ["I2P", "Point-MAE", "segmenter"])
def test_few_points_are_encoded_as_if_repeated(folder, points, name, count):
    encoder = load_encoder(folder / f"{name}.pth")
    few = points[:1, :count]
    out = encoder(few, per_point=True)
    assert out.per_point.shape[1] == count
    assert out.per_point.isfinite().all()
    repeated = torch.cat([few] * 8, dim=1)[:, : max(8, count)]  # a group of level 0 has 8 points
    assert torch.equal(out.feature, encoder(repeated).feature)


def test_arrays_and_other_types_come_to_that_of_the_encoder(encoder, points):
    expected = encoder(points).feature
    assert torch.equal(encoder(points.numpy()).feature, expected)
    assert torch.equal(encoder(points.double().numpy()).feature, expected)
    double = encoder.double()(points).feature
    assert double.dtype == torch.float64
    close(double.float(), expected)


def test_gradients_reach_the_points(encoder, points):
    with torch.enable_grad():
        moved = points.clone().requires_grad_()
        encoder(moved, per_point=True).per_point.square().mean().backward()
    assert moved.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(4, 3), r"points must be \(B, N, 3\), or a list of \(N, 3\) with at least one point, got \(4, 3\)"),
        (torch.zeros(1, 4, 6), r"got \(1, 4, 6\)"),
        (torch.zeros(0, 4, 3), r"got \(0, 4, 3\)"),
        (np.zeros((1, 0, 3)), r"got \(1, 0, 3\)"),
        (torch.full((1, 9, 3), torch.nan), "coordinates that are not finite in torch.float32"),
        ([torch.zeros(5, 3), torch.full((5, 3), torch.inf)], "cloud 1 of the list: coordinates that are not finite"),
        ([torch.zeros(5, 3), torch.zeros(5, 2)], r"cloud 1 of the list must be \(N, 3\) .*got \(5, 2\)"),
        ([], r"a list of clouds, at least one, got \[\]"),
        ([[0.0, 1.0, 2.0]], r"cloud 0 of the list must be a tensor or an array \(N, 3\), got list"),
        ("cloud.ply", "points must be a tensor, an array or a list of clouds, at least one, got 'cloud.ply'"),
    ],
)
def test_what_is_no_cloud_is_refused(encoder, wrong, message):
    with pytest.raises(ValueError, match=message):
        encoder(wrong)


def test_too_few_tokens_to_carry_are_told(tmp_path, points):
    config = POINT_MAE_CLASSIFIER | {"num_group": 2}
    encoder = load_encoder(saved(tmp_path / "a.pth", model_of(config), config))
    assert encoder(points).feature.shape == (3, 48)
    with pytest.raises(ValueError, match=r"from 3 tokens of each level, and this encoder has \[2\]"):
        encoder(points, per_point=True)


# which files it takes


def test_loading_draws_nothing_from_the_global_generator(folder):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_encoder(folder / "I2P.pth")
    assert torch.equal(torch.rand(2), expected)


def test_a_config_that_is_given_counts(tmp_path, points):
    other = FEATURES_ONLY | {"group_sizes": [4, 4, 4]}
    path = saved(tmp_path / "a.pth", model_of(FEATURES_ONLY), None)
    (tmp_path / "a.yaml").write_text(f"model: {other}\ndataset: {{}}\n".replace("None", "null"))
    expected = load_encoder(path, other)(points).feature
    for config in (tmp_path / "a.yaml", str(tmp_path / "a.yaml"), {"model": other}):
        assert torch.equal(load_encoder(path, config)(points).feature, expected)
    assert load_encoder(path, I2P).group_sizes == (8, 4, 4)
    assert load_encoder(saved(tmp_path / "b.pth", model_of(FEATURES_ONLY), I2P), other).group_sizes == (4, 4, 4)


def test_safetensors_hold_the_same(folder, tmp_path, points):
    state = torch.load(folder / "I2P.pth", weights_only=True)["base_model"]
    state = {f"module.{key}": value for key, value in state.items()}
    save_file(state, tmp_path / "a.safetensors", {"config": json.dumps({"model": I2P}), "format": "pt"})
    encoder = load_encoder(tmp_path / "a.safetensors")
    assert encoder.config["NAME"] == "I2P_MAE"
    assert read_checkpoint(tmp_path / "a.safetensors")["format"] == "pt"
    assert torch.equal(encoder(points).feature, load_encoder(folder / "I2P.pth")(points).feature)


def released(path: Path, keys: list, prefix: str = "module.") -> Path:
    """A file with the official names and shapes."""
    state = {prefix + key: torch.zeros(shape, dtype=getattr(torch, dtype)) for key, shape, dtype in keys}
    torch.save({"base_model": state, "epoch": 300}, path)
    return path


RELEASED = {
    "I2P_MAE": lambda: load("i2p_mae_pretrain_keys")["keys"],
    "Point_M2AE": lambda: load("point_m2ae_pretrain")["keys"],
    "Point_MAE": lambda: load("point_mae_pretrain")["keys"],
    "Point_M2AE_SEG": lambda: load("part_segmentation")["keys"],
}


@pytest.mark.parametrize("name", RELEASED)
def test_of_a_released_file_the_config_is_found(tmp_path, name):
    encoder = load_encoder(released(tmp_path / "a.pth", RELEASED[name]()))
    assert encoder.config["NAME"] == name
    sizes = {"Point_MAE": ((64,), (32,))}.get(name, ((512, 256, 64), (16, 8, 8)))
    assert (encoder.num_groups, encoder.group_sizes) == sizes
    assert {type(value) for value in [encoder.config, *encoder.config.values()]} <= {dict, list, str, int, float}


def test_a_2d_head_of_any_width_will_do(tmp_path):
    path = released(tmp_path / "a.pth", load("i2p_mae_pretrain_small_teacher")["keys"])
    assert load_encoder(path).config["NAME"] == "I2P_MAE"


def test_what_the_tensors_leave_open_is_asked(tmp_path):
    keys = load("i2p_mae_finetune")["scan_pb"]["keys"]
    path = released(tmp_path / "scan_pb.pth", keys)
    with pytest.raises(ValueError) as caught:
        load_encoder(path)
    text = str(caught.value)
    assert text.startswith(f"{path} holds a classifier with 15 classes and does not say its config, which the tensors")
    for config in ("cfgs/fine-tuning/scan_pb.yaml", "cfgs/fine-tuning/point-m2ae_scan_obj-bg.yaml"):
        assert config in text
        assert load_encoder(path, ROOT / config).config["NAME"].endswith("_ScanObjectNN")
    assert "modelnet" not in text


def test_a_file_that_no_released_model_made_asks_for_its_config(folder, tmp_path):
    path = saved(tmp_path / "a.pth", model_of(FEATURES_ONLY), None)
    with pytest.raises(ValueError, match=r"an I2P-MAE pre-training model .*no released model has these tensors: give"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("content", "config", "message"),
    [
        ({"base_model": {"layer1.weight": torch.ones(2)}}, None, "none of our models and does not say its config"),
        ({"epoch": 3}, None, "holds no model"),
        ({"base_model": {"a": torch.ones(1)}, "config": 3}, None, "the config in .* has no model.NAME"),
        ({"base_model": {"a": torch.ones(1)}}, {"model": {}}, "config has no model.NAME; give config="),
        ({"base_model": {"a": torch.ones(1)}}, {"NAME": "I2P_MEA"}, "did you mean 'I2P_MAE'"),
        ({"base_model": {"a": torch.ones(1)}}, I2P, "does not fit the model and nothing was loaded"),
        ({"base_model": {"a": torch.ones(1)}}, {"NAME": "Point_NN"}, "Point_NN has no encoder with weights of its own"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, content, config, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        load_encoder(tmp_path / "a.pth", config)


def test_a_norm_that_is_missing_is_not_made_up(folder):
    with pytest.raises(ValueError, match=r"2 missing: norm\.weight, norm\.bias"):
        load_encoder(folder / "I2P.pth", CLASSIFIERS["I2P classifier"])


def test_configs_that_are_searched_are_there():
    assert (CONFIGS / "pre-training" / "i2p-mae.yaml").is_file()


@pytest.mark.parametrize("document", ["README.md", "docs/LIBRARY.md"])
def test_the_example_runs_and_gives_what_is_said(tmp_path, monkeypatch, document):
    (tmp_path / "ckpts").mkdir()
    released(tmp_path / "ckpts" / "pre-train.pth", RELEASED["I2P_MAE"]())
    (example,) = re.findall(r"```python\n(import torch\nfrom models.*?)```", (ROOT / document).read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    place = {}
    exec(example, place)
    out = place["out"]
    assert (out.feature.shape, out.per_point.shape) == ((8, 384), (8, 1024, 672))
    assert [tuple(tokens.shape) for tokens in out.tokens] == [(8, 512, 96), (8, 256, 192), (8, 64, 384)]


def test_torch_hub_loads_it_from_a_folder(folder, tmp_path, points):
    torch.save(points, tmp_path / "points.pt")
    script = (
        "import torch\n"
        f"encoder = torch.hub.load({str(ROOT)!r}, 'encoder', source='local', ckpts={str(folder / 'M2AE.pth')!r})\n"
        "with torch.inference_mode():\n"
        "    torch.save(encoder(torch.load('points.pt'), per_point=True).feature, 'feature.pt')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    close(torch.load(tmp_path / "feature.pt"), model_of(M2AE).encode(points))
