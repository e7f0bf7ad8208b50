"""Point-MAE through main.py: every mode, with small models on generated shapes."""

from pathlib import Path

import pytest
import torch

from datasets.synthetic import write_fewshot, write_shapenetpart
from models import build_model
from models.point_mae import Point_MAE
from tests.playground import (
    CLASSES,
    FINETUNE_DATA,
    PART_DATA,
    SHAPENET,
    SVM_DATA,
    TRAINING,
    make_playground,
    refuse,
    results_of,
    results_of_folder,
    run,
)
from tools import runner_few_shot
from tools.evaluation.figures import draw_reconstructions
from tools.training.builder import build_network
from tools.training.modes import LINEAR_SVM

TRANSFORMER = {"trans_dim": 24, "encoder_dims": 24, "depth": 3, "num_heads": 3, "drop_path_rate": 0.1}
GROUPS = {"num_group": 10, "group_size": 8}
AUTOENCODER = {
    "NAME": "Point_MAE",
    **GROUPS,
    "transformer_config": {**TRANSFORMER, "decoder_depth": 1, "decoder_num_heads": 3},
}
CLASSIFIER = {"NAME": "PointTransformer", **GROUPS, **TRANSFORMER, "cls_dim": len(CLASSES)}
TUNING = {**TRAINING, "grad_norm_clip": 10, "npoints": 128}  # all points of a cloud: a vote takes another order of them
FEW_SHOT_DATA = {
    subset: {
        "NAME": "ModelNetFewShot",
        "DATA_PATH": "data/ModelNetFewshot",
        "N_POINTS": 96,
        "NUM_CATEGORY": len(CLASSES),
        "USE_NORMALS": False,
        "others": {"subset": subset},
    }
    for subset in ("train", "test")
}
PRETRAIN, SVM, TUNE, FEW_SHOT, PARTS = (
    f"point-mae/{name}" for name in ("pre-train", "linear-svm", "modelnet", "few-shot", "part-segmentation")
)
CONFIGS = {
    PRETRAIN: {**TRAINING, "dataset": {"train": SHAPENET, **SVM_DATA}, "model": AUTOENCODER},
    SVM: {"svm": {"C": 0.5}, "dataset": SVM_DATA, "model": AUTOENCODER},
    TUNE: {**TUNING, "dataset": FINETUNE_DATA, "model": CLASSIFIER},
    FEW_SHOT: {**TUNING, "npoints": 64, "dataset": FEW_SHOT_DATA, "model": CLASSIFIER},
    PARTS: {
        **TRAINING,
        "grad_norm_clip": 10,
        "augmentation": "scale_and_translate_small",
        "dataset": PART_DATA,
        "model": {"NAME": "Point_MAE_SEG", **GROUPS, **TRANSFORMER, "point_dims": [32, 24]},
    },
}


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with the generated data sets and the small configs."""
    folder = make_playground(tmp_path_factory.mktemp("playground"), CONFIGS)
    write_shapenetpart(folder / "data", classes=["mug", "knife", "table"], train=8, test=2, num_points=96)
    write_fewshot(folder / "data", classes=CLASSES, test=3, num_points=96, ways=[2], shots=[3], folds=2)
    return folder


@pytest.fixture(scope="module")
def pretrained(playground):
    """The checkpoint of a pre-training run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(playground)
        assert run(PRETRAIN, "--exp_name", "base") == 0
    return playground / "experiments" / PRETRAIN / "base" / "ckpt-last.pth"


def kept_as_initialised(folder: Path) -> str:
    log = next(folder.glob("*.log")).read_text()
    loaded = next(line for line in log.splitlines() if "loaded" in line)
    return loaded.partition("kept as initialised: ")[2].partition(";")[0]


def test_pretraining_reports_its_losses_and_an_svm(here, pretrained):
    results = results_of(PRETRAIN, "base")["pre-training"]
    assert results["final_epoch"] == 1
    for epoch in results["history"]:
        assert epoch["loss"] == epoch["loss_3d"] > 0
        assert epoch["visible_tokens"] == 4  # of 10, at the ratio of 0.6
        assert 0 <= epoch["evaluation"] <= 100


def test_a_checkpoint_holds_the_official_names_and_no_others(here, pretrained):
    state = torch.load(pretrained, weights_only=True)
    assert set(state["base_model"]) == set(build_model(AUTOENCODER).state_dict())


def test_features_are_probed(here, pretrained):
    assert run(SVM, "--test_svm", "modelnet40", "--ckpts", pretrained) == 0
    results = results_of(SVM)["linear SVM"]
    assert 0 <= results["accuracy"] <= 100


def test_a_classifier_starts_from_the_pretrained_encoder_and_is_tested_with_votes(here, pretrained):
    assert run(TUNE, "--finetune_model", "--ckpts", pretrained, "--exp_name", "tuned") == 0
    folder = Path("experiments", TUNE, "tuned")
    assert kept_as_initialised(folder) == "cls_token (1), cls_pos (1), cls_head_finetune (16)"
    final = results_of(TUNE, "tuned")["fine-tuning"]["final_accuracy"]
    assert run(TUNE, "--test", "--vote", "--votes", 2, "--ckpts", folder / "ckpt-last.pth", "--exp_name", "test") == 0
    results = results_of(TUNE, "test")["test"]
    assert results["accuracy"] == pytest.approx(final)
    assert results["vote"]["repeats"] == 2
    assert 0 <= results["vote"]["mean_accuracy"] <= results["vote"]["best_accuracy"] <= 100


def test_few_shot_folds_are_run_and_averaged(here, pretrained, monkeypatch):
    monkeypatch.setattr(runner_few_shot, "WAYS", (2,))
    monkeypatch.setattr(runner_few_shot, "SHOTS", (3,))
    monkeypatch.setattr(runner_few_shot, "FOLDS", 2)
    assert run(FEW_SHOT, "--finetune_model", "--ckpts", pretrained) == 0
    settings = results_of(FEW_SHOT)["few-shot fine-tuning"]["settings"]
    assert settings["2-way 3-shot"]["folds"] == [0, 1]
    assert len(settings["2-way 3-shot"]["best"]["accuracies"]) == 2


def test_a_segmenter_starts_from_the_pretrained_encoder_and_tests_as_it_trained(here, pretrained):
    assert run(PARTS, "--finetune_model", "--ckpts", pretrained, "--exp_name", "tuned") == 0
    folder = Path("experiments", PARTS, "tuned")
    kept = kept_as_initialised(folder)
    assert [part.partition(" ")[0] for part in kept.split(", ")] == [
        *("label_conv", "propagation_0", "convs1", "convs2", "convs3", "bns1", "bns2"),
    ]
    final = results_of_folder(folder)["part segmentation, fine-tuning"]["final"]
    assert run(PARTS, "--test", "--ckpts", folder / "ckpt-last.pth", "--exp_name", "test") == 0
    measured = results_of(PARTS, "test")["part segmentation"]
    assert {key: measured[key] for key in final} == final


def test_reconstructions_are_drawn(tmp_path):
    torch.manual_seed(0)
    model = build_model(AUTOENCODER)
    assert isinstance(model, Point_MAE)
    draw_reconstructions(model, torch.randn(2, 64, 3), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert model.training


@pytest.mark.parametrize("model", [CONFIGS[TUNE]["model"], CONFIGS[PARTS]["model"]], ids=lambda model: model["NAME"])
def test_a_downstream_model_is_no_pre_training_model(model):
    with pytest.raises(ValueError, match="linear SVM needs a pre-training model"):
        build_network(model, "encode", LINEAR_SVM)


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        (TUNE, ("--test_svm", "modelnet40"), "has no 'dataset.svm_train'"),
        (PRETRAIN, ("--scratch_model",), "has no 'npoints'"),
    ],
)
def test_a_mode_without_its_sections_is_refused(here, capsys, pretrained, config, flags, message):
    assert message in refuse(capsys, config, *flags, *(["--ckpts", pretrained] if "--test_svm" in flags else []))
