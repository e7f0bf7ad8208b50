"""Seeds and the state of every random generator of a run."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

from .distributed import rank

_BETWEEN_RANKS = 0x9E3779B9  # far from the seeds that people choose


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and PyTorch (CPU and all GPUs); of several processes each draws its own numbers.

    Args:
        seed: 0 … 2**32 - 1.
        deterministic: also make PyTorch use deterministic algorithms, or fail where it has none; slower on a GPU.
    """
    seed = (seed + rank() * _BETWEEN_RANKS) % 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries draw from the global generator)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when first used
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False


def mixed_seed(*numbers: int) -> int:
    """Return the seed, 64 bits, of the draws that belong to these numbers (at least 0); unrelated for near ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@contextmanager
def own_draws(seed: int) -> Iterator[None]:
    """Seed PyTorch's generators for the time of the block; they then go on as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def rng_state() -> dict[str, Any]:
    """Read the state of every global random generator.

    Returns:
        Tensors and plain values only, so that a checkpoint can hold it and be read with `weights_only=True`.
    """
    name, keys, *rest = cast(tuple, np.random.get_state())  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "gpus": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put every global random generator back where `rng_state` found it.

    Args:
        state: what `rng_state` returned. GPUs that only one of the two machines has are left alone.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    for gpu, gpu_state in zip(range(torch.cuda.device_count()), state["gpus"], strict=False):
        torch.cuda.set_rng_state(gpu_state.cpu(), gpu)
