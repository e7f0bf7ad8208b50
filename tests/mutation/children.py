"""Children forked from a process that has imported what the tests import, but nothing of ours."""

import contextlib
import importlib
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORTED = (
    *("coverage", "easydict", "h5py", "hypothesis", "matplotlib.pyplot", "open_clip", "pytest", "safetensors.torch"),
    *("sklearn.model_selection", "sklearn.svm", "tensorboardX", "timm.layers", "timm.scheduler", "torch._dynamo"),
    *("torch.distributed", "tqdm", "yaml"),
)
STARTED = 120.0  # seconds until a child runs its first test


def preload() -> None:
    """Import what takes long, once for all children; on one thread, since a fork keeps no other."""
    for name in IMPORTED:
        importlib.import_module(name)


def sync_tree(folder: Path) -> None:
    """Make a folder hold the files of this checkout, tracked or new, as they are; what is compiled there stays."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    wanted = {name for name in names if name and (ROOT / name).is_file()}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in (name for name in found - wanted if not name.endswith(".pyc")):
        (folder / name).unlink()
    for name in wanted:
        source, target = ROOT / name, folder / name
        if name not in found or source.read_bytes() != target.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


class Clock:
    """A moment that a child sets and its parent reads: when to kill the child."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)
        self.give(STARTED)

    def give(self, seconds: float) -> None:
        """Allow so much time from now on."""
        self._memory[:] = struct.pack("d", time.monotonic() + seconds)

    @property
    def over(self) -> bool:
        return time.monotonic() > struct.unpack("d", self._memory[:])[0]


@dataclass
class Child:
    """A forked process, the leader of its group.

    Args:
        pid: of the process.
        folder: what is its own: `tree`, where it runs; `log.txt`, what it printed; `answer.json`, what it found.
        clock: when it is killed.
        about: what the parent wants to know again when the child ends.
        begun: when it was forked.
    """

    pid: int
    folder: Path
    clock: Clock
    about: Any
    begun: float

    def ended(self) -> bool:
        """Look whether it has ended, and kill it where its time is over; then its whole group is gone."""
        pid, _ = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0 and not self.clock.over:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if pid == 0:
            os.waitpid(self.pid, 0)
        return True

    @property
    def answer(self) -> dict | None:
        """What it found, None where it did not come to its end."""
        file = self.folder / "answer.json"
        return json.loads(file.read_text()) if file.exists() else None


def fork(folder: Path, tree: Path, prepare: Callable[[Path], None], work: Callable[[Clock], dict], about: Any) -> Child:
    """Start a child in a fresh copy of a tree.

    Args:
        folder: of the child; emptied.
        tree: to copy.
        prepare: called with the copy, in this process.
        work: called in the child, in the copy; its answer must fit JSON.
        about: kept with the child.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tree, folder / "tree")
    prepare(folder / "tree")
    clock = Clock()
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _become_child(folder, work, clock)
    return Child(pid, folder, clock, about, begun)


def _become_child(folder: Path, work: Callable[[Clock], dict], clock: Clock) -> None:
    os.setsid()
    with open(folder / "log.txt", "w") as log, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(folder / "tree")
    sys.path[:] = [str(folder / "tree"), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", PYTHONPATH="", CI="1", CUDA_VISIBLE_DEVICES="")
    try:
        (folder / "answer.json").write_text(json.dumps(work(clock)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def in_turn(jobs: int, starts: Iterator[Callable[[int], Child]]) -> Iterator[Child]:
    """Keep so many children running; each start is told which place is free.

    Yields:
        Each child, when it has ended.
    """
    running: dict[int, Child] = {}
    more = True
    try:
        while more or running:
            for place in set(range(jobs)) - running.keys() if more else ():
                start = next(starts, None)
                if start is None:
                    more = False
                    break
                running[place] = start(place)
            for place in [place for place, child in running.items() if child.ended()]:
                yield running.pop(place)
            time.sleep(0.02)
    finally:
        for child in running.values():
            os.killpg(child.pid, signal.SIGKILL)
