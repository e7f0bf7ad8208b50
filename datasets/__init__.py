"""Data sets in their published layouts; `from datasets import build_dataset` and its like stand in registry.py.

They are looked up when they are asked for: they need PyTorch, which a command of this package imports only once its
command line is read.
"""

from typing import Any

__all__ = ["DATASETS", "build_dataset", "check_dataset_config", "fingerprint", "name_of", "name_of_entry", "records_of"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from datasets import registry

    return getattr(registry, name)
