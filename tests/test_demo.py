"""The parts of the demo that are its own; its commands are those of tests/test_runs.py."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model
from tools import demo
from tools.demo import SHAPES_DRAWN, summarise, unseen_shapes
from tools.evaluation.features import calibrated_svm_accuracy
from tools.evaluation.figures import draw_reconstructions
from utils.config import load_config

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    """The demo's own config on a few tiny generated shapes."""
    from datasets.synthetic import write_scanobjectnn, write_shapenet

    data = tmp_path_factory.mktemp("data")
    write_shapenet(data, classes=["chair", "lamp", "mug", "table"], train=1, test=1, num_points=1024)
    write_scanobjectnn(data, classes=["chair", "lamp"], train=4, test=3, num_points=512)
    config = load_config(ROOT / "cfgs/demo/pre-train.yaml")
    train = config.dataset.train
    train.DATA_PATH, train.PC_PATH = (str(data / "ShapeNet55-34" / name) for name in ("ShapeNet-55", "shapenet_pc"))
    config.dataset.svm_train.ROOT = config.dataset.svm_test.ROOT = str(data / "ScanObjectNN")
    return config


@pytest.fixture(scope="module")
def model(config) -> torch.nn.Module:
    with pytest.warns(UserWarning, match="untrained"):
        return build_model(config.model)


def test_probe_is_an_accuracy_and_leaves_the_weights(config, model):
    before = {name: p.clone() for name, p in model.named_parameters()}
    accuracy = calibrated_svm_accuracy(model, config)
    assert accuracy in [pytest.approx(100 * hits / 6) for hits in range(7)]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_picture_has_a_row_per_shape(config, model, tmp_path):
    shapes = unseen_shapes(config)
    assert shapes.shape == (SHAPES_DRAWN, 512, 3)
    draw_reconstructions(model, shapes, tmp_path / "picture.png")
    from matplotlib.image import imread

    one = tmp_path / "one.png"
    draw_reconstructions(model, shapes[:1], one)
    picture = imread(tmp_path / "picture.png")
    assert picture.shape[0] == SHAPES_DRAWN * imread(one).shape[0]
    assert (picture[..., :3] < 1).any(-1).mean() > 0.005  # not blank
    assert not list(tmp_path.glob(".*"))


def test_summary_has_mean_and_deviation_of_several_seeds():
    run = {"svm_untrained": 20.0, "svm_pretrained": 40.0, "scratch": 50.0, "finetuned": 60.0}
    other = {key: value + 4 for key, value in run.items()}
    assert summarise([run])[1] == ["linear SVM, pre-trained encoder", 40.0]
    np.testing.assert_allclose(summarise([run, other])[1][1:], [40, 44, 42, 2])


def test_a_seed_is_given_once(capsys):
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--seeds", "0", "0"])
    assert "--seeds: 0 0 repeats a seed" in capsys.readouterr().err
