"""What all benchmarks say and write of themselves: their flags, and results.json."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine, versions

RESULTS = Path("benchmarks/results")
PARTIAL = RESULTS / "partial"


def add_flags(parser: argparse.ArgumentParser, quick: str) -> None:
    """Add --quick, which does what `quick` says, --out and --note."""
    parser.add_argument("--quick", action="store_true", help=quick)
    where = f"one in {RESULTS}/, of --quick in {RESULTS}/quick/, of other sizes or formulations in {PARTIAL}/"
    parser.add_argument("--out", type=Path, help=f"folder of the results (default: {where})")
    parser.add_argument("--note", default="", help="kept with the results, such as: shared machine")


def write_results(
    benchmark: str,
    argv: Sequence[str] | None,
    args: argparse.Namespace,
    name: str,
    packages: Sequence[str],
    partial: bool,
    **figures: Any,
) -> Path:
    """Write results.json: the command, what it ran on, and the figures.

    Args:
        benchmark: module of this package.
        argv: its arguments, None for those of this process.
        args: the same, parsed.
        name: of the folder where --out names none.
        packages: whose versions matter.
        partial: something else was measured than by default, so that the tracked results are left alone.
        **figures: plain values.

    Returns:
        The folder.
    """
    folder = args.out or (RESULTS / "quick" if args.quick else PARTIAL if partial else RESULTS) / name
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", f"benchmarks.{benchmark}", *(sys.argv[1:] if argv is None else argv)])
    about = {"command": command, "note": args.note, "machine": machine(torch.device(getattr(args, "device", "cpu")))}
    results = {**about, "versions": versions(packages), **figures}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"results in {folder}")
    return folder
