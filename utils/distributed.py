"""Several processes of one run, started by torchrun: who is who, and what they tell each other.

In a single process every function does the obvious thing, so that callers need no cases.
"""

import datetime
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .command import Reported, describe, report
from .device import choose_device

Value = TypeVar("Value")

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = datetime.timedelta(minutes=30)  # of a message between processes; the longest wait is for the linear SVM


@contextmanager
def processes(launcher: str) -> Iterator[None]:
    """Join the processes that torchrun started, for the time of the block.

    Args:
        launcher: "none" for a single process, "pytorch" for torchrun.

    Raises:
        ValueError: if torchrun did not start this process.
        Reported: for a `ValueError` or an `OSError` of several processes, which one of those that have it tells.
    """
    if launcher == "none":
        yield
        return
    if missing := [name for name in ENVIRONMENT if name not in os.environ]:
        raise ValueError(
            f"--launcher pytorch finds no {', '.join(missing)} in the environment; start with "
            "`torchrun --nproc_per_node=GPUS main.py --launcher pytorch …`, or drop --launcher"
        )
    device = choose_device()
    if device.type == "cpu":
        dist.init_process_group("gloo", timeout=TIMEOUT)
    else:
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=TIMEOUT)
    try:
        yield
    except (ValueError, OSError) as error:
        if _told_first(describe(error)):
            report(error)
        raise Reported from error
    finally:
        if device.type != "cpu":  # Gloo of PyTorch 2.4 may never come back from it; the end of the process does as well
            dist.destroy_process_group()


def _told_first(message: str) -> bool:
    """Whether no other process has asked this with the same message."""
    key = "error " + hashlib.sha256(message.encode()).hexdigest()
    try:
        return dist.distributed_c10d._get_default_store().add(key, 1) == 1
    except RuntimeError:  # the process that keeps the count is gone
        return True


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes files and messages: rank 0."""
    return rank() == 0


def restarted() -> bool:
    """Whether torchrun has started the processes again, with --max_restarts, after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process; all of them must ask."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def mean(tensor: Tensor) -> Tensor:
    """Mean over the processes, element by element; no gradient flows."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def same_buffers(module: nn.Module) -> None:
    """Give the buffers of every process, such as the running statistics of BatchNorm, the values of the main one."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def on_main(function: Callable[[], Value]) -> Value:
    """Call a function in the main process only and return its value, or raise its error, in all."""
    if world_size() == 1:
        return function()
    box: list[Any] = [None, None]
    if is_main():
        try:
            box[0] = function()
        except Exception as error:  # the others wait for an answer, whatever happened
            box[1] = error
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


def gather(value: Value) -> list[Value]:
    """The value of every process, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def interleave(shares: list[Tensor]) -> Tensor:
    """Put rows back in order that were dealt to the processes one by one: rank r had rows r, r + world size, …

    Args:
        shares: (n_r, …) of each rank, by rank; of n rows in all, rank r has those left over by the ranks before it.

    Returns:
        (n, …).
    """
    total = sum(len(share) for share in shares)
    rows = shares[0].new_empty((total, *shares[0].shape[1:]))
    for rank_of_share, share in enumerate(shares):
        rows[rank_of_share :: len(shares)] = share
    return rows


def gather_rows(rows: Tensor) -> Tensor:
    """Put the rows of all processes together, as `interleave` does; each has equally many, and no gradient flows.

    Args:
        rows: (n, …) of this process.

    Returns:
        (n · world size, …), the same in every process.
    """
    if world_size() == 1:
        return rows.detach()
    shares = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(shares, rows.detach().contiguous())
    return interleave(shares)
