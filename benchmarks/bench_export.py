"""How fast an encoder is in onnxruntime, beside PyTorch, with sampling and search given to both.

    python -m benchmarks.bench_export [--quick] [--runs N] [--out FOLDER] [--note TEXT]

Encoders of the released sizes with random weights, exported as `python -m tools.export` does, on a CPU with PyTorch's
number of threads. Both run in turns, so that a busy machine disturbs both alike; the first turn is not counted. Prints
a table of medians and writes results.json. `--quick`: one cloud, Point-MAE alone.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.machine import time_on_cpu
from benchmarks.record import add_flags, write_results
from models import build_model, load_encoder
from models.released import CONFIGS, without_weights
from tools.evaluation.exporting import example, export, names, onnx_session
from utils.config import load_config
from utils.tables import format_table

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
ENCODERS = {"Point-MAE": "point-mae/pre-train.yaml", "I2P-MAE": "pre-training/i2p-mae.yaml"}
POINTS = 1024
CLOUDS = {False: (1, 8), True: (1,)}
RUNS = 7


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the encoders and write the results."""
    parser = argparse.ArgumentParser(description="time exported encoders beside PyTorch")
    parser.add_argument("--runs", type=int, default=RUNS, help="turns that count (%(default)s)")
    add_flags(parser, quick="one cloud, Point-MAE alone")
    args = parser.parse_args(argv)
    chosen = list(ENCODERS)[: 1 if args.quick else None]
    with TemporaryDirectory() as folder:
        rows = [row for name in chosen for row in measure(name, CLOUDS[args.quick], args.runs, Path(folder))]
    print(format_table([list(row.values()) for row in rows], list(rows[0])))
    write_results("bench_export", argv, args, "export-cpu", PACKAGES, args.runs != RUNS, points=POINTS, rows=rows)


@torch.no_grad()
def measure(name: str, sizes: Sequence[int], runs: int, folder: Path) -> list[dict[str, Any]]:
    """Time one encoder in turns; milliseconds and their ratio are medians over the turns."""
    config = without_weights(load_config(CONFIGS / ENCODERS[name]).model)
    torch.manual_seed(0)
    torch.save({"base_model": build_model(config).state_dict(), "config": {"model": config}}, folder / "a.pth")
    encoder = load_encoder(folder / "a.pth")
    export(encoder, folder / "a.onnx")
    run = onnx_session((folder / "a.onnx").read_bytes(), names(encoder, False)[0], torch.get_num_threads())
    rows = []
    for clouds in sizes:
        points, *given = example(encoder, clouds, POINTS, False)
        calls = (
            lambda points=points, given=given: encoder.encode_chosen(points, given[::2], given[1::2]),
            lambda points=points, given=given: run(points, *given),
            lambda points=points: encoder.choose(points),
        )
        turns = [[1e3 * time_on_cpu(call) for call in calls] for _ in range(runs + 1)][1:]
        ours, theirs, choosing = (statistics.median(times) for times in zip(*turns, strict=True))
        ratio = statistics.median(turn[0] / turn[1] for turn in turns)
        rows.append({
            "encoder": name, "clouds": clouds, "PyTorch, ms": ours, "onnxruntime, ms": theirs,
            "PyTorch / onnxruntime": ratio, "sampling and search in PyTorch, ms": choosing,
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
