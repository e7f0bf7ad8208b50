"""Commands of main.py, started by other commands."""

import subprocess
import sys
from collections.abc import Sequence


def launch(command: list[str]) -> int:
    """Run main.py in a process of its own; returns its exit code."""
    return subprocess.run([sys.executable, "main.py", *command], check=False).returncode


def shown(command: Sequence[str]) -> str:
    """Return a command as one types it."""
    return " ".join(["python main.py", *command])
