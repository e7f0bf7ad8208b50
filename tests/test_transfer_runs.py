"""Point-BERT's and ACT's fine-tuning through main.py: from what their pre-training would leave to a tested model."""

from pathlib import Path

import pytest
import torch

from datasets.synthetic import write_fewshot, write_shapenetpart
from models import build_model
from tests.playground import (
    CLASSES,
    FINETUNE_DATA,
    PART_DATA,
    TRAINING,
    make_playground,
    refuse,
    results_of,
    results_of_folder,
    run,
)
from tests.test_point_mae_runs import FEW_SHOT_DATA, GROUPS, TUNING, kept_as_initialised
from tools import runner_few_shot

BLOCKS = {"depth": 3, "num_heads": 3, "drop_path_rate": 0.1, **GROUPS}
BERT = {"NAME": "PointTransformer", "trans_dim": 24, "encoder_dims": 16, "cls_dim": 5, "smooth": 0.2, **BLOCKS}
ACT = {"NAME": "PointTransformer", "embed_dim": 24, "encoder_dims": 24, "cls_dim": len(CLASSES), **BLOCKS}
OF_BERT, OF_ACT, LINEAR, MLP3, FEW_SHOT, PARTS = (
    *("point-bert/scan", "act/scan", "act/scan_linear", "act/scan_mlp3", "act/few-shot_linear", "act/parts"),
)
ROTATED = {**TUNING, "augmentation": "rotate", "dataset": FINETUNE_DATA}
ROTATED["scheduler"] = {"type": "CosLR", "kwargs": {"epochs": 4, "initial_epochs": 1, "lr_min": 1e-7}}
CONFIGS = {
    OF_BERT: {**TUNING, "npoints": 64, "dataset": FINETUNE_DATA, "model": BERT},
    OF_ACT: {**ROTATED, "model": ACT | {"transfer_type": "full"}},
    LINEAR: {**ROTATED, "model": ACT | {"transfer_type": "linear"}},
    MLP3: {**ROTATED, "model": ACT | {"transfer_type": "mlp-3"}},
    FEW_SHOT: {**ROTATED, "npoints": 64, "dataset": FEW_SHOT_DATA, "model": ACT | {"transfer_type": "linear"}},
    PARTS: {
        **TRAINING,
        "max_epoch": 0,
        "grad_norm_clip": 10,
        "augmentation": "scale_and_translate_small",
        "dataset": PART_DATA,
        "model": {"NAME": "ACT_SEG", "trans_dim": 24, "encoder_dims": 24, "point_dims": [32, 24], **BLOCKS},
    },
}


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    folder = make_playground(tmp_path_factory.mktemp("playground"), CONFIGS, shapenet=1)
    write_shapenetpart(folder / "data", classes=["mug", "knife", "table"], train=8, test=2, num_points=96)
    write_fewshot(folder / "data", classes=CLASSES, test=3, num_points=96, ways=[2], shots=[3], folds=2)
    torch.manual_seed(5)
    left = {name: torch.zeros(3) for name in ("mask_token", "lm_head.weight", "cls_head.0.weight")}
    write_pretrained(folder / "bert.pth", BERT, "transformer_q", left, ("transformer_k.norm.weight", "dvae.codebook"))
    top = ("mask_token", "ACT_decoder.norm.weight", "proj_head.weight", "dvae_tokenizer.codebook")
    del left["mask_token"]
    write_pretrained(folder / "act.pth", ACT, "ACT_encoder", left, top)
    return folder


def write_pretrained(path: Path, config: dict, encoder: str, left: dict, top: tuple[str, ...]) -> None:
    """Write a checkpoint as a pre-training on several GPUs leaves it, of the encoder of a classifier."""
    of_encoder = {k: v for k, v in build_model(config).state_dict().items() if not k.startswith("cls_head_finetune")}
    state = {f"module.{encoder}.{key}": value for key, value in (of_encoder | left).items()}
    state |= {f"module.{key}": torch.zeros(2) for key in top}
    torch.save({"base_model": state, "epoch": 300}, path)


@pytest.fixture
def here(playground, monkeypatch):
    monkeypatch.chdir(playground)
    return playground


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "ckpt-last.pth", weights_only=True)["base_model"]


def tune(config: str, checkpoint: str) -> Path:
    assert run(config, "--finetune_model", "--ckpts", checkpoint, "--exp_name", "tuned") == 0
    return Path("experiments", config, "tuned")


@pytest.mark.parametrize(("config", "checkpoint"), [(OF_BERT, "bert.pth"), (OF_ACT, "act.pth"), (MLP3, "act.pth")])
def test_a_classifier_starts_from_its_pretrained_encoder_and_tests_as_it_trained(here, config, checkpoint):
    folder = tune(config, checkpoint)
    layers = 4 if config == OF_BERT else 16
    assert kept_as_initialised(folder) == f"cls_head_finetune ({layers})"
    final = results_of(config, "tuned")["fine-tuning"]["final_accuracy"]
    last = folder / "ckpt-last.pth"
    assert run(config, "--test", "--vote", "--votes", 2, "--ckpts", last, "--exp_name", "test") == 0
    results = results_of(config, "test")["test"]
    assert results["accuracy"] == pytest.approx(final)
    assert results["vote"]["repeats"] == 2


def test_a_frozen_body_is_saved_as_it_was_pretrained_and_a_full_transfer_moves_it(here):
    before = torch.load("act.pth", weights_only=True)["base_model"]
    assert run(OF_ACT, "--finetune_model", "--ckpts", "act.pth", "--exp_name", "full") == 0
    of_linear, of_full = weights_of(tune(LINEAR, "act.pth")), weights_of(Path("experiments", OF_ACT, "full"))
    names = [name for name in of_linear if f"module.ACT_encoder.{name}" in before and "running" not in name]
    moved = {
        which: {name for name in names if not torch.equal(state[name], before[f"module.ACT_encoder.{name}"])}
        for which, state in {"linear": of_linear, "full": of_full}.items()
    }
    counters = {name for name in names if name.endswith("num_batches_tracked")}
    assert moved["linear"] == {"cls_token", "cls_pos", *counters}
    assert len(moved["full"]) > 0.9 * len(names)


def test_few_shot_folds_of_a_frozen_body(here, monkeypatch):
    for name, value in (("WAYS", (2,)), ("SHOTS", (3,)), ("FOLDS", 2)):
        monkeypatch.setattr(runner_few_shot, name, value)
    assert run(FEW_SHOT, "--finetune_model", "--ckpts", "act.pth") == 0
    settings = results_of(FEW_SHOT)["few-shot fine-tuning"]["settings"]
    assert settings["2-way 3-shot"]["folds"] == [0, 1]


def test_a_segmenter_starts_from_acts_encoder_and_tests_as_it_trained(here):
    folder = tune(PARTS, "act.pth")
    kept = {part.partition(" ")[0] for part in kept_as_initialised(folder).split(", ")}
    assert kept == {
        *("label_conv_cls", "propagation_0_cls", "convs1_cls", "convs2_cls", "convs3_cls", "bns1_cls", "bns2_cls"),
    }
    final = results_of_folder(folder)["part segmentation, fine-tuning"]["final"]
    assert run(PARTS, "--test", "--ckpts", folder / "ckpt-last.pth", "--exp_name", "test") == 0
    measured = results_of(PARTS, "test")["part segmentation"]
    assert {key: measured[key] for key in final} == final


@pytest.mark.parametrize(
    ("config", "checkpoint", "message"),
    [
        (OF_BERT, "act.pth", "the file seems to hold an ACT pre-training model"),
        (LINEAR, "bert.pth", "the file seems to hold a Point-BERT pre-training model"),
    ],
)
def test_a_checkpoint_of_the_other_method_is_refused(here, capsys, config, checkpoint, message):
    assert message in refuse(capsys, config, "--finetune_model", "--ckpts", checkpoint)
