"""`--dry_run`: what a training run would take, from a few steps of it."""

import statistics
import time
from itertools import pairwise
from typing import TYPE_CHECKING

from tools.training.engine import EpochState
from utils.device import peak_memory
from utils.tables import format_table

if TYPE_CHECKING:
    from tools.training.trainer import Trainer

UPDATES = 8
WARM_UP_UPDATES = 2  # slower than the rest


def measure_dry(trainer: "Trainer", interval: int) -> dict[str, float]:
    """Time some updates and an evaluation; say, and return, what a run that evaluates each `interval` would take."""
    config, state = trainer.config, trainer.state
    times = [time.perf_counter()]
    per_update, epochs = config["step_per_update"], config["max_epoch"] + 1
    trainer.train_batches(0, lambda: times.append(time.perf_counter()), most=UPDATES * per_update)
    updates = [after - before for before, after in pairwise(times)]
    update = statistics.median(updates[WARM_UP_UPDATES:] or updates)
    waited = 100 * state.progress.waited / (times[-1] - times[0])
    state.progress = EpochState()
    trainer.loader.begin(0, 0)
    epoch = update * len(trainer.loader) / per_update
    began = time.perf_counter()
    trainer.evaluate()
    evaluation = time.perf_counter() - began
    evaluations = len({*range(0, epochs, interval), epochs - 1})
    expected = {
        "seconds per update": update,
        "seconds per epoch": epoch,
        "seconds per evaluation": evaluation,
        f"hours for {epochs} epochs and {evaluations} evaluations": (epochs * epoch + evaluations * evaluation) / 3600,
        "peak memory, GB": peak_memory(state.device) / 1e9,
        "waiting for data, %": waited,
    }
    title = f"expected of {trainer.run.mode} on {state.device}, from {len(updates)} updates"
    trainer.run.show("dry run", format_table([[name, value] for name, value in expected.items()], [title, ""]))
    return expected
