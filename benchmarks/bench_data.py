"""How fast pre-training's clouds come: from their files, from a pack, and from the memory of the device.

    python -m benchmarks.bench_data [--device cpu|cuda] [--quick] [--clouds N] [--batch B] [--workers W]
        [--epochs E] [--folder FOLDER] [--out FOLDER] [--note TEXT]

Generates files, then times whole epochs until each batch is on the device; nothing is trained. The three run in turns,
so that a busy machine disturbs all alike. Prints a table of medians and writes results.json. All files fit into the
page cache, so that no disk is measured: what a pack saves in seeks comes on top.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import timer
from benchmarks.record import add_flags, write_results
from datasets.pack import pack
from datasets.resident import ResidentLoader
from tools.training.builder import training_loader
from tools.training.engine import Batch
from utils.device import choose_device
from utils.parser import parse_args as parse_training_args
from utils.tables import format_table

PACKAGES = ("torch", "numpy")
CONFIG = "cfgs/pre-training/i2p-mae.yaml"
N_POINTS, NPOINTS = 8192, 2048  # of a file, of an item
CLOUDS, EPOCHS = {False: 512, True: 128}, {False: 11, True: 3}  # quick or not
BATCH, WORKERS = 64, 0


@dataclass
class Row:
    """One source of batches."""

    source: str
    clouds_per_s: float
    epochs: int
    ratio: float  # its rate in times of that of the files


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all three and write the results."""
    args = parse_args(argv)
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = measure(loaders(Path(folder), args.clouds, args.batch, args.workers, device), device, args.epochs)
    table = [[row.source, row.clouds_per_s, row.ratio] for row in rows]
    print(format_table(table, ["source", "clouds/s", "× files"]))
    sizes = {"clouds": args.clouds, "n_points": N_POINTS, "npoints": NPOINTS, "batch": args.batch}
    figures = {**sizes, "workers": args.workers, "rows": [asdict(row) for row in rows]}
    write_results("bench_data", argv, args, f"data-{args.device}", PACKAGES, is_partial(args), **figures)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="time the sources of pre-training's clouds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=choose_device().type)
    parser.add_argument("--clouds", type=int, help="files to generate, 96 KiB each (512; with --quick 128)")
    parser.add_argument("--batch", type=int, default=BATCH, help="clouds per batch (%(default)s)")
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help="processes that read files or the pack (%(default)s)"
    )
    parser.add_argument("--epochs", type=int, help="epochs of each (11; with --quick 3)")
    parser.add_argument("--folder", type=Path, help="where to generate the files (default: the system's temporary)")
    add_flags(parser, quick="fewer clouds and epochs")
    args = parser.parse_args(argv)
    if args.clouds is None:
        args.clouds = CLOUDS[args.quick]
    if args.epochs is None:
        args.epochs = EPOCHS[args.quick]
    return args


def is_partial(args: argparse.Namespace) -> bool:
    """Whether other numbers than the default ones are measured."""
    default = CLOUDS[args.quick], BATCH, WORKERS, EPOCHS[args.quick]
    return (args.clouds, args.batch, args.workers, args.epochs) != default


def loaders(folder: Path, clouds: int, batch: int, workers: int, device: torch.device) -> dict[str, Iterable[Batch]]:
    """Generate files, and make the loaders that training would use of them."""
    (folder / "files").mkdir()
    names = [f"{i:08d}-cloud.npy" for i in range(clouds)]
    for subset in ("train", "test"):
        (folder / f"{subset}.txt").write_text("\n".join(names))
    rng = np.random.default_rng(0)
    for name in names:
        np.save(folder / "files" / name, rng.standard_normal((N_POINTS, 3), np.float32))
    place = {"DATA_PATH": str(folder), "PC_PATH": str(folder / "files"), "N_POINTS": N_POINTS}
    entry = {"NAME": "ShapeNet", **place, "others": {"subset": "train", "npoints": NPOINTS}}
    config = {"dataset": {"train": entry}, "total_bs": batch}
    args = parse_training_args(["--config", CONFIG, "--num_workers", str(workers)])
    files = training_loader(config, args)
    pack(str(folder), str(folder / "files"), N_POINTS)
    packed = training_loader(config, args)
    return {"files": files, "pack": packed, "resident": ResidentLoader(packed.dataset, batch, device)}


def measure(sources: dict[str, Iterable[Batch]], device: torch.device, epochs: int) -> list[Row]:
    """Time epochs of each source in turns, after one that is not counted."""

    def epoch(loader: Iterable[Batch]) -> int:
        return sum(len(points.to(device, non_blocking=True)) for points, _ in loader)

    clouds = {name: epoch(loader) for name, loader in sources.items()}  # starts workers, fills caches
    times: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(epochs):
        for name, loader in sources.items():
            times[name].append(timer(device)(lambda loader=loader: epoch(loader)))
    rates = {name: clouds[name] / statistics.median(seconds) for name, seconds in times.items()}
    return [Row(name, rate, epochs, rate / rates["files"]) for name, rate in rates.items()]


if __name__ == "__main__":
    main()
