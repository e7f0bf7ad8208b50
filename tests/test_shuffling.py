"""The order of a cloud's points: in training another one every epoch, the file's wherever something is measured."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets import build_dataset, fingerprint
from datasets.draws import Shuffled
from datasets.holdout import Part, hold_out
from datasets.synthetic import (
    write_fewshot,
    write_modelnet,
    write_modelnet_svm,
    write_scanobjectnn,
    write_shapenet,
    write_shapenetpart,
)
from tests.playground import CLASSES, MODELNET, PART_DATA, SCAN_DATA, SHAPENET, SVM_DATA
from tests.test_engine import arguments
from tools.training.builder import TrainingLoader, evaluation_loader, selection_loader, training_loader

FEW_SHOT = {**MODELNET, "NAME": "ModelNetFewShot", "DATA_PATH": "data/ModelNetFewshot"}
TASK = {"way": 3, "shot": 10, "fold": 0}
DATA = {  # data set → its entries in a config; all but ScanObjectNN with normals
    "ModelNet": {
        subset: {**MODELNET, "USE_NORMALS": True, "others": {"subset": subset}} for subset in ("train", "test")
    },
    "ModelNetFewShot": {
        subset: {**FEW_SHOT, "USE_NORMALS": True, "others": {"subset": subset, **TASK}} for subset in ("train", "test")
    },
    "ScanObjectNN": {subset: SCAN_DATA[f"svm_{subset}"] for subset in ("train", "test")},
}
PUBLISHED = pytest.mark.parametrize("name", DATA)


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with ten clouds a class to train on, of each data set."""
    folder = tmp_path_factory.mktemp("shuffling")
    data = folder / "data"
    for write in (write_modelnet, write_modelnet_svm, write_shapenet, write_scanobjectnn):
        write(data, classes=CLASSES, train=10, test=3, num_points=128)
    write_shapenetpart(data, classes=["mug", "knife"], train=2, test=1, num_points=96)
    write_fewshot(data, classes=CLASSES, test=3, num_points=128, ways=[3], shots=[10], folds=1)
    return folder


def loader_of(name: str, batch_size: int = 4, **changes: object) -> TrainingLoader:
    return training_loader({"dataset": DATA[name], "total_bs": batch_size}, arguments(**changes))


def clouds_of(dataset: Dataset) -> list[Tensor]:
    return [points for points, *_ in dataset]


def rows_of(points: Tensor) -> list[list[float]]:
    """The points, each with its other channels, whatever their order."""
    return sorted(points.tolist())


def same(clouds: list[Tensor], others: list[Tensor]) -> list[bool]:
    return [torch.equal(*pair) for pair in zip(clouds, others, strict=True)]


# ---- what is shuffled ----


@PUBLISHED
@pytest.mark.parametrize("select_on", ["test", "val"])
def test_training_clouds_are_shuffled_anew_every_epoch(here, name, select_on):
    filed = build_dataset(DATA[name]["train"])
    kept = hold_out(filed.labels, 0)[0] if select_on == "val" else range(len(filed))
    dataset = loader_of(name, select_on=select_on).dataset
    files = [filed[index][0] for index in kept]
    epochs = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        epochs.append(clouds_of(dataset))
        assert not any(same(epochs[-1], files))
        assert [rows_of(points) for points in epochs[-1]] == [rows_of(points) for points in files]
        assert [label for _, label in dataset] == [filed[index][1] for index in kept]
    assert not any(same(*epochs))


@PUBLISHED
@pytest.mark.parametrize("select_on", ["test", "val"])
def test_what_chooses_and_what_tests_keeps_the_order_of_the_file(here, name, select_on):
    config, args = {"dataset": DATA[name], "total_bs": 4}, arguments(select_on=select_on)
    train = training_loader(config, args)
    chooser, test = selection_loader(config, args, train)[0], evaluation_loader(config, "test", args)
    train.begin(3, seed=0)
    filed = clouds_of(build_dataset(DATA[name]["test"]))
    assert all(same(clouds_of(test.dataset), filed))
    if select_on == "val":
        whole = build_dataset(DATA[name]["train"])
        filed = [whole[index][0] for index in hold_out(whole.labels, 0)[1]]
    assert all(same(clouds_of(chooser.dataset), filed))


@pytest.mark.parametrize("entries", [SVM_DATA, SCAN_DATA])
def test_the_linear_svm_sees_the_order_of_the_file(here, entries):
    for name, entry in entries.items():
        dataset = evaluation_loader({"dataset": entries}, name, arguments()).dataset
        assert all(same(clouds_of(dataset), clouds_of(build_dataset(entry))))


@pytest.mark.parametrize("entry", [SHAPENET, PART_DATA["train"]], ids=lambda entry: entry["NAME"])
def test_a_data_set_that_draws_its_points_is_left_to_itself(here, entry):
    dataset = training_loader({"dataset": {"train": entry}, "total_bs": 4}, arguments()).dataset
    assert type(dataset) is type(build_dataset(entry))


# ---- by (seed, epoch, index) alone ----


class Numbered(Dataset):
    """Equal clouds, whose points are their numbers."""

    labels, class_names = [0, 0], ["a"]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.arange(50.0)[:, None].expand(50, 3), range(2)[index]


def test_an_order_follows_from_seed_epoch_and_item():
    dataset, twin, other = Shuffled(Numbered(), 5), Shuffled(Numbered(), 5), Shuffled(Numbered(), 6)
    first, second = clouds_of(dataset)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other[0][0])
    assert torch.equal(second, twin[1][0])  # whatever was read before
    assert torch.equal(second, dataset[-1][0])
    twin.set_epoch(1)
    assert not torch.equal(first, twin[0][0])
    assert torch.equal(first, dataset[0][0])  # the twin has epochs of its own
    twin.set_epoch(0)
    assert torch.equal(first, twin[0][0])


def test_the_seed_of_the_run_decides(here):
    orders = [loader_of("ModelNet", seed=seed).dataset[0][0] for seed in (0, 0, 1)]
    assert same(orders[1:], [orders[0]] * 2) == [True, False]


@pytest.mark.parametrize("select_on", ["test", "val"])
def test_a_resumed_epoch_has_the_same_clouds_whoever_reads(here, select_on):
    """Persistent workers that have read another epoch, and new ones that begin in the midst of this one."""
    loader = partial(loader_of, "ModelNet", select_on=select_on, seed=3)
    running, resumed, alone = loader(num_workers=2), loader(num_workers=1), loader(num_workers=0)
    running.begin(0, seed=1)
    earlier = clouds_of(running)
    running.begin(1, seed=2)
    whole = clouds_of(running)
    assert not any(same(earlier, whole))
    for other in (resumed, alone):
        other.begin(1, seed=2, start=2)
        assert all(same(clouds_of(other), whole[2:]))
    assert len(whole) == (7 if select_on == "test" else 6)


# ---- fingerprints ----


@PUBLISHED
def test_a_fingerprint_is_that_of_the_clouds_in_the_order_of_the_file(here, name):
    dataset = loader_of(name).dataset
    filed = fingerprint(build_dataset(DATA[name]["train"]))
    assert (filed["name"], filed["clouds"]) == (name, 30)
    dataset.set_epoch(1)
    assert fingerprint(dataset) == filed


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_fingerprint_tells_other_clouds_in_each_of_its_places(changed):
    class Few(Numbered):
        labels, moved = [0, 0, 0], None

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.full((4, 3), float(index == self.moved)), range(3)[index]

    few, moved = Few(), Few()
    moved.moved = changed
    for wrap in (lambda dataset: dataset, lambda dataset: Shuffled(dataset, 0)):
        assert fingerprint(wrap(few))["sha256"] != fingerprint(wrap(moved))["sha256"]


def test_the_fingerprint_of_a_part_tells_its_clouds(here):
    entry = DATA["ModelNet"]["train"]
    whole, other = build_dataset(entry), build_dataset(entry)
    other.clouds = [cloud[::-1].copy() for cloud in other.clouds]
    kept, _ = hold_out(whole.labels, 0)
    part = fingerprint(Shuffled(Part(whole, kept), 0))
    assert part != fingerprint(Shuffled(Part(other, kept), 0))
    assert part == fingerprint(Part(whole, kept))
    assert (part["name"], part["clouds"]) == ("ModelNet", 27)


@pytest.mark.parametrize("entry", [SHAPENET, PART_DATA["train"]], ids=lambda entry: entry["NAME"])
def test_drawn_points_are_not_in_a_fingerprint(here, entry):
    dataset = build_dataset(entry)
    drawn_otherwise = copy.copy(dataset)
    drawn_otherwise.set_epoch(1)
    assert fingerprint(dataset) == fingerprint(drawn_otherwise)
    part = range(len(dataset))
    assert fingerprint(Part(dataset, [*part]))["sha256"] == fingerprint(dataset)["sha256"]
