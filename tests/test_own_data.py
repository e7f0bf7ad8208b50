"""Data of one's own from end to end: one config for every mode, runs without classes, the report before training."""

import copy
import inspect
import logging
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from datasets.folder import Folder
from datasets.holdout import Part
from datasets.own.formats import FORMATS
from datasets.synthetic import write_meshes
from tests.playground import (
    AUTOENCODER,
    CONFIGS,
    ENCODER,
    REPOSITORY,
    TRAINING,
    changed,
    refuse,
    results_of,
    run,
    write_config,
)
from tests.test_folder import cloud, write
from tools.training.own_data import report
from utils.config import load_config
from utils.parser import parse_args

CLASSES = ["chair", "mug", "table"]
OWN = {
    "data": {"NAME": "Folder", "ROOT": "data/meshes", "N_POINTS": 128, "others": {"npoints": 96}},
    "pre_train": {**TRAINING, "max_epoch": 0, "model": {"NAME": "Point_M2AE", **AUTOENCODER}},
    "fine_tune": {
        **TRAINING,
        "npoints": 64,
        "grad_norm_clip": 10,
        "model": {"NAME": "I2P_MAE_ModelNet40", **ENCODER, "num_classes": None},
    },
}
UNLABELLED = changed(OWN, "data.ROOT", "data/plain")


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with generated meshes, with clouds without classes, and a config for each."""
    folder = tmp_path_factory.mktemp("playground")
    write_meshes(folder / "data", classes=CLASSES, train=4, test=2)
    write(folder / "data/plain", *(f"{i}.npy" for i in range(12)), points=128)
    write_config(folder, "mine/shapes", OWN)
    write_config(folder, "mine/plain", UNLABELLED)
    return folder


@pytest.fixture(scope="module")
def pretrained(playground):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(playground)
        assert run("mine/shapes", "--exp_name", "pre-train") == 0
    return playground / "experiments/mine/shapes/pre-train"


# ---- files that cannot be read ----


@pytest.mark.parametrize(("flags", "message"), [((), "SKIP_BAD: 1"), (("--skip_bad", 0), "SKIP_BAD: 1")])
def test_a_file_that_cannot_be_read_stops_a_run(here, capsys, flags, message):
    spoil(here)
    line = refuse(capsys, "mine/spoilt", *flags)
    assert "1 of 13 files of Folder spoilt cannot be read, first data/spoilt/bad.ply: " in line
    assert line.endswith(message)


def test_skip_bad_goes_on_and_names_what_it_left_out(here, caplog):
    spoil(here)
    assert run("mine/spoilt", "--skip_bad", 1, "--exp_name", "skipped") == 0
    assert "Folder spoilt: 1 files are left out: data/spoilt/bad.ply: " in caplog.text
    assert results_of("mine/spoilt", "skipped")["pre-training"]["about"]["data"]["train"]["clouds"] == 12
    assert "SKIP_BAD: 1" in Path("experiments/mine/spoilt/skipped/config.yaml").read_text()


def test_skip_bad_is_for_data_of_ones_own(here, capsys):
    write_config(here, "pre-training/i2p", CONFIGS["pre-training/i2p"])
    assert "--skip_bad leaves out files of your own data" in refuse(capsys, "pre-training/i2p", "--skip_bad", 1)


def spoil(folder):
    write(folder / "data/spoilt", *(f"{i}.npy" for i in range(12)), points=128)
    (folder / "data/spoilt/bad.ply").write_text("ply\nformat ascii 1.0\nend_header\n")
    write_config(folder, "mine/spoilt", changed(OWN, "data.ROOT", "data/spoilt"))


# ---- one config ----


def test_meshes_of_every_kind_are_written(here):
    files = sorted(path.relative_to("data/meshes").as_posix() for path in Path("data/meshes").rglob("mug*.*"))
    assert files == [
        *("test/mug/mug_0000.ply", "test/mug/mug_0001.obj"),
        *("train/mug/mug_0000.ply", "train/mug/mug_0001.obj", "train/mug/mug_0002.off", "train/mug/mug_0003.ply"),
    ]


def test_pretraining(here, pretrained):
    results = results_of("mine/shapes", "pre-train")["pre-training"]
    assert results["protocol"] == "linear SVM (C = 0.01) on Folder meshes, test split"
    assert 0 <= results["best_accuracy"] <= 100
    data = results["about"]["data"]
    assert {split: (of["name"], of["clouds"]) for split, of in data.items()} == {
        "train": ("Folder meshes", 12),
        "svm_train": ("Folder meshes", 12),
        "svm_test": ("Folder meshes", 6),
    }
    log = next(pretrained.glob("*.log")).read_text()
    assert "dataset.train is Folder meshes, 12 clouds of 3 classes: chair 4, mug 4, table 4; " in log
    assert log.count("reading 18 files of") == 1


def test_linear_svm(here, pretrained, capsys):
    flags = ("--exp_name", "svm", "--ckpts", pretrained / "ckpt-best.pth")
    assert run("mine/shapes", "--test_svm", "folder", *flags) == 0
    results = results_of("mine/shapes", "svm")["linear SVM"]
    assert results["protocol"] == "linear SVM on Folder meshes, test split"
    assert results["accuracy"] == results_of("mine/shapes", "pre-train")["pre-training"]["best_accuracy"]
    assert "probes on Folder meshes, test split; weights chosen by: linear SVM" in capsys.readouterr().out
    line = refuse(capsys, "mine/shapes", "--test_svm", "scan", *flags[2:])
    assert "needs ScanObjectNN, but dataset.svm_train is Folder; use --test_svm folder" in line


def test_finetuning_and_testing(here, pretrained):
    flags = ("--finetune_model", "--ckpts", pretrained / "ckpt-last.pth")
    assert run("mine/shapes", *flags, "--exp_name", "fine-tune") == 0
    results = results_of("mine/shapes", "fine-tune")["fine-tuning"]
    assert results["protocol"] == "accuracy on Folder meshes, test split"
    folder = Path("experiments/mine/shapes/fine-tune")
    assert load_config(folder / "config.yaml").model.num_classes == 3  # as the data has
    assert run("mine/shapes", "--test", "--ckpts", folder / "ckpt-best.pth", "--exp_name", "test") == 0
    tested = results_of("mine/shapes", "test")["test"]
    assert tested["protocol"] == "Folder meshes, test split, 64 points"
    assert tested["accuracy"] == results["best_accuracy"]
    assert run("mine/shapes", *flags, "--exp_name", "fine-tune", "--resume") == 0  # and is finished


def test_the_number_of_classes_of_a_config_has_precedence(here, capsys):
    write_config(here, "mine/few", changed(OWN, "fine_tune.model.num_classes", 2))
    line = refuse(capsys, "mine/few", "--scratch_model")
    assert "Folder meshes has label 2, but the model has 2 classes" in line


def test_the_single_scale_classifier_gets_its_classes_too(here):
    model = {"NAME": "PointTransformer", "cls_dim": None, "trans_dim": 24, "encoder_dims": 24, "depth": 1}
    model |= {"num_heads": 3, "num_group": 8, "group_size": 8}
    write_config(here, "mine/single", changed(OWN, "fine_tune.model", model))
    assert run("mine/single", "--scratch_model", "--select_on", "test", "--dry_run") == 0


# ---- without classes ----


def test_without_classes_pretraining_has_no_probe(here, capsys):
    assert run("mine/plain") == 0
    output = capsys.readouterr()
    reason = "no linear SVM, since Folder plain has no classes; nothing chooses a checkpoint"
    assert f"{reason}: there will be ckpt-last.pth, of the latest epoch, and no ckpt-best.pth" in output.err
    folder = Path("experiments/mine/plain/default")
    assert sorted(path.name for path in folder.glob("*.pth")) == ["ckpt-last.pth"]
    results = results_of("mine/plain")["pre-training"]
    assert {"protocol", "final_loss", "final_epoch", "seconds", "history", "about"} == set(results)
    assert (results["protocol"], results["final_epoch"]) == (reason, 0)
    assert results["final_loss"] == results["history"][-1]["loss"] > 0
    assert output.out.splitlines()[-1].split() == ["final", "(epoch", "0)", f"{results['final_loss']:.5g}"]
    assert torch.load(folder / "ckpt-last.pth", weights_only=True)["chosen_by"] == "nothing, the latest of its run"
    assert run("mine/plain", "--resume") == 0
    assert "is finished" in capsys.readouterr().err


def test_one_class_or_no_test_split_are_too_little_for_a_probe(here, capsys):
    for root, paths, reason in (
        ("one", [f"mug/{i}.npy" for i in range(8)], "Folder one has one class only"),
        ("half", [f"train/{name}/{i}.npy" for name in CLASSES for i in range(3)], "Folder half has no test split"),
    ):
        write(here / "data" / root, *paths, points=128)
        write_config(here, f"mine/{root}", changed(OWN, "data.ROOT", f"data/{root}"))
        assert run(f"mine/{root}", "--dry_run") == 0
        assert f"no linear SVM, since {reason}; nothing chooses a checkpoint" in capsys.readouterr().err


def test_a_dry_run_without_a_probe_counts_no_evaluation(here, capsys):
    assert run("mine/plain", "--dry_run") == 0
    assert "hours for 1 epochs and 0 evaluations" in capsys.readouterr().out


def test_other_data_without_svm_splits_has_no_probe(here, capsys):
    entry = {**OWN["data"], "others": {"npoints": 96, "subset": "train"}}
    config = {**OWN["pre_train"], "dataset": {"train": entry}}
    write_config(here, "mine/alone", config)
    assert run("mine/alone") == 0
    assert "no linear SVM, since the config has no dataset.svm_train and dataset.svm_test" in capsys.readouterr().err
    config["dataset"]["svm_test"] = config["dataset"]["train"]
    write_config(here, "mine/half", config)
    assert "has dataset.svm_test alone: give both svm_train and svm_test" in refuse(capsys, "mine/half")


@pytest.mark.parametrize(
    ("flags", "what"),
    [(("--test_svm", "folder"), "linear SVM"), (("--finetune_model",), "a classifier"), (("--test",), "a classifier")],
)
def test_what_needs_classes_is_refused_without_them(here, capsys, pretrained, flags, what):
    message = f"Folder plain has no classes, which {what} needs: put its files into a sub-folder for each class"
    assert message in refuse(capsys, "mine/plain", *flags, "--ckpts", pretrained / "ckpt-last.pth")


def test_seeds_without_an_accuracy_are_refused(here, capsys):
    line = refuse(capsys, "mine/plain", "--seeds", 0, 1)
    assert "--seeds sums up accuracies, and Folder plain has no classes; pre-train once per --seed" in line


def test_a_classifier_without_classes_in_the_config_is_refused_on_unlabelled_data(here, capsys):
    write_config(here, "mine/forty", changed(UNLABELLED, "fine_tune.model.num_classes", 40))
    assert "has no clouds of the test split, and without classes" in refuse(capsys, "mine/forty", "--scratch_model")


# ---- the config file ----


def test_sections_and_data(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(OWN) | {"total_bs": 3, "svm": {"C": 2}}))
    pre_train, fine_tune = load_config(path), load_config(path, "fine_tune")
    assert (pre_train.model.NAME, fine_tune.model.NAME) == ("Point_M2AE", "I2P_MAE_ModelNet40")
    assert pre_train.total_bs == 6  # of the section; beside it stands what both share
    assert (pre_train.svm.C, fine_tune.svm.C, fine_tune.svm.every) == (2, 2, 1)
    expected = {"train": "train", "test": "test", "svm_train": "train", "svm_test": "test"}
    assert {name: entry.others.subset for name, entry in pre_train.dataset.items()} == expected
    assert {(entry.ROOT, entry.others.npoints) for entry in fine_tune.dataset.values()} == {("data/meshes", 96)}


def test_data_takes_the_place_of_what_a_base_reads(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("_base_: cfgs/point-mae/pre-train.yaml\ndata: {NAME: Folder, ROOT: mine, others: {npoints: 9}}\n")
    expected = {"NAME": "Folder", "ROOT": "mine", "others": {"npoints": 9, "subset": "train"}}
    assert load_config(path).dataset.train == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pre_train: {}\n", "has no section 'fine_tune', which this mode needs, but pre_train"),
        ("fine_tune: 3\n", "has no section 'fine_tune', which this mode needs, but fine_tune"),
        ("data: mine\n", "data = 'mine' in .* must be a mapping of keys to values"),
        ("data: {ROOT: mine}\n", "missing key 'data.NAME'"),
    ],
)
def test_sections_that_are_refused(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(path, "fine_tune")


SHIPPED = [*sorted((REPOSITORY / "cfgs/own-data").glob("*.yaml")), REPOSITORY / "cfgs/demo/own-data.yaml"]


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_a_shipped_config_is_one_model_in_both_sections(path):
    """What is pre-trained is what is fine-tuned; the classes are those of the data."""
    pre_train, fine_tune = load_config(path), load_config(path, "fine_tune")
    shape = ("num_groups", "encoder_dims", "encoder_depths", "num_heads", "num_group")
    first = {**pre_train.model, **pre_train.model.get("transformer_config", {})}
    shared = [key for key in shape if key in first and key in fine_tune.model]
    assert shared
    assert {key: first[key] for key in shared} == {key: fine_tune.model[key] for key in shared}
    assert fine_tune.model.get("num_classes", fine_tune.model.get("cls_dim")) is None
    assert {entry.NAME for config in (pre_train, fine_tune) for entry in config.dataset.values()} == {"Folder"}
    assert len([line for line in path.read_text().splitlines() if not line.startswith("#")]) <= 11


def test_the_document_says_what_is_there(tmp_path, monkeypatch):
    text = (REPOSITORY / "docs/OWN_DATA.md").read_text()
    shipped = (REPOSITORY / "cfgs/own-data/i2p-mae.yaml").read_text()
    assert re.search(r"```\n(data:.*?)```", text, re.DOTALL)[1] == shipped[shipped.index("data:") :]
    documented = re.findall(r"^\| `([A-Za-z][A-Za-z_.]*)` \|[^|]*\| (?:`(\w+)` |(\d+) |)\|$", text, re.MULTILINE)
    keys = {key.removeprefix("others.").lower(): quoted or number for key, quoted, number in documented}
    parameters = inspect.signature(Folder).parameters
    defaults = {name: "" if p.default is p.empty else str(p.default).lower() for name, p in parameters.items()}
    assert keys == {name: value for name, value in defaults.items() if name not in ("subset", "seed")}
    assert set(re.findall(r"`(\.[a-z]+)`", text)) >= set(FORMATS)
    commands = re.findall(r"^python main\.py (.+)$", text, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        for checkpoint in re.findall(r"experiments/\S+\.pth", command):
            (tmp_path / checkpoint).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / checkpoint).touch()
        monkeypatch.chdir(tmp_path)
        assert (REPOSITORY / parse_args(shlex.split(command)).config).is_file()


def test_a_config_of_another_kind_is_no_pre_training(here, capsys):
    write_config(here, "fine-tuning/modelnet", CONFIGS["fine-tuning/modelnet"])
    line = refuse(capsys, "fine-tuning/modelnet")
    assert "model.NAME is I2P_MAE_ModelNet40, but pre-training needs a pre-training model" in line


# ---- the report ----

MODEL = SimpleNamespace(num_groups=(16,), group_size=8)


def reported(caplog, model=MODEL, config=None, **datasets):
    """The lines of information and the warnings."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        report(config or {}, model, **datasets)
    lines = [(record.levelno, record.getMessage()) for record in caplog.records]
    return [[text for level, text in lines if level == wanted] for wanted in (logging.INFO, logging.WARNING)]


def test_nothing_is_warned_of_what_suits(tmp_path, caplog):
    root = write(tmp_path / "mine", *(f"{name}/{i}.npy" for name in ("a", "b") for i in range(5)), points=200)
    (root / "a/wood.mtl").touch()
    train, test = Folder(root, "train", 100, n_points=128), Folder(root, "test", 100, n_points=128)
    facts, warnings = reported(caplog, train=train, test=test, svm_train=Folder(root, "train", 100, n_points=128))
    assert warnings == []
    sides = sorted(float(max(np.ptp(cloud(i, 200), axis=0))) for i in range(10))
    assert facts[0].startswith(
        "dataset.train is Folder mine, 8 clouds of 2 classes: a 4, b 4; points of a file 200, 200, 200, longest side "
    )
    low, high = (float(text) for text in facts[0].split("longest side ")[1].split(" (")[0].split(", ")[::2])
    assert sides[0] * 0.7 < low < high < sides[-1] * 1.01
    assert facts[1] == "dataset.train: of 8 clouds 128 points are kept (N_POINTS)"
    assert facts[2] == (
        "Folder mine: there is no split on the disk; a fifth of each class, drawn by SPLIT_SEED 0, is the test split"
    )
    assert facts[3] == "Folder mine: files left alone: .mtl 1"
    assert len(facts) == len(set(facts)) == 7
    assert [line[:24] for line in facts[4:]].count("dataset.test is Folder m") == 1
    assert not [line for line in facts if "svm_train" in line]
    assert facts[-1].startswith(
        "dataset.train: the model sees 100 points of a cloud in 16 groups of 8, so that a point is in 1.3 groups and a "
        "group has 8 % of the points; groups reach 0."
    )
    assert re.search(r" from their centres \(median\) and together hold [5-9]\d % of the points$", facts[-1])


def test_copies_are_found_within_and_between_splits(tmp_path, caplog):
    root = write(tmp_path / "mine", "train/a/1.npy", "train/a/2.npy", "train/b/3.npy", "test/a/4.npy", points=100)
    for copied in ("train/b/3.npy", "test/a/4.npy"):
        (root / copied).write_bytes((root / "train/a/1.npy").read_bytes())
    train, test = Folder(root, "train", 100), Folder(root, "test", 100)
    assert reported(caplog, train=train, test=test)[1] == [
        "dataset.train: 1 files are copies of others, first train/b/3.npy of train/a/1.npy; delete them",
        "dataset.test: 1 files are copies of what dataset.train has, first test/a/4.npy of train/a/1.npy: figures on "
        "them are too good; delete them from one of the two",
    ]
    (line,) = reported(caplog, train=Part(train, np.array([1, 2])), test=test)[1]
    assert "first test/a/4.npy of train/b/3.npy" in line


@pytest.mark.parametrize(
    ("model", "points", "npoints", "expected"),
    [
        (
            MODEL, 50, 100,
            "dataset.train: 4 of 4 clouds have fewer than the 100 points that the model sees, the smallest 50: points "
            "repeat, and of 8 in a group about 4 differ; lower npoints to 50, or leave small clouds out",
        ),
        (
            SimpleNamespace(num_groups=(8, 4), group_sizes=(8, 4)), 200, 100,
            "dataset.train: 8 groups of 8 leave some of the 100 points out; raise num_groups to at least 13 or the "
            "group size to 13, or lower npoints to 64",
        ),
        (
            SimpleNamespace(num_groups=(16,), group_size=20), 200, 100,
            "dataset.train: a group of 20 is 20 % of the 100 points: details are lost; raise npoints to 200, or lower "
            "the group size to 10",
        ),
    ],
    ids=["few points", "holes", "large groups"],
)  # fmt: skip
def test_groups_that_do_not_suit_are_said(tmp_path, caplog, model, points, npoints, expected):
    root = write(tmp_path / "mine", *(f"{i}.npy" for i in range(4)), points=points)
    assert reported(caplog, model, train=Folder(root, "train", npoints))[1] == [expected]


def test_what_the_model_sees_is_what_npoints_of_the_config_leaves(tmp_path, caplog):
    root = write(tmp_path / "mine", "1.npy", points=200)
    facts, _ = reported(caplog, config={"npoints": 80}, train=Folder(root, "train", 100))
    assert "the model sees 80 points" in facts[-1]


def test_uneven_density_is_said(tmp_path, caplog):
    """Four of five points in a millionth of the room."""
    root = tmp_path / "mine"
    root.mkdir()
    rng = np.random.default_rng(0)
    np.save(root / "1.npy", np.concatenate([rng.uniform(0.99, 1, (800, 3)), rng.uniform(-1, 1, (200, 3))]))
    model = SimpleNamespace(num_groups=(100,), group_size=16)
    (line,) = reported(caplog, model, train=Folder(root, "train", 1000))[1]
    held = int(
        re.match(r"dataset.train: only (\d+) % of the points are in a group, since many lie much denser", line)[1]
    )
    assert 20 <= held <= 40
    assert line.endswith("; thin the clouds evenly, as on a grid of cells")
