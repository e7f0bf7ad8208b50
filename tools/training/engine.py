"""The loops over a loader. They know nothing of any mode: what a batch means is in the function they are given."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tools.training.precision import Precision
from utils.distributed import any_process, mean, same_buffers, world_size

Batch = tuple[Tensor, ...]  # points (B, N, 3), then targets: labels (B,) or others


class NonFinite(ValueError):
    """A loss or a gradient is NaN or infinite.

    Attributes:
        stage: what is not finite.
        batches: those of the update.
    """

    def __init__(self, stage: str, batches: list[Batch]):
        super().__init__(f"{stage} is not finite")
        self.stage, self.batches = stage, batches


class EpochState:
    """How far an epoch is: what a run needs to continue in the middle of one.

    Attributes:
        batches: batches done.
        seen: clouds that count in the averages.
        sums: of everything that the steps returned, times batch size.
        skipped: updates left out because they were not finite.
        waited: seconds spent waiting for data since the epoch began or continued.
    """

    def __init__(self) -> None:
        self.batches, self.seen, self.skipped, self.waited = 0, 0, 0, 0.0
        self.sums: dict[str, Tensor] = {}

    def add(self, results: Iterable[tuple[dict[str, Tensor], int]]) -> None:
        """Count the batches of an update in: of each what its step returned, and its clouds."""
        for values, size in results:
            for name, value in values.items():  # stays on the device: reading it here would wait for the GPU
                self.sums[name] = self.sums.get(name, 0.0) + value.detach().float() * size
            self.seen += size

    def averages(self) -> dict[str, float]:
        """Mean of everything over the clouds of all processes; empty before the first batch."""
        if not self.sums:
            return {}
        means = mean(torch.stack(list(self.sums.values())) / self.seen)
        return dict(zip(self.sums, means.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for every process to continue from; all of them must ask."""
        sums = {name: mean(value).cpu() for name, value in self.sums.items()}
        return {"batches": self.batches, "seen": self.seen, "skipped": self.skipped, "sums": sums}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a saved state."""
        self.batches, self.seen, self.skipped = state["batches"], state["seen"], state["skipped"]
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[Batch],
    step: Callable[[Batch], dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    precision: Precision | None = None,
    grad_norm_clip: float | None = None,
    step_per_update: int = 1,
    skip_nonfinite: int = 0,
    state: EpochState | None = None,
    after_update: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Train for one pass over the loader.

    Args:
        model: put into training mode; its parameters are clipped. It may be wrapped in DistributedDataParallel.
        loader: yields (points, targets …); of an epoch that continues, what is left of it.
        step: batch → 0-d tensors; "loss", the mean over the batch, is minimised, the others are only averaged.
        optimizer: holds the model's parameters.
        precision: of the forward pass; None for that of the tensors.
        grad_norm_clip: largest norm of the gradient of one update, None for no limit.
        step_per_update: batches per update. Their gradients add up to that of one larger batch; the batches left
            at the end of the epoch make a smaller update.
        skip_nonfinite: updates of the epoch that may be left out because a loss or a gradient is not finite.
        state: counts; continues where it stands.
        after_update: called after each update, for instance to save; what it raises ends the epoch.

    Returns:
        The mean of everything `step` returned, weighted by batch size.

    Raises:
        NonFinite: if one more update is not finite than may be left out; the parameters are those before it.
        ValueError: if the loader is empty.
    """
    model.train()
    precision, state = precision or Precision(), state or EpochState()
    batches = _timed(loader, state)
    while update := list(islice(batches, step_per_update)):
        buffers = [buffer.clone() for buffer in model.buffers()] if skip_nonfinite else []
        optimizer.zero_grad(set_to_none=True)
        losses, results = _accumulate(model, update, step, precision)
        norm = precision.clip(optimizer, model.parameters(), grad_norm_clip)
        if stage := _not_finite(model, losses, norm, precision):
            state.skipped += 1
            if state.skipped > skip_nonfinite:
                raise NonFinite(stage, update)
            precision.leave_out()
            _put_back(model, buffers)
        else:
            precision.update(optimizer)
            state.add(results)
        state.batches += len(update)
        after_update()
    if not state.batches:
        raise ValueError("the training loader yields no batch")
    same_buffers(model)  # each process has seen batches of its own: what is evaluated is what is saved
    return state.averages()


def _accumulate(
    model: nn.Module, update: list[Batch], step: Callable[[Batch], dict[str, Tensor]], precision: Precision
) -> tuple[Tensor, list[tuple[dict[str, Tensor], int]]]:
    """Add up the gradients of some batches; returns their losses and what `step` returned, with batch sizes."""
    update_size = sum(len(points) for points, *_ in update)
    results = []
    for i, batch in enumerate(update):
        size = len(batch[0])
        last = i == len(update) - 1
        with contextlib.nullcontext() if last or world_size() == 1 else model.no_sync():
            with precision.autocast():
                values = step(batch)
            precision.backward(values["loss"] * (size / update_size))
        results.append(({name: value.detach() for name, value in values.items()}, size))
    return torch.stack([values["loss"] for values, _ in results]), results


def _put_back(model: nn.Module, buffers: list[Tensor]) -> None:
    """Give a model the buffers that it had before an update that is left out: BatchNorm has seen its batches."""
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)


def _not_finite(model: nn.Module, losses: Tensor, norm: Tensor, precision: Precision) -> str:
    """Say what is not finite in any process, "" if nothing; scaled gradients may overflow, their update is left out."""
    checked = losses if precision.scaler.is_enabled() else torch.cat([losses, norm.reshape(1)])
    if not any_process(not bool(checked.isfinite().all()), losses.device):
        return ""
    if not losses.isfinite().all():
        return "the loss"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "a value in another process"


def _timed(batches: Iterable[Batch], state: EpochState) -> Iterator[Batch]:
    """Yield the batches; add the time that each takes to come to `state.waited`."""
    iterator = iter(batches)
    while True:
        began = time.perf_counter()
        batch = next(iterator, None)
        state.waited += time.perf_counter() - began
        if batch is None:
            return
        yield batch
