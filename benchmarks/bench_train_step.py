"""What one step of pre-training takes, stage by stage, beside its literal formulation and a floor.

    python -m benchmarks.bench_train_step [--method i2p-mae|point-mae] [--device cpu|cuda] [--quick]
        [--formulation ours released] [--batch B …] [--points N …] [--amp none bf16 …] [--out FOLDER] [--note TEXT]

Prints tables of medians and writes results.json and stages.png; benchmarks/README.md says what is measured.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.machine import memory_on_cpu, memory_on_gpu, timer
from benchmarks.record import add_flags, write_results
from benchmarks.train_step import CLOUD_POINTS, STAGES, Floor, Size, Training
from datasets.synthetic.catalogue import CATALOGUE
from datasets.synthetic.layouts import write_shapenet
from tools.training.precision import DTYPES
from utils.device import choose_device
from utils.tables import format_table

PACKAGES = ("torch", "open_clip_torch", "timm", "cuda-core", "numpy")
CONFIG, QUICK_CONFIG = Path("cfgs/pre-training/i2p-mae.yaml"), Path("cfgs/demo/pre-train.yaml")
# Pairs of batch and points: batches at one number of points, then numbers of points at one batch.
SIZES = {
    "quick": [(4, 512), (16, 512), (16, 2048)],
    "cpu": [(1, 2048), (2, 2048), (4, 2048), (8, 2048), (4, 1024), (4, 4096), (4, 8192)],
    "cuda": [*((batch, 2048) for batch in (1, 4, 16, 64, 128, 256)), (64, 1024), (64, 4096), (64, 8192)],
}
POINT_MAE_SIZES = {
    "quick": [(4, 512), (16, 512)],
    "cpu": [(batch, 1024) for batch in (1, 4, 8)],
    "cuda": [(batch, 1024) for batch in (4, 16, 64, 128, 256)],
}
BATCH = 8  # where only --points is given
BURST = 3  # steps between two synchronisations where a GPU is timed
Name = tuple[str, str]  # formulation and precision


@dataclass(frozen=True)
class Method:
    """What to measure of a method: its configs, its sizes, and the points where only --batch is given."""

    config: Path
    quick_config: Path
    sizes: dict[str, list[tuple[int, int]]]
    points: int
    folder: str


METHODS = {
    "i2p-mae": Method(CONFIG, QUICK_CONFIG, SIZES, 2048, "train_step"),
    "point-mae": Method(
        Path("cfgs/point-mae/pre-train.yaml"),
        Path("cfgs/demo/point-mae.yaml"),
        *(POINT_MAE_SIZES, 1024, "train_step-point-mae"),
    ),
}


@dataclass(frozen=True)
class Turns:
    """How often to measure: seconds for a size, and how many turns at least and at most."""

    seconds: float
    fewest: int
    most: int


@dataclass
class Turn:
    """Seconds of one turn: of whole steps, of their stages, and of the floor."""

    steps: dict[Name, float]
    stages: dict[Name, dict[str, float]]
    teacher: float  # 0 where there is none
    products: dict[str, float]


@dataclass
class Row:
    """One formulation at one size; times are medians in ms, ratios are medians of the ratios of each turn."""

    batch: int
    points: int
    formulation: str
    amp: str
    runs: int
    step_ms: float
    stages_ms: dict[str, float]
    teacher_ms: float  # the teacher alone, 0 where there is none
    products_ms: float  # the student's products alone
    products_gflop: float
    step_per_teacher: float | None
    beyond_teacher_ms: float  # step − teacher alone
    beyond_per_products: float
    beyond_per_ours: float | None  # in times of ours without amp
    memory_mib: float | None  # see benchmarks/README.md


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all sizes and write the results."""
    args = parse_args(argv)
    method, sizes = METHODS[args.method], sizes_of(args)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        most = max(batch for batch, _ in sizes)
        data = write_shapenet(folder, train=-(-most // len(CATALOGUE)), test=1, num_points=CLOUD_POINTS)
        for batch, points in sizes:
            size = Size(method.quick_config if args.quick else method.config, data, args.device, batch, points)
            try:
                measured = measure(size, names_of(args), turn_limits(args))
            except torch.cuda.OutOfMemoryError as error:
                print(f"batch {batch} of {points} points is left out: {error}")
                continue
            print_rows(measured)
            rows += measured
    name = f"{method.folder}-{args.device}"
    figures = {"rows": [asdict(row) for row in rows]}
    folder = write_results("bench_train_step", argv, args, name, PACKAGES, is_partial(args), **figures)
    plot(rows, folder / "stages.png")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="time one step of pre-training by stages")
    parser.add_argument("--method", choices=METHODS, default="i2p-mae", help="what is pre-trained (%(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=choose_device().type)
    parser.add_argument("--formulation", nargs="+", choices=["ours", "released"], default=["ours", "released"])
    parser.add_argument("--batch", nargs="+", type=int, help="clouds per batch; with --points every pair of both")
    parser.add_argument("--points", nargs="+", type=int, help="points per cloud")
    parser.add_argument("--amp", nargs="+", choices=["none", *DTYPES], default=["none"], help="precisions of ours")
    add_flags(parser, quick="the demo's small model and teacher")
    args = parser.parse_args(argv)
    if min(args.batch or [1]) < 1:
        parser.error(f"--batch {min(args.batch)}: give at least 1")
    if not 1 <= min(args.points or [1]) <= max(args.points or [1]) <= CLOUD_POINTS:
        parser.error(f"--points {args.points}: give 1 to {CLOUD_POINTS}")
    return args


def sizes_of(args: argparse.Namespace) -> list[tuple[int, int]]:
    """Pairs of batch and points: every pair of what is given, else the default ones."""
    method = METHODS[args.method]
    if args.batch or args.points:
        return list(itertools.product(args.batch or [BATCH], args.points or [method.points]))
    return method.sizes["quick" if args.quick else args.device]


def names_of(args: argparse.Namespace) -> list[Name]:
    """The formulations to measure, each in its precisions; released is float32."""
    return [(name, amp) for name in args.formulation for amp in (args.amp if name == "ours" else ["none"])]


def is_partial(args: argparse.Namespace) -> bool:
    """Whether the sizes are not the default ones, or a formulation in float32 is missing."""
    return bool(args.batch or args.points) or not {("ours", "none"), ("released", "none")} <= set(names_of(args))


def turn_limits(args: argparse.Namespace) -> Turns:
    """More turns where they are short."""
    if args.device == "cuda":
        return Turns(10.0, 5, 20)
    return Turns(4.0, 5, 20) if args.quick else Turns(30.0, 3, 10)


def measure(size: Size, names: Sequence[Name], turns: Turns) -> list[Row]:
    """Measure all formulations and the floor at one size, in turns; the first turn is not counted."""
    memory = {name: memory_in_a_process(size, *name) for name in names} if size.device == "cpu" else {}
    trainings = {name: Training(size, *name) for name in names}
    floor = Floor(size, {amp for _, amp in names})
    began = time.perf_counter()
    take_turn(trainings, floor, size.device)
    seconds = time.perf_counter() - began
    runs = min(turns.most, max(turns.fewest, int(turns.seconds / seconds)))
    taken = [take_turn(trainings, floor, size.device) for _ in range(runs)]
    if size.device != "cpu":
        memory = {name: memory_on_gpu(training.step) for name, training in trainings.items()}
    return [summarise(size, name, taken, floor.gflop, memory[name]) for name in names]


def take_turn(trainings: dict[Name, Training], floor: Floor, device: str) -> Turn:
    """Time a step of each formulation and the floor."""
    seconds_of = timer(torch.device(device))
    steps, stages = {}, {}
    for name, training in trainings.items():
        stages[name] = training.stage_seconds()
        if device == "cpu":
            steps[name] = sum(stages[name].values())
        else:
            steps[name] = seconds_of(lambda: [training.step() for _ in range(BURST)]) / BURST  # noqa: B023
    products = {amp: seconds_of(lambda: floor.products(amp)) for _, amp in trainings}  # noqa: B023
    return Turn(steps, stages, seconds_of(floor.teacher) if floor.has_teacher else 0.0, products)


def memory_in_a_process(size: Size, formulation: str, amp: str) -> float | None:
    """MiB that a step adds to the resident memory of a fresh process; None where the system does not tell."""
    if sys.platform != "linux":
        print(f"memory is not measured: {sys.platform} does not tell how much was resident")
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_memory_of_step, size, formulation, amp, torch.get_num_threads()).result()


def _memory_of_step(size: Size, formulation: str, amp: str, threads: int) -> float:
    torch.set_num_threads(threads)
    quick_config = next(m.quick_config for m in METHODS.values() if size.config in (m.config, m.quick_config))
    small = Size(quick_config, size.data, size.device, 2, 256)
    Training(small, formulation, amp).step()  # loads what loads at first use
    return memory_on_cpu(Training(size, formulation, amp).step)


def summarise(size: Size, name: Name, turns: list[Turn], gflop: float, memory: float | None) -> Row:
    """The medians of all turns."""

    def median(of: Callable[[Turn], float]) -> float:
        return statistics.median(of(turn) for turn in turns)

    def beyond(turn: Turn, name: Name = name) -> float:
        return turn.steps[name] - turn.teacher

    amp, ours = name[1], ("ours", "none")
    return Row(
        size.batch,
        size.points,
        *name,
        runs=len(turns),
        step_ms=1e3 * median(lambda turn: turn.steps[name]),
        stages_ms={stage: 1e3 * median(lambda turn: turn.stages[name][stage]) for stage in STAGES},  # noqa: B023
        teacher_ms=1e3 * median(lambda turn: turn.teacher),
        products_ms=1e3 * median(lambda turn: turn.products[amp]),
        products_gflop=gflop,
        step_per_teacher=median(lambda turn: turn.steps[name] / turn.teacher) if turns[0].teacher else None,
        beyond_teacher_ms=1e3 * median(beyond),
        beyond_per_products=median(lambda turn: beyond(turn) / turn.products[amp]),
        beyond_per_ours=median(lambda turn: beyond(turn) / beyond(turn, ours)) if ours in turns[0].steps else None,
        memory_mib=memory,
    )


def label(row: Row) -> str:
    """What a row is called."""
    return row.formulation if row.amp == "none" else f"{row.formulation}, {row.amp}"


def print_rows(rows: Sequence[Row]) -> None:
    """Print two tables of one size: whole steps, and their stages."""
    first = rows[0]
    teacher = f"teacher alone {first.teacher_ms:.1f} ms, " if first.teacher_ms else ""
    print(
        f"\nbatch {first.batch}, {first.points} points, {first.runs} runs: {teacher}"
        f"the student's products alone {first.products_ms:.1f} ms ({first.products_gflop:.0f} GFLOP)"
    )
    headers = ["", "step (ms)", "/ teacher", "step − teacher (ms)", "/ products", "/ ours", "memory (MiB)"]
    columns = (
        *("step_ms", "step_per_teacher", "beyond_teacher_ms", "beyond_per_products"),
        *("beyond_per_ours", "memory_mib"),
    )
    cells = [[label(row), *(getattr(row, column) for column in columns)] for row in rows]
    print(format_table([["–" if cell is None else cell for cell in line] for line in cells], headers))
    stages = [[stage, *(row.stages_ms[stage] for row in rows)] for stage in STAGES if first.stages_ms[stage]]
    print(format_table(stages, ["stage (ms)", *map(label, rows)]), flush=True)


def plot(rows: Sequence[Row], file: Path) -> None:
    """Draw the stages of a step on top of each other, in ms per cloud, with the floor beside them, size by size."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    bars: list[tuple[str, int, dict[str, float]]] = []
    for (batch, points), group in itertools.groupby(rows, lambda row: (row.batch, row.points)):
        of_size = list(group)
        bars += [(f"{batch} × {points}, {label(row)}", batch, row.stages_ms) for row in of_size]
        floor = {"teacher": of_size[0].teacher_ms, "products alone": of_size[0].products_ms}
        bars += [(f"{batch} × {points}, floor", batch, floor), ("", 1, {})]
    figure = Figure(figsize=(11, 1.5 + 0.28 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    starts = [0.0] * len(bars)
    for color, stage in enumerate([*STAGES, "products alone"]):
        widths = [stages.get(stage, 0.0) / batch for _, batch, stages in bars]
        if any(widths):  # no stage of another method in the legend
            axes.barh(range(len(bars)), widths, left=starts, color=colormaps["tab20"](color), label=stage)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.set(xlabel="ms per cloud", title="One step of pre-training (batch × points)")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    main()
