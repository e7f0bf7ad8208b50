"""How fast the extensions are, beside their references and beside what one would use instead.

    python -m benchmarks.bench_extensions [--device cpu|cuda] [--quick] [--out FOLDER] [--note TEXT]

Prints a table of medians and writes results.json and times.png. All that is compared runs in turns, so that a busy
machine disturbs all alike; the ratios are the figures to read.
"""

import argparse
import contextlib
import logging
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cases import CASES, SIZES, Call, Case
from benchmarks.machine import time_on_gpu, timer
from benchmarks.record import add_flags, write_results
from utils.device import choose_device

PACKAGES = ("torch", "cuda-core", "numpy", "scipy", "scikit-learn", "fpsample", "torch_cluster")
QUICK_SHRINK = 16  # of the points of all clouds together
QUICK_LARGEST = 16384


@dataclass(frozen=True)
class Limits:
    """How long to measure: seconds a call may take, seconds for the runs of one contender, and how many runs."""

    call: float
    contender: float
    fewest: int
    most: int


@dataclass
class Row:
    """One contender in one case."""

    op: str
    size: int
    work: str
    clouds: int
    contender: str
    median_ms: float
    runs: int
    ratio: float  # its time in times of ours
    agreement: str  # of its result with ours
    gflop_per_s: float
    gb_per_s: float


def main(argv: Sequence[str] | None = None) -> None:
    """Run all cases and write the results."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    call, contender = (3.0, 1.0) if args.quick else (20.0, 10.0)
    limits = Limits(call, contender, *((20, 100) if on_gpu else (3, 20)))
    ceiling = measure_ceiling(device) if on_gpu else {}
    rows: list[Row] = []
    for op in CASES:
        for row in measure_op(op, device, args.quick, limits):
            print_row(row, ceiling)
            rows.append(row)
    figures = {"ceiling": ceiling, "rows": [asdict(row) for row in rows]}
    folder = write_results("bench_extensions", argv, args, device.type, PACKAGES, partial=False, **figures)
    plot(rows, folder / "times.png")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="time the extensions against references and alternatives")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=choose_device().type)
    add_flags(parser, quick="fewer and smaller clouds, calls of 3 seconds at most")
    return parser.parse_args(argv)


def measure_op(op: str, device: torch.device, quick: bool, limits: Limits) -> Iterator[Row]:
    """Measure one op at all sizes, as far as ours is fast enough; what would take too long is left out, and said."""
    make, total = CASES[op]
    total //= QUICK_SHRINK if quick else 1
    last: dict[str, tuple[float, int]] = {}  # contender → seconds and FLOP at the size before
    for size in (size for size in SIZES if not quick or size <= QUICK_LARGEST):
        case = make(size, max(1, total // size), device)
        calls = {}
        for name, call in contenders(case, device).items():
            seconds, flop = last.get(name, (0.0, 1))
            expected = seconds * case.flop / flop
            if expected > limits.call:
                print(f"{op}, {case.work}: {name} is left out, it would take about {expected:.0f} s")
            else:
                calls[name] = call
        if "ours" not in calls:
            return
        times, agreements = measure(calls, device, limits)
        ours = statistics.median(times["ours"])
        for name, runs in times.items():
            seconds = statistics.median(runs)
            last[name] = seconds, case.flop
            rates = case.flop / seconds / 1e9, case.traffic / seconds / 1e9
            ratio = seconds / ours
            yield Row(op, size, case.work, case.clouds, name, seconds * 1e3, len(runs), ratio, agreements[name], *rates)


def contenders(case: Case, device: torch.device) -> dict[str, Call]:
    """All that does the work of a case, ours first."""
    if device.type == "cpu":
        return {"ours": case.ours, **case.others}

    def forced(choice: str) -> Call:
        def call() -> Tensor:
            with kernels(choice):
                return case.ours()

        return call

    return {"ours": forced("cuda"), "reference": forced("reference"), **case.others}


@contextlib.contextmanager
def kernels(choice: str) -> Iterator[None]:
    """Choose between kernels and references for a while."""
    before = os.environ.get("I2P_MAE_KERNELS", "auto")
    os.environ["I2P_MAE_KERNELS"] = choice
    try:
        yield
    finally:
        os.environ["I2P_MAE_KERNELS"] = before


def measure(
    calls: dict[str, Call], device: torch.device, limits: Limits
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each run of each call, taken in turns, and how each result agrees with ours."""
    seconds = timer(device)
    results = {name: call() for name, call in calls.items()}  # the first run compiles and fills caches
    agreements = {name: agreement(results["ours"], result) for name, result in results.items()}
    runs = {
        name: min(limits.most, max(limits.fewest, int(limits.contender / seconds(call))))
        for name, call in calls.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(max(runs.values())):
        for name, call in calls.items():
            if i < runs[name]:
                times[name].append(seconds(call))
    return times, agreements


def agreement(ours: Tensor, other: Tensor) -> str:
    """Say how far a result is ours: how many indices are the same, or by how much a loss differs."""
    if ours.is_floating_point():
        return f"loss {(other / ours - 1).item():+.1e}"
    return f"{100 * (ours == other).double().mean().item():.2f} % of indices"


def measure_ceiling(device: torch.device) -> dict[str, float]:
    """What the GPU reaches: copying 1 GiB, and multiplying matrices in full float32."""
    source = torch.empty(1 << 28, device=device)
    target, matrix = torch.empty_like(source), torch.randn(8192, 8192, device=device)
    torch.backends.cuda.matmul.allow_tf32 = False
    copy = statistics.median(time_on_gpu(lambda: target.copy_(source)) for _ in range(20))
    product = statistics.median(time_on_gpu(lambda: matrix @ matrix) for _ in range(20))
    return {"gb_per_s": 2 * source.nbytes / copy / 1e9, "gflop_per_s": 2 * 8192**3 / product / 1e9}


def print_row(row: Row, ceiling: dict[str, float]) -> None:
    """Print a line of the table; on a GPU with the rates in percent of what it reaches."""
    line = f"{row.op:25} {row.work:45} {row.contender:17} {row.median_ms:10.3f} ms {row.ratio:8.2f} ×  {row.agreement}"
    if ceiling:
        flop, traffic = row.gflop_per_s / ceiling["gflop_per_s"], row.gb_per_s / ceiling["gb_per_s"]
        line += f"  {row.gflop_per_s:.0f} GFLOP/s ({flop:.1%}), {row.gb_per_s:.1f} GB/s ({traffic:.1%})"
    print(line, flush=True)


def plot(rows: list[Row], file: Path) -> None:
    """Draw the time of a cloud against its size, both logarithmic, a panel per op."""
    from matplotlib.figure import Figure

    ops = list(dict.fromkeys(row.op for row in rows))
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    for i, op in enumerate(ops):
        axes = figure.add_subplot(2, -(-len(ops) // 2), i + 1)
        for name in dict.fromkeys(row.contender for row in rows if row.op == op):
            line = [(row.size, row.median_ms / row.clouds) for row in rows if row.op == op and row.contender == name]
            axes.loglog(*zip(*line, strict=True), marker="o", markersize=3, label=name)
        tiny = "tiny" in op
        axes.set(title=op, xlabel="pairs of clouds" if tiny else "points", ylabel="ms" if tiny else "ms per cloud")
        axes.set_xlim(SIZES[0] / 1.5, SIZES[-1] * 1.5)
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    main()
