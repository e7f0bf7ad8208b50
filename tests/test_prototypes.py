"""Part segmentation by prototypes: the bank, the matching, and the command."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datasets import build_dataset
from datasets.synthetic import write_shapenetpart
from tests.playground import PART_DATA, changed, make_playground, refuse, results_of, run, write_config
from tools.evaluation import prototypes
from tools.evaluation.prototypes import PrototypeBank, PrototypeSegmenter, build_bank, log_logits

CONFIG = "point-nn/small"
MODEL = {"NAME": "Point_NN", "stages": 2, "dim": 12, "k": 8, "normalise": "batch"}
SETTINGS = {
    "dataset": {
        split: {**entry, "NORMALIZE": False, "others": {**entry["others"], "bs": 1}}
        for split, entry in PART_DATA.items()
    },
    "model": MODEL,
}


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with generated shapes and the small config."""
    folder = make_playground(tmp_path_factory.mktemp("playground"), {CONFIG: SETTINGS}, shapenet=1, modelnet=1)
    write_shapenetpart(folder / "data", classes=["mug", "knife", "table"], train=4, test=2, num_points=96)
    return folder


# the bank and the matching


class Coordinates(nn.Module):
    """The feature of a point is its place."""

    def encode_points(self, points: Tensor) -> Tensor:
        return points


POINTS = torch.tensor([[[4.0, 0, 0], [0, 2, 0], [0, 4, 0]], [[0, 0, 1], [1, 0, 0], [0, 0, 3]]])
PARTS = torch.tensor([[22, 23, 23], [23, 22, 23]])  # of a knife
CATEGORIES = torch.tensor([7, 7])


def knives() -> PrototypeBank:
    bank = PrototypeBank()
    bank.add(POINTS, CATEGORIES, PARTS)
    return bank


def test_a_prototype_is_the_mean_of_a_part_of_a_shape():
    """Features are averaged as they are, and made unit vectors afterwards."""
    bank = PrototypeBank()
    bank.add(torch.tensor([[[4.0, 0, 0], [0, 1, 0], [0, 0, 2.0]]]), torch.tensor([11]), torch.tensor([[36, 36, 37]]))
    bank.add(POINTS, torch.tensor([7, 11]), PARTS + torch.tensor([[0], [14]]))
    found, labels = bank.of_category(11)
    assert labels.tolist() == [36, 37, 36, 37]
    long = 17**0.5
    torch.testing.assert_close(found, torch.tensor([[4 / long, 1 / long, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]]))
    assert bank.of_category(7)[1].tolist() == [22, 23]
    assert len(bank) == 6


def test_logits_by_hand():
    labels = torch.tensor([23, 22, 23])
    found = log_logits(torch.eye(2)[None], torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]]), labels, gamma=2.0)[0].exp()
    one, other = torch.tensor([[1, -2, -0.8], [-2, 1, -0.4]]).clamp_max(0).exp()
    expected = torch.zeros(2, 50)
    expected[:, 22] = torch.stack([one[1], other[1]])
    expected[:, 23] = torch.stack([one[0] + one[2], other[0] + other[2]])
    torch.testing.assert_close(found, expected)


def test_no_gamma_makes_all_logits_vanish():
    """In float32 exp(−γ (1 − similarity)) is 0 for every part here."""
    found = PrototypeSegmenter(Coordinates(), knives(), gamma=1e4)(
        torch.tensor([[[1.0, 1, 1], [2, 1, 1]]]), torch.tensor([7])
    )
    assert found[0, :, [22, 23]].isfinite().any(-1).all()
    assert found.isneginf().sum() >= 96  # parts of other categories


def test_each_shape_is_matched_with_its_own_category():
    bank = knives()
    bank.add(POINTS, torch.tensor([11, 11]), PARTS + 14)
    found = PrototypeSegmenter(Coordinates(), bank)(POINTS, torch.tensor([7, 11])).argmax(-1)
    assert found.tolist() == [[22, 23, 23], [37, 36, 37]]


def test_a_category_without_a_known_shape_is_named():
    with pytest.raises(ValueError, match="no training shape is of the category Rocket"):
        PrototypeSegmenter(Coordinates(), knives())(POINTS[:1], torch.tensor([13]))


def test_the_bank_of_several_processes_holds_what_each_took_in(monkeypatch):
    monkeypatch.setattr(prototypes, "gather", lambda value: [value, value])
    bank = build_bank(Coordinates(), [(POINTS, CATEGORIES, PARTS)], torch.device("cpu"))
    assert bank.of_category(7)[1].tolist() == [22, 23] * 4


# the command


def test_the_command(here, capsys):
    assert run(CONFIG, "--test_bank") == 0
    results = results_of(CONFIG)["part segmentation by prototypes"]
    assert results["protocol"] == "ShapeNetPart, test split, γ = 300"
    known = build_dataset(SETTINGS["dataset"]["train"])
    assert results["prototypes"] == sum(len(parts.unique()) for _, _, parts in known) > len(known)
    assert list(results["category_mIoU"]) == ["Knife", "Mug", "Table"]
    for key in ("present_part_mIoU", "instance_mIoU", "class_mIoU", "point_accuracy"):
        assert 40 < results[key] <= 100
    assert results["present_part_mIoU"] > results["instance_mIoU"]  # a table has one part of the three, or two
    printed = capsys.readouterr().out
    assert "mIoU over the parts present in a shape, as published" in printed
    assert "instance mIoU" in printed
    assert Path("experiments", CONFIG, "default/parts.png").read_bytes().startswith(b"\x89PNG")
    assert "select_on" not in results["about"]
    assert [results["about"]["data"][split]["clouds"] for split in ("train", "test")] == [len(known), 6]


def test_weights_are_refused(here, capsys, tmp_path):
    (tmp_path / "weights.pth").touch()
    line = refuse(capsys, CONFIG, "--test_bank", "--ckpts", tmp_path / "weights.pth")
    assert "--ckpts gives weights, and Point_NN has none for part segmentation by prototypes: drop it" in line


def test_a_model_without_features_of_points_is_refused(here, capsys):
    write_config(here, "point-nn/other", changed(SETTINGS, "model", {"NAME": "Point_MAE"}))
    line = refuse(capsys, "point-nn/other", "--test_bank")
    assert "but part segmentation by prototypes needs an encoder of points (Point_NN)" in line


def test_in_batches_of_one_shape_both_deviations_are_the_same(here):
    write_config(here, "point-nn/cloud", changed(SETTINGS, "model.normalise", "cloud"))
    assert run("point-nn/cloud", "--test_bank") == run(CONFIG, "--test_bank", "--exp_name", "again") == 0
    by_cloud, by_batch = (
        results_of(*of)["part segmentation by prototypes"] for of in (("point-nn/cloud",), (CONFIG, "again"))
    )
    assert by_cloud["point_accuracy"] == by_batch["point_accuracy"]
