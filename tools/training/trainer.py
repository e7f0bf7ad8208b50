"""The epochs of a training run: schedule, evaluation, best result, stopping. What is trained is handed in."""

import time
from argparse import Namespace
from collections.abc import Callable
from itertools import islice
from typing import Any

from torch import Tensor, nn

from datasets.resident import ResidentLoader
from tools.training.annealing import set_batchnorm_momentum
from tools.training.builder import TrainingLoader, unwrapped
from tools.training.dry_run import measure_dry
from tools.training.engine import Batch, EpochState, NonFinite, train_one_epoch
from tools.training.epochs import EpochReport
from tools.training.report import ACCURACY, Measure, results_of, show_results
from tools.training.run import Run, begin_curves
from tools.training.state import TrainingState, keep_nonfinite, resume, save
from utils.checkpoint import load_weights
from utils.distributed import any_process, rank
from utils.logger import progress
from utils.seed import mixed_seed
from utils.signals import Stopped, StopRequest

ORDER_STREAM, AUGMENTATION_STREAM = 0, 1  # keep the draws of one epoch independent of each other


class Trainer:
    """Trains a model for the epochs 0 … `max_epoch` of its config.

    Args:
        config: resolved config; `optimizer`, `scheduler`, `max_epoch`, `grad_norm_clip`, `step_per_update`,
            `svm.every` and, where it is, `bn_momentum` are read.
        args: command line; `resume`, `start_ckpts`, `seed`, `val_freq`, `amp`, `dry_run`, `save_every_steps` and
            `skip_nonfinite` are read.
        run: the open run folder.
        model: on its device already, as `parallel` returned it.
        loader: shuffled training batches.
        step: (points, targets …, generator=…) on the model's device → 0-d tensors with "loss". The generator is seeded
            by (seed, epoch), for augmentation.
        evaluate: () → accuracy in percent, or what `measure` says; chooses the best checkpoint. None: there is none.
        protocol: what `evaluate` measures and on which split; stands beside every accuracy.
        test: () → accuracy in percent on the test split, where `evaluate` measures on another; taken at the end of the
            best and of the final weights.
        test_protocol: what `test` measures.
        measure: what `evaluate` gives.
    """

    def __init__(
        self,
        config: dict[str, Any],
        args: Namespace,
        run: Run,
        model: nn.Module,
        loader: TrainingLoader | ResidentLoader,
        step: Callable[..., dict[str, Tensor]],
        evaluate: Callable[[], float] | None,
        protocol: str,
        test: Callable[[], float] | None = None,
        test_protocol: str = "",
        measure: Measure = ACCURACY,
    ) -> None:
        self.config, self.args, self.run = config, args, run
        self.network, self.loader, self.step = model, loader, step
        self.evaluate, self.protocol, self.test, self.test_protocol = evaluate, protocol, test, test_protocol
        self.measure = measure
        self.state = TrainingState(unwrapped(model), config, args)
        self.interval, last = evaluation_interval(config, args), config["max_epoch"]
        self.evaluated = {*range(0, last + 1, self.interval), last} if evaluate is not None else set()
        self.report = EpochReport(run, self.state, last, self.evaluated, measure, protocol)
        self.updates, self.stop = 0, StopRequest()  # updates since the last checkpoint

    def fit(self) -> dict[str, Any]:
        """Train, evaluate and save epoch by epoch.

        Returns:
            The protocol, value and epoch of the best and of the final evaluation, and the seconds it took; without
            evaluations the loss of the final epoch; of a dry run, what it expects.

        Raises:
            Stopped: if a signal asks for it, after the update is done and saved.
            ValueError: if a loss or gradient stops being finite, or a checkpoint does not fit.
        """
        began = time.perf_counter()
        max_epoch, state = self.config["max_epoch"], self.state
        if self.args.dry_run:
            return measure_dry(
                *(self.run, self.config, state, self.loader, self._train_batches, self.evaluate, self.interval)
            )
        if self.args.resume:
            resume(state, self.run)
        elif self.args.start_ckpts:
            self.run.note_weights(load_weights(state.model, self.args.start_ckpts, strict=True))
        self.report.begin()
        begin_curves(self.run, self.config)
        with self.stop:
            for epoch in range(state.epoch, max_epoch + 1):
                self._train(epoch)
                improved = epoch in self.evaluated and self._evaluate(epoch)
                self.report.tell()
                state.epoch, state.progress = epoch + 1, EpochState()
                self._save(improved)
                if epoch < max_epoch and any_process(self.stop.requested, state.device):
                    raise Stopped(f"stopped after epoch {epoch}; continue with --resume")
        return self._results(time.perf_counter() - began)

    def _train_batches(self, epoch: int, after_update: Callable[[], None], most: int | None = None) -> dict[str, float]:
        """Train on what is left of an epoch, or on `most` batches of it; returns the averages."""
        config, state = self.config, self.state
        state.scheduler.step(epoch)
        if "bn_momentum" in config:
            set_batchnorm_momentum(state.model, config["bn_momentum"], epoch)
        if not state.progress.batches:
            state.augmentation.manual_seed(mixed_seed(self.args.seed, epoch, AUGMENTATION_STREAM, rank()))
        self.loader.begin(epoch, mixed_seed(self.args.seed, epoch, ORDER_STREAM), state.progress.batches)
        by_update = config["scheduler"].get("every") == "update"
        length = state.progress.batches + len(self.loader)  # batches of the whole epoch: done, and left

        def step(batch: Batch) -> dict[str, Tensor]:
            if by_update:
                state.scheduler.step(epoch + state.progress.batches / length)
            tensors = (tensor.to(state.device, non_blocking=True) for tensor in batch)
            return self.step(*tensors, generator=state.augmentation)

        batches, first = self.loader if most is None else islice(self.loader, most), self.report.batches.done == 0
        try:
            return train_one_epoch(
                self.network,
                progress(batches, f"epoch {epoch}", most, early=first),
                step,
                state.optimizer,
                precision=state.precision,
                grad_norm_clip=config["grad_norm_clip"],
                step_per_update=config["step_per_update"],
                skip_nonfinite=self.args.skip_nonfinite,
                state=state.progress,
                after_update=after_update,
            )
        except NonFinite as error:
            raise keep_nonfinite(error, self.run, epoch, state.progress.batches) from error

    def _train(self, epoch: int) -> None:
        with self.report.training():
            values = self._train_batches(epoch, self._after_update)
        values["lr"] = self.state.optimizer.param_groups[0]["lr"]
        self.state.history.append({"epoch": epoch, **values})

    def _after_update(self) -> None:
        self.updates += 1
        stop = any_process(self.stop.requested, self.state.device)
        if stop or self.updates == self.args.save_every_steps:
            self._save(improved=False)
        if stop:
            epoch, batch = self.state.epoch, self.state.progress.batches
            raise Stopped(f"stopped in epoch {epoch} after batch {batch}; continue with --resume")

    def _evaluate(self, epoch: int) -> bool:
        """Return whether this is the best so far."""
        with self.report.evaluating():
            value = self.evaluate()
        state, measure = self.state, self.measure
        state.metrics = {measure.name: value, "epoch": epoch}
        improved = not state.best_metrics or measure.better(value, state.best_metrics[measure.name])
        if improved:
            state.best_metrics = state.metrics
        state.history[-1]["evaluation"] = value  # beside the accuracy of the training batches
        return improved

    def _save(self, improved: bool) -> None:
        save(self.state, self.run, self.protocol if improved else "")
        self.updates = 0

    def _results(self, seconds: float) -> dict[str, Any]:
        results = results_of(self.state, self.measure, self.protocol, seconds)
        if self.test is not None:
            results |= {
                "protocol": self.test_protocol,
                **measure_unseen(self.state, self.run, self.protocol, self.test),
            }
        show_results(self.run, results, self.measure)
        return results


def measure_unseen(state: TrainingState, run: Run, protocol: str, test: Callable[[], float]) -> dict[str, Any]:
    """Measure the final weights and those that `protocol` chose on the test split, which has chosen neither."""
    final = test()
    load_weights(state.model, run.best_checkpoint, strict=True)
    return {
        "best_chosen_on": f"{protocol}, {state.best_metrics['accuracy']:.2f} %",
        "best_accuracy": test(),
        "final_accuracy": final,
    }


def evaluation_interval(config: dict[str, Any], args: Namespace) -> int:
    """Epochs from one evaluation to the next: `--val_freq` if it is more than 1, else `svm.every`."""
    return args.val_freq if args.val_freq > 1 else config["svm"]["every"]
