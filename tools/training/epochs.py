"""What each epoch of a run came to, told once it is over: in the log, by the curves and in metrics.jsonl."""

import json
import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from tools.training.report import Measure
from tools.training.run import Run
from tools.training.state import TrainingState
from utils.device import peak_memory
from utils.distributed import is_main, on_main, world_size
from utils.files import atomic_write

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class Stopwatch:
    """Seconds of something done again and again, in this process.

    Attributes:
        last, total: of the last time, and of all.
        done: how much was done: times, or batches.
    """

    def __init__(self) -> None:
        self.last, self.total, self.done = 0.0, 0.0, 0

    def add(self, seconds: float, done: int = 1) -> None:
        """Count another time in."""
        self.last, self.total, self.done = seconds, self.total + seconds, self.done + done

    @property
    def mean(self) -> float:
        """Seconds for one; 0 before the first."""
        return self.total / self.done if self.done else 0.0


class EpochReport:
    """Tells each epoch of a run. Every process measures, the main one writes.

    Its source is the run's history, which the checkpoints keep; times and memory are added, which no resumed run has
    again. They are of this process: of an epoch that a resumed run continues, of what was left of it.

    Args:
        run: the open run folder.
        state: where the run stands.
        last: number of the last epoch.
        evaluated: the epochs after which there is an evaluation.
        measure: what that gives.
        protocol: what it measures, and on which split.
    """

    def __init__(
        self, run: Run, state: TrainingState, last: int, evaluated: Collection[int], measure: Measure, protocol: str
    ) -> None:
        self.run, self.state, self.last, self.evaluated = run, state, last, evaluated
        self.measure, self.protocol = measure, protocol
        self.batches, self.evaluations = Stopwatch(), Stopwatch()
        self.clouds_per_second = 0.0
        self.lines: list[dict[str, Any]] = []  # of metrics.jsonl

    @property
    def path(self) -> Path:
        """The file metrics.jsonl."""
        return self.run.folder / METRICS

    def begin(self) -> None:
        """Take over the lines of the epochs that are complete; ValueError if the file is damaged."""
        written = on_main(lambda: read_metrics(self.path)) if self.state.history else {}
        self.lines = [{**written.get(epoch["epoch"], {}), **epoch} for epoch in self.state.history]

    @contextmanager
    def training(self) -> Iterator[None]:
        """Time an epoch of training, or what is left of one, for the time of the block."""
        progress, began = self.state.progress, time.perf_counter()
        batches, seen = progress.batches, progress.seen
        yield
        self.batches.add(time.perf_counter() - began, progress.batches - batches)
        self.clouds_per_second = (progress.seen - seen) * world_size() / self.batches.last

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time an evaluation, for the time of the block."""
        began = time.perf_counter()
        yield
        self.evaluations.add(time.perf_counter() - began)

    def tell(self) -> None:
        """Tell the epoch that is over, the last of the history; before it is saved, so that none is missing."""
        entry = self.state.history[-1]
        self.lines.append({**entry, **self._best(entry), **self._costs(entry)})
        self.run.draw(curves_of(self.lines[-1], self.measure), entry["epoch"])
        logger.info("%s", self._line(entry, self.lines[-1]))
        if is_main():
            with atomic_write(self.path) as file:
                file.writelines(json.dumps(line).encode() + b"\n" for line in self.lines)

    def _best(self, entry: dict[str, float]) -> dict[str, float]:
        """The best evaluation so far, beside one."""
        if "evaluation" not in entry:
            return {}
        best = self.state.best_metrics
        return {"best": best[self.measure.name], "best_epoch": best["epoch"]}

    def _costs(self, entry: dict[str, float]) -> dict[str, float | str]:
        """Speed, memory and time."""
        seconds = {"seconds": self.batches.last, "waiting_seconds": self.state.progress.waited}
        if "evaluation" in entry:
            seconds["evaluation_seconds"] = self.evaluations.last
        device = self.state.device
        return {
            "clouds_per_second": self.clouds_per_second,
            "memory_gb": peak_memory(device) / 1e9,
            "memory_of": "process" if device.type == "cpu" else "GPU",
            **seconds,
        }

    def left(self, epoch: int) -> float:
        """Seconds that the command takes after an epoch, if it stays as fast as this process was in this run so far."""
        of_epoch = self.state.progress.batches * self.batches.mean
        rest = (self.last - epoch) * of_epoch + sum(later > epoch for later in self.evaluated) * self.evaluations.mean
        whole = (self.last + 1) * of_epoch + len(self.evaluated) * self.evaluations.mean
        return rest + self.run.following * whole

    def _line(self, entry: dict[str, float], told: dict[str, Any]) -> str:
        """Everything of an epoch in one line."""
        losses = [f"{name} {value:.5g}" for name, value in entry.items() if name not in ("epoch", "lr", "evaluation")]
        if self.state.progress.skipped:
            losses.append(f"{self.state.progress.skipped} updates left out")
        waited = 100 * told["waiting_seconds"] / told["seconds"]
        times = f"{told['seconds']:.1f} s, {waited:.0f} % of it waiting for data"
        parts = [f"epoch {entry['epoch']}/{self.last}", f"training: {', '.join(losses)}"]
        if "evaluation" in entry:
            now, best = self.measure.shown(entry["evaluation"]), self.measure.shown(told["best"])
            parts.append(f"{self.protocol}: {now}, best {best} at epoch {told['best_epoch']}")
            times += f", evaluation {told['evaluation_seconds']:.1f} s"
        parts += [
            f"lr {entry['lr']:.4g}",
            f"{told['clouds_per_second']:.4g} clouds/s",
            f"peak memory {told['memory_gb']:.2f} GB ({told['memory_of']})",
            times,
            f"{duration(self.left(int(entry['epoch'])))} left",
        ]
        return " | ".join(parts)


def curves_of(told: dict[str, Any], measure: Measure) -> dict[str, float]:
    """The numbers of an epoch by the names of their curves."""
    costs = ("clouds_per_second", "memory_gb", "seconds", "waiting_seconds", "evaluation_seconds")
    apart = {"epoch", "evaluation", "best", "best_epoch", "memory_of", *costs}
    curves = {f"train/{name}": value for name, value in told.items() if name not in apart}
    if "evaluation" in told:
        curves[f"evaluation/{measure.name}"] = told["evaluation"]
    return curves | {f"run/{name}": told[name] for name in costs if name in told}


def read_metrics(path: Path) -> dict[int, dict[str, Any]]:
    """Read a metrics.jsonl, epoch → its line; empty if there is none, ValueError if it is damaged."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return {line["epoch"]: line for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); move it away and start the same command again") from error


def duration(seconds: float) -> str:
    """A time in its two largest units, the smaller rounded: 45 s, 2 min 5 s, 3 h 20 min, 2 d 4 h."""
    for (size, unit), (smaller, smaller_unit) in pairwise(UNITS):
        whole, rest = divmod(round(seconds / smaller) * smaller, size)
        if whole:
            return f"{whole} {unit} {rest // smaller} {smaller_unit}" if rest else f"{whole} {unit}"
    return f"{seconds:.0f} s"
