"""Training runs that stopped before their end, and the commands that continue them. Imports no PyTorch."""

import json
import re
import shlex
from pathlib import Path

from tools.training.modes import EXPERIMENTS
from utils.files import in_use

EVALUATES = re.compile(r"'(test|test_bank)': True|'test_svm': '")
CONFIG, NAME = re.compile(r"'config': (?:PosixPath\()?'([^']+)'"), re.compile(r"'exp_name': '([^']+)'")
SWITCHES = ("finetune_model", "scratch_model")
CHOICES = ("way", "shot", "fold")


def continuing() -> list[str]:
    """Commands that continue what was interrupted and does not run now, the latest first, each once."""
    last = sorted(EXPERIMENTS.rglob("ckpt-last.pth"), key=lambda file: file.stat().st_mtime, reverse=True)
    folders = [file.parent for file in last if not is_finished(file.parent) and not in_use(file.parent)]
    return list(dict.fromkeys(filter(None, map(_command, folders))))


def is_finished(folder: Path) -> bool:
    """Whether a training in a folder has come to its end: its results then tell how it went."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any("history" in found for found in results.values() if isinstance(found, dict))


def _command(folder: Path) -> str | None:
    """The command of a run, as its latest log has it; None if no log has one whose config is there."""
    for log in sorted(folder.glob("*.log"), reverse=True):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        given = next((line for line in lines if "arguments: {" in line and not EVALUATES.search(line)), "")
        config, name = CONFIG.search(given), NAME.search(given)
        if config and name and Path(config[1]).is_file():
            switches = [f"--{flag}" for flag in SWITCHES if f"'{flag}': True" in given]
            chosen = [(flag, re.search(rf"'{flag}': (\d+)", given)) for flag in CHOICES]
            flags = [word for flag, value in chosen if value for word in (f"--{flag}", value[1])]
            words = ["--config", config[1], *switches, *flags, "--exp_name", name[1], "--resume"]
            return shlex.join(["python", "main.py", *words])
    return None
