"""Settings of all tests."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors gain nothing from several threads, and on a busy machine threads wait for each other."""
    torch.set_num_threads(1)
