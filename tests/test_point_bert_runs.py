"""Point-BERT through main.py: tokenizer, pre-training from it, part segmentation from that, with small models."""

import itertools
from pathlib import Path

import pytest
import torch

from datasets.synthetic import write_shapenetpart
from models import build_model
from models.point_bert import Point_BERT
from tests.playground import (
    MODELNET,
    PART_DATA,
    SHAPENET,
    SVM_DATA,
    TRAINING,
    changed,
    make_playground,
    refuse,
    results_of,
    results_of_folder,
    run,
    write_config,
)
from tests.test_autoencode import CONFIG as TOKENIZER
from tests.test_point_bert import DVAE, TRANSFORMER
from tests.test_point_mae_runs import kept_as_initialised
from tools import runner_pretrain
from tools.training import trainer

DVAE_FILE = "experiments/point-bert/dvae/base/ckpt-last.pth"
MODEL = {
    "NAME": "Point_BERT",
    "K": 12,
    "m": 0.9,
    "transformer_config": {**TRANSFORMER, "drop_path_rate": 0.1, "depth": 3},
    "dvae_config": {**DVAE, "ckpt": DVAE_FILE},
}
PRETRAIN, FEATURES, PARTS = "point-bert/pre-train", "point-bert/features", "point-bert/part-segmentation"
CONFIGS = {
    "point-bert/dvae": {**TOKENIZER, "max_epoch": 0},
    PRETRAIN: {
        **TRAINING,
        "npoints": 64,
        "svm": {"C": 1, "solver": "LinearSVC"},
        "dataset": {
            "train": {**SHAPENET, "others": {**SHAPENET["others"], "subset": "whole"}},
            **{f"svm_{subset}": {**MODELNET, "others": {"subset": subset}} for subset in ("train", "test")},
        },
        "model": MODEL,
    },
    FEATURES: {"svm": {"C": 1}, "dataset": SVM_DATA, "model": MODEL},
    PARTS: {
        **TRAINING,
        "augmentation": "scale_and_translate_small",
        "bn_momentum": {"start": 0.2, "decay": 0.5, "every": 1, "lowest": 0.01},
        "dataset": PART_DATA,
        "model": {
            "NAME": "Point_BERT_SEG",
            "num_group": 8,
            "group_size": 6,
            "encoder_dims": DVAE["encoder_dims"],
            **{key: TRANSFORMER[key] for key in ("trans_dim", "num_heads")},
            "depth": 3,
            "between": [24, 12],
            "wide_dim": 32,
        },
    },
}


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with the generated data sets, the small configs and a tokenizer."""
    folder = make_playground(tmp_path_factory.mktemp("playground"), CONFIGS)
    write_shapenetpart(folder / "data", classes=["mug", "knife", "table"], train=8, test=2, num_points=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("point-bert/dvae", "--exp_name", "base") == 0
    return folder


@pytest.fixture(scope="module")
def pretrained(playground):
    """The checkpoint of an uninterrupted pre-training run of two epochs of two batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(playground)
        assert run(PRETRAIN, "--exp_name", "whole") == 0
    return playground / "experiments" / PRETRAIN / "whole" / "ckpt-last.pth"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["base_model"]


def test_pretraining_reports_its_losses_and_its_own_svm(here, pretrained):
    results = results_of(PRETRAIN, "whole")["pre-training"]
    assert results["protocol"] == "linear SVM (C = 1, LinearSVC) on ModelNet, test split"
    assert results["about"]["data"]["train"]["clouds"] == 3 * (4 + 1)  # the test shapes too
    for epoch in results["history"]:
        assert epoch["loss"] == pytest.approx(epoch["dvae_loss"] + epoch["cutmix_loss"])
        assert "moco_loss" not in epoch
        assert 5 <= epoch["visible_tokens"] <= 6  # int(.25 · 8) to int(.45 · 8) of 8 are masked
        assert 0 <= epoch["evaluation"] <= 100


def test_the_svm_sees_the_farthest_points_and_has_its_own_solver(here, pretrained, monkeypatch):
    seen, solvers = [], []
    encode = Point_BERT.encode

    def watched(model, points):
        seen.append(points.shape[1])
        return encode(model, points)

    monkeypatch.setattr(Point_BERT, "encode", watched)
    monkeypatch.setattr(runner_pretrain, "linear_svm_accuracy", lambda *given: solvers.append(given[4:]) or 50.0)
    assert run(PRETRAIN, "--exp_name", "seen") == 0
    assert set(seen) == {64}
    assert solvers == [(1, "LinearSVC")] * 2


def test_a_run_moves_queue_momentum_encoder_and_the_tokenizers_statistics(here, pretrained):
    state, tokenizer = weights(pretrained), weights(Path(DVAE_FILE))
    assert set(state) == set(build_model({**MODEL, "dvae_config": {**DVAE, "ckpt": "untrained"}}).state_dict())
    assert state["queue_ptr"].tolist() == [0]  # four batches of 6 in a queue of 12
    parameter, statistic = "encoder.first_conv.0.weight", "encoder.first_conv.1.running_mean"
    assert torch.equal(state[f"dvae.{parameter}"], tokenizer[parameter])
    assert not torch.equal(state[f"dvae.{statistic}"], tokenizer[statistic])
    q, k = (state[f"transformer_{which}.{parameter}"] for which in "qk")
    distances = (q - tokenizer[parameter]).norm(), (k - tokenizer[parameter]).norm()
    assert 0 < distances[1] < distances[0]


def test_a_resumed_run_ends_as_one_that_never_stopped(here, pretrained, monkeypatch):
    """Stopped within an epoch, with the queue half new and the momentum encoder behind."""
    calls = itertools.count()
    with monkeypatch.context() as patch:  # asked after each of two updates and each epoch
        patch.setattr(trainer, "any_process", lambda *_: next(calls) == 3)
        assert run(PRETRAIN, "--exp_name", "stopped") == 75
    folder = pretrained.parents[1] / "stopped"
    between = weights(folder / "ckpt-last.pth")
    assert between["queue_ptr"].tolist() == [6]
    assert run(PRETRAIN, "--exp_name", "stopped", "--resume") == 0
    whole, resumed = weights(pretrained), weights(folder / "ckpt-last.pth")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert [name for name in whole if not torch.equal(whole[name], between[name])]


def test_features_are_probed_without_the_tokenizers_file(here, pretrained, recwarn):
    moved = changed(CONFIGS[FEATURES], "model.dvae_config.ckpt", "gone.pth")
    write_config(here, FEATURES, moved)
    assert run(FEATURES, "--test_svm", "modelnet40", "--ckpts", pretrained) == 0
    assert 0 <= results_of(FEATURES)["linear SVM"]["accuracy"] <= 100
    assert run(FEATURES, "--test_bank", "--ckpts", pretrained, "--exp_name", "bank") == 0
    assert 0 <= results_of(FEATURES, "bank")["memory bank"]["accuracy"] <= 100
    assert not [warning for warning in recwarn.list if "ckpt" in str(warning.message)]


def test_a_segmenter_starts_from_the_pretrained_encoder_and_tests_as_it_trained(here, pretrained, monkeypatch):
    momenta, train = [], trainer.train_one_epoch

    def watched(model, *given, **settings):
        momenta.append(model.bn1.momentum)
        return train(model, *given, **settings)

    monkeypatch.setattr(trainer, "train_one_epoch", watched)
    assert run(PARTS, "--finetune_model", "--ckpts", pretrained, "--exp_name", "tuned") == 0
    folder = Path("experiments", PARTS, "tuned")
    kept = [part.partition(" ")[0] for part in kept_as_initialised(folder).split(", ")]
    assert kept == [
        *("propagation_2", "propagation_1", "propagation_0", "dgcnn_pro_1", "dgcnn_pro_2", "conv1", "bn1", "conv2"),
    ]
    assert momenta == [0.2, 0.1]
    final = results_of_folder(folder)["part segmentation, fine-tuning"]["final"]
    assert run(PARTS, "--test", "--ckpts", folder / "ckpt-last.pth", "--exp_name", "test") == 0
    measured = results_of(PARTS, "test")["part segmentation"]
    assert {key: measured[key] for key in final} == final


def test_what_does_not_fit_is_refused(here, capsys, pretrained):
    config = CONFIGS[PRETRAIN]
    write_config(here, "point-bert/wrong", changed(config, "model.K", 16))
    assert "model.K, 16 keys, is no multiple of the batch of all processes, 6 clouds" in refuse(
        capsys, "point-bert/wrong"
    )
    write_config(here, "point-bert/lost", changed(config, "model.dvae_config.ckpt", "gone.pth"))
    message = refuse(capsys, "point-bert/lost")
    assert "model.dvae_config.ckpt is 'gone.pth', and there is no such file" in message
    assert "python main.py --config cfgs/point-bert/dvae.yaml" in message
    write_config(here, "point-bert/solver", changed(config, "svm.solver", "SVR"))
    assert "svm.solver = 'SVR' in cfgs/point-bert/solver.yaml must be 'SVC' or 'LinearSVC'" in refuse(
        capsys, "point-bert/solver"
    )
    write_config(here, "point-bert/momentum", changed(CONFIGS[PARTS], "bn_momentum.start", 2))
    assert "bn_momentum.start = 2 in cfgs/point-bert/momentum.yaml must be a number in (0, 1]" in refuse(
        capsys, "point-bert/momentum", "--scratch_model"
    )
