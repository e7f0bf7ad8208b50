"""Whether data are the published ones: what is said of them, and that a run says it once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from datasets import build_dataset
from datasets.draws import Shuffled
from datasets.holdout import Part
from datasets.origin import origin_of
from datasets.sources import SOURCES
from datasets.synthetic import write_modelnet, write_scanobjectnn, write_shapenetpart
from models import build_model
from tests.playground import CONFIGS, PART_DATA, SVM_DATA, make_playground, run, write_config
from tests.test_autoencode import CONFIG as AUTOENCODING
from tools.training import provenance


class Clouds(Dataset):
    """So many clouds of the published classes."""

    def __init__(self, clouds, class_names):
        self.labels, self.class_names = np.zeros(clouds, int), list(class_names)

    def __len__(self):
        return len(self.labels)


def entry_of(name, **others):
    places = {key: f"/nowhere/{folder}" for key, folder in SOURCES[name].folders.items()}
    return {"NAME": name, **places, "others": others}


def said(caplog, config, **datasets):
    caplog.clear()
    provenance.warn({"dataset": config}, **datasets)
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


SCAN = {**entry_of("ScanObjectNN", subset="train"), "SPLIT": "obj-bg"}
SCAN_CLASSES = [
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door"),
    *("shelf", "table", "bed", "pillow", "sink", "sofa", "toilet"),
]
FORTY = [str(label) for label in range(40)]  # where no file names them


@pytest.mark.parametrize(
    ("entry", "clouds", "classes"),
    [
        (SCAN, 2309, SCAN_CLASSES),
        ({**SCAN, "others": {"subset": "test"}}, 581, SCAN_CLASSES),
        ({**SCAN, "SPLIT": "pb"}, 11416, SCAN_CLASSES),
        ({**SCAN, "SPLIT": "pb", "others": {"subset": "test"}}, 2882, SCAN_CLASSES),
        (entry_of("ModelNet40_SVM", partition="train"), 9840, FORTY),
        (entry_of("ModelNet40_SVM", partition="test"), 2468, ["night_stand", "xbox"]),
        (entry_of("ModelNet", subset="train"), 9843, ["airplane", "tv_stand"]),
        (entry_of("ShapeNet", subset="train"), 41952, ["02691156", "04554684"]),
        (entry_of("ShapeNet", subset="test"), 10518, ["02691156"]),
        (entry_of("ShapeNet", subset="whole"), 52470, ["02691156"]),
        (entry_of("ShapeNetPart", subset="trainval"), 14007, ["Airplane", "Table"]),
        (entry_of("ShapeNetPart", subset="test"), 2874, ["Mug"]),
        (entry_of("ModelNetFewShot", subset="train", way=5, shot=20), 100, ["bed", "sofa"]),
        (entry_of("ModelNetFewShot", subset="test", way=10, shot=20), 200, ["bed", "sofa"]),
    ],
)
def test_nothing_is_said_of_the_published_ones(caplog, entry, clouds, classes):
    assert said(caplog, {"train": entry}, train=Clouds(clouds, classes)) == []
    (line,) = said(caplog, {"train": entry}, train=Clouds(clouds - 1, classes))
    assert "a part of the published clouds" in line
    assert f"{clouds - 1:,} " in line
    (line,) = said(caplog, {"train": entry}, train=Clouds(clouds + 1, classes))
    assert "not the published clouds" in line


def test_the_line_names_counts_and_classes(caplog):
    (line,) = said(caplog, {"svm_train": SCAN}, svm_train=Clouds(2000, SCAN_CLASSES))
    assert line == (
        "dataset.svm_train, ScanObjectNN: a part of the published clouds (2,000 train clouds; OBJ-BG has 2,309 train): "
        "figures measured on it do not compare with published ones"
    )
    (line,) = said(caplog, {"train": SCAN}, train=Clouds(2309, [*SCAN_CLASSES, "spoon"]))
    assert "not the published clouds (spoon is no class of ScanObjectNN; 2,309 train clouds" in line
    svm = entry_of("ModelNet40_SVM", partition="train")
    (line,) = said(caplog, {"train": svm}, train=Clouds(9840, [str(label) for label in range(41)]))
    assert "not the published clouds (class 40 is no class of ModelNet40, .h5" in line


@pytest.mark.parametrize(
    ("entry", "clouds", "other"),
    [
        (SCAN, 11416, "PB-T50-RS"),
        ({**SCAN, "SPLIT": "pb"}, 2309, "OBJ-BG"),
        (entry_of("ModelNet40_SVM", partition="train"), 9843, "ModelNet40 with normals"),
        (entry_of("ModelNet", subset="train"), 9840, "ModelNet40 as HDF5 files"),
    ],
)
def test_another_version_is_named(caplog, entry, clouds, other):
    (line,) = said(caplog, {"train": entry}, train=Clouds(clouds, SOURCES[entry["NAME"]].classes))
    assert "another version than the published figures were measured on" in line
    assert f"and {other} as many as these" in line


def test_parts_and_shuffled_clouds_are_what_they_are_of(caplog):
    data = Clouds(2309, SCAN_CLASSES)
    held = Part(data, np.arange(2000))
    assert said(caplog, {"train": SCAN}, train=held) == []
    assert said(caplog, {"train": SCAN}, train=Shuffled(held, 0)) == []


def test_generated_shapes_are_one_line(caplog, tmp_path):
    write_scanobjectnn(tmp_path, train=1, test=1, num_points=8)
    write_modelnet(tmp_path, classes=["mug"], train=1, test=1, num_points=8)
    scan = {**SCAN, "ROOT": str(tmp_path / "ScanObjectNN")}
    model = {**entry_of("ModelNet", subset="test"), "DATA_PATH": str(tmp_path / "ModelNet/modelnet40_normal_resampled")}
    data = Clouds(1, ["mug"])
    (line,) = said(caplog, {"train": scan, "test": scan, "other": model}, train=data, test=data, other=data)
    assert line == (
        "generated shapes stand in for ScanObjectNN, ModelNet40 with normals (dataset: train, test, other): figures "
        "measured on them say nothing about the published data"
    )


def test_text_files_of_modelnet_are_said(caplog, tmp_path, monkeypatch):
    folder = write_modelnet(tmp_path, classes=["chair", "lamp"], train=1, test=1, num_points=8, text=True)
    (folder / "SYNTHETIC.json").unlink()
    entry = {"NAME": "ModelNet", "DATA_PATH": str(folder), "N_POINTS": 8, "NUM_CATEGORY": 2}
    entry["others"] = {"subset": "test"}
    published = SimpleNamespace(title="two", clouds={"train": 2, "test": 2})
    monkeypatch.setitem(SOURCES["ModelNet"].versions, "", published)
    (line,) = said(caplog, {"test": entry}, test=build_dataset(entry))
    assert line.startswith("dataset.test: ModelNet40 with normals is read from its text files, of which the first 8 ")
    assert "datasets.process_modelnet" in line


def test_lists_that_were_drawn_here_are_said(tmp_path):
    entry = {**entry_of("ShapeNet", subset="train"), "DATA_PATH": str(tmp_path)}
    assert origin_of(entry, {"train": 41952}, ["02691156"]).verdict == "published"
    (tmp_path / "lists.json").touch()
    verdict, reason = origin_of(entry, {"train": 41952}, ["02691156"])
    assert verdict == "other version"
    assert "drawn here, not published" in reason


def test_own_data_are_nobodys(caplog):
    assert said(caplog, {"train": {"NAME": "Folder"}}, train=Clouds(3, ["a"])) == []


# ---- runs ----

POINT_NN = {"NAME": "Point_NN", "stages": 2, "dim": 12, "k": 8}
CONFIGS_HERE = {
    **{name: CONFIGS[name] for name in ("fine-tuning/modelnet", "pre-training/m2ae")},
    "point-nn/bank": {"dataset": SVM_DATA, "model": POINT_NN},
    "point-nn/parts": {"dataset": PART_DATA, "model": {**POINT_NN, "neighbours": 3}},
    "point-bert/dvae": AUTOENCODING,
}


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    folder = make_playground(tmp_path_factory.mktemp("playground"), CONFIGS_HERE, modelnet=12)
    write_shapenetpart(folder / "data", classes=["chair", "mug"], train=2, test=1, num_points=96)
    return folder


@pytest.mark.parametrize(
    ("config", "flags", "named"),
    [
        ("pre-training/m2ae", ["--dry_run"], "ShapeNet-55, ModelNet40, .h5 (dataset: train, svm_train, svm_test)"),
        ("fine-tuning/modelnet", ["--scratch_model"], "ModelNet40 with normals (dataset: train, test)"),
        ("fine-tuning/modelnet", ["--test", "--ckpts"], "ModelNet40 with normals (dataset: test)"),
        (
            "pre-training/m2ae",
            ["--test_svm", "modelnet40", "--ckpts"],
            "40, .h5 (dataset: svm_train, svm_test)",
        ),
        ("point-nn/bank", ["--test_bank"], "40, .h5 (dataset: svm_train, svm_test)"),
        ("point-nn/parts", ["--test_bank"], "ShapeNetPart (dataset: train, test)"),
        ("point-bert/dvae", ["--dry_run"], "ShapeNet-55 (dataset: train, test)"),
        ("point-bert/dvae", ["--test", "--ckpts"], "ShapeNet-55 (dataset: test)"),
        (
            "fine-tuning/modelnet",
            ["--test", "--plug_in", "cfgs/point-nn/bank.yaml", "--ckpts"],
            "normals (dataset: test)",
        ),
    ],
    ids=[
        *("pre-training", "training", "test", "linear SVM", "bank", "prototypes"),
        *("autoencoding", "test of an autoencoder", "plug-in"),
    ],
)
def test_a_run_says_it_in_one_line(here, capfd, config, flags, named):
    if "--ckpts" in flags:
        if config.startswith("point-bert"):
            checkpoint = here / "weights.pth"
            torch.save({"base_model": build_model(CONFIGS_HERE[config]["model"]).state_dict()}, checkpoint)
        elif config.startswith("fine"):
            checkpoint = here / "experiments/fine-tuning/modelnet/made/ckpt-last.pth"
            if not checkpoint.exists():
                assert run(config, "--scratch_model", "--exp_name", "made") == 0
        else:
            write_config(here, config, {**CONFIGS[config], "max_epoch": 0})
            checkpoint = here / "experiments/pre-training/m2ae/made/ckpt-last.pth"
            assert run(config, "--exp_name", "made") == 0
        flags = [*flags, checkpoint]
    capfd.readouterr()
    assert run(config, *flags, "--exp_name", "said") == 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "generated shapes stand in" in line]
    assert named in line


def test_it_costs_no_more_than_some_small_files(monkeypatch):
    """What it looks at on the disk, counted: not a file is opened, however many clouds there are."""
    looked = []
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: bool(looked.append(path)))
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("a file is opened"))
    origin_of(entry_of("ShapeNet", subset="train"), {"train": 41952}, ["02691156"])
    assert len(looked) <= 6
