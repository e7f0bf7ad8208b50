"""Settings of all tests."""

import os

import pytest
import torch
from hypothesis import settings

# Continuous integration tries the same examples each time; elsewhere each run tries new ones.
settings.register_profile("tests", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("tests")


pytest.register_assert_rewrite("tests.playground")


@pytest.fixture
def here(playground, monkeypatch):
    """The folder that the module's own fixture `playground` gives, as the current one."""
    monkeypatch.chdir(playground)
    return playground


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors gain nothing from several threads, and on a busy machine threads wait for each other."""
    torch.set_num_threads(1)
