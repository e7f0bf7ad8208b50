"""What a benchmark runs on, and how it takes time and memory there."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

MIB = 1 << 20


def machine(device: torch.device) -> dict[str, str | int]:
    """What the figures were taken on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    about: dict[str, str | int] = {
        "system": platform.system(),
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def timer(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """The function that takes the seconds of a call on this device."""
    return time_on_gpu if device.type == "cuda" else time_on_cpu


def time_on_cpu(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_on_gpu(call: Callable[[], object]) -> float:
    """Seconds of one call between two events of the current stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def memory_on_cpu(call: Callable[[], object]) -> float:
    """MiB by which a call raises this process's resident memory at its highest; Linux with glibc only.

    Measure in a fresh process: what others freed and the allocator kept would be used again without being counted.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # gives back what is free
    Path("/proc/self/clear_refs").write_text("5")  # the highest starts anew from what is resident now
    before = _status_kib("VmRSS")
    call()
    return (_status_kib("VmHWM") - before) * 1024 / MIB


def memory_on_gpu(call: Callable[[], object]) -> float:
    """MiB that a call allocates at its highest on top of what is allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def _status_kib(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match, f"/proc/self/status has no {field}"
    return int(match[1])
