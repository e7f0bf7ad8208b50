"""`--dry_run`: what a training run would take, from a few steps of it."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from datasets.resident import ResidentLoader
from tools.training.builder import TrainingLoader
from tools.training.engine import EpochState
from tools.training.run import Run
from tools.training.state import TrainingState
from utils.device import peak_memory
from utils.tables import format_table

UPDATES = 8
WARM_UP_UPDATES = 2  # slower than the rest


def measure_dry(
    run: Run,
    config: dict[str, Any],
    state: TrainingState,
    loader: TrainingLoader | ResidentLoader,
    train_batches: Callable[[int, Callable[[], None], int], object],
    evaluate: Callable[[], object] | None,
    interval: int,
) -> dict[str, float]:
    """Time some updates and an evaluation; show, and return, what a whole run would take.

    Args:
        run: its open folder, which vanishes.
        config: resolved config of the run.
        state: where it stands: at its beginning.
        loader: its training batches.
        train_batches: (epoch, what to call after an update, how many batches) trains.
        evaluate: evaluates; None if the run does not.
        interval: epochs from one evaluation to the next.
    """
    times = [time.perf_counter()]
    per_update, epochs = config["step_per_update"], config["max_epoch"] + 1
    train_batches(0, lambda: times.append(time.perf_counter()), UPDATES * per_update)
    updates = [after - before for before, after in pairwise(times)]
    update = statistics.median(updates[WARM_UP_UPDATES:] or updates)
    waited = 100 * state.progress.waited / (times[-1] - times[0])
    state.progress = EpochState()
    loader.begin(0, 0)
    epoch = update * len(loader) / per_update
    began = time.perf_counter()
    if evaluate is not None:
        evaluate()
    evaluation = time.perf_counter() - began
    evaluations = len({*range(0, epochs, interval), epochs - 1}) if evaluate is not None else 0
    expected = {
        "seconds per update": update,
        "seconds per epoch": epoch,
        "seconds per evaluation": evaluation,
        f"hours for {epochs} epochs and {evaluations} evaluations": (epochs * epoch + evaluations * evaluation) / 3600,
        "peak memory, GB": peak_memory(state.device) / 1e9,
        "waiting for data, %": waited,
    }
    title = f"expected of {run.mode} on {state.device}, from {len(updates)} updates"
    run.show("dry run", format_table([[name, value] for name, value in expected.items()], [title, ""]))
    return expected
