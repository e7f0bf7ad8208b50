"""Training and testing of the discrete autoencoder: schedules, scores, whole runs."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import nn

from extensions.chamfer_dist import ChamferDistanceL1, ChamferDistanceL2
from tests.golden_numbers import load
from tests.playground import SHAPENET, TRAINING, make_playground, refuse, results_of, run, write_config
from tests.test_discrete_vae import SMALL
from tools.evaluation import reconstruction
from tools.evaluation.reconstruction import reconstruction_scores, scores
from tools.runner_autoencode import DISTANCE
from tools.training.annealing import KL_BEGINS, annealed, set_batchnorm_momentum
from tools.training.report import ACCURACY
from utils.config import load_config

ROOT = Path(__file__).parents[1]
CONFIG = {
    **TRAINING,
    "dataset": {
        "train": SHAPENET,
        "test": {**SHAPENET, "others": {**SHAPENET["others"], "subset": "test"}},
    },
    "model": SMALL,
    "temp": {"start": 1, "target": 0.25, "ntime": 4},
    "kldweight": {"start": 0, "target": 0.1, "ntime": 4},
    "augmentation": "none",
}
NAME = "point-bert/dvae"


def test_temperature_and_weight_follow_the_released_schedules():
    golden, config = load("point_bert_dvae")["schedule"], load_config(ROOT / "cfgs/point-bert/dvae.yaml")
    updates = golden["iteration"]
    temperatures = [annealed(config.temp, update) for update in updates]
    weights = [annealed(config.kldweight, update, begins=KL_BEGINS) for update in updates]
    np.testing.assert_allclose(temperatures, golden["temperature"], rtol=1e-8)
    np.testing.assert_allclose(weights, golden["kld_weight"], rtol=1e-6, atol=1e-18)


def test_the_momentum_of_batch_norm_falls_in_steps_to_its_lowest():
    """max(.01, .1 · .5^⌊epoch / 20⌋), of all kinds of BatchNorm and of no other layer."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm2d(2), nn.SyncBatchNorm(2)), nn.GroupNorm(1, 2))
    settings = load_config(ROOT / "cfgs/point-bert/part-segmentation.yaml").bn_momentum
    expected = {0: 0.1, 19: 0.1, 20: 0.05, 39: 0.05, 40: 0.025, 60: 0.0125, 79: 0.0125, 80: 0.01, 299: 0.01}
    for epoch, momentum in expected.items():
        set_batchnorm_momentum(model, settings, epoch)
        assert [layer.momentum for layer in (model[0], *model[1])] == [pytest.approx(momentum)] * 3
    assert not hasattr(model[2], "momentum")


def test_scores_are_those_of_a_search_in_a_tree():
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(2, 400, 3, generator=generator) * 0.1
    rebuilt = true[:, :250] + 0.006 * torch.randn(2, 250, 3, generator=generator)
    for found, one, other in zip(scores(rebuilt, true), rebuilt, true, strict=True):
        there = cKDTree(other).query(one)[0]
        back = cKDTree(one).query(other)[0]
        precision, recall = (there < 0.01).mean(), (back < 0.01).mean()
        assert 0.3 < recall < precision < 0.95
        expected = [200 * precision * recall / (precision + recall), 500 * (there.mean() + back.mean())]
        np.testing.assert_allclose(found, [*expected, 1000 * ((there**2).mean() + (back**2).mean())], rtol=1e-4)
    np.testing.assert_allclose(scores(rebuilt, true)[:, 1].mean(), 1000 * ChamferDistanceL1()(rebuilt, true), rtol=1e-5)
    np.testing.assert_allclose(scores(rebuilt, true)[:, 2].mean(), 1000 * ChamferDistanceL2()(rebuilt, true), rtol=1e-5)
    assert scores(true, true)[:, 0].tolist() == [100.0, 100.0]
    assert scores(true + 5, true)[:, 0].tolist() == [0.0, 0.0]


def test_every_category_counts_alike(monkeypatch):
    """Scores of three clouds of one category and one of another."""
    values = iter([torch.tensor([[10.0, 1.0, 3.0], [20.0, 2.0, 3.0], [30.0, 3.0, 3.0], [60.0, 6.0, 9.0]])])
    monkeypatch.setattr(reconstruction.Rebuild, "forward", lambda self, points: next(values))
    loader = [(torch.zeros(4, 5, 3), torch.tensor([4, 4, 4, 9]))]
    found = reconstruction_scores(nn.Identity(), loader, torch.device("cpu"), seed=0)
    assert found == {"F_score": 40.0, "CDL1": 4.0, "CDL2": 6.0}


def test_the_lowest_distance_and_the_highest_accuracy_are_the_best():
    assert [DISTANCE.better(1.0, 2.0), DISTANCE.better(2.0, 1.0), DISTANCE.better(1.0, 1.0)] == [True, False, False]
    assert [ACCURACY.shown(12.345), DISTANCE.shown(12.345)] == ["12.35 %", "12.35"]
    assert [ACCURACY.better(1.0, 2.0), ACCURACY.better(2.0, 1.0), ACCURACY.better(1.0, 1.0)] == [False, True, False]


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    return make_playground(tmp_path_factory.mktemp("playground"), {NAME: {**CONFIG, "max_epoch": 2}})


@pytest.fixture
def here(playground, monkeypatch):
    monkeypatch.chdir(playground)
    return playground


@pytest.fixture(scope="module")
def trained(playground):
    """The folder of an uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(playground)
        assert run(NAME, "--exp_name", "whole") == 0
    return playground / "experiments" / NAME / "whole"


def test_a_run_keeps_the_autoencoder_of_the_lowest_distance(here, trained, capsys):
    results = results_of(NAME, "whole")["autoencoding"]
    history = results["history"]
    distances = [epoch["evaluation"] for epoch in history]
    assert results["protocol"] == "Chamfer L1 × 1000 on ShapeNet, test split"
    assert results["best_CDL1"] == min(distances)
    assert results["best_epoch"] == distances.index(min(distances))
    assert results["final_CDL1"] == distances[-1]
    updates = [[annealed(CONFIG["temp"], 2 * epoch + batch) for batch in range(2)] for epoch in range(3)]
    assert [epoch["temperature"] for epoch in history] == pytest.approx([sum(pair) / 2 for pair in updates])
    told = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["recon"], line["best"]) for line in told] == [
        (number, epoch["recon"], min(distances[: number + 1])) for number, epoch in enumerate(history)
    ]
    for epoch in history:
        assert epoch["kl_weight"] == 0  # not yet
        assert epoch["loss"] == pytest.approx(epoch["recon"])

    assert run(NAME, "--test", "--ckpts", trained / "ckpt-best.pth", "--exp_name", "test") == 0
    tested = results_of(NAME, "test")["autoencoding, test"]
    assert tested["CDL1"] == pytest.approx(min(distances))
    assert set(tested) == {"protocol", "checkpoint", "F_score", "CDL1", "CDL2", "about"}
    assert "Chamfer L1 × 1000" in capsys.readouterr().out


def test_a_resumed_run_ends_as_one_that_never_stopped(here, trained, monkeypatch):
    calls = itertools.count()
    with monkeypatch.context() as patch:  # asked after each of two updates and each epoch: within the second epoch
        patch.setattr("tools.training.trainer.any_process", lambda *_: next(calls) == 3)
        assert run(NAME, "--exp_name", "stopped") == 75
    assert run(NAME, "--exp_name", "stopped", "--resume") == 0
    ours, whole = (results_of(NAME, name)["autoencoding"] for name in ("stopped", "whole"))
    assert ours["history"] == whole["history"]


def test_what_an_autoencoder_has_not_is_refused(here, capsys):
    lacking = {key: value for key, value in CONFIG.items() if key != "temp"}
    write_config(here, "point-bert/lacking", lacking)
    assert "has no 'temp', which autoencoding needs" in refuse(capsys, "point-bert/lacking")
    write_config(here, "point-bert/wrong", {**CONFIG, "temp": {"start": 1, "target": -1, "ntime": 4}})
    assert "temp.target = -1 in cfgs/point-bert/wrong.yaml must be a number ≥ 0" in refuse(capsys, "point-bert/wrong")
