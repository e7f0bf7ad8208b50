"""The epochs of a training run: schedule, checkpoints, best result, resuming. What is trained is handed in."""

import logging
import math
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tools.builder import build_optimizer, build_scheduler
from tools.engine import Batch, train_one_epoch
from tools.report import Run, format_table
from utils.checkpoint import load_weights, read_checkpoint, save_checkpoint
from utils.seed import rng_state, set_rng_state

logger = logging.getLogger(__name__)

ORDER_STREAM, AUGMENTATION_STREAM = 0, 1  # keep the draws of one epoch independent of each other


class Trainer:
    """Trains a model for the epochs 0 … `max_epoch` of its config.

    Args:
        config: resolved config; `optimizer`, `scheduler`, `max_epoch`, `grad_norm_clip`, `step_per_update` and
            `svm.every` are read.
        args: command line; `resume`, `start_ckpts`, `seed` and `val_freq` are read.
        run: the open run folder.
        model: on its device already.
        loader: shuffled training batches.
        step: (points, labels, generator) on the model's device → 0-d tensors with "loss". The generator is seeded by
            (seed, epoch), for augmentation.
        evaluate: () → accuracy in percent.
        protocol: what `evaluate` measures and on which split; stands beside every accuracy.
    """

    def __init__(
        self,
        config: dict[str, Any],
        args: Namespace,
        run: Run,
        model: nn.Module,
        loader: DataLoader,
        step: Callable[[Tensor, Tensor, torch.Generator], dict[str, Tensor]],
        evaluate: Callable[[], float],
        protocol: str,
    ) -> None:
        self.config, self.args, self.run = config, args, run
        self.model, self.loader, self.step = model, loader, step
        self.evaluate, self.protocol = evaluate, protocol
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, config["optimizer"])
        self.scheduler = build_scheduler(self.optimizer, config["scheduler"])
        self.next_epoch = 0
        self.metrics: dict[str, Any] = {}  # {accuracy, epoch} of the latest evaluation
        self.best_metrics: dict[str, Any] = {}

    def fit(self) -> dict[str, Any]:
        """Train, evaluate and save epoch by epoch.

        Returns:
            The protocol, accuracy and epoch of the best and of the final evaluation, and the seconds it took.

        Raises:
            ValueError: if a loss stops being finite, or a checkpoint does not fit.
        """
        began = time.perf_counter()
        max_epoch = self.config["max_epoch"]
        if self.args.resume:
            self._resume()
        elif self.args.start_ckpts:
            logger.info("%s", load_weights(self.model, self.args.start_ckpts, strict=True))
        interval = evaluation_interval(self.config, self.args)
        for epoch in range(self.next_epoch, max_epoch + 1):
            self._train(epoch)
            improved = False
            if epoch % interval == 0 or epoch == max_epoch:
                improved = self._evaluate(epoch)
            self._save(epoch, improved)
        return self._results(time.perf_counter() - began)

    def _train(self, epoch: int) -> None:
        began = time.perf_counter()
        self.scheduler.step(epoch)
        self.loader.generator.manual_seed(_seed(self.args.seed, epoch, ORDER_STREAM))
        if hasattr(self.loader.dataset, "set_epoch"):
            self.loader.dataset.set_epoch(epoch)
        generator = torch.Generator(self.device).manual_seed(_seed(self.args.seed, epoch, AUGMENTATION_STREAM))

        def step(batch: Batch) -> dict[str, Tensor]:
            points, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            return self.step(points, labels, generator)

        values = train_one_epoch(
            self.model,
            self.loader,
            step,
            self.optimizer,
            grad_norm_clip=self.config["grad_norm_clip"],
            step_per_update=self.config["step_per_update"],
            description=f"epoch {epoch}",
        )
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} became {value} in epoch {epoch}; lower optimizer.kwargs.lr or set grad_norm_clip and "
                    "start again, for instance with --start_ckpts from an earlier checkpoint and another --exp_name"
                )
        values["lr"] = self.optimizer.param_groups[0]["lr"]
        self.run.draw({f"train/{name}": value for name, value in values.items()}, epoch)
        texts = [f"{name} {value:.5g}" for name, value in values.items()]
        seconds = time.perf_counter() - began
        logger.info("epoch %d/%d | %s | %.1f s", epoch, self.config["max_epoch"], " | ".join(texts), seconds)

    def _evaluate(self, epoch: int) -> bool:
        """Return whether this is the best accuracy so far."""
        began = time.perf_counter()
        self.metrics = {"accuracy": self.evaluate(), "epoch": epoch}
        improved = not self.best_metrics or self.metrics["accuracy"] > self.best_metrics["accuracy"]
        if improved:
            self.best_metrics = self.metrics
        self.run.draw({"evaluation/accuracy": self.metrics["accuracy"]}, epoch)
        logger.info(
            "epoch %d/%d | %s: %.2f %% | best %.2f %% at epoch %d | %.1f s",
            *(epoch, self.config["max_epoch"], self.protocol, self.metrics["accuracy"]),
            *(self.best_metrics["accuracy"], self.best_metrics["epoch"], time.perf_counter() - began),
        )
        return improved

    def _save(self, epoch: int, improved: bool) -> None:
        state = {
            "base_model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "epoch": epoch,
            "metrics": self.metrics,
            "best_metrics": self.best_metrics,
            "rng": rng_state(),
            "config": _plain(self.config),
        }
        if improved:
            save_checkpoint(self.run.best_checkpoint, state)
        save_checkpoint(self.run.last_checkpoint, state)

    def _resume(self) -> None:
        path = self.run.last_checkpoint
        state = read_checkpoint(path)
        keys = ("optimizer", "scheduler", "epoch", "metrics", "best_metrics", "rng", "config")
        if missing := [key for key in keys if key not in state]:
            raise ValueError(
                f"{path} cannot be resumed: it has no {', '.join(missing)}; "
                "start from its weights with --start_ckpts and another --exp_name"
            )
        now, then = _plain(self.config), state["config"]
        if changed := sorted(key for key in {**then, **now} if then.get(key) != now.get(key)):
            logger.warning("since the run began these parts of the config changed: %s", ", ".join(changed))
        logger.info("%s", load_weights(self.model, path, strict=True))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.metrics, self.best_metrics = state["metrics"], state["best_metrics"]
        self.next_epoch = state["epoch"] + 1
        set_rng_state(state["rng"])
        logger.info("resuming at epoch %d", self.next_epoch)

    def _results(self, seconds: float) -> dict[str, Any]:
        best, final = self.best_metrics, self.metrics
        rows = [
            [f"best (epoch {best['epoch']}, chosen on that same split)", best["accuracy"]],
            [f"final (epoch {final['epoch']})", final["accuracy"]],
        ]
        logger.info("%s\n%s", self.run.mode, format_table(rows, [self.protocol, "%"]))
        return {
            "protocol": self.protocol,
            "best_accuracy": best["accuracy"],
            "best_epoch": best["epoch"],
            "best_chosen_on": "the same split",
            "final_accuracy": final["accuracy"],
            "final_epoch": final["epoch"],
            "seconds": seconds,
        }


def evaluation_interval(config: dict[str, Any], args: Namespace) -> int:
    """Epochs from one evaluation to the next: `--val_freq` if it is more than 1, else `svm.every`."""
    return args.val_freq if args.val_freq > 1 else config["svm"]["every"]


def _seed(seed: int, epoch: int, stream: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, stream)).generate_state(1, np.uint64)[0])


def _plain(value: Any) -> Any:
    """Turn nested EasyDicts into dicts: a checkpoint holds plain types only."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
