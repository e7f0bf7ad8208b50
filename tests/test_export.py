"""Exported encoders: they compute the same in other sizes than traced, and what does not is not written."""

import json
import sys

import onnx
import pytest
import torch

from models import load_encoder
from tests.golden.fixtures import clouds
from tests.test_library import ALL, FEATURES_ONLY, POINT_MAE, model_of, saved
from tools.evaluation.exporting import compare, example, export, names, onnx_session
from tools.export import main

SHALLOW = POINT_MAE | {"transformer_config": POINT_MAE["transformer_config"] | {"depth": 1}}


@pytest.fixture
def checkpoint(tmp_path, request):
    config = ALL[request.param] if hasattr(request, "param") else SHALLOW
    return saved(tmp_path / "a.pth", model_of(config), config)


def figures(encoder, points):
    with torch.no_grad():
        out = encoder(points)
    return [out.feature, *out.tokens]


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=0)


def test_an_onnx_file_gives_the_same(checkpoint, tmp_path, capsys):
    assert main(["--ckpts", str(checkpoint), str(tmp_path / "a.onnx")]) == 0
    said = capsys.readouterr().out
    assert "points, sample_0, members_0 → feature, tokens_0\ndiffers from PyTorch by at most" in said
    encoder, points = load_encoder(checkpoint), clouds(5, 70, seed=1)
    samples, members = encoder.choose(points)
    run = onnx_session((tmp_path / "a.onnx").read_bytes(), ["points", "sample_0", "members_0"], threads=1)
    assert_same(run(points, *samples, *members), figures(encoder, points))
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert metadata["config"]["model"]["NAME"] == "Point_MAE"
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", "a.onnx"}


def test_a_program_of_torch_gives_the_same_from_points_alone(checkpoint, tmp_path):
    assert main(["--ckpts", str(checkpoint), "--whole", str(tmp_path / "a.pt2")]) == 0
    encoder = load_encoder(checkpoint)
    program = torch.export.load(tmp_path / "a.pt2").module()
    for count, size in ((1, 8), (4, 10), (2, 300)):  # a group has 8 points, and there are 10 groups
        points = clouds(count, size, seed=size)
        points[:, 3:5] *= 0.01  # padding by the rule of PointNet++
        assert_same(program(points), figures(encoder, points))


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["I2P classifier"], indirect=True)
def test_a_whole_onnx_file_needs_points_alone(checkpoint, tmp_path):
    assert main(["--ckpts", str(checkpoint), "--whole", str(tmp_path / "a.onnx")]) == 0
    encoder, points = load_encoder(checkpoint), clouds(4, 33, seed=1)
    run = onnx_session((tmp_path / "a.onnx").read_bytes(), ["points"], threads=1)
    assert_same(run(points), figures(encoder, points))


@pytest.mark.slow
def test_an_onnx_file_hides_what_pre_trained_encoders_hide(tmp_path):
    config = FEATURES_ONLY | {"group_sizes": [8, 2, 2]}
    encoder = load_encoder(saved(tmp_path / "a.pth", model_of(config), config))
    assert not encoder(clouds(3, 100, seed=1)).visible[0].all()
    assert export(encoder, tmp_path / "a.onnx") < 1e-5


def test_a_program_that_differs_is_refused(checkpoint):
    encoder = load_encoder(checkpoint)

    def run(points, *chosen):
        feature, *tokens = figures(encoder, points)
        return [feature, *(level * (1 + 2e-4) for level in tokens)]

    with pytest.raises(
        ValueError, match=r"differs from the encoder by 2\.0e-04 of the largest value; nothing is written"
    ):
        compare(encoder, run, whole=True)


@pytest.mark.parametrize("checkpoint", ["M2AE"], indirect=True)
def test_inputs_have_the_order_of_their_names(checkpoint):
    encoder = load_encoder(checkpoint)
    inputs = dict(zip(names(encoder, False)[0], example(encoder, 2, 50, False), strict=True))
    assert list(inputs) == ["points", *(f"{what}_{level}" for level in range(3) for what in ("sample", "members"))]
    assert [inputs[f"sample_{level}"].shape[1] for level in range(3)] == [32, 16, 8]
    assert [inputs[f"members_{level}"].shape[1:] for level in range(3)] == [(32, 8), (16, 4), (8, 4)]


def test_what_is_missing_is_told(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"onnxscript is not installed.*pip install -r requirements-library.txt"):
        main(["--ckpts", str(checkpoint), str(tmp_path / "a.onnx")])
    assert not (tmp_path / "a.onnx").exists()
    with pytest.raises(SystemExit):
        main(["--ckpts", str(checkpoint), str(tmp_path / "a.pb")])
    assert "its name must end in .onnx or .pt2" in capsys.readouterr().err
