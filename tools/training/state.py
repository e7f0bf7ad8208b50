"""Where a training run stands: everything that a checkpoint keeps, how it is saved and how it is restored."""

import logging
from argparse import Namespace
from typing import Any

import torch
from torch import nn

from tools.training.builder import build_optimizer, build_scheduler
from tools.training.engine import EpochState, NonFinite
from tools.training.precision import Precision
from tools.training.record import plain
from tools.training.run import Run
from utils.checkpoint import load_weights, save_checkpoint
from utils.config import save_config
from utils.distributed import gather, on_main, rank, world_size
from utils.seed import rng_state, set_rng_state

logger = logging.getLogger(__name__)

RESUMED = ("optimizer", "scheduler", "epoch", "progress", "metrics", "best_metrics", "history", "rng", "config")


class TrainingState:
    """A model in training, and all that decides how it goes on.

    Args:
        model: on its device already, not wrapped.
        config: resolved config; `optimizer` and `scheduler` are read, all of it is saved.
        args: command line; `amp` is read.

    Attributes:
        optimizer, scheduler, precision: of the training.
        augmentation: generator of the augmentation's draws.
        epoch: the first that is not complete.
        progress: how far that epoch is.
        metrics: {accuracy or another measure, epoch} of the latest evaluation.
        best_metrics: of the best.
        history: what was measured, per epoch.
    """

    def __init__(self, model: nn.Module, config: dict[str, Any], args: Namespace) -> None:
        self.model, self.config = model, config
        self.device = next(model.parameters()).device
        self.precision = Precision(args.amp, self.device)
        self.optimizer = build_optimizer(model, config["optimizer"])
        self.scheduler = build_scheduler(self.optimizer, config["scheduler"])
        self.augmentation = torch.Generator(self.device)
        self.epoch = 0
        self.progress = EpochState()
        self.metrics: dict[str, Any] = {}
        self.best_metrics: dict[str, Any] = {}
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that say exactly where the run stands; every process must ask."""
        return {
            "base_model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.precision.state_dict(),
            "epoch": self.epoch - 1,  # the last complete one
            "progress": self.progress.state_dict(),
            "metrics": self.metrics,
            "best_metrics": self.best_metrics,
            "history": self.history,
            "rng": gather({**rng_state(), "augmentation": self.augmentation.get_state()}),
            "config": plain(self.config),
            "chosen_by": "nothing, the latest of its run",
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave; the weights are loaded apart."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.precision.load_state_dict(state.get("scaler", {}))
        self.metrics, self.best_metrics, self.history = state["metrics"], state["best_metrics"], state["history"]
        self.epoch = state["epoch"] + 1
        self.progress.load_state_dict(state["progress"], self.device)
        if len(state["rng"]) == world_size():
            set_rng_state(state["rng"][rank()])
            self.augmentation.set_state(state["rng"][rank()]["augmentation"].cpu())
        else:
            logger.warning(
                "the run had %d processes and now has %d: it continues, but not as it would have",
                *(len(state["rng"]), world_size()),
            )


def save(state: TrainingState, run: Run, chosen_by: str = "") -> None:
    """Save ckpt-last; every process takes part, the main one writes.

    Args:
        state: where the run stands.
        run: the open run folder.
        chosen_by: what makes these weights the best so far, which are then saved as ckpt-best too; "" if they are not.
    """
    content = state.state_dict() | {"run": run.record}

    def write() -> None:
        if chosen_by:
            save_checkpoint(run.best_checkpoint, content | {"chosen_by": chosen_by})
        save_checkpoint(run.last_checkpoint, content, previous=run.previous_checkpoint)

    on_main(write)


def resume(state: TrainingState, run: Run) -> None:
    """Continue from the checkpoint that the run has begun with, and put a damaged later one aside.

    Raises:
        ValueError: if it cannot be resumed or does not fit the model.
    """
    assert run.begun is not None
    (path, content), run.begun = run.begun, None
    if path == run.previous_checkpoint:
        damaged = run.last_checkpoint.with_suffix(".damaged.pth")  # or the next save would push the good one out
        on_main(lambda: run.last_checkpoint.replace(damaged) if run.last_checkpoint.exists() else None)
    if missing := [key for key in RESUMED if key not in content]:
        raise ValueError(
            f"{path} cannot be resumed: it has no {', '.join(missing)}; "
            "start from its weights with --start_ckpts and another --exp_name"
        )
    logger.info("%s", load_weights(state.model, path, strict=True))
    state.load_state_dict(content)
    on_main(lambda: save_config(state.config, run.config_file))  # not before: the checkpoint has to fit
    logger.info("resuming at epoch %d, batch %d", state.epoch, state.progress.batches)


def keep_nonfinite(error: NonFinite, run: Run, epoch: int, batches: int) -> ValueError:
    """Keep what went into an update that is not finite, after `batches` of an epoch; returns the error that says so."""
    path = run.folder / f"nonfinite-epoch{epoch}-batch{batches}-rank{rank()}.pth"
    save_checkpoint(path, {"epoch": epoch, "stage": error.stage, "batches": [list(batch) for batch in error.batches]})
    return ValueError(
        f"{error} in epoch {epoch}, after {batches} batches; what went in is in {path}; lower optimizer.kwargs.lr, set "
        "grad_norm_clip, or allow some with --skip_nonfinite, and --resume"
    )
