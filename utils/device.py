"""Where a run computes."""

import torch


def choose_device() -> torch.device:
    """Choose the GPU if PyTorch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
