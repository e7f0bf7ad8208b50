"""The way out of a missing or foreign file: one sentence, with the folder and the number of points of the config."""

import argparse
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.sources import SOURCES
from utils.settings import check_name

README = "see data/README.md for what goes where"
WAY_OUT = f"{README}, or run `python -m datasets.synthetic --root data` for stand-ins"
DEFAULT_ROOT = "data"


@dataclass(frozen=True)
class Entry:
    """What a reader knows of the config entry that led it to a file; as text, the key that gave the folder.

    Attributes:
        name: NAME of the entry, one of `SOURCES`.
        key: the key that gave the folder, such as DATA_PATH.
        folder: what it gave.
        points: points per cloud that the entry asks for; None = as many as there are.
        classes: classes that the entry asks for; None = as many as there are.
        instead: another way out, which is named first.
    """

    name: str
    key: str
    folder: Any
    points: int | None = None
    classes: int | None = None
    instead: str = ""

    def __str__(self) -> str:
        return self.key

    @property
    def root(self) -> str | None:
        """The folder of the data sets, if this data set stands in it under its published name."""
        folder, place = Path(os.fspath(self.folder)).parts, Path(SOURCES[self.name].folders[self.key]).parts
        if folder[-len(place) :] != place:
            return None
        return str(Path(*folder[: -len(place)]))

    def way_out(self) -> str:
        """Say what to look at, and how to get what is missing."""
        check = _command("check", self.name, "--root", self.root or DEFAULT_ROOT)
        return f"{self.instead}{README}; {check} says what is missing, {self.get()}"

    def get(self) -> str:
        """Say how to get it: the published files, others like them, or generated ones."""
        gets = "downloads it" if SOURCES[self.name].url else "says how to get it"
        text = f"{_command('download', self.name, '--root', self.root or DEFAULT_ROOT)} {gets}"
        if self.name == "ModelNetFewShot":
            text += f", {self._draw()} draws other folds from ModelNet40"
        return f"{text}, {self.stand_ins()}"

    def stand_ins(self) -> str:
        """Name the command that writes stand-ins which this entry reads, and what else the entry then needs."""
        source, root = SOURCES[self.name], self.root or DEFAULT_ROOT
        points = [] if self.points is None else ["--points", str(self.points)]
        command = _command("synthetic", "--root", root, "--layouts", source.layout, *points)
        changes = []
        if self.root is None:
            changes.append(f"{self.key} has to be {Path(root, source.folders[self.key])}")
        if self.classes is not None and self.name == "ModelNet":
            changes.append("NUM_CATEGORY has to be their number of classes")
        return f"{command} writes stand-ins" + (f", for which {' and '.join(changes)}" if changes else "")

    def of_points(self, found: int) -> str:
        """Say what to do where clouds have another number of points than the entry asks for."""
        key = SOURCES[self.name].points_key.rpartition(".")[2]
        return f"{key} asks for {self.points}: set {key} to {found}, or {self.stand_ins()}"

    def _draw(self) -> str:
        root = self.root or DEFAULT_ROOT
        places = [str(Path(root, SOURCES[name].home)) for name in ("ModelNet", "ModelNetFewShot")]
        options = [] if self.points is None else ["--points", str(self.points)]
        return _command("few_shot_splits", "--source", places[0], "--out", places[1], *options)


def check_source(parser: argparse.ArgumentParser, name: str) -> None:
    """End a command with exit code 2 if no published data set is called `name`, and name the nearest one."""
    try:
        check_name(name, SOURCES, "NAME")
    except ValueError as error:
        parser.error(str(error))


def way_out(key: "str | Entry") -> str:
    """Return the way out of what a config key led to: in general, or that of the entry."""
    return key.way_out() if isinstance(key, Entry) else WAY_OUT


def _command(module: str, *arguments: str) -> str:
    return f"`{shlex.join(['python', '-m', f'datasets.{module}', *arguments])}`"
