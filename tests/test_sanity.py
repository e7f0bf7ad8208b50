"""What is set up wrongly and yet runs, and what is not."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from datasets import build_dataset
from datasets.holdout import Part
from datasets.packed import read_list
from datasets.synthetic import write_modelnet, write_shapenet, write_shapenetpart
from datasets.untrusted import read_lines
from tests.playground import CLASSES, CONFIGS, REPOSITORY, changed, make_playground, run, write_config
from tools.training import trainer
from tools.training.sanity import warn
from utils.config import load_config

CLASSIFIER = SimpleNamespace(num_classes=2, num_groups=(8, 4))
ENCODER = SimpleNamespace(num_groups=(8, 4))
SCHEDULE = {"scheduler": {"kwargs": {"epochs": 3}}, "max_epoch": 3}


class Clouds(Dataset):
    """Clouds of two classes, scaled."""

    def __init__(self, radius=1.0, points=16, labels=(0, 1) * 6, class_names=("chair", "mug")):
        self.labels, self.class_names = np.array(labels), list(class_names)
        self.radii, self.points = np.full(len(labels), radius), points

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        points = torch.randn(self.points, 3, generator=torch.Generator().manual_seed(index))
        return self.radii[index] * points / points.norm(dim=1).max(), int(self.labels[index])


class ModelNetFewShot(Clouds):
    """Goes by the name of the few-shot reader."""


def warnings_of(caplog, model, config=None, **datasets):
    caplog.clear()
    warn({**SCHEDULE, **(config or {})}, model, **datasets)
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_nothing_is_said_of_what_is_right(caplog):
    assert warnings_of(caplog, CLASSIFIER, {"npoints": 8}, train=Clouds(), test=Clouds()) == []
    assert warnings_of(caplog, ENCODER, train=Clouds(), svm_train=Clouds(), svm_test=Clouds()) == []
    assert warnings_of(caplog, ENCODER, train=Clouds(radius=9.5), svm_train=Clouds(radius=0.11)) == []


@pytest.mark.parametrize(
    ("model", "config", "datasets", "expected"),
    [
        (
            SimpleNamespace(num_classes=5, num_groups=(8,)), {}, {},
            "the model has 5 classes, but Clouds (dataset.train) has 2 classes: the other outputs are never right; set "
            "model.num_classes (model.cls_dim of a PointTransformer) to 2",
        ),
        (
            ENCODER, {"max_epoch": 9}, {},
            "scheduler.kwargs.epochs is 3, but max_epoch 9: from epoch 3 on the learning rate is the lowest; set "
            "scheduler.kwargs.epochs to at least 9",
        ),
        (
            CLASSIFIER, {"npoints": 7}, {},
            "npoints is 7, fewer than the 8 groups that the model makes: centres repeat; raise it, or lower the groups",
        ),
        (
            ENCODER, {}, {"svm_test": Clouds(points=7)},
            "clouds of dataset.svm_test have 7 points, fewer than the 8 groups that the model makes: centres repeat; "
            "let the data set hand out more, or lower the groups",
        ),
        (
            CLASSIFIER, {}, {"test": Clouds(labels=[1, 1, 1])},
            "dataset.test has clouds of one class only, mug: an accuracy on it, or learnt from it, says nothing; check "
            "its list or file",
        ),
        (
            ENCODER, {}, {"svm_train": Clouds(labels=[0, 0])},
            "dataset.svm_train has clouds of one class only, chair: an accuracy on it, or learnt from it, says "
            "nothing; check its list or file",
        ),
        (
            ENCODER, {}, {"train": Clouds(radius=1000.0)},
            "dataset.train: the farthest point of cloud 0 is 1e+03 from the origin, and 5 of the 5 clouds looked at "
            "are so far from the unit sphere, for which augmentation and released weights are made; scale them",
        ),
        (
            CLASSIFIER, {}, {"test": Clouds(radius=0.01)},
            "dataset.test: the farthest point of cloud 0 is 0.01 from the origin, and 5 of the 5 clouds looked at "
            "are so far from the unit sphere, for which augmentation and released weights are made; scale them",
        ),
        (
            ENCODER, {}, {"train": Clouds(radius=10.5)},
            "dataset.train: the farthest point of cloud 0 is 10.5 from the origin, and 5 of the 5 clouds looked at "
            "are so far from the unit sphere, for which augmentation and released weights are made; scale them",
        ),
    ],
    ids=["head", "schedule", "npoints", "points", "class", "class of the SVM", "far", "near", "just too far"],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(caplog, model, config, datasets, expected):
    assert warnings_of(caplog, model, config, **{"train": Clouds(), **datasets}) == [expected]


def test_a_cloud_at_the_origin_is_found_among_those_looked_at(caplog):
    data = Clouds()
    data.radii[-1] = 0
    assert warnings_of(caplog, ENCODER, train=data) == [
        "dataset.train: all points of cloud 11 are at the origin, as in 1 of the 5 clouds looked at; replace the "
        "damaged files"
    ]


def test_a_part_is_looked_at_like_a_whole(caplog):
    data = Clouds()
    data.radii[4] = 50
    (line,) = warnings_of(caplog, CLASSIFIER, train=Part(data, np.array([3, 4])), test=Clouds())
    assert line.startswith("dataset.train: the farthest point of cloud 1 is 50 from the origin, and 1 of the 2 clouds")


def test_pretraining_learns_no_classes_and_few_shot_has_a_head_of_forty(caplog):
    assert warnings_of(caplog, ENCODER, train=Clouds(labels=[0, 0])) == []
    forty = SimpleNamespace(num_classes=40, num_groups=(8,))
    assert warnings_of(caplog, forty, train=ModelNetFewShot(), test=ModelNetFewShot()) == []


def test_the_published_configs_have_no_schedule_that_ends_before_the_run(caplog):
    paths = [path for path in REPOSITORY.glob("cfgs/*/*.yaml") if "\nmax_epoch:" in path.read_text()]
    assert len(paths) > 10
    for path in paths:
        config = {**load_config(path), "npoints": 8}
        assert warnings_of(caplog, ENCODER, config, train=Clouds()) == [], path


# ---- runs ----


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with generated data sets and small configs, whose schedules are shorter than their runs."""
    names = ("fine-tuning/modelnet", "pre-training/m2ae", "part-segmentation/small")
    configs = {name: {**CONFIGS[name], "max_epoch": 9} for name in names}
    folder = make_playground(tmp_path_factory.mktemp("playground"), configs)
    write_shapenetpart(folder / "data", classes=["mug", "knife"], train=6, test=1, num_points=96)
    return folder


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        ("fine-tuning/modelnet", ["--scratch_model"]),
        ("pre-training/m2ae", []),
        ("part-segmentation/small", ["--scratch_model"]),
    ],
)
def test_a_run_says_it_before_it_begins(here, config, flags, capfd, monkeypatch):
    said, train = [], trainer.train_one_epoch

    def watched(*args, **settings):
        said.append(capfd.readouterr().err)
        return train(*args, **settings)

    monkeypatch.setattr(trainer, "train_one_epoch", watched)
    assert run(config, *flags, "--dry_run") == 0
    assert "WARNING scheduler.kwargs.epochs is 4, but max_epoch 9" in said[0]
    write_config(here, "right/config", {**CONFIGS[config], "max_epoch": 0})
    assert run("right/config", *flags, "--dry_run") == 0
    warnings = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert [line for line in warnings if "untrained" not in line and "generated shapes" not in line] == []


def test_every_split_of_a_run_is_looked_at(here, capsys):
    config = changed(CONFIGS["pre-training/m2ae"], "dataset.svm_test.others.num_points", 31)
    write_config(here, "pre-training/few", changed(config, "dataset.svm_train.others.num_points", 30))
    assert run("pre-training/few", "--dry_run") == 0
    text = capsys.readouterr().err
    assert "clouds of dataset.svm_train have 30 points, fewer than the 32 groups" in text
    assert "clouds of dataset.svm_test have 31 points, fewer than the 32 groups" in text


# ---- lists ----


def said_of(caplog, build):
    caplog.clear()
    build()
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_what_a_list_names_twice_is_said(tmp_path, caplog):
    shapenet = write_shapenet(tmp_path, classes=CLASSES, train=2, test=1, num_points=8)
    listing = next(Path(shapenet).parent.rglob("train.txt"))
    assert said_of(caplog, lambda: read_list(listing)) == []
    first, *_, last = listing.read_text().split()
    with open(listing, "a") as file:
        file.write(f"{last}\n{first}\n{last}\n")
    expected = f"{listing} lists 2 of its 9 entries more than once, first {first}; delete the repetitions"
    assert said_of(caplog, lambda: read_list(listing)) == [expected]


def test_what_the_other_lists_name_twice_is_said(tmp_path, caplog):
    modelnet = write_modelnet(tmp_path, classes=CLASSES, train=2, test=1, num_points=8, text=True)
    parts = write_shapenetpart(tmp_path, classes=["mug"], train=3, test=1, num_points=8)
    names = read_lines(modelnet / "modelnet40_train.txt", "DATA_PATH")
    (modelnet / "modelnet40_train.txt").write_text("\n".join([*names, names[0]]))
    path = parts / "train_test_split/shuffled_train_file_list.json"
    shapes = json.loads(path.read_text())
    path.write_text(json.dumps([*shapes, shapes[-1]]))
    entry = {"DATA_PATH": str(modelnet), "N_POINTS": 8, "NUM_CATEGORY": 3}
    (line,) = said_of(caplog, lambda: build_dataset({"NAME": "ModelNet", **entry, "others": {"subset": "train"}}))
    assert f"modelnet40_train.txt lists 1 of its 7 entries more than once, first {names[0]}" in line
    others = {"subset": "train", "npoints": 8}
    (line,) = said_of(caplog, lambda: build_dataset({"NAME": "ShapeNetPart", "ROOT": str(parts), "others": others}))
    assert f"lists 1 of its {len(shapes) + 1} entries more than once, first {shapes[-1]}" in line
