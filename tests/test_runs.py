"""Whole runs through main.py, with small models on generated shapes."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import build_dataset
from datasets.synthetic import write_modelnet, write_scanobjectnn, write_shapenet
from models import build_model
from tests.playground import (
    CLASSES,
    CONFIGS,
    REPOSITORY,
    changed,
    files_of,
    make_playground,
    refuse,
    results_of,
    results_of_folder,
    run,
    write_config,
)
from tools import runner_test_svm
from tools.evaluation.figures import draw_reconstructions
from utils.checkpoint import load_weights
from utils.config import load_config


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with the generated data sets and the small configs."""
    folder = make_playground(tmp_path_factory.mktemp("playground"), CONFIGS)
    write_scanobjectnn(folder / "data", classes=CLASSES, train=4, test=3, num_points=128)
    return folder


@pytest.fixture(scope="module")
def pretrained(playground):
    """The run folder of a pre-training run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(playground)
        assert run("pre-training/i2p", "--exp_name", "base") == 0
    return playground / "experiments/pre-training/i2p/base"


@pytest.fixture(scope="module")
def finetuned(playground, pretrained):
    """The run folder of a fine-tuning run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(playground)
        flags = ("--finetune_model", "--ckpts", pretrained / "ckpt-last.pth", "--exp_name", "base")
        assert run("fine-tuning/modelnet", *flags) == 0
    return playground / "experiments/fine-tuning/modelnet/base"


# ---- what works ----


def test_pretraining_leaves_a_whole_run_folder(pretrained):
    assert {path.name for path in pretrained.iterdir() if path.suffix != ".log"} == {
        "config.yaml",
        "ckpt-best.pth",
        "ckpt-last.pth",
        "ckpt-previous.pth",
        "metrics.jsonl",
        "reconstructions.png",
        "results.json",
        "results.md",
        ".lock",
    }
    state = torch.load(pretrained / "ckpt-last.pth", weights_only=True)
    assert state["epoch"] == 1
    assert not [name for name in state["base_model"] if "teacher" in name or "clip" in name]
    log = next(pretrained.glob("*.log")).read_text()
    for value in ("loss_3d", "loss_2d", "visible_saliency", "lr", "epoch 1/1", "test split"):
        assert value in log
    assert list((pretrained.parent / "TFBoard/base").glob("events*"))


@pytest.mark.filterwarnings("ignore:the 2D teacher is untrained")
def test_pretraining_leaves_a_picture_of_the_final_weights(here, pretrained, tmp_path):
    config = load_config("cfgs/pre-training/i2p.yaml")
    model = build_model(config.model)
    load_weights(model, pretrained / "ckpt-last.pth", strict=True)
    unseen = build_dataset(changed(config, "dataset.train.others.subset", "test").dataset.train)
    points = torch.stack([unseen[index][0] for index in (0, 2, 1)])  # one of each class, by the numbers of the classes
    draw_reconstructions(model, points, tmp_path / "picture.png", seed=0)
    assert (pretrained / "reconstructions.png").read_bytes() == (tmp_path / "picture.png").read_bytes()
    draw_reconstructions(model, points, tmp_path / "picture.png", seed=1)
    assert (pretrained / "reconstructions.png").read_bytes() != (tmp_path / "picture.png").read_bytes()


def test_a_head_that_learns_nothing_is_not_drawn(here):
    config = changed(CONFIGS["pre-training/i2p"], "model.losses", "2d")
    write_config(here, "pre-training/2d", {**config, "max_epoch": 0})
    assert run("pre-training/2d") == 0
    assert Path("experiments/pre-training/2d/default/results.json").exists()
    assert not Path("experiments/pre-training/2d/default/reconstructions.png").exists()


def test_pretraining_resumes(here, pretrained):
    name = "pre-training/i2p"
    config = {**CONFIGS[name], "max_epoch": 0}
    write_config(here, name, config)
    assert run(name, "--exp_name", "two-steps") == 0
    write_config(here, name, CONFIGS[name])
    assert run(name, "--exp_name", "two-steps") == 1  # holds a run already
    assert run(name, "--exp_name", "two-steps", "--resume") == 0
    whole = torch.load(pretrained / "ckpt-last.pth", weights_only=True)["base_model"]
    resumed = torch.load(pretrained.parent / "two-steps/ckpt-last.pth", weights_only=True)["base_model"]
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())


def test_a_resume_that_is_refused_keeps_the_config_of_the_run(here, pretrained):
    name = "pre-training/other"
    write_config(here, name, {**CONFIGS["pre-training/m2ae"]})
    assert run(name) == 0
    kept = Path("experiments", name, "default/config.yaml").read_text()
    deeper = changed(CONFIGS["pre-training/m2ae"], "model.encoder_depths", [1, 1, 2])
    write_config(here, name, {**deeper, "max_epoch": 1})
    assert run(name, "--resume") == 1
    assert Path("experiments", name, "default/config.yaml").read_text() == kept


def test_point_m2ae_pretrains(here):
    assert run("pre-training/m2ae") == 0
    assert results_of("pre-training/m2ae")["pre-training"]["final_epoch"] == 0


@pytest.mark.parametrize(
    ("config", "flag", "data", "C"),
    [("pre-training/i2p", "modelnet40", "ModelNet40_SVM", 0.01), ("linear-svm/scan", "scan", "ScanObjectNN", 0.5)],
)
def test_linear_svm(here, pretrained, config, flag, data, C):
    checkpoint = pretrained / "ckpt-last.pth"
    assert run(config, "--test_svm", flag, "--ckpts", checkpoint, "--exp_name", "probe") == 0
    results = results_of(config, "probe")["linear SVM"]
    assert results["C"] == C
    assert data in results["protocol"]
    assert results["about"]["checkpoint"] == results["checkpoint"] == str(checkpoint)
    assert results["about"]["processes"] == 1
    for key in ("accuracy", "chosen_C_accuracy", "chosen_C_cross_validated_accuracy"):
        assert 0 <= results[key] <= 100


def test_linear_svm_measures_what_pretraining_measured(here, pretrained):
    assert run("pre-training/i2p", "--test_svm", "modelnet40", "--ckpts", pretrained / "ckpt-last.pth") == 0
    measured = results_of("pre-training/i2p")["linear SVM"]["accuracy"]
    assert measured == results_of("pre-training/i2p", "base")["pre-training"]["final_accuracy"]


def test_kept_features_are_used_instead_of_encoding(here, pretrained, tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "features.npz"
    flags = ("--test_svm", "scan", "--ckpts", pretrained / "ckpt-last.pth", "--save_features", path, "--exp_name")
    assert run("linear-svm/scan", *flags, "encoded") == 0
    monkeypatch.setattr(runner_test_svm, "svm_features", None)  # encoding would fail
    assert run("linear-svm/scan", *flags, "kept") == 0
    out, log = capsys.readouterr()
    assert "nothing is encoded" in log
    assert "test split; weights chosen by: nothing, the latest of its run" in out
    encoded, kept = (results_of("linear-svm/scan", name)["linear SVM"] for name in ("encoded", "kept"))
    assert {**encoded, "about": 0} == {**kept, "about": 0}
    assert kept["about"]["data"].keys() == {"svm_train", "svm_test"}


def test_kept_features_of_another_checkpoint_are_refused(here, pretrained, tmp_path, capsys):
    path, common = tmp_path / "features.npz", ("--save_features", tmp_path / "features.npz", "--test_svm", "scan")
    assert run("linear-svm/scan", *common, "--ckpts", pretrained / "ckpt-last.pth") == 0
    assert run("linear-svm/scan", *common, "--ckpts", pretrained / "ckpt-previous.pth") == 1
    assert "holds features of another origin: checkpoint_sha256" in capsys.readouterr().err
    with np.load(path) as file:
        assert json.loads(str(file["origin"]))["dataset"].keys() == {"svm_train", "svm_test"}


def test_finetuning_starts_from_the_pretrained_encoder(finetuned):
    log = next(finetuned.glob("*.log")).read_text()
    assert "loaded" in log
    assert "kept as initialised: " in log
    assert "cls_head_finetune" in log
    results = results_of_folder(finetuned)["fine-tuning"]
    assert (results["final_epoch"], results["protocol"]) == (1, "accuracy on ModelNet, test split")


def test_training_from_scratch(here):
    assert run("fine-tuning/modelnet", "--scratch_model", "--exp_name", "scratch", "--val_freq", 2) == 0
    results = results_of("fine-tuning/modelnet", "scratch")["training from scratch"]
    assert results["final_epoch"] == 1  # the last epoch is evaluated whatever --val_freq says


def test_testing_reproduces_the_final_accuracy(here, finetuned, capsys):
    flags = ("--test", "--vote", "--votes", 2, "--ckpts", finetuned / "ckpt-last.pth", "--exp_name", "tested")
    assert run("fine-tuning/modelnet", *flags) == 0
    results = results_of("fine-tuning/modelnet", "tested")["test"]
    assert results["accuracy"] == results_of_folder(finetuned)["fine-tuning"]["final_accuracy"]
    assert results["vote"]["repeats"] == 2
    out, log = capsys.readouterr()
    assert ["vote: mean of 2 repeats" in text for text in (out, log)] == [True, False]
    assert out.count("overall accuracy") == 1
    assert results["vote"]["mean_accuracy"] <= results["vote"]["best_accuracy"] <= 100
    first_log = next(Path("experiments/fine-tuning/modelnet/tested").glob("*.log")).read_text()
    assert "vote: best of them (chosen on the test split, as published)" in first_log
    assert "points; weights chosen by: nothing, the latest of its run" in first_log
    assert run("fine-tuning/modelnet", *flags) == 0
    again = results_of("fine-tuning/modelnet", "tested")["test"]
    assert {**again, "about": 0} == {**results, "about": 0}


# ---- what a run keeps ----

FINETUNING = "fine-tuning/modelnet"


def state_of(folder):
    return torch.load(folder / "ckpt-last.pth", weights_only=True)


@pytest.fixture
def longer(here, finetuned, request):
    """Continue a copy of the fine-tuning run, in `longer.folder`, by an epoch: changes of the config → exit code."""
    name = re.sub(r"\W", "-", request.node.name)

    def continue_run(**changes):
        config = reduce(lambda made, item: changed(made, *item), changes.items(), CONFIGS[FINETUNING])
        write_config(here, f"fine-tuning/{name}", {**config, "max_epoch": 2})
        return run(f"fine-tuning/{name}", "--finetune_model", "--exp_name", "copy", "--resume")

    continue_run.folder = Path("experiments/fine-tuning", name, "copy")
    shutil.copytree(finetuned, continue_run.folder)
    return continue_run


def test_a_finished_run_says_so_and_stays_as_it_is(here, finetuned, capsys):
    before = files_of(finetuned)
    curves = list(finetuned.parent.glob("TFBoard/base/*"))
    write_config(here, FINETUNING, {**CONFIGS[FINETUNING], "total_bs": 3})
    assert run(FINETUNING, "--finetune_model", "--exp_name", "base", "--resume") == 0
    write_config(here, FINETUNING, CONFIGS[FINETUNING])
    text = capsys.readouterr().err
    assert "experiments/fine-tuning/modelnet/base is finished: epoch 1 of 1 is done" in text
    assert "since the run began these parts of the config changed: total_bs" in text
    assert files_of(finetuned) == before
    assert list(finetuned.parent.glob("TFBoard/base/*")) == curves


def test_a_finished_run_started_again_by_torchrun_stays_as_it_is(here, finetuned, pretrained, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    before = files_of(finetuned)
    command = ("--finetune_model", "--ckpts", pretrained / "ckpt-last.pth", "--exp_name", "base")
    assert run(FINETUNING, *command) == 0
    assert "is finished" in capsys.readouterr().err
    assert "seed 0 → 1" in refuse(capsys, FINETUNING, *command, "--seed", 1, exp_name="base")
    assert files_of(finetuned) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scratch_model"], "mode fine-tuning → training from scratch"),
        (["--finetune_model", "--seed", "7"], "seed 0 → 7"),
        (["--finetune_model", "--amp", "bf16", "--select_on", "val"], "precision none → bf16; select_on test → val"),
        (["--finetune_model", "--ckpts", "other"], r"checkpoint \S+/i2p/base/ckpt-last\.pth \(\w{12}…\) → "),
        (["--scratch_model", "--seed", "7"], "mode fine-tuning → training from scratch; seed 0 → 7"),
    ],
    ids=["mode", "seed", "precision and selection", "checkpoint", "mode and seed"],
)
def test_a_run_does_not_go_on_as_another(here, finetuned, pretrained, capsys, flags, message):
    before = files_of(finetuned)
    flags = [pretrained / "ckpt-previous.pth" if flag == "other" else flag for flag in flags]
    line = refuse(capsys, FINETUNING, *flags, "--resume", exp_name="base")
    assert re.search(rf"holds a run that began otherwise \(then → now\): {message}", line), line
    assert line.endswith(
        "; continue it as it began (of flags that are not given it keeps its own), or choose another --exp_name"
    )
    assert files_of(finetuned) == before


def test_pretraining_does_not_go_on_with_another_seed(here, pretrained, capsys):
    before = files_of(pretrained)
    assert "seed 0 → 7" in refuse(capsys, "pre-training/i2p", "--seed", 7, "--resume", exp_name="base")
    assert files_of(pretrained) == before


def test_other_data_of_the_same_size_are_refused(here, longer, capsys):
    folder = str(write_modelnet(here / "data-other", classes=CLASSES, train=4, test=3, num_points=128, seed=1))
    before = files_of(longer.folder)
    assert longer(**{"dataset.test.DATA_PATH": folder}) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"data of test ModelNet, 9 clouds \(\w{12}…\) → ModelNet, 9 clouds \(\w{12}…\); ", line), line
    assert "data of train" not in line
    assert files_of(longer.folder) == before


def test_what_is_not_given_is_taken_from_the_run(here, pretrained, capsys):
    """Of a run that began with everything else than the defaults, continued to the weights it would have had."""
    flags = ("--seed", 5, "--amp", "bf16", "--select_on", "test")
    begin = ("--finetune_model", "--ckpts", pretrained / "ckpt-best.pth", *flags, "--exp_name")
    assert run(FINETUNING, *begin, "whole") == 0
    write_config(here, FINETUNING, {**CONFIGS[FINETUNING], "max_epoch": 0})
    assert run(FINETUNING, *begin, "parts") == 0
    write_config(here, FINETUNING, CONFIGS[FINETUNING])
    capsys.readouterr()
    assert run(FINETUNING, "--finetune_model", "--exp_name", "parts", "--resume") == 0
    text = capsys.readouterr().err
    assert "as the run in experiments/fine-tuning/modelnet/parts began: --seed 5" in text
    assert "began: --amp bf16" in text
    folder = Path("experiments", FINETUNING)
    whole, parts = (state_of(folder / name) for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts["base_model"][name]) for name, tensor in whole["base_model"].items())
    assert whole["run"] == parts["run"]
    about = results_of(FINETUNING, "parts")["fine-tuning"]["about"]
    assert (about["seed"], about["precision"]) == (5, "bf16")
    assert about["checkpoint"] == str(pretrained / "ckpt-best.pth")
    assert about["checkpoint_sha256"] == hashlib.sha256((pretrained / "ckpt-best.pth").read_bytes()).hexdigest()
    assert about["checkpoint_chosen_by"].startswith("linear SVM (C = 0.01)")


def test_the_weights_that_a_run_started_from_are_kept(here, pretrained):
    write_config(here, "pre-training/again", {**CONFIGS["pre-training/i2p"], "max_epoch": 0})
    assert run("pre-training/again", "--start_ckpts", pretrained / "ckpt-last.pth") == 0
    about = results_of("pre-training/again")["pre-training"]["about"]
    assert about["checkpoint"] == str(pretrained / "ckpt-last.pth")
    assert about["checkpoint_chosen_by"] == "nothing, the latest of its run"
    assert (
        state_of(Path("experiments/pre-training/again/default"))["run"]["checkpoint_sha256"]
        == about["checkpoint_sha256"]
    )


def test_a_checkpoint_that_does_not_say_what_its_run_is_goes_on_with_a_warning(longer, capsys):
    content = state_of(longer.folder)
    assert set(content.pop("run")) >= {"mode", "checkpoint_sha256", "seed", "precision", "select_on", "data"}
    torch.save(content, longer.folder / "ckpt-last.pth")
    assert longer() == 0
    assert (
        "ckpt-last.pth is of an older version and does not say its mode, checkpoint, seed, precision, select_on, data: "
        "whether this command line has the same is not checked"
    ) in capsys.readouterr().err
    assert state_of(longer.folder)["run"]["mode"] == "fine-tuning"


def test_results_of_another_run_do_not_make_one_finished(here, finetuned):
    """Of a run that was started anew in the same folder and killed before it wrote its own."""
    folder = finetuned.with_name("stale")
    shutil.copytree(finetuned, folder)
    results = results_of_folder(folder)
    results["fine-tuning"]["history"][0]["loss"] += 1
    (folder / "results.json").write_text(json.dumps(results))
    assert run(FINETUNING, "--finetune_model", "--exp_name", "stale", "--resume") == 0
    own, expected = (results_of_folder(path)["fine-tuning"] for path in (folder, finetuned))
    assert {**own, "seconds": 0, "about": 0} == {**expected, "seconds": 0, "about": 0}


# ---- what is refused, in one line that says why and what to do ----


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dataset.train.PC_PATH", "data/nowhere", r"data/nowhere.*PC_PATH"),
        ("dataset.train.others.npoint", 64, r"dataset\.train\.others\.npoint.*npoints"),
        ("model.mask_ration", 0.8, r"model\.mask_ration.*mask_ratio"),
        ("optimzer", {}, r"optimzer.*optimizer"),
        ("model.NAME", "I2P_MEA", r"I2P_MEA.*I2P_MAE"),
        ("total_bs", 64, r"12 training clouds, fewer than one batch of 64; lower total_bs"),
        ("dataset.svm_test.others.num_points", 4096, r"ply_data_test.*128 points; num_points asks for 4096"),
    ],
)
def test_config_mistakes_are_named(here, capsys, path, value, message):
    write_config(here, "pre-training/broken", changed(CONFIGS["pre-training/i2p"], path, value))
    line = refuse(capsys, "pre-training/broken", exp_name=path)
    assert re.search(message, line), line
    assert not list(here.glob(f"experiments/pre-training/broken/{path}/ckpt*"))


def test_missing_config(here, capsys):
    assert "cfgs/nothing.yaml" in refuse(capsys, "nothing")


def test_a_config_of_another_mode_is_refused(here, capsys, pretrained):
    line = refuse(capsys, "fine-tuning/modelnet")
    assert "model.NAME is I2P_MAE_ModelNet40, but pre-training needs a pre-training model" in line
    line = refuse(capsys, "fine-tuning/modelnet", "--resume")
    assert "--resume continues a run: add the flag of its mode, such as --finetune_model" in line
    line = refuse(capsys, "pre-training/i2p", "--scratch_model")
    assert "'npoints', which fine-tuning needs; choose another config" in line
    assert not Path("experiments/pre-training/i2p/refused").exists()


def test_a_model_of_another_mode_is_refused(here, capsys):
    config = {**CONFIGS["pre-training/i2p"], "model": CONFIGS["fine-tuning/modelnet"]["model"]}
    write_config(here, "pre-training/classifier", config)
    line = refuse(capsys, "pre-training/classifier")
    assert "model.NAME is I2P_MAE_ModelNet40, but pre-training needs a pre-training model" in line


def test_checkpoint_of_another_model_is_refused(here, capsys, pretrained, finetuned):
    line = refuse(capsys, "fine-tuning/modelnet", "--test", "--ckpts", pretrained / "ckpt-last.pth")
    assert str(pretrained / "ckpt-last.pth") in line
    assert "pre-training model" in line
    line = refuse(capsys, "pre-training/i2p", "--test_svm", "modelnet40", "--ckpts", finetuned / "ckpt-last.pth")
    assert f"classifier with {len(CLASSES)} classes" in line


def test_checkpoint_that_is_none_is_refused(here, capsys, tmp_path):
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><title>403</title>")
    line = refuse(capsys, "fine-tuning/modelnet", "--finetune_model", "--ckpts", tmp_path / "page.pth")
    assert "page.pth" in line


def test_svm_flag_must_name_the_data_of_the_config(here, capsys, pretrained):
    line = refuse(capsys, "linear-svm/scan", "--test_svm", "modelnet40", "--ckpts", pretrained / "ckpt-last.pth")
    assert (
        "--test_svm modelnet40 needs ModelNet40_SVM, but dataset.svm_train is ScanObjectNN; use --test_svm scan" in line
    )


def test_more_classes_than_outputs_are_refused(here, capsys):
    config = changed(CONFIGS["fine-tuning/modelnet"], "model.num_classes", len(CLASSES) - 1)
    write_config(here, "fine-tuning/few", config)
    line = refuse(capsys, "fine-tuning/few", "--scratch_model")
    assert "ModelNet has label 2, but the model has 2 classes" in line


def test_normals_are_refused_by_the_name_of_their_key(here, capsys, finetuned):
    data = {
        subset: {**entry, "USE_NORMALS": True} for subset, entry in CONFIGS["fine-tuning/modelnet"]["dataset"].items()
    }
    write_config(here, "fine-tuning/normals", {**CONFIGS["fine-tuning/modelnet"], "dataset": data})
    for flags in (["--scratch_model"], ["--test", "--ckpts", finetuned / "ckpt-last.pth"]):
        line = refuse(capsys, "fine-tuning/normals", *flags)
        assert (
            "ModelNet gives 6 channels a point and the models take 3, the coordinates: set USE_NORMALS: false" in line
        )


def test_npoints_beyond_the_clouds_is_refused(here, capsys):
    write_config(here, "fine-tuning/many", {**CONFIGS["fine-tuning/modelnet"], "npoints": 500})
    assert "500 different points of clouds with 128 points; lower npoints" in refuse(
        capsys, "fine-tuning/many", "--scratch_model"
    )


def test_a_batch_of_one_cloud_is_refused(here, capsys):
    write_config(here, "fine-tuning/single", {**CONFIGS["fine-tuning/modelnet"], "total_bs": 1})
    line = refuse(capsys, "fine-tuning/single", "--scratch_model")
    assert "a batch of 1 clouds (total_bs in the config) gives a process 1" in line


def test_few_shot_flags_without_few_shot_tasks_are_refused(here, capsys):
    line = refuse(capsys, "fine-tuning/modelnet", "--scratch_model", "--fold", 0)
    assert "--way, --shot and --fold choose few-shot tasks" in line


@pytest.mark.parametrize("flags", [("--test",), ("--vote",), ("--test_svm", "scan"), ("--scratch_model", "--test")])
def test_contradicting_flags_are_refused(here, capsys, flags):
    with pytest.raises(SystemExit) as stop:
        run("fine-tuning/modelnet", *flags)
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_bad_file_found_by_a_worker_process_is_named(here):
    """In a process of its own, from another folder, with worker processes."""
    broken = Path(here, "data-broken")
    write_shapenet(broken, classes=CLASSES, train=4, test=1, num_points=128)
    names = (broken / "ShapeNet55-34/ShapeNet-55/train.txt").read_text().split()
    victim = broken / "ShapeNet55-34/shapenet_pc" / names[1]  # the first is looked at before the workers start
    np.save(victim, np.full((128, 3), np.nan, dtype=np.float32))
    config = changed(CONFIGS["pre-training/m2ae"], "dataset.train.PC_PATH", str(victim.parent))
    config = changed(config, "dataset.train.DATA_PATH", str(victim.parent.parent / "ShapeNet-55"))
    write_config(here, "pre-training/nan", config)
    command = [sys.executable, REPOSITORY / "main.py", "--config", "cfgs/pre-training/nan.yaml", "--num_workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert victim.name in done.stderr.splitlines()[-1]
