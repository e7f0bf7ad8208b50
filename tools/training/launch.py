"""Commands of main.py, started by other commands."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def launch(command: list[str]) -> int:
    """Run main.py in a process of its own; returns its exit code."""
    return subprocess.run([sys.executable, "main.py", *command], check=False).returncode


def shown(command: Sequence[str]) -> str:
    """Return a command as one types it."""
    return " ".join(["python main.py", *command])


def run_or_read(folder: Path, command: list[str], seed: int) -> None:
    """Run a training command unless its folder has the results already; continue it where it was interrupted.

    Args:
        folder: of the run, as main.py will name it.
        command: its config, name and mode.
        seed: of the run.

    Raises:
        SystemExit: if the command fails, with its exit code.
    """
    if (folder / "results.json").exists():
        return
    from tools.training.run import Run  # imports PyTorch, which takes seconds

    command = [*command, "--seed", str(seed), "--num_workers", "0"]
    command += ["--resume"] if Run(folder, "", {}).resumable else []
    print(f"\n$ {shown(command)}", flush=True)
    if code := launch(command):
        raise SystemExit(code)
