"""CUDA kernels without a compiler on the user's machine: NVRTC compiles a .cu file at first use.

NVRTC comes with PyTorch's CUDA wheels; NVIDIA's cuda-core package drives it. Binaries are cached on disk. Where kernels
cannot run, callers use their plain PyTorch reference, and the log says once why.

The environment variable I2P_MAE_KERNELS chooses: `auto` (default), `reference` (never use kernels), `cuda` (fail where
a tensor on a GPU cannot use them). I2P_MAE_CACHE is the folder of the binaries, ~/.cache/i2p-mae by default.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

CHOICES = ("auto", "reference", "cuda")
OPTIONS = {"std": "c++17", "fma": False}  # unfused, distances are bitwise those of the references and ties fall alike
CHECKSUM_BYTES = hashlib.sha256().digest_size
Argument = Tensor | int | float


class Kernels:
    """The kernels of one .cu file: `extern "C" __global__` functions of raw pointers, ints and floats.

    Args:
        source: the .cu file.
    """

    def __init__(self, source: Path):
        self.source = source

    def ready(self, tensor: Tensor) -> bool:
        """Whether kernels can work on this tensor; compiles them at the first call for a GPU.

        Raises:
            ValueError: if I2P_MAE_KERNELS is none of its values.
            RuntimeError: if I2P_MAE_KERNELS is `cuda` and a tensor on a GPU cannot use them.
        """
        choice = os.environ.get("I2P_MAE_KERNELS", "auto")
        if choice not in CHOICES:
            raise ValueError(f"I2P_MAE_KERNELS is {choice!r}; choose one of {', '.join(CHOICES)}")
        if not tensor.is_cuda or choice == "reference":
            return False
        reason = _load(self.source, architecture(tensor.device))[1]
        if reason is not None and choice == "cuda":
            raise RuntimeError(f"I2P_MAE_KERNELS=cuda, but {self.source} cannot be used: {reason}")
        return reason is None

    def launch(self, name: str, grid: int | tuple[int, ...], block: int, *arguments: Argument) -> None:
        """Run one kernel on PyTorch's current stream of the first tensor's device; returns without waiting.

        Args:
            name: of the `extern "C" __global__` function.
            grid: blocks, one number per dimension.
            block: threads of a block.
            arguments: contiguous tensors for pointers, Python ints for int, floats for float.
        """
        from cuda.core import Device, LaunchConfig, Stream, launch

        device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
        program, _ = _load(self.source, architecture(device))
        with torch.cuda.device(device):
            Device(device.index).set_current()  # a thread that has not used the GPU yet has no context to launch in
            stream = Stream.from_handle(torch.cuda.current_stream(device).cuda_stream)
            config = LaunchConfig(grid=grid, block=block)
            launch(stream, config, program.get_kernel(name), *map(as_c, arguments))


def as_c(argument: Argument) -> Any:
    """Turn an argument into what the kernel takes: the address of a contiguous tensor, an int, a float."""
    if isinstance(argument, Tensor):
        assert argument.is_contiguous(), "kernels take contiguous tensors"
        return argument.data_ptr()
    if isinstance(argument, int):
        assert -(2**31) <= argument < 2**31, "kernels take 32-bit ints"
        return ctypes.c_int(argument)
    return ctypes.c_float(argument)


def architecture(device: torch.device) -> str:
    """NVRTC's name of a GPU's architecture, such as sm_90."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def compile_source(source: Path, arch: str) -> bytes:
    """Compile a .cu file for one architecture; no GPU is needed.

    Returns:
        The binary (cubin).
    """
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(arch=arch, **OPTIONS)
    return bytes(Program(source.read_text(), "c++", options).compile("cubin").code)


def cached_binary(source: Path, arch: str, folder: Path) -> bytes:
    """The binary of a .cu file out of the cache in `folder`, compiled and put there if it is not.

    The file's name is a hash of the source, the architecture and the versions that matter. Its end is a checksum of the
    binary; a damaged file is compiled anew. Several processes may do this at once: a file appears under its name only
    when it is whole.
    """
    versions = [importlib.metadata.version("cuda-core"), torch.version.cuda or "none"]
    key = hashlib.sha256("\0".join([source.read_text(), arch, repr(OPTIONS), *versions]).encode()).hexdigest()
    path = folder / f"{source.parent.name}-{arch}-{key[:32]}.cubin"
    with contextlib.suppress(OSError):  # not there, or a cache that cannot be read
        kept = path.read_bytes()
        binary, checksum = kept[:-CHECKSUM_BYTES], kept[-CHECKSUM_BYTES:]
        if hashlib.sha256(binary).digest() == checksum:
            return binary
    binary = compile_source(source, arch)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, suffix=".tmp") as temporary:
            whole = Path(temporary) / path.name
            whole.write_bytes(binary + hashlib.sha256(binary).digest())
            whole.replace(path)
    except OSError as error:  # a cache that cannot be written costs time, nothing else
        logger.info("compiled kernels are not kept in %s: %s", folder, error)
    return binary


def load_binary(binary: bytes) -> Any:
    """Hand a binary to the driver, now, so that a refusal is known before the first launch."""
    from cuda.core import ObjectCode

    program = ObjectCode.from_cubin(binary)
    _ = program.handle  # cuda-core loads it when this is read
    return program


def cache_folder() -> Path:
    """Where binaries are kept."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "i2p-mae"
    return Path(os.environ.get("I2P_MAE_CACHE") or default).expanduser()


@functools.cache
def _load(source: Path, arch: str) -> tuple[Any, str | None]:
    """The loaded program of a .cu file, or the reason why there is none, which is logged once."""
    try:
        return load_binary(cached_binary(source, arch, cache_folder())), None
    except Exception as error:  # no cuda-core, no NVRTC, an old driver: as many kinds as there are set-ups
        reason = f"{type(error).__name__}: {error}"
        logger.warning(
            "%s is not used on %s, plain PyTorch runs instead (%s). For kernels: pip install 'cuda-core[cu%s]'",
            *(source, arch, reason, (torch.version.cuda or "13").split(".")[0]),
        )
        return None, reason


def blocks(count: int, per_block: int) -> int:
    """Blocks that cover `count` items, at least one."""
    return max(1, -(-count // per_block))


def contiguous_float32(*tensors: Tensor) -> Sequence[Tensor]:
    """The tensors as kernels take coordinates."""
    return [tensor.detach().to(torch.float32).contiguous() for tensor in tensors]
