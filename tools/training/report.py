"""What a training run says of itself: a line for each epoch and each evaluation, and results at the end."""

import logging
from typing import Any

from tools.training.engine import EpochState
from tools.training.run import Run
from tools.training.state import TrainingState
from utils.tables import format_table

logger = logging.getLogger(__name__)


def log_epoch(epoch: int, last: int, values: dict[str, float], progress: EpochState, seconds: float) -> None:
    """Log what an epoch came to; `last` is the number of the last epoch."""
    texts = [f"{name} {value:.5g}" for name, value in values.items()]
    if progress.skipped:
        texts.append(f"{progress.skipped} updates left out")
    logger.info(
        "epoch %d/%d | %s | %.1f s, %.0f %% of it waiting for data",
        *(epoch, last, " | ".join(texts), seconds, 100 * progress.waited / seconds),
    )


def log_evaluation(last: int, state: TrainingState, protocol: str, seconds: float) -> None:
    """Log the latest evaluation beside the best."""
    now, best = state.metrics, state.best_metrics
    logger.info(
        "epoch %d/%d | %s: %.2f %% | best %.2f %% at epoch %d | %.1f s",
        *(now["epoch"], last, protocol, now["accuracy"], best["accuracy"], best["epoch"], seconds),
    )


def results_of(state: TrainingState, protocol: str, seconds: float) -> dict[str, Any]:
    """The best and the final accuracy of a finished run, as its own evaluations found them; without any, the loss."""
    if not state.metrics:
        final = state.history[-1]
        return {
            "protocol": protocol,
            "final_loss": final["loss"],
            "final_epoch": final["epoch"],
            "seconds": seconds,
            "history": state.history,
        }
    best, final = state.best_metrics, state.metrics
    return {
        "protocol": protocol,
        "best_accuracy": best["accuracy"],
        "best_epoch": best["epoch"],
        "best_chosen_on": "the same split",
        "final_accuracy": final["accuracy"],
        "final_epoch": final["epoch"],
        "seconds": seconds,
        "history": state.history,
    }


def show_results(run: Run, results: dict[str, Any]) -> None:
    """Print the best and the final accuracy, which the command was asked for; without evaluations the final loss."""
    if "final_loss" in results:
        rows = [[f"final (epoch {results['final_epoch']})", f"{results['final_loss']:.5g}"]]
        run.show(run.mode, format_table(rows, [results["protocol"], "loss"]))
        return
    rows = [
        [f"best (epoch {results['best_epoch']}, chosen on {results['best_chosen_on']})", results["best_accuracy"]],
        [f"final (epoch {results['final_epoch']})", results["final_accuracy"]],
    ]
    run.show(run.mode, format_table(rows, [results["protocol"], "%"]))
