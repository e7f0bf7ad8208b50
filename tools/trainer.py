"""The epochs of a training run: schedule, checkpoints, best result, resuming. What is trained is handed in."""

import logging
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.resident import ResidentLoader
from tools.builder import TrainingLoader, build_optimizer, build_scheduler, unwrapped
from tools.engine import Batch, EpochState, NonFinite, train_one_epoch
from tools.precision import Precision
from tools.report import Run, format_table
from utils.checkpoint import load_weights, read_checkpoint, save_checkpoint
from utils.config import save_config
from utils.device import peak_memory
from utils.distributed import any_process, gather, on_main, rank, world_size
from utils.seed import mixed_seed, rng_state, set_rng_state
from utils.signals import StopRequest

logger = logging.getLogger(__name__)

ORDER_STREAM, AUGMENTATION_STREAM = 0, 1  # keep the draws of one epoch independent of each other
DRY_RUN_UPDATES = 8
WARM_UP_UPDATES = 2  # of a dry run: slower than the rest


class Stopped(Exception):
    """A signal stopped the run; it is saved and can be resumed."""


class Trainer:
    """Trains a model for the epochs 0 … `max_epoch` of its config.

    Args:
        config: resolved config; `optimizer`, `scheduler`, `max_epoch`, `grad_norm_clip`, `step_per_update` and
            `svm.every` are read.
        args: command line; `resume`, `start_ckpts`, `seed`, `val_freq`, `amp`, `dry_run`, `save_every_steps` and
            `skip_nonfinite` are read.
        run: the open run folder.
        model: on its device already, as `parallel` returned it.
        loader: shuffled training batches.
        step: (points, targets …, generator=…) on the model's device → 0-d tensors with "loss". The generator is seeded
            by (seed, epoch), for augmentation.
        evaluate: () → accuracy in percent; chooses the best checkpoint.
        protocol: what `evaluate` measures and on which split; stands beside every accuracy.
        test: () → accuracy in percent on the test split, where `evaluate` measures on another; taken at the end of the
            best and of the final weights.
        test_protocol: what `test` measures.
    """

    def __init__(
        self,
        config: dict[str, Any],
        args: Namespace,
        run: Run,
        model: nn.Module,
        loader: TrainingLoader | ResidentLoader,
        step: Callable[..., dict[str, Tensor]],
        evaluate: Callable[[], float],
        protocol: str,
        test: Callable[[], float] | None = None,
        test_protocol: str = "",
    ) -> None:
        self.config, self.args, self.run = config, args, run
        self.network, self.model, self.loader, self.step = model, unwrapped(model), loader, step
        self.evaluate, self.protocol, self.test, self.test_protocol = evaluate, protocol, test, test_protocol
        self.device = next(model.parameters()).device
        self.precision = Precision(args.amp, self.device)
        self.optimizer = build_optimizer(self.model, config["optimizer"])
        self.scheduler = build_scheduler(self.optimizer, config["scheduler"])
        self.augmentation = torch.Generator(self.device)
        self.epoch = 0  # the first that is not complete
        self.progress = EpochState()  # in that epoch
        self.updates = 0  # since the last checkpoint
        self.stop = StopRequest()
        self.metrics: dict[str, Any] = {}  # {accuracy, epoch} of the latest evaluation
        self.best_metrics: dict[str, Any] = {}
        self.history: list[dict[str, float]] = []  # per epoch

    def fit(self) -> dict[str, Any]:
        """Train, evaluate and save epoch by epoch.

        Returns:
            The protocol, accuracy and epoch of the best and of the final evaluation, and the seconds it took; of a dry
            run, what it expects.

        Raises:
            Stopped: if a signal asks for it, after the update is done and saved.
            ValueError: if a loss or gradient stops being finite, or a checkpoint does not fit.
        """
        began = time.perf_counter()
        max_epoch = self.config["max_epoch"]
        if self.args.dry_run:
            return self._dry_run()
        if self.args.resume:
            self._resume()
        elif self.args.start_ckpts:
            logger.info("%s", load_weights(self.model, self.args.start_ckpts, strict=True))
        interval = evaluation_interval(self.config, self.args)
        with self.stop:
            for epoch in range(self.epoch, max_epoch + 1):
                self._train(epoch)
                improved = False
                if epoch % interval == 0 or epoch == max_epoch:
                    improved = self._evaluate(epoch)
                self.epoch, self.progress = epoch + 1, EpochState()
                self._save(improved)
                if epoch < max_epoch and any_process(self.stop.requested, self.device):
                    raise Stopped(f"stopped after epoch {epoch}; continue with --resume")
        return self._results(time.perf_counter() - began)

    def _train(self, epoch: int) -> None:
        began = time.perf_counter()
        values = self._pass(epoch, self._after_update)
        seconds = time.perf_counter() - began
        waited = 100 * self.progress.waited / seconds
        values["lr"] = self.optimizer.param_groups[0]["lr"]
        self.history.append({"epoch": epoch, **values})
        self.run.draw({f"train/{name}": value for name, value in values.items()}, epoch)
        texts = [f"{name} {value:.5g}" for name, value in values.items()]
        if self.progress.skipped:
            texts.append(f"{self.progress.skipped} updates left out")
        logger.info(
            "epoch %d/%d | %s | %.1f s, %.0f %% of it waiting for data",
            *(epoch, self.config["max_epoch"], " | ".join(texts), seconds, waited),
        )

    def _pass(self, epoch: int, after_update: Callable[[], None], most: int | None = None) -> dict[str, float]:
        """Train on what is left of an epoch, or on `most` batches of it."""
        self.scheduler.step(epoch)
        if not self.progress.batches:
            self.augmentation.manual_seed(mixed_seed(self.args.seed, epoch, AUGMENTATION_STREAM, rank()))
        self.loader.begin(epoch, mixed_seed(self.args.seed, epoch, ORDER_STREAM), self.progress.batches)

        def step(batch: Batch) -> dict[str, Tensor]:
            tensors = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            return self.step(*tensors, generator=self.augmentation)

        try:
            return train_one_epoch(
                self.network,
                self.loader if most is None else islice(self.loader, most),
                step,
                self.optimizer,
                precision=self.precision,
                grad_norm_clip=self.config["grad_norm_clip"],
                step_per_update=self.config["step_per_update"],
                skip_nonfinite=self.args.skip_nonfinite,
                state=self.progress,
                after_update=after_update,
                description=f"epoch {epoch}",
            )
        except NonFinite as error:
            path = self.run.folder / f"nonfinite-epoch{epoch}-batch{self.progress.batches}-rank{rank()}.pth"
            save_checkpoint(path, {"epoch": epoch, "stage": error.stage, "batches": [list(b) for b in error.batches]})
            raise ValueError(
                f"{error} in epoch {epoch}, after {self.progress.batches} batches; what went in is in {path}; lower "
                "optimizer.kwargs.lr, set grad_norm_clip, or allow some with --skip_nonfinite, and --resume"
            ) from error

    def _after_update(self) -> None:
        self.updates += 1
        stop = any_process(self.stop.requested, self.device)
        if stop or self.updates == self.args.save_every_steps:
            self._save(improved=False)
        if stop:
            raise Stopped(f"stopped in epoch {self.epoch} after batch {self.progress.batches}; continue with --resume")

    def _evaluate(self, epoch: int) -> bool:
        """Return whether this is the best accuracy so far."""
        began = time.perf_counter()
        self.metrics = {"accuracy": self.evaluate(), "epoch": epoch}
        improved = not self.best_metrics or self.metrics["accuracy"] > self.best_metrics["accuracy"]
        if improved:
            self.best_metrics = self.metrics
        self.history[-1]["accuracy"] = self.metrics["accuracy"]
        self.run.draw({"evaluation/accuracy": self.metrics["accuracy"]}, epoch)
        logger.info(
            "epoch %d/%d | %s: %.2f %% | best %.2f %% at epoch %d | %.1f s",
            *(epoch, self.config["max_epoch"], self.protocol, self.metrics["accuracy"]),
            *(self.best_metrics["accuracy"], self.best_metrics["epoch"], time.perf_counter() - began),
        )
        return improved

    def _save(self, improved: bool) -> None:
        """Save where the run stands, exactly; every process takes part, the main one writes."""
        rng = gather({**rng_state(), "augmentation": self.augmentation.get_state()})
        state = {
            "base_model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.precision.state_dict(),
            "epoch": self.epoch - 1,  # the last complete one
            "progress": self.progress.state_dict(),
            "metrics": self.metrics,
            "best_metrics": self.best_metrics,
            "history": self.history,
            "rng": rng,
            "config": _plain(self.config),
            "chosen_by": "nothing, the latest of its run",
        }

        def write() -> None:
            if improved:
                save_checkpoint(self.run.best_checkpoint, state | {"chosen_by": self.protocol})
            save_checkpoint(self.run.last_checkpoint, state, previous=self.run.previous_checkpoint)

        on_main(write)
        self.updates = 0

    def _resume(self) -> None:
        path, state = self._last_good_checkpoint()
        keys = ("optimizer", "scheduler", "epoch", "progress", "metrics", "best_metrics", "history", "rng", "config")
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
        on_main(lambda: save_config(self.config, self.run.config_file))  # not before: the checkpoint has to fit
        logger.info("resuming at epoch %d, batch %d", self.epoch, self.progress.batches)

    def _last_good_checkpoint(self) -> tuple[Path, dict[str, Any]]:
        """Read ckpt-last, or the one before it if ckpt-last is damaged or was never completed."""
        last, previous = self.run.last_checkpoint, self.run.previous_checkpoint
        try:
            return last, read_checkpoint(last)
        except (ValueError, FileNotFoundError) as error:
            if not previous.exists():
                raise
            logger.warning("%s; falling back to %s", error, previous)
            state = read_checkpoint(previous)
        damaged = last.with_suffix(".damaged.pth")  # out of the way, or the next save would push the good one out
        on_main(lambda: last.replace(damaged) if last.exists() else None)
        return previous, state

    def _results(self, seconds: float) -> dict[str, Any]:
        best, final = self.best_metrics, self.metrics
        results = {
            "protocol": self.protocol,
            "best_accuracy": best["accuracy"],
            "best_epoch": best["epoch"],
            "best_chosen_on": "the same split",
            "final_accuracy": final["accuracy"],
            "final_epoch": final["epoch"],
            "seconds": seconds,
            "history": self.history,
        }
        if self.test is not None:
            results |= self._test()
        rows = [
            [f"best (epoch {best['epoch']}, chosen on {results['best_chosen_on']})", results["best_accuracy"]],
            [f"final (epoch {final['epoch']})", results["final_accuracy"]],
        ]
        logger.info("%s\n%s", self.run.mode, format_table(rows, [results["protocol"], "%"]))
        return results

    def _test(self) -> dict[str, Any]:
        """Measure the final and the best weights on the test split, which has chosen neither."""
        assert self.test is not None
        final = self.test()
        load_weights(self.model, self.run.best_checkpoint, strict=True)
        return {
            "protocol": self.test_protocol,
            "best_chosen_on": f"{self.protocol}, {self.best_metrics['accuracy']:.2f} %",
            "best_accuracy": self.test(),
            "final_accuracy": final,
        }

    def _dry_run(self) -> dict[str, Any]:
        """Time some updates and an evaluation; say what the whole run would take."""
        times = [time.perf_counter()]
        per_update, epochs = self.config["step_per_update"], self.config["max_epoch"] + 1
        self._pass(0, lambda: times.append(time.perf_counter()), most=DRY_RUN_UPDATES * per_update)
        updates = [after - before for before, after in pairwise(times)]
        update = statistics.median(updates[WARM_UP_UPDATES:] or updates)
        waited = 100 * self.progress.waited / (times[-1] - times[0])
        self.progress = EpochState()
        self.loader.begin(0, 0)
        epoch = update * len(self.loader) / per_update
        began = time.perf_counter()
        self.evaluate()
        evaluation = time.perf_counter() - began
        interval = evaluation_interval(self.config, self.args)
        evaluations = len({*range(0, epochs, interval), epochs - 1})
        expected = {
            "seconds per update": update,
            "seconds per epoch": epoch,
            "seconds per evaluation": evaluation,
            f"hours for {epochs} epochs and {evaluations} evaluations": (epochs * epoch + evaluations * evaluation)
            / 3600,
            "peak memory, GB": peak_memory(self.device) / 1e9,
            "waiting for data, %": waited,
        }
        title = f"expected of {self.run.mode} on {self.device}, from {len(updates)} updates"
        logger.info("dry run\n%s", format_table([[name, value] for name, value in expected.items()], [title, ""]))
        return expected


def evaluation_interval(config: dict[str, Any], args: Namespace) -> int:
    """Epochs from one evaluation to the next: `--val_freq` if it is more than 1, else `svm.every`."""
    return args.val_freq if args.val_freq > 1 else config["svm"]["every"]


def _plain(value: Any) -> Any:
    """Turn nested EasyDicts into dicts: a checkpoint holds plain types only."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
