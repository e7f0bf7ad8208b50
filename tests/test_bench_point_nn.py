"""The benchmark of Point-NN: the literal formulation computes the same, and what is written holds what was measured."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import bench_point_nn, released_point_nn
from models.point_nn import Point_NN
from tests.golden.fixtures import clouds


@pytest.mark.parametrize("normalise", ["cloud", "batch"])
@pytest.mark.parametrize("duplicates", [False, True])
def test_the_literal_formulation_computes_the_same(normalise, duplicates):
    points = clouds(3, 128, seed=5).double()
    if duplicates:  # the stages are left with fewer points than they pick
        points = points[:, torch.arange(128) % 24]
    model = Point_NN(stages=3, dim=12, k=16, normalise=normalise)
    torch.testing.assert_close(released_point_nn.encode(model, points), model(points), rtol=1e-9, atol=1e-9)


def test_results_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_point_nn, "memory", lambda name, args: 1.0)  # has a test of its own
    bench_point_nn.main(["--device", "cpu", "--quick", "--runs", "2", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    ours, released = results["rows"]
    assert (ours["formulation"], released["formulation"]) == ("ours", "released")
    assert (ours["clouds"], ours["points"], ours["runs"], ours["ratio"], ours["difference"]) == (3, 256, 2, 1, 0)
    assert 0 < released["difference"] < 1e-4
    assert min(ours["median_ms"], released["median_ms"]) > 0
    assert results["settings"]["k"] == 24
    assert "released" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ([], ""),
        (["--clouds", "2"], "partial/"),
        (["--points", "2048"], "partial/"),
        (["--runs", "3"], "partial/"),
        (["--quick", "--runs", "3"], "quick/"),
    ],
)
def test_a_partial_run_leaves_the_tracked_results_alone(flags, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    row = bench_point_nn.Row(1, 1, "ours", 1.0, 1, 1.0, 0.0, None, 16)
    monkeypatch.setattr(bench_point_nn, "measure", lambda *args: [row])
    bench_point_nn.main(["--device", "cpu", *flags])
    assert [str(path) for path in Path().rglob("*.json")] == [f"benchmarks/results/{folder}point_nn-cpu/results.json"]
