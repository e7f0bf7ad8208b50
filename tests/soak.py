"""Runs that are killed again and again and must end as those that never were: `python -m tests.soak --kills 200`.

Each run is a process of its own that executes `main.main`. All are forked from one server that has imported everything
and computed nothing, so that starting one takes a hundredth of a second.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

import main
from datasets.synthetic import write_fewshot, write_shapenetpart
from models import build_model
from tests.playground import CLASSES, CONFIGS, ENCODER, TRAINING, make_playground
from utils.checkpoint import read_checkpoint, save_checkpoint

CHECKPOINTS = ("ckpt-best.pth", "ckpt-last.pth", "ckpt-previous.pth")
NOT_REPEATABLE = ("seconds", "about")  # of results.json: time and date
LIMIT = 120  # seconds after which a run counts as stuck


@dataclass(frozen=True)
class Mode:
    """A kind of training: the name of its config in the playground, and its flags."""

    config: str
    flags: tuple[str, ...] = ()


MODES = {
    "pre-training": Mode("pre-training/i2p"),
    "fine-tuning": Mode("fine-tuning/modelnet", ("--finetune_model", "--ckpts", "start.pth")),
    "few-shot": Mode("few-shot/tiny", ("--scratch_model",)),
    "part segmentation": Mode("part-segmentation/tiny", ("--scratch_model",)),
}

SMALL = {**TRAINING, "total_bs": 4}
FEW_SHOT = {  # both shots of one way and one fold
    "NAME": "ModelNetFewShot",
    "DATA_PATH": "data/ModelNetFewshot",
    "N_POINTS": 48,
    "NUM_CATEGORY": 2,
    "USE_NORMALS": False,
}
PARTS = {"NAME": "ShapeNetPart", "ROOT": "data/shapenetcore_partanno_segmentation_benchmark_v0_normal"}
PLAYGROUND = {
    "pre-training/i2p": {**CONFIGS["pre-training/i2p"], "total_bs": 4},
    "fine-tuning/modelnet": {**CONFIGS["fine-tuning/modelnet"], "total_bs": 4},
    "few-shot/tiny": {
        **SMALL,
        "total_bs": 10,
        "npoints": 32,
        "max_epoch": 0,
        "dataset": {
            subset: {**FEW_SHOT, "others": {"subset": subset, "way": 2, "fold": 0}} for subset in ("train", "test")
        },
        "model": {"NAME": "Point_M2AE_ModelNet40", **ENCODER, "num_classes": 2},
    },
    "part-segmentation/tiny": {
        **SMALL,
        "grad_norm_clip": 10,
        "dataset": {subset: {**PARTS, "others": {"subset": subset, "npoints": 64}} for subset in ("train", "test")},
        "model": {"NAME": "Point_M2AE_SEG", **ENCODER, "point_dims": [64, 48]},
    },
}


def write_playground(folder: Path) -> None:
    """Write generated data sets, small configs and weights to fine-tune into a folder."""
    data = make_playground(folder, PLAYGROUND) / "data"
    write_fewshot(data, test=1, num_points=48, ways=[2], folds=1, classes=CLASSES)
    write_shapenetpart(data, classes=["mug", "knife"], train=6, test=1, num_points=96)
    torch.manual_seed(0)
    encoder = build_model(PLAYGROUND["fine-tuning/modelnet"]["model"])
    save_checkpoint(folder / "start.pth", {"base_model": encoder.state_dict()})


# ---------------------------------------------------------------------------------------------------- processes


def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    runners = ("pretrain", "finetune", "few_shot", "part_segmentation")
    context.set_forkserver_preload(["main", "tests.playground", *(f"tools.runner_{name}" for name in runners)])
    return context


def _child(folder: Path, output: Path, function: Callable[..., Any], arguments: tuple) -> None:
    os.chdir(folder)
    with open(output, "ab", 0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own, for loader workers
    torch.set_num_threads(1)
    code = function(*arguments)
    sys.stdout.flush()
    sys.exit(code)


def fork(folder: Path, function: Callable[..., Any], *arguments: Any) -> multiprocessing.Process:
    """Start a process that calls a function.

    Args:
        folder: its current folder; what it prints is appended to `output.txt` there.
        function: of a module; what it returns is the exit code, None is 0.
        *arguments: of the function.
    """
    process = _server().Process(target=_child, args=(folder, folder / "output.txt", function, arguments))
    process.start()
    return process


def wait(process: multiprocessing.Process, limit: float = LIMIT) -> int:
    """Wait for a process and return its exit code, the negative number of a signal that killed it.

    Raises:
        TimeoutError: if it is stuck; it is killed then.
    """
    process.join(limit)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"a run did not end within {limit} s")
    return process.exitcode


def train(mode: str, exp_name: str, *flags: str, prepare: Callable[[], object] | None = None) -> int:
    """Execute one command line in this process, in the current folder; resume the run if it has a checkpoint.

    Args:
        mode: one of `MODES`.
        exp_name: the run's name.
        *flags: more flags.
        prepare: called first, for instance to arrange for a fault.
    """
    if prepare is not None:
        prepare()
    config = MODES[mode].config
    resume = ["--resume"] if checkpoints(Path("experiments", config, exp_name), CHECKPOINTS[1:]) else []
    command = ["--config", f"cfgs/{config}.yaml", "--exp_name", exp_name, "--deterministic", "--num_workers", "0"]
    return main.main([*command, *MODES[mode].flags, *flags, *resume])


# ---------------------------------------------------------------------------------------------------- what is left


def checkpoints(folder: Path, names: tuple[str, ...] = CHECKPOINTS) -> list[Path]:
    """Return the checkpoints under a run's folder."""
    return sorted(path for name in names for path in folder.rglob(name))


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a run has computed: best and last checkpoints and results, by their place under its folder."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): read_checkpoint(path) for path in checkpoints(folder, CHECKPOINTS[:2])
    }
    for path in folder.rglob("results.json"):
        found[str(path.relative_to(folder))] = _repeatable(json.loads(path.read_text()))
    return found


def _repeatable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _repeatable(item) for key, item in value.items() if key not in NOT_REPEATABLE}
    return value


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Return the places where two nested values are not bit for bit the same."""
    if type(one) is not type(other):
        return [place]
    if isinstance(one, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and one.numpy().tobytes() == other.numpy().tobytes() else [place]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [f"{place} (keys)"]
        return [found for key in one for found in differences(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{place} (length)"]
        return [
            found for i, pair in enumerate(zip(one, other, strict=True)) for found in differences(*pair, f"{place}/{i}")
        ]
    return [] if one == other or (one != one and other != other) else [place]


# ---------------------------------------------------------------------------------------------------- kills


@dataclass
class Tally:
    """What happened: processes killed, those of them that were writing a checkpoint, runs brought to their end."""

    kills: int = 0
    while_writing: int = 0
    runs: int = 0


def survive(folder: Path, mode: str, exp_name: str, duration: float, tally: Tally, draw: random.Random) -> None:
    """Start a run, kill it after a random part of its duration, resume it, and so on until it ends by itself.

    Args:
        folder: the playground.
        mode: one of `MODES`.
        exp_name: the run's name.
        duration: seconds that the run takes if nobody kills it.
        tally: counted up.
        draw: decides when to kill, how often to save, and how many workers load.

    Raises:
        AssertionError: if the run ends with an error.
    """
    flags = ("--save_every_steps", str(draw.choice([1, 2])), "--num_workers", str(draw.choice([0, 0, 0, 2])))
    run = folder / "experiments" / MODES[mode].config / exp_name
    saved: list[int] = []
    unfinished: set[Path] = set()
    while True:
        process = fork(folder, train, mode, exp_name, *flags)
        process.join(draw.uniform(0, duration))
        if process.exitcode is None:
            process.kill()
        code = wait(process)
        if code == 0:
            tally.runs += 1
            return
        assert code == -9, f"{mode}: exit code {code}\n{(folder / 'output.txt').read_text()[-3000:]}"
        tally.kills += 1
        older, unfinished = unfinished, set(run.rglob(".*.pth.*.tmp"))
        tally.while_writing += bool(unfinished - older)
        before, saved = saved, [path.stat().st_mtime_ns for path in checkpoints(run)]
        if before == saved:
            duration *= 1.2  # or a busy machine might never get to the first checkpoint


def measure(folder: Path, mode: str) -> float:
    """Do the run `whole` without kills, unless it is there, and another one; return the seconds of the latter."""
    for exp_name in ("whole", "timed"):
        began = time.perf_counter()
        assert wait(fork(folder, train, mode, exp_name)) == 0, (folder / "output.txt").read_text()
    return time.perf_counter() - began


def soak(folder: Path, kills: int, modes: tuple[str, ...] = tuple(MODES), seed: int = 0) -> dict[str, Tally]:
    """Kill runs of all modes in turn until there were that many kills; compare each with one that was left alone.

    Returns:
        The counts of each mode.

    Raises:
        AssertionError: if anything is lost or different.
    """
    draw = random.Random(seed)
    tallies = {mode: Tally() for mode in modes}
    durations = {mode: measure(folder, mode) for mode in modes}
    expected = {mode: outcome(folder / "experiments" / MODES[mode].config / "whole") for mode in modes}
    while sum(tally.kills for tally in tallies.values()) < kills:
        for mode, tally in tallies.items():
            name = f"killed-{tally.runs}"
            survive(folder, mode, name, durations[mode], tally, draw)
            run = folder / "experiments" / MODES[mode].config / name
            assert differences(expected[mode], outcome(run)) == []
            assert not list(run.rglob(".*.pth.*.tmp"))
    return tallies


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        write_playground(Path(folder))
        began = time.perf_counter()
        tallies = soak(Path(folder), args.kills, seed=args.seed)
    for mode, tally in tallies.items():
        print(
            f"{mode}: {tally.kills} kills, {tally.while_writing} of them in a write; {tally.runs} runs, all as expected"
        )
    total = np.sum([[tally.kills, tally.while_writing, tally.runs] for tally in tallies.values()], axis=0)
    print("total: {} kills, {} of them in a write; {} runs, nothing lost".format(*total), end="; ")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    _main()
