"""Which clouds choose a checkpoint, and runs that are repeated: `--select_on` and `--seeds`."""

import contextlib
import copy
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from datasets import build_dataset
from datasets.holdout import Part, hold_out
from datasets.synthetic import write_fewshot, write_shapenetpart
from tests.playground import (
    CLASSES,
    CONFIGS,
    files_of,
    make_playground,
    refuse,
    results_of,
    results_of_folder,
    run,
    write_config,
)
from tests.test_engine import arguments
from tests.test_few_shot import CONFIG as FEW_SHOT
from tools import runner_finetune
from tools.training import builder
from tools.training.trainer import Trainer

FINETUNING, SEGMENTING, PRETRAINING = "fine-tuning/modelnet", "part-segmentation/small", "pre-training/m2ae"


# ---- the split ----


@given(
    classes=st.lists(st.integers(10, 60), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
    shuffle=st.randoms(use_true_random=False),
)
def test_a_tenth_of_every_class_is_held_out(classes, seed, shuffle):
    labels = [label for label, count in enumerate(classes) for _ in range(count)]
    shuffle.shuffle(labels)
    labels = np.array(labels)
    kept, held = hold_out(labels, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert len(held) == np.ceil(0.1 * len(labels))
    for label, count in enumerate(classes):
        assert abs((labels[held] == label).sum() - len(held) * count / len(labels)) < 1
    again = hold_out(labels, seed)
    assert np.array_equal(kept, again[0])
    assert np.array_equal(held, again[1])


def test_another_seed_holds_others_out():
    labels = np.arange(200) % 4
    assert not np.array_equal(hold_out(labels, 0)[1], hold_out(labels, 1)[1])


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0] * 30 + [1]])
def test_too_few_clouds_of_a_class_are_refused(labels):
    with pytest.raises(
        ValueError, match=rf"^{len(labels)} training clouds of 2 classes .*use --select_on test instead of val$"
    ):
        hold_out(np.array(labels), 0)


class Drawn(Dataset):
    def __init__(self):
        self.labels, self.class_names, self.epoch = np.arange(5) % 2, ["a", "b"], 0

    def __getitem__(self, index):
        return torch.full((2, 3), float(index)), int(self.labels[index]) + 10 * self.epoch

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_a_part_has_the_clouds_labels_and_epochs_of_the_whole():
    part = Part(Drawn(), np.array([1, 4]))
    assert (len(part), part.labels.tolist(), part.class_names) == (2, [1, 0], ["a", "b"])
    part.set_epoch(3)
    assert [(points[0, 0].item(), label) for points, label in (part[0], part[1])] == [(1.0, 31), (4.0, 30)]


# ---- runs ----


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with generated data sets and small configs."""
    configs = {
        **{name: CONFIGS[name] for name in (FINETUNING, SEGMENTING)},
        PRETRAINING: {**CONFIGS[PRETRAINING], "max_epoch": 1},
    }
    folder = make_playground(tmp_path_factory.mktemp("playground"), configs, modelnet=10)
    data = folder / "data"
    write_shapenetpart(data, classes=["mug", "knife"], train=12, test=1, num_points=96)
    write_fewshot(data, classes=CLASSES, test=3, num_points=48, ways=[2], shots=[10], folds=1)
    few_shot = copy.deepcopy(FEW_SHOT)
    few_shot["dataset"]["train"]["others"] |= {"way": 2, "shot": 10, "fold": 0}
    write_config(folder, "few-shot/tiny", few_shot)
    return folder


def test_the_test_split_is_touched_when_training_is_over(here, monkeypatch):
    """Of ModelNet: 30 training clouds, 3 of them held out, and 9 test clouds."""
    events = []
    evaluate, train = runner_finetune.evaluate, Trainer._train

    def watched(model, loader, *others):
        events.append(len(loader.dataset))
        return evaluate(model, loader, *others)

    monkeypatch.setattr(runner_finetune, "evaluate", watched)
    monkeypatch.setattr(Trainer, "_train", lambda self, epoch: (events.append("epoch"), train(self, epoch)))
    assert run(FINETUNING, "--scratch_model", "--select_on", "val", "--exp_name", "val") == 0
    assert events == ["epoch", 3, "epoch", 3, 9, 9]
    results = results_of(FINETUNING, "val")["training from scratch"]
    assert results["protocol"] == "accuracy on ModelNet, test split"
    assert results["best_chosen_on"].startswith("accuracy on ModelNet, a held-out tenth of the training split, ")
    assert results["about"]["data"]["train"]["clouds"] == 27
    log = next(Path("experiments", FINETUNING, "val").glob("*.log")).read_text()
    assert "chosen on accuracy on ModelNet, a held-out tenth of the training split" in log


def test_the_best_and_the_final_weights_are_tested(here):
    assert run(FINETUNING, "--scratch_model", "--select_on", "val", "--exp_name", "both") == 0
    folder = Path("experiments", FINETUNING, "both")
    results = results_of_folder(folder)["training from scratch"]
    for checkpoint, figure in (("best", "best_accuracy"), ("last", "final_accuracy")):
        assert run(FINETUNING, "--test", "--ckpts", folder / f"ckpt-{checkpoint}.pth", "--exp_name", "check") == 0
        assert results_of(FINETUNING, "check")["test"]["accuracy"] == results[figure]


@pytest.mark.parametrize("config", [SEGMENTING, "few-shot/tiny"])
def test_other_tasks_choose_on_a_held_out_tenth(here, config):
    assert run(config, "--scratch_model", "--select_on", "val", "--exp_name", "val") == 0
    results = next(iter(results_of(config, "val").values()))
    assert "a held-out tenth of the training split" in results["best_chosen_on"]
    assert "test split" in results["protocol"]


def test_the_training_split_is_read_once(here, monkeypatch):
    built = []
    monkeypatch.setattr(builder, "build_dataset", lambda entry: built.append(entry["others"]) or build_dataset(entry))
    assert run(FINETUNING, "--scratch_model", "--select_on", "val", "--exp_name", "once") == 0
    assert [others["subset"] for others in built] == ["train", "test"]


def test_the_held_out_points_stay_the_same_from_epoch_to_epoch(here):
    entry = CONFIGS[SEGMENTING]["dataset"]["train"]
    args = arguments(select_on="val")
    config = {"dataset": {"train": entry}, "total_bs": 4}
    train = builder.training_loader(config, args)
    held, _ = builder.selection_loader(config, args, train)
    before = train.dataset[0][0], held.dataset[0][0]
    train.begin(1, seed=0)
    assert [torch.equal(*pair) for pair in zip(before, (train.dataset[0][0], held.dataset[0][0]), strict=True)] == [
        False,
        True,
    ]


def test_a_part_goes_by_the_name_of_the_whole(here, capsys):
    model = {**CONFIGS[FINETUNING]["model"], "num_classes": 2}
    write_config(here, "fine-tuning/two", {**CONFIGS[FINETUNING], "model": model})
    assert run("fine-tuning/two", "--scratch_model", "--select_on", "val") == 1
    assert "error: ModelNet has label 2, but the model has 2 classes" in capsys.readouterr().err
    assert run(FINETUNING, "--scratch_model", "--select_on", "val", "--exp_name", "named") == 0
    data = results_of(FINETUNING, "named")["training from scratch"]["about"]["data"]
    assert (data["train"]["name"], data["train"]["clouds"]) == ("ModelNet", 27)


# ---- repetitions ----


@pytest.fixture(scope="module")
def repeated(playground):
    """The summary of a run with two seeds, and what it printed."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.chdir(playground)
        assert run(FINETUNING, "--scratch_model", "--seeds", 3, 1, "--exp_name", "many") == 0
        (summary,) = results_of(FINETUNING, "many").values()
    return {**summary, "printed": printed.getvalue()}


def test_seeds_are_summed_up(here, repeated):
    for figure in ("best_accuracy", "final_accuracy"):
        values = [results_of(FINETUNING, f"many-seed{seed}")["training from scratch"][figure] for seed in (3, 1)]
        assert repeated[figure]["values"] == values
        assert repeated[figure]["mean"] == pytest.approx(sum(values) / 2)
        assert repeated[figure]["std"] == pytest.approx(abs(values[0] - values[1]) / 2)
        assert repeated[figure]["best"] == max(values)
    assert repeated["seeds"] == [3, 1]
    log = next(Path("experiments", FINETUNING, "many").glob("*.log")).read_text()
    assert "best seed" in log
    assert "epoch 0/1" not in log  # that is in the logs of the seeds
    title, header, _, *rows = repeated["printed"].splitlines()
    assert title == "training from scratch, 2 seeds"
    assert "best seed" in header
    assert [row.split()[0] for row in rows] == ["best_accuracy", "final_accuracy"]


def test_a_seed_is_run_as_if_alone(here, repeated):
    assert run(FINETUNING, "--scratch_model", "--seed", 1, "--exp_name", "alone") == 0
    alone, one = (results_of(FINETUNING, name)["training from scratch"] for name in ("alone", "many-seed1"))
    assert {**alone, "seconds": 0, "about": 0} == {**one, "seconds": 0, "about": 0}


def test_interrupted_repetitions_resume_to_the_same_summary(here, repeated, monkeypatch):
    train = Trainer._train

    def interrupt(trainer, epoch):
        if trainer.args.seed == 1 and epoch == 1:
            raise KeyboardInterrupt
        train(trainer, epoch)

    flags = ("--scratch_model", "--seeds", 3, 1, "--exp_name", "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train", interrupt)
        assert run(FINETUNING, *flags) == 130
    assert not Path("experiments", FINETUNING, "stopped/results.json").exists()
    trained = []
    monkeypatch.setattr(Trainer, "_train", lambda self, epoch: (trained.append(epoch), train(self, epoch)))
    assert run(FINETUNING, *flags, "--resume") == 0
    assert trained == [1]  # of seed 1
    (summary,) = results_of(FINETUNING, "stopped").values()
    assert {**summary, "about": 0, "printed": 0} == {**repeated, "about": 0, "printed": 0}


def test_the_summary_of_seeds_is_in_results_md(here, repeated):
    lines = Path("experiments", FINETUNING, "many/results.md").read_text().splitlines()
    assert lines[0] == "# training from scratch, 2 seeds"
    best = repeated["best_accuracy"]
    each = ", ".join(f"{value:.2f}" for value in best["values"])
    assert f"| best_accuracy | {sum(best['values']) / 2:.2f} ± {best['std']:.2f} ({each}) |" in lines
    assert "| seeds | [3, 1] |" in lines
    assert not [line for line in lines if line.startswith("| seed |")]
    assert results_of(FINETUNING, "many-seed1")["training from scratch"]["about"]["seed"] == 1


def test_finished_repetitions_stay_as_they_are(here, repeated, capsys, monkeypatch):
    folders = [Path("experiments", FINETUNING, name) for name in ("many", "many-seed3", "many-seed1")]
    before = [files_of(folder) for folder in folders]
    assert run(FINETUNING, "--scratch_model", "--seeds", 3, 1, "--exp_name", "many", "--resume") == 0
    text = capsys.readouterr().err
    assert "many is finished: experiments/fine-tuning/modelnet/many/results.json stays as it is" in text
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run(FINETUNING, "--scratch_model", "--seeds", 3, 1, "--exp_name", "many") == 0
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    line = refuse(capsys, FINETUNING, "--scratch_model", "--seeds", 4, 3, "--amp", "bf16", "--resume", exp_name="many")
    assert "many-seed3 holds a run that began otherwise (then → now): precision none → bf16; " in line
    weights = folders[1] / "ckpt-last.pth"
    flags = ("--finetune_model", "--ckpts", weights, "--seeds", 4, 3, "--resume")
    assert "mode training from scratch → fine-tuning; " in refuse(capsys, FINETUNING, *flags, exp_name="many")
    assert not Path("experiments", FINETUNING, "many-seed4").exists()
    assert [files_of(folder) for folder in folders] == before


# ---- data in the device's memory ----


def test_pretraining_on_resident_data_resumes(here):
    flags = ("--resident_data", "--exp_name")
    assert run(PRETRAINING, *flags, "whole") == 0
    write_config(here, "pre-training/short", {**CONFIGS[PRETRAINING], "max_epoch": 0})
    assert run("pre-training/short", *flags, "stopped") == 0
    shutil.copytree("experiments/pre-training/short/stopped", Path("experiments", PRETRAINING, "stopped"))
    assert run(PRETRAINING, *flags, "stopped", "--resume") == 0
    whole, resumed = (
        torch.load(Path("experiments", PRETRAINING, name, "ckpt-last.pth"), weights_only=True)["base_model"]
        for name in ("whole", "stopped")
    )
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_only_shapenet_is_kept_resident(here, capsys):
    write_config(here, "pre-training/other", {**CONFIGS[PRETRAINING], "dataset": CONFIGS[FINETUNING]["dataset"]})
    line = refuse(capsys, "pre-training/other", "--resident_data")
    assert "--resident_data keeps ShapeNet in the device's memory, not ModelNet: drop it" in line
