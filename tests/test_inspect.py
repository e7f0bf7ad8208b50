"""What `tools.inspect` says of a file, and that the commands it gives are right."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model
from tests.golden_numbers import load
from tests.test_library import FEATURES_ONLY, POINT_MAE_CLASSIFIER, RELEASED, model_of, released, saved
from tools.evaluation.bank import Bank, save_bank
from tools.evaluation.feature_files import FeatureFile, write_features
from tools.evaluation.kept import save_arrays
from tools.inspect import main
from utils.checkpoint import load_weights
from utils.config import load_config
from utils.parser import parse_args

ROOT = Path(__file__).parents[1]


@pytest.fixture
def say(capsys):
    def say(path: Path, *flags: str) -> list[str]:
        capsys.readouterr()
        assert main([str(path), *flags]) == 0
        return capsys.readouterr().out.splitlines()

    return say


def commands_in(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines[lines.index("commands") + 1 :]]


def configs_in(commands: list[str], flags: str) -> list[str]:
    return [re.search(r"--config cfgs/(\S+)\.yaml", command)[1] for command in commands if f" {flags} " in command]


TUNED = ("few-shot", "modelnet40", "modelnet40_8k", "part-segmentation", "scan_obj-bg", "scan_obj", "scan_pb")
EXPECTED = {
    "I2P_MAE": {
        "--test_svm modelnet40": ["linear-svm/modelnet40"],
        "--test_svm scan": ["linear-svm/scan_obj-bg"],
        "--test_bank": ["linear-svm/modelnet40", "linear-svm/scan_obj-bg"],
        "--exp_name finetune": [f"fine-tuning/{name}" for name in ("modelnet40", "scan_obj-bg", "scan_obj", "scan_pb")],
        "--exp_name few-shot": ["few-shot/modelnet40"],
        "--exp_name segment": ["part-segmentation/i2p-mae"],
    },
    "Point_MAE": {
        "--test_svm modelnet40": ["point-mae/linear-svm_modelnet40"],
        "--test_svm scan": ["point-mae/linear-svm_scan_obj-bg"],
        "--exp_name finetune": [f"point-mae/{name}" for name in TUNED],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_a_released_file_and_the_commands_that_take_it(tmp_path, monkeypatch, say, name):
    path = released(tmp_path / "weights.pth", RELEASED[name]())
    lines = say(path)
    shapes = {key: shape for key, shape, _ in RELEASED[name]()}
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    text = "\n".join(lines)
    config = {"I2P_MAE": "pre-training/i2p-mae", "Point_MAE": "point-mae/pre-train"}[name]
    assert f"config   not said; the tensors are those of cfgs/{config}.yaml" in lines
    assert "epoch    300" in lines
    assert f"tensors  {len(shapes)}, {total:,} numbers" in lines
    encoder = {"I2P_MAE": "h_encoder.token_embed", "Point_MAE": "MAE_encoder.blocks"}[name]
    inside = [int(np.prod(shape)) for key, shape in shapes.items() if key.startswith(f"{encoder}.")]
    assert re.search(rf"^  {encoder} +{len(inside)} +{sum(inside)}$", text, re.MULTILINE)
    commands = commands_in(lines)
    for flags, configs in EXPECTED[name].items():
        assert configs_in(commands, flags) == configs
    monkeypatch.chdir(ROOT)
    for command in (command for command in commands if command.startswith("python main.py")):
        parse_args(shlex.split(command)[2:])
    assert commands[-3:] == [
        f"python -m tools.features --ckpts {path} INPUT -o features.npz",
        f"python -m tools.export --ckpts {path} encoder.onnx",
        f"python -m tools.convert {path} weights.safetensors",
    ]
    first, last = (re.search(r"--config (\S+)", command)[1] for command in (commands[0], commands[-4]))
    for config in (first, last):
        load_weights(build_model(load_config(config).model), path)


def test_a_classifier_that_leaves_its_config_open(tmp_path, say):
    path = released(tmp_path / "scan.pth", load("i2p_mae_finetune")["scan_pb"]["keys"])
    lines = say(path)
    assert "kind     a classifier with 15 classes" in lines
    commands = commands_in(lines)
    assert {"fine-tuning/scan_pb", "fine-tuning/point-m2ae_scan_pb"} < set(configs_in(commands, "--test"))
    assert configs_in(commands, "--finetune_model") == []
    assert all(" --config cfgs/fine-tuning/" in command for command in commands)
    assert "the one it was made with" in commands[-1]


def test_a_checkpoint_of_a_run(tmp_path, say):
    run = tmp_path / "experiments" / "fine-tuning" / "scan_pb" / "mine"
    run.mkdir(parents=True)
    state = model_of(POINT_MAE_CLASSIFIER).state_dict()
    said = {"config": {"model": POINT_MAE_CLASSIFIER}, "run": {"mode": "fine-tuning", "seed": 3}, "optimizer": {"a": 1}}
    metrics = {
        "metrics": {"accuracy": 71.5},
        "best_metrics": {"accuracy": 72.5, "epoch": 4},
        "chosen_by": "the test split",
    }
    torch.save({"base_model": state, "epoch": 7, **said, **metrics}, run / "ckpt-last.pth")
    (run / "config.yaml").touch()
    lines = say(run / "ckpt-last.pth")
    assert "kind     a single-scale classifier with 4 classes" in lines
    assert any(line.startswith("config   in the file: NAME PointTransformer, num_group 10") for line in lines)
    assert {"epoch    7", "chosen   the test split", "run      mode fine-tuning, seed 3"} < set(lines)
    assert "metrics  accuracy 71.5; best accuracy 72.5, epoch 4" in lines
    assert "beside   what serves to resume: optimizer" in lines
    assert commands_in(lines)[:3] == [
        "python main.py --config cfgs/fine-tuning/scan_pb.yaml --finetune_model --exp_name mine --resume",
        f"python main.py --config {run}/config.yaml --test --exp_name test --ckpts {run}/ckpt-last.pth",
        f"python -m tools.features --ckpts {run}/ckpt-last.pth INPUT -o features.npz",
    ]


def test_every_tensor_on_request(tmp_path, say):
    lines = say(saved(tmp_path / "a.pth", model_of(FEATURES_ONLY), FEATURES_ONLY), "--tensors")
    assert re.search(r"^  mask_token +1×96 +float32$", "\n".join(lines), re.MULTILINE)
    assert not any("main.py" in command for command in commands_in(lines))  # no shipped config has such an encoder
    assert "not said" not in next(line for line in lines if line.startswith("config"))


def test_what_commands_keep(tmp_path, say):
    rows = np.eye(3, dtype=np.float32)
    write_features(tmp_path / "f.npz", FeatureFile(["a", "b", "c"], ["x", "", "y"], np.ones(3, int), rows, {"k": 1}))
    lines = say(tmp_path / "f.npz")
    assert lines[0].startswith(f"file     {tmp_path}/f.npz, 0.0 MiB, SHA-256 ")
    assert lines[1:3] == ["kind     features of 3 files, 3 channels", "classes  x, y"]
    assert commands_in(lines) == [f"python -m tools.search {tmp_path}/f.npz QUERY -o found.png"]
    save_bank(tmp_path / "b.npz", Bank(rows, np.array([0, 1, 1]), ["x", "y"], {"model": "m"}))
    lines = say(tmp_path / "b.npz")
    assert lines[1:4] == [
        "kind     a memory bank",
        "arrays   features 3×3, labels 3, class_names 2",
        "origin   model m",
    ]
    save_arrays(tmp_path / "s.npz", {"train_features": rows, "test_features": rows}, {})
    assert "kind     features of both splits of a linear SVM" in say(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pth", None, "no such checkpoint"),
        ("none.npz", None, "no such checkpoint"),
        ("a.pth", b"garbage", "is damaged, cut off or no checkpoint at all"),
        ("a.safetensors", b"garbage", "is damaged, cut off or no checkpoint at all"),
        ("a.npz", b"garbage", "holds no features"),
        ("a.parquet", b"garbage", "holds no features"),
    ],
)
def test_what_is_nothing_of_ours_is_told_in_a_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main([str(tmp_path / name)])
    if content is not None:
        torch.save({"epoch": 3}, tmp_path / "b.pth")
        with pytest.raises(ValueError, match=r"b\.pth holds no model"):
            main([str(tmp_path / "b.pth")])
