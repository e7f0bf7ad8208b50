"""Weights & Biases: curves of a run on their server, where `--wandb` asks for them."""

import importlib
import json
import secrets
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.files import atomic_write

PROJECT = "i2p-mae"  # where --wandb names none
KEPT = "wandb.json"  # in the run's folder: which run it is over there
INSTALL = "pip install -r requirements-wandb.txt"


class Tracker:
    """A run of Weights & Biases; its network traffic is in a process of its own, so that training waits for nothing.

    Args:
        folder: of the run; keeps which run it is over there, so that a resumed run goes on as the same.
        project: of Weights & Biases.
        run_id: of the run to begin or to go on as.
        library: the module `wandb`.

    """

    def __init__(self, folder: Path, project: str, run_id: str, library: Any) -> None:
        self.folder, self.project, self.run_id, self.wandb = folder, project, run_id, library
        self.run: Any = None

    def begin(self, name: str, config: Mapping[str, Any]) -> None:
        """Begin the run there, or go on with it; ValueError if that is refused."""
        try:
            self.run = self.wandb.init(
                project=self.project, id=self.run_id, name=name, config=config, dir=str(self.folder), resume="allow"
            )
        except self.wandb.Error as error:
            raise ValueError(
                f"Weights & Biases cannot be used: {str(error).rstrip('.')}; log in with `wandb login`, set "
                "WANDB_MODE=offline, or drop --wandb"
            ) from error
        with atomic_write(self.folder / KEPT) as file:
            file.write((json.dumps({"project": self.project, "id": self.run_id}) + "\n").encode())

    def draw(self, values: Mapping[str, float], epoch: int) -> None:
        """Add a point to each curve."""
        if self.run:
            self.run.log(dict(values), step=epoch)

    def picture(self, path: Path, epoch: int) -> None:
        """Show a picture."""
        if self.run:
            self.run.log({path.stem: self.wandb.Image(str(path))}, step=epoch)

    def close(self, done: bool) -> None:
        """Send what is left, and say how the run ended."""
        if self.run:
            self.run.finish(exit_code=0 if done else 1)


def tracker_of(folder: Path, args: Namespace) -> Tracker | None:
    """The tracker that a command line asks for, or that the run it resumes has had; None if there is none.

    Raises:
        ValueError: if `wandb` is not installed, or a resumed run is in another project.
    """
    path = folder / KEPT
    kept = json.loads(path.read_text()) if args.resume and path.exists() else {}
    if args.wandb is None and not kept:
        return None
    project = args.wandb or kept.get("project", PROJECT)
    if kept and project != kept["project"]:
        raise ValueError(
            f"--wandb {project}: the run in {folder} is in the project {kept['project']} of Weights & Biases; give "
            f"--wandb without a name, or remove {path} to begin another run there"
        )
    if args.wandb is None:
        library = _library(f"the run in {folder}, which {KEPT} makes go on over there,", f"remove {path}")
    else:
        library = _library("--wandb", "drop --wandb")
    return Tracker(folder, project, kept.get("id") or secrets.token_hex(4), library)


def _library(asking: str, way_out: str) -> Any:
    """Import Weights & Biases; a folder that it has left where one stands, `wandb/`, is not mistaken for it."""
    try:
        library = importlib.import_module("wandb")
        problem = "" if hasattr(library, "init") else "is not installed"
    except ImportError as error:
        problem = "is not installed" if error.name == "wandb" else f"cannot be imported ({error})"
    if problem:
        raise ValueError(
            f"{asking} needs Weights & Biases, which {problem}: `{INSTALL}`, or {way_out}; TensorBoard and "
            "metrics.jsonl need nothing"
        )
    return library
