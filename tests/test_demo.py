"""The parts of the demo that are its own; its commands are those of tests/test_runs.py."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model
from tools import demo
from tools.demo import CONFIGS, summarise
from tools.evaluation.features import calibrated_svm_accuracy, without_teacher
from utils.config import load_config
from utils.seed import seed_everything

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
    return build_model(config.model)


def test_probe_is_an_accuracy_and_leaves_the_weights(config, model):
    before = {name: p.clone() for name, p in model.named_parameters()}
    accuracy = calibrated_svm_accuracy(model, config)
    assert accuracy in [pytest.approx(100 * hits / 6) for hits in range(7)]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_seed_runs_every_step_and_reports_the_final_accuracies(config, model, tmp_path, monkeypatch):
    """Each step is replaced by a folder with results, and each probe by the sum of the encoder's weights."""
    commands = []

    def run_step(name, *flags):
        commands.append((name, *flags))
        folder = tmp_path / name / flags[flags.index("--exp_name") + 1]
        folder.mkdir(parents=True)
        torch.save({"base_model": model.state_dict()}, folder / "ckpt-last.pth")
        finals = {"training from scratch": 53.0} if "--scratch_model" in flags else {"fine-tuning": 71.0}
        results = {mode: {"best_accuracy": 99.0, "final_accuracy": final} for mode, final in finals.items()}
        (folder / "results.json").write_text(json.dumps(results))
        return folder

    def weights_of(encoder, *_):
        return sum(p.detach().double().sum().item() for p in encoder.h_encoder.parameters())

    monkeypatch.setattr(demo, "run_step", run_step)
    monkeypatch.setattr(demo, "load_config", lambda path: {CONFIGS / "pre-train.yaml": config}[path])
    monkeypatch.setattr("tools.evaluation.features.calibrated_svm_accuracy", weights_of)
    found = demo.run_seed("run", 7)

    pretrained, tuned, scratch = (
        tmp_path / name for name in ("pre-train/run", "fine-tune/run", "fine-tune/run-scratch")
    )
    weights = str(pretrained / "ckpt-last.pth")
    common = ("--seed", "7", "--num_workers", "0")
    assert commands == [
        ("pre-train", "--exp_name", "run", *common),
        ("linear-svm", "--test_svm", "scan", "--ckpts", weights, "--exp_name", "run", *common),
        ("fine-tune", "--finetune_model", "--ckpts", weights, "--val_freq", "5", "--exp_name", "run", *common),
        ("fine-tune", "--scratch_model", "--val_freq", "5", "--exp_name", "run-scratch", *common),
    ]
    seed_everything(7)
    assert found == {
        "seed": 7,
        "svm_untrained": weights_of(build_model(without_teacher(config.model))),
        "svm_pretrained": weights_of(model),
        "scratch": 53.0,
        "finetuned": 71.0,
        "picture": str(pretrained / "reconstructions.png"),
        "folders": [str(pretrained), str(tuned), str(scratch)],
    }
    assert found["svm_pretrained"] != found["svm_untrained"]


@pytest.mark.parametrize("code", [0, 3])
def test_a_step_is_shown_and_ends_the_demo_where_it_fails(code, monkeypatch, capsys):
    launched = []
    monkeypatch.setattr(demo, "launch", lambda command: launched.append(command) or code)
    flags = ("--exp_name", "run", "--seed", "7")
    if code:
        with pytest.raises(SystemExit, match="3"):
            demo.run_step("fine-tune", *flags)
    else:
        assert demo.run_step("fine-tune", *flags) == Path("experiments/demo/fine-tune/run")
    command = "python main.py --config cfgs/demo/fine-tune.yaml --exp_name run --seed 7"
    assert capsys.readouterr().out == f"\n$ {command}\n"
    assert launched == [shlex.split(command)[2:]]


def test_summary_has_mean_and_deviation_of_several_seeds():
    run = {"svm_untrained": 20.0, "svm_pretrained": 40.0, "scratch": 50.0, "finetuned": 60.0}
    other = {key: value + 4 for key, value in run.items()}
    assert summarise([run])[1] == ["linear SVM, pre-trained encoder", 40.0]
    np.testing.assert_allclose(summarise([run, other])[1][1:], [40, 44, 42, 2])


def test_a_seed_is_given_once(capsys):
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--seeds", "0", "0"])
    assert "--seeds: 0 0 repeats a seed" in capsys.readouterr().err
