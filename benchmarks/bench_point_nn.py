"""How fast Point-NN encodes clouds, beside its literal formulation.

    python -m benchmarks.bench_point_nn [--device cpu|cuda] [--quick] [--clouds N] [--points N] [--runs N]
        [--out FOLDER] [--note TEXT]

Random points on spheres, released settings. Both run in turns, so that a busy machine disturbs both alike; the first
turn is not counted. Prints a table of medians with the largest difference of a feature and the memory that a larger
batch adds, and writes results.json. `--quick`: a quarter of the points, three stages of 24 neighbours.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import released_point_nn
from benchmarks.machine import memory_on_cpu, memory_on_gpu, timer
from benchmarks.record import add_flags, write_results
from models.point_nn import Point_NN
from utils.device import choose_device
from utils.tables import format_table

PACKAGES = ("torch", "cuda-core", "numpy")
CLOUDS = {False: 3, True: 3}  # in a batch; quick or not
MEMORY_CLOUDS = {False: 16, True: 4}  # in the batch of which memory is measured
POINTS = {False: 1024, True: 256}
SETTINGS = {False: {"stages": 4, "dim": 72, "k": 90}, True: {"stages": 3, "dim": 36, "k": 24}}
RUNS = {False: 7, True: 5}


@dataclass
class Row:
    """One formulation; the ratio is the median of the ratios of each turn."""

    clouds: int
    points: int
    formulation: str
    median_ms: float
    runs: int
    ratio: float  # its time in times of ours
    difference: float  # of a feature from ours, at most, in times of the root mean square
    memory_mib: float | None  # added at the highest by `memory_clouds`, see benchmarks/README.md
    memory_clouds: int


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both formulations and write the results."""
    args = parse_args(argv)
    rows = measure(args)
    print(format_table([list(asdict(row).values()) for row in rows], list(asdict(rows[0]))))
    figures = {"settings": SETTINGS[args.quick], "rows": [asdict(row) for row in rows]}
    write_results("bench_point_nn", argv, args, f"point_nn-{args.device}", PACKAGES, is_partial(args), **figures)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="time Point-NN beside its literal formulation")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=choose_device().type)
    parser.add_argument("--clouds", type=int, help="clouds per batch (3)")
    parser.add_argument("--points", type=int, help="points per cloud (1024; with --quick 256)")
    parser.add_argument("--runs", type=int, help="turns that count (7; with --quick 5)")
    add_flags(parser, quick="a quarter of the points, fewer stages and neighbours")
    args = parser.parse_args(argv)
    for name, default in (("clouds", CLOUDS), ("points", POINTS), ("runs", RUNS)):
        if getattr(args, name) is None:
            setattr(args, name, default[args.quick])
    return args


def is_partial(args: argparse.Namespace) -> bool:
    """Whether other sizes than the default ones are measured."""
    return (args.clouds, args.points, args.runs) != tuple(of[args.quick] for of in (CLOUDS, POINTS, RUNS))


def formulations(quick: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each formulation as a function of points; as published, a batch shares its deviations."""
    model = Point_NN(**SETTINGS[quick], normalise="batch")
    return {"ours": model.encode, "released": lambda points: released_point_nn.encode(model, points)}


def spheres(clouds: int, points: int, device: str) -> Tensor:
    """Points (B, N, 3) on the unit sphere."""
    noise = torch.randn(clouds, points, 3, generator=torch.Generator().manual_seed(0))
    return F.normalize(noise, dim=-1).to(device)


def measure(args: argparse.Namespace) -> list[Row]:
    """Time both formulations in turns, then measure their memory."""
    points, encoders = spheres(args.clouds, args.points, args.device), formulations(args.quick)
    seconds_of = timer(points.device)
    found = {name: encode(points) for name, encode in encoders.items()}  # the turn that is not counted
    turns = [
        {name: seconds_of(lambda encode=encode: encode(points)) for name, encode in encoders.items()}
        for _ in range(args.runs)
    ]
    scale = found["ours"].square().mean().sqrt()
    return [
        Row(
            *(args.clouds, args.points, name),
            median_ms=1e3 * statistics.median(turn[name] for turn in turns),
            runs=len(turns),
            ratio=statistics.median(turn[name] / turn["ours"] for turn in turns),
            difference=((found[name] - found["ours"]).abs().max() / scale).item(),
            memory_mib=memory(name, args),
            memory_clouds=MEMORY_CLOUDS[args.quick],
        )
        for name in encoders
    ]


def memory(name: str, args: argparse.Namespace) -> float | None:
    """MiB that encoding a batch adds; on a CPU to a fresh process, None where the system does not tell."""
    clouds = MEMORY_CLOUDS[args.quick]
    if args.device == "cuda":
        points, encode = spheres(clouds, args.points, args.device), formulations(args.quick)[name]
        return memory_on_gpu(lambda: encode(points))
    if sys.platform != "linux":
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_memory, name, clouds, args.points, args.quick, torch.get_num_threads()).result()


def _memory(name: str, clouds: int, points: int, quick: bool, threads: int) -> float:
    torch.set_num_threads(threads)
    formulations(True)[name](spheres(2, POINTS[True], "cpu"))  # loads what loads at first use
    batch, encode = spheres(clouds, points, "cpu"), formulations(quick)[name]
    return memory_on_cpu(lambda: encode(batch))


if __name__ == "__main__":
    main()
