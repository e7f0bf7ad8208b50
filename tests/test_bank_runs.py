"""Memory banks through main.py: of a pre-trained encoder, of one without parameters, few-shot, plugged in."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datasets import build_dataset
from datasets.holdout import hold_out
from datasets.synthetic import write_fewshot
from models import MODELS, build_model
from tests.playground import (
    CLASSES,
    CONFIGS,
    SVM_DATA,
    changed,
    make_playground,
    refuse,
    results_of,
    run,
    write_config,
)
from tests.test_few_shot import CONFIG as FEW_SHOT
from tools import runner_few_shot, runner_plug_in, runner_test_bank
from tools.evaluation import plug_in as plug_in_module
from tools.evaluation.bank import Bank, match, measure, normalised
from utils.checkpoint import read_checkpoint

PROBING, FINETUNING, STILL, TASKS = "pre-training/i2p", "fine-tuning/modelnet", "bank/still", "bank/few-shot"


class Moments(nn.Module):
    """An encoder without parameters."""

    def __init__(self, normalise: str = "cloud") -> None:
        super().__init__()
        self.normalise = normalise

    def encode(self, points: Tensor) -> Tensor:
        return torch.cat([points.amax(1), points.amin(1), points.std(1), points.abs().mean(1)], dim=1)


@pytest.fixture(autouse=True)
def moments(monkeypatch):
    monkeypatch.setitem(MODELS, "Moments", Moments)


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    folder = make_playground(
        tmp_path_factory.mktemp("banks"),
        {
            PROBING: CONFIGS[PROBING],
            FINETUNING: CONFIGS[FINETUNING],
            STILL: {"dataset": SVM_DATA, "model": {"NAME": "Moments"}},
            TASKS: {
                "dataset": {f"svm_{name}": entry for name, entry in FEW_SHOT["dataset"].items()},
                "model": {"NAME": "Moments"},
                "npoints": 32,
            },
        },
        modelnet=10,
    )
    write_fewshot(folder / "data", classes=CLASSES, test=3, num_points=48, ways=[2, 3], shots=[3], folds=2)
    return folder


@pytest.fixture(scope="module")
def encoder(playground):
    """A checkpoint of an I2P-MAE that was not trained."""
    torch.manual_seed(0)
    path = playground / "encoder.pth"
    torch.save({"base_model": build_model(encoder_config()).state_dict()}, path)
    return path


def encoder_config() -> dict:
    model = CONFIGS[PROBING]["model"]
    return {**model, "clip_config": {**model["clip_config"], "visual_encoder": None}}


def features_of(model: nn.Module, name: str) -> tuple[np.ndarray, np.ndarray]:
    dataset = build_dataset(SVM_DATA[f"svm_{name}"])
    with torch.no_grad():
        return model.eval().encode(torch.stack([points for points, _ in dataset])).numpy(), dataset.labels


# ---- of a pre-trained encoder ----


def test_a_bank_of_an_encoder_is_made_of_the_training_clouds(here, encoder, capsys):
    assert run(PROBING, "--test_bank", "--ckpts", encoder, "--exp_name", "bank") == 0
    table, log = capsys.readouterr()
    assert "chosen by: unknown, the file does not say" in log
    assert "memory bank on ModelNet40_SVM, test split; weights chosen by: unknown" in table
    results = results_of(PROBING, "bank")["memory bank"]
    model = build_model(encoder_config())
    model.load_state_dict(torch.load(encoder)["base_model"])
    features, labels = features_of(model, "train")
    bank = Bank(normalised(features, "bank"), labels, CLASSES)
    expected = measure(bank, *features_of(model, "test"), "val")
    assert {key: results[key] for key in expected} == pytest.approx(expected)
    assert results["about"]["data"].keys() == {"svm_train", "svm_test"}
    for which in ("leave_one_out_gamma", "best_gamma"):
        assert f"γ = {results[which]}, chosen" in table


def test_the_published_protocol_chooses_on_the_test_split(here, encoder):
    assert run(PROBING, "--test_bank", "--select_on", "test", "--ckpts", encoder, "--exp_name", "published") == 0
    results = results_of(PROBING, "published")["memory bank"]
    assert results["gamma_chosen_on"] == "the test split, as published"
    assert results["accuracy"] == results["best_accuracy"]


def test_a_kept_bank_is_used_instead_of_encoding(here, encoder, tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "bank.npz"
    flags = ("--test_bank", "--ckpts", encoder, "--save_bank", path, "--exp_name")
    assert run(PROBING, *flags, "encoded") == 0
    monkeypatch.setattr(runner_test_bank, "make_bank", None)  # encoding would fail
    assert run(PROBING, *flags, "kept") == 0
    assert "no training cloud is encoded" in capsys.readouterr().err
    encoded, kept = (results_of(PROBING, name)["memory bank"] for name in ("encoded", "kept"))
    assert {**encoded, "about": 0} == {**kept, "about": 0}


def test_a_bank_of_another_encoder_data_or_batch_is_refused(here, tmp_path, capsys):
    path = tmp_path / "bank.npz"
    assert run(STILL, "--test_bank", "--save_bank", path) == 0
    still = {"dataset": SVM_DATA, "model": {"NAME": "Moments"}}
    for key, value, difference in (
        ("model.normalise", "batch", "model.normalise is None there and 'batch' here"),
        ("dataset.svm_train.others.num_points", 64, "data.sha256"),
        ("dataset.svm_train.others.bs", 16, "batch is 64 there and 16 here"),
        ("npoints", 50, "npoints is None there and 50 here"),
    ):
        write_config(here, "bank/other", changed(still, key, value))
        line = refuse(capsys, "bank/other", "--test_bank", "--save_bank", path)
        assert f"{path} holds a bank of another origin: " in line
        assert difference.split(" ")[0] in line
        assert "give --save_bank another file, or delete this one" in line


# ---- of one that has no parameters ----


def test_a_model_without_parameters_needs_no_checkpoint(here, capsys):
    assert run(STILL, "--test_bank") == 0
    results = results_of(STILL)["memory bank"]
    assert results["checkpoint"] is None
    assert "memory bank on ModelNet40_SVM, test split  " in capsys.readouterr().out
    features, labels = features_of(Moments(), "train")
    expected = measure(Bank(normalised(features, "bank"), labels, CLASSES), *features_of(Moments(), "test"), "val")
    assert {key: results[key] for key in expected} == pytest.approx(expected)


def test_weights_are_given_to_what_has_parameters_alone(here, encoder, capsys):
    line = refuse(capsys, PROBING, "--test_bank")
    assert "I2P_MAE has parameters, which nothing has trained: give its weights, --ckpts FILE" in line
    line = refuse(capsys, STILL, "--test_bank", "--ckpts", encoder)
    assert f"Moments has no parameters to load from {encoder}: drop --ckpts" in line
    assert not Path("experiments", STILL, "refused").exists()


def test_npoints_are_the_farthest_points_that_the_encoder_sees(here, monkeypatch):
    seen = []
    monkeypatch.setattr(Moments, "encode", lambda self, points: seen.append(points) or points.flatten(1)[:, :9])
    write_config(here, "bank/few", {"dataset": SVM_DATA, "model": {"NAME": "Moments"}, "npoints": 50})
    assert run("bank/few", "--test_bank") == 0
    assert {points.shape[1:] for points in seen} == {(50, 3)}
    first = build_dataset(SVM_DATA["svm_train"])[0][0]
    assert torch.equal(seen[0][0, 0], first[0])
    assert not torch.equal(seen[0][0], first[:50])


def test_batches_have_the_size_and_order_that_the_config_says(here, monkeypatch):
    sizes = []
    monkeypatch.setattr(Moments, "encode", lambda self, points: sizes.append(len(points)) or points.flatten(1)[:, :9])
    config = {"dataset": SVM_DATA, "model": {"NAME": "Moments"}}
    for name in ("svm_train", "svm_test"):
        config = changed(config, f"dataset.{name}.others.bs", 5)
    write_config(here, "bank/batches", config)
    assert run("bank/batches", "--test_bank") == 0
    assert sizes == [5, 5, 2, 5, 4]


def test_splits_of_other_classes_are_refused(here, capsys):
    config = changed(
        {"dataset": SVM_DATA, "model": {"NAME": "Moments"}}, "dataset.svm_test", FEW_SHOT["dataset"]["test"]
    )
    config["dataset"]["svm_test"]["others"] |= {"way": 2, "shot": 3}
    write_config(here, "bank/mixed", config)
    line = refuse(capsys, "bank/mixed", "--test_bank")
    assert "dataset.svm_train (ModelNet40_SVM, 3 classes) and dataset.svm_test (ModelNetFewShot, 2) have other" in line


def test_a_feature_that_depends_on_its_batch_is_refused_in_several_processes(here, capsys, monkeypatch):
    monkeypatch.setattr("tools.evaluation.bank_encoder.world_size", lambda: 2)
    write_config(here, "bank/shared", {"dataset": SVM_DATA, "model": {"NAME": "Moments", "normalise": "batch"}})
    line = refuse(capsys, "bank/shared", "--test_bank")
    assert "which 2 processes would share out: start one process, or set model.normalise: cloud" in line
    assert run(STILL, "--test_bank", "--exp_name", "two") == 0


# ---- few-shot ----


@pytest.fixture
def few(here, monkeypatch):
    """Two ways, one shot and two folds in place of the published ones."""
    for name, value in {"WAYS": (2, 3), "SHOTS": (3,), "FOLDS": 2}.items():
        monkeypatch.setattr(runner_few_shot, name, value)
    return here


def test_every_fold_has_a_bank_of_its_own_and_a_table_sums_them_up(few, capsys):
    assert run(TASKS, "--test_bank", "--exp_name", "folds") == 0
    table = capsys.readouterr().out
    folder = Path("experiments", TASKS, "folds")
    summary = json.loads((folder / "results.json").read_text())["few-shot memory bank"]
    assert list(summary["settings"]) == ["2-way 3-shot", "3-way 3-shot"]
    for name, setting in summary["settings"].items():
        parts = [folder / f"{name[0]}way_3shot/fold{fold}/results.json" for fold in setting["folds"]]
        found = [json.loads(path.read_text())["memory bank"] for path in parts]
        assert len(found) == 2
        for which in ("leave_one_out", "best", "nearest_neighbor"):
            accuracies = [results[f"{which}_accuracy"] for results in found]
            assert setting[which]["accuracies"] == accuracies
            assert setting[which]["mean"] == pytest.approx(np.mean(accuracies))
        assert setting["accuracy"] == setting["leave_one_out"]
        assert found[0]["about"]["data"]["svm_train"]["clouds"] == 3 * int(name[0])
    assert summary["gamma_chosen_on"] == "leave-one-out on the bank"
    assert table.count("nearest neighbour") == 1
    assert "those of the best γ, chosen on the test clouds" in table


def test_folds_are_measured_again_and_others_stay_in_the_table(few, capsys):
    assert run(TASKS, "--test_bank", "--exp_name", "again", "--way", 5, "--shot", 10) == 1
    assert "5way_10shot/0.pkl" in capsys.readouterr().err
    assert run(TASKS, "--test_bank", "--exp_name", "again") == 0
    path = Path("experiments", TASKS, "again/results.json")
    before = json.loads(path.read_text())["few-shot memory bank"]["settings"]
    assert run(TASKS, "--test_bank", "--exp_name", "again", "--fold", 1, "--select_on", "test") == 0
    after = json.loads(path.read_text())["few-shot memory bank"]
    assert after["settings"]["2-way 3-shot"]["best"] == before["2-way 3-shot"]["best"]
    assert after["gamma_chosen_on"] == "leave-one-out on the bank, the test split, as published"
    assert run(TASKS, "--test_bank", "--exp_name", "again", "--seed", 7) == 0
    assert run(TASKS, "--test_bank", "--exp_name", "again", "--seed", 8, "--fold", 1) == 1
    assert "holds a run that began otherwise (then → now): seed 7 → 8" in capsys.readouterr().err


def test_one_file_does_not_keep_the_banks_of_many_folds(few, capsys, tmp_path):
    line = refuse(capsys, TASKS, "--test_bank", "--save_bank", tmp_path / "bank.npz")
    assert "--save_bank keeps one bank, and each few-shot fold has its own: drop it" in line


def test_few_shot_flags_need_few_shot_tasks(here, capsys):
    line = refuse(capsys, STILL, "--test_bank", "--fold", 0)
    assert "--way, --shot and --fold choose few-shot tasks" in line


# ---- plugged in ----


@pytest.fixture(scope="module")
def classifiers(playground):
    """Run folders of classifiers: one whose training held clouds out, one that was trained on all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(playground)
        for name in ("val", "test"):
            assert run(FINETUNING, "--scratch_model", "--select_on", name, "--seed", 3, "--exp_name", name) == 0
    return playground / "experiments" / FINETUNING


def plug_in(checkpoint: Path, exp_name: str, *flags: object, bank: str = STILL) -> dict:
    command = ("--test", "--plug_in", f"cfgs/{bank}.yaml", "--ckpts", checkpoint, "--exp_name", exp_name, *flags)
    assert run(FINETUNING, *command) == 0
    return results_of(FINETUNING, exp_name)["plug-in"]


def test_the_sum_is_printed_beside_its_parts(here, classifiers, capsys, monkeypatch):
    measured = {}
    monkeypatch.setattr(
        runner_plug_in, "measure", lambda *parts: measured.update(parts=parts) or plug_in_module.measure(*parts)
    )
    results = plug_in(classifiers / "val/ckpt-last.pth", "sum")
    table = capsys.readouterr().out
    for row in ("model alone (λ = 1)", "memory bank alone (λ = 0), γ = ", f"both, λ = {results['lambda']:g}, γ = "):
        assert row in table
    assert "λ and γ chosen on: 3 held-out training clouds (a tenth, seed 3), which the bank does not hold" in table
    assert "test" not in results_of(FINETUNING, "sum")
    assert run(FINETUNING, "--test", "--ckpts", classifiers / "val/ckpt-last.pth", "--exp_name", "sum") == 0
    assert results["model_accuracy"] == results_of(FINETUNING, "sum")["test"]["accuracy"]
    bank, held_out, test = measured["parts"]
    found = match(bank, test.features, results["gamma"]).argmax(1)
    assert results["bank_accuracy"] == pytest.approx(100 * np.mean(found == test.labels.numpy()))
    labels = build_dataset(CONFIGS[FINETUNING]["dataset"]["train"]).labels
    kept, held = hold_out(labels, 3)
    assert np.array_equal(bank.labels, labels[kept])
    assert np.array_equal(held_out.labels, labels[held])


def test_what_training_has_seen_of_the_held_out_clouds_is_said(here, classifiers, tmp_path):
    untouched = "the model was not trained on them"
    for folder, file, said in (
        ("val", "ckpt-last", f"{untouched}; its checkpoint was chosen without them"),
        ("val", "ckpt-best", f"{untouched}; they chose its checkpoint"),
        ("test", "ckpt-best", "the model WAS trained on them"),
    ):
        assert said in plug_in(classifiers / folder / f"{file}.pth", "said")["chosen_on"]
    content = read_checkpoint(classifiers / "val/ckpt-last.pth")
    torch.save({"base_model": content["base_model"]}, tmp_path / "released.pth")
    results = plug_in(tmp_path / "released.pth", "said", "--seed", 5)
    assert "seed 5), which the bank does not hold; whether the model was trained on them its" in results["chosen_on"]
    content["run"]["data"]["train"]["sha256"] = "0"
    torch.save(content, tmp_path / "other.pth")
    assert "trained on other data" in plug_in(tmp_path / "other.pth", "said")["chosen_on"]


def test_a_bank_sees_as_many_points_in_as_large_batches_as_its_config_says(here, classifiers, monkeypatch):
    shapes, first = [], []
    monkeypatch.setattr(
        Moments,
        "encode",
        lambda self, points: shapes.append(tuple(points.shape)) or first.append(points[0]) or points.flatten(1)[:, :9],
    )
    config = changed({"dataset": SVM_DATA, "model": {"NAME": "Moments"}}, "dataset.svm_train.others.bs", 5)
    write_config(here, "bank/first", config)
    plug_in(classifiers / "val/ckpt-last.pth", "points", bank="bank/first")
    assert [shape[0] for shape in shapes] == [5, 5, 5, 5, 5, 2, 3, 5, 4]  # bank, held-out and test clouds
    assert {shape[1:] for shape in shapes} == {(96, 3)}
    test = build_dataset(CONFIGS[FINETUNING]["dataset"]["test"])
    assert torch.equal(first[-2], test[0][0][:96])
    write_config(here, "bank/first", {**config, "npoints": 40})
    plug_in(classifiers / "val/ckpt-last.pth", "points", bank="bank/first")
    assert {shape[1] for shape in shapes[9:]} == {40}


def test_an_encoder_with_weights_can_be_plugged_in(here, classifiers, encoder, capsys):
    line = refuse(
        *(capsys, FINETUNING, "--test", "--plug_in", f"cfgs/{PROBING}.yaml"),
        *("--ckpts", classifiers / "val/ckpt-last.pth"),
    )
    assert "I2P_MAE has parameters, which nothing has trained: give its weights, --bank_ckpts FILE" in line
    results = plug_in(classifiers / "val/ckpt-last.pth", "weights", "--bank_ckpts", encoder, bank=PROBING)
    assert results["bank_checkpoint"] == str(encoder)
    assert len(results["bank_checkpoint_sha256"]) == 64
    assert 0 <= results["lambda"] <= 1


def test_what_cannot_be_plugged_in_is_said(here, classifiers, capsys):
    flags = ("--test", "--ckpts", classifiers / "val/ckpt-last.pth", "--plug_in")
    assert "no such config: cfgs/bank/nothing.yaml" in refuse(capsys, FINETUNING, *flags, "cfgs/bank/nothing.yaml")
    line = refuse(capsys, FINETUNING, *flags, f"cfgs/{FINETUNING}.yaml")
    assert f"cfgs/{FINETUNING}.yaml has no 'dataset.svm_train', which plug-in needs" in line
    many = changed({"dataset": SVM_DATA, "model": {"NAME": "Moments"}}, "dataset.svm_train.others.num_points", 500)
    write_config(here, "bank/many", many)
    line = refuse(capsys, FINETUNING, *flags, "cfgs/bank/many.yaml")
    assert "the clouds have 128 points, fewer than the 500 that the bank is of" in line
