"""What a training run measures, and its results at the end."""

from dataclasses import dataclass
from typing import Any

from tools.training.run import Run
from tools.training.state import TrainingState
from utils.tables import format_table


@dataclass(frozen=True)
class Measure:
    """What an evaluation gives, and what is good of it.

    Attributes:
        name: in results.json, after best_ and final_.
        unit: behind the value; empty where the protocol says it.
        lowest: the lowest value is the best, not the highest.
    """

    name: str
    unit: str
    lowest: bool = False

    def better(self, value: float, other: float) -> bool:
        """Whether a value is better than another."""
        return value < other if self.lowest else value > other

    def shown(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:.2f} {self.unit}".rstrip()


ACCURACY = Measure("accuracy", "%")


def results_of(state: TrainingState, measure: Measure, protocol: str, seconds: float) -> dict[str, Any]:
    """The best and the final value of a finished run, as its own evaluations found them; without any, the loss."""
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
        f"best_{measure.name}": best[measure.name],
        "best_epoch": best["epoch"],
        "best_chosen_on": "the same split",
        f"final_{measure.name}": final[measure.name],
        "final_epoch": final["epoch"],
        "seconds": seconds,
        "history": state.history,
    }


def show_results(run: Run, results: dict[str, Any], measure: Measure) -> None:
    """Print the best and the final value, which the command was asked for; without evaluations the final loss."""
    if "final_loss" in results:
        rows = [[f"final (epoch {results['final_epoch']})", f"{results['final_loss']:.5g}"]]
        run.show(run.mode, format_table(rows, [results["protocol"], "loss"]))
        return
    best, final = (results[f"{which}_{measure.name}"] for which in ("best", "final"))
    rows = [
        [f"best (epoch {results['best_epoch']}, chosen on {results['best_chosen_on']})", best],
        [f"final (epoch {results['final_epoch']})", final],
    ]
    run.show(run.mode, format_table(rows, [results["protocol"], measure.unit]))
