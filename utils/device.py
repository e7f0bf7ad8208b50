"""Where a run computes."""

import os
import resource

import torch


def choose_device() -> torch.device:
    """Choose the GPU if PyTorch sees one, else the CPU; of several GPUs the one that torchrun gave this process."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def device_name(device: torch.device) -> str:
    """The GPU's name, or "CPU" with its number of threads."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: on a GPU those of PyTorch's tensors, on a CPU those of the whole process."""
    if device.type == "cpu":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return torch.cuda.max_memory_allocated(device)


def free_memory(device: torch.device) -> int:
    """Bytes that are free: on a CPU what the system could make available."""
    if device.type != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo", encoding="ascii") as file:
        kilobytes = next(line.split()[1] for line in file if line.startswith("MemAvailable:"))
    return 1024 * int(kilobytes)
