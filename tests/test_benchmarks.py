"""The benchmark: what it compares agrees, and what it writes holds what was measured."""

import json
import math
import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import bench_data, bench_extensions, bench_svm, cases
from benchmarks.bench_extensions import Limits, Row, contenders, measure, measure_op
from benchmarks.cases import BUCKETS, CASES, Case
from extensions.pointnet2_ops.pointnet2_utils import furthest_point_sample

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
QUICKLY = Limits(call=60.0, contender=0.0, fewest=1, most=1)


@pytest.mark.parametrize("op", [op for op in CASES if op != "earth mover's distance"])
def test_alternatives_agree_with_ours(op):
    case = CASES[op][0](64, 2, CPU)
    _, agreements = measure(contenders(case, CPU), CPU, QUICKLY)
    assert agreements.keys() == {"ours", *case.others}
    agreements.pop(BUCKETS, None)
    for said in agreements.values():
        assert said == "100.00 % of indices" or abs(float(said.removeprefix("loss "))) < 1e-5


def test_no_assignment_costs_less_than_the_best():
    case = CASES["earth mover's distance"][0](32, 2, CPU)
    ours = case.ours()
    assert all(best() <= ours for best in case.others.values())


class TorchCluster:
    """What is asked of torch_cluster, with its signatures: clouds lie one after the other, indices count through."""

    @staticmethod
    def fps(x: Tensor, batch: Tensor, ratio: float, random_start: bool) -> Tensor:
        assert not random_start
        clouds = x.view(int(batch[-1]) + 1, -1, 3)
        n = clouds.shape[1]
        picks = furthest_point_sample(clouds, math.ceil(ratio * n))
        return (picks + n * torch.arange(len(clouds)).unsqueeze(1)).flatten()

    @staticmethod
    def knn(x: Tensor, y: Tensor, k: int, batch_x: Tensor, batch_y: Tensor) -> Tensor:
        elsewhere = batch_y.unsqueeze(1) != batch_x
        nearest = torch.cdist(y, x).masked_fill(elsewhere, torch.inf).topk(k, largest=False).indices
        return torch.stack([torch.arange(len(y)).repeat_interleave(k), nearest.flatten()])


@pytest.mark.parametrize("op", ["farthest point sampling", "kNN", "three_nn"])
def test_results_of_torch_cluster_are_read_by_cloud(op, monkeypatch):
    monkeypatch.setattr(cases, "optional", lambda name: TorchCluster if name == "torch_cluster" else None)
    case = CASES[op][0](64, 3, CPU)
    assert torch.equal(case.others["torch_cluster"](), case.ours())


def busy(seconds: float) -> Tensor:
    time.sleep(seconds)
    return torch.ones(1)


def test_ratios_are_in_times_of_ours_and_what_would_take_too_long_is_left_out(monkeypatch, capsys):
    def make(n: int, clouds: int, device: torch.device) -> Case:
        return Case(f"{n}", clouds, n * n, 1, lambda: busy(0.001), {"slow": lambda: busy(0.05)})

    monkeypatch.setattr(bench_extensions, "CASES", {"op": (make, 512)})
    rows = list(measure_op("op", CPU, quick=False, limits=Limits(call=0.5, contender=0.0, fewest=3, most=3)))
    assert [(row.size, row.contender) for row in rows[:4]] == [
        (256, "ours"),
        (256, "slow"),
        (1024, "ours"),
        (2048, "ours"),
    ]
    assert [row.runs for row in rows[:2]] == [3, 3]
    assert rows[0].ratio == 1 < rows[1].ratio == rows[1].median_ms / rows[0].median_ms
    assert "op, 1024: slow is left out" in capsys.readouterr().out


def test_on_a_gpu_kernels_and_references_are_forced(monkeypatch):
    monkeypatch.setenv("I2P_MAE_KERNELS", "auto")
    case = Case("", 1, 1, 1, lambda: os.environ["I2P_MAE_KERNELS"], {"other": lambda: os.environ["I2P_MAE_KERNELS"]})
    chosen = {name: call() for name, call in contenders(case, torch.device("cuda")).items()}
    assert chosen == {"ours": "cuda", "reference": "reference", "other": "auto"}


def test_rates_are_shown_in_percent_of_the_ceiling(capsys):
    row = Row("op", 256, "1 × 256", 1, "ours", 2.0, 20, 1.0, "", gflop_per_s=50.0, gb_per_s=3.0)
    bench_extensions.print_row(row, {"gflop_per_s": 200.0, "gb_per_s": 4.0})
    assert "50 GFLOP/s (25.0%), 3.0 GB/s (75.0%)" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measuring a GPU needs one")
def test_a_gpu_is_measured():
    gpu = torch.device("cuda")
    ceiling = bench_extensions.measure_ceiling(gpu)
    assert min(ceiling.values()) > 1
    times, agreements = measure(contenders(CASES["kNN"][0](256, 2, gpu), gpu), gpu, QUICKLY)
    assert times["ours"][0] > 0
    assert agreements["reference"] == "100.00 % of indices"


def test_results_are_written(monkeypatch, tmp_path):
    fps, _ = CASES["farthest point sampling"]
    monkeypatch.setattr(bench_extensions, "CASES", {"farthest point sampling": (fps, 256 * 16)})
    monkeypatch.setattr(bench_extensions, "SIZES", (256, 1024))
    arguments = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--note", "a test"]
    bench_extensions.main(arguments)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["size"] for row in results["rows"] if row["contender"] == "ours"] == [256, 1024]
    assert (results["note"], results["versions"]["torch"]) == ("a test", torch.__version__.partition("+")[0])
    assert results["command"].endswith("--note 'a test'")
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")


def test_quick_and_partial_results_leave_the_tracked_ones_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_svm, "CLOUDS", {False: (200, 50), True: (160, 40)})
    monkeypatch.setattr(bench_svm, "RUNS", 2)
    for flags in ([], ["--quick"], ["--runs", "1"]):
        bench_svm.main(flags)
    results = {path: json.loads(path.read_text()) for path in Path("benchmarks/results").rglob("*.json")}
    assert {path: (result["clouds"], result["runs"]) for path, result in results.items()} == {
        Path("benchmarks/results/svm/results.json"): ([200, 50], 2),
        Path("benchmarks/results/quick/svm/results.json"): ([160, 40], 2),
        Path("benchmarks/results/partial/svm/results.json"): ([200, 50], 1),
    }
    assert capsys.readouterr().out.endswith("results in benchmarks/results/partial/svm\n")
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/benchmarks/results/quick/", "/benchmarks/results/partial/"} <= set(ignored)


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ([], ""),
        (["--folder", "."], ""),
        (["--clouds", "600"], "partial/"),
        (["--batch", "32"], "partial/"),
        (["--workers", "1"], "partial/"),
        (["--epochs", "12"], "partial/"),
        (["--quick", "--epochs", "2"], "quick/"),
    ],
)
def test_other_numbers_of_clouds_than_the_default_leave_the_tracked_results_alone(flags, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_data, "loaders", lambda *args: {})
    monkeypatch.setattr(bench_data, "measure", lambda *args: [bench_data.Row("files", 1.0, 1, 1.0)])
    bench_data.main(["--device", "cpu", *flags])
    assert [str(path) for path in tmp_path.rglob("*.json")] == [
        f"{tmp_path}/benchmarks/results/{folder}data-cpu/results.json"
    ]
