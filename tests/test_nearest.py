"""The nearest of what there is: names as they are written, and files whose paths have errors of typing."""

from pathlib import Path

import pytest

from tests.test_commands import touch
from utils import nearest
from utils.config import load_config
from utils.nearest import did_you_mean, did_you_mean_path

FILES = (
    "cfgs/pre-training/i2p-mae.yaml",
    "cfgs/pre-training/point-m2ae.yaml",
    "cfgs/own-data/i2p-mae.yaml",
    "cfgs/fine-tuning/scan_pb.yaml",
    "cfgs/.hidden/scan_pb.yaml",
    "ckpts/README.md",
    "ckpts/pre-train.pth",
    "ckpts/point-m2ae_pre-train.pth",
    "experiments/demo/pre-train/20260101-seed0/ckpt-last.pth",
    "data/ShapeNet55-34/shapenet_pc/a.npy",
)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(*FILES)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("cfgs/pretraining/i2p-mae.yml", "cfgs/pre-training/i2p-mae.yaml"),
        ("cfgs/pre-training/i2p-mae", "cfgs/pre-training/i2p-mae.yaml"),
        ("cfgs/pre-training/I2P-MAE.yaml", "cfgs/pre-training/i2p-mae.yaml"),
        ("cfg/pre_training/i2p_mae.yaml", "cfgs/pre-training/i2p-mae.yaml"),
        ("ckpts/pre-trian.pth", "ckpts/pre-train.pth"),
        ("ckpt/pre-train.pth", "ckpts/pre-train.pth"),
        ("pre-training/point-m2ae.yaml", "cfgs/pre-training/point-m2ae.yaml"),  # a folder is missing
        ("cfgs/linear-svm/scan_pb.yaml", "cfgs/fine-tuning/scan_pb.yaml"),  # another folder
        ("cfgs/.hidden/scan-pb.yaml", "cfgs/.hidden/scan_pb.yaml"),
        ("cfgs/i2p-mae.yaml", "cfgs/own-data/i2p-mae.yaml, cfgs/pre-training/i2p-mae.yaml"),
        (
            "experiments/demo/pre-train/NAME/ckpt-last.pth",
            "experiments/demo/pre-train/20260101-seed0/ckpt-last.pth",
        ),
        (
            "experiments/demo/pre-train/20260101-seed0/ckpt-best.pth",
            "experiments/demo/pre-train/20260101-seed0/ckpt-last.pth",
        ),
    ],
)
def test_the_nearest_file_is_asked_for(disk, given, meant):
    assert did_you_mean_path(given) == f"did you mean {meant}? "


def test_an_absolute_path_stays_one(disk):
    assert did_you_mean_path(disk / "ckpts/pretrain.pth") == f"did you mean {disk}/ckpts/pre-train.pth? "


@pytest.mark.parametrize("given", ["ckpts/zzz.pth", "zzz", "", "cfgs/fine-tuning", "/zzz/zzz/zzz.zzz"])
def test_nothing_is_asked_where_nothing_is_near(disk, given):
    assert did_you_mean_path(given) == ""


def test_a_folder_is_asked_for_where_one_is_needed(disk):
    given = "data/ShapeNet55/shapenet-pc"
    assert did_you_mean_path(given) == ""
    assert did_you_mean_path(given, Path.is_dir) == "did you mean data/ShapeNet55-34/shapenet_pc? "


def test_a_folder_of_very_many_files_is_not_looked_through(disk, monkeypatch):
    touch(*(f"many/{number}.npy" for number in range(5)))
    monkeypatch.setattr(nearest, "MOST_ENTRIES", 5)
    assert did_you_mean_path("many/33.npy") == "did you mean many/3.npy? "
    monkeypatch.setattr(nearest, "MOST_ENTRIES", 4)
    assert did_you_mean_path("many/33.npy") == ""


def test_a_config_that_is_not_there_is_told_with_the_one_that_is(disk):
    with pytest.raises(
        FileNotFoundError, match=r"no such config: (\S+); did you mean cfgs/pre-training/i2p-mae.yaml\? "
    ):
        load_config("cfgs/pretraining/i2p-mae.yml")


def test_names_are_near_whatever_their_case():
    valid = ("I2P_MAE", "Point_M2AE", "Point_MAE")
    assert did_you_mean("i2p-mae", valid) == "did you mean I2P_MAE? "
    assert did_you_mean("point-mae", valid, shown=2, quoted=True) == "did you mean 'Point_MAE', 'Point_M2AE'? "
    assert did_you_mean("zzz", valid) == did_you_mean("a", ()) == ""
    assert did_you_mean("chmug", ["mug"], cutoff=0.8) == ""
