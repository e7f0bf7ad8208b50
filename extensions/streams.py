"""Work that a GPU does beside other work."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def beside(inputs: Tensor) -> Iterator[Callable[..., None]]:
    """Launch the block's work on a second stream of the GPU, so that what follows the block need not wait for it.

    On a CPU the block runs as it stands.

    Args:
        inputs: a tensor that the block reads; says on which device it works.

    Yields:
        A function to call before the block's results are read, with the tensors among them: the current stream then
        waits for the block, and the memory of the tensors is not given to others too early.
    """
    if not inputs.is_cuda:
        yield lambda *results: None
        return
    here, there = torch.cuda.current_stream(inputs.device), _second_stream(inputs.device)

    def join(*results: Tensor) -> None:
        here.wait_stream(there)
        for result in results:
            result.record_stream(here)

    there.wait_stream(here)
    inputs.record_stream(there)
    with torch.cuda.stream(there):
        yield join


@functools.cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
