"""The rooms of the house: who imports whom, and that importing does nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "main": {"tools", "utils"},
    "tools": {"datasets", "models", "extensions", "utils"},
    "models": {"extensions", "utils"},
    "datasets": {"extensions", "utils"},
    "extensions": set(),
    "utils": set(),
}
FILES = [
    Path("main.py"),
    *sorted(file.relative_to(ROOT) for room in MAY_IMPORT for file in (ROOT / room).rglob("*.py")),
]


def imported_modules(file: Path, source: str, members: bool = False) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import in the source, those inside functions included.

    With `members`, `from package import name` counts as an import of package.name.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = file.parts[: -node.level] if node.level else ()
            parent = ".".join([*package, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, ".".join(filter(None, [parent, alias.name])) if members else parent or alias.name


def room_of(file: Path) -> str:
    return file.with_suffix("").parts[0]


def floor_of(module: str) -> int:
    """Floor of a module of tools: 0 what a person starts, 1 evaluation, 2 training; each imports from below only."""
    return {"evaluation": 1, "training": 2}.get(module.split(".")[1], 0) if "." in module else 0


def upward(file: Path, source: str) -> list[str]:
    """What a file of tools imports of a floor above its own, or, where a person starts it, of its neighbours."""
    name = ".".join(file.with_suffix("").parts)
    own = floor_of(name)
    return [
        f"line {line}: {name} may not import {module}"
        for line, module in imported_modules(file, source, members=True)
        if module.startswith("tools.") and (floor_of(module) < own or floor_of(module) == own == 0)
    ]


def violations(file: Path, source: str) -> list[str]:
    """What a file, named relative to the root, imports of ours and may not."""
    room = room_of(file)
    forbidden = (MAY_IMPORT.keys() | {"tests"}) - MAY_IMPORT[room] - {room}
    return [
        f"line {line}: {room} may not import {module}"
        for line, module in imported_modules(file, source)
        if module.split(".")[0] in forbidden
    ]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_rooms_import_only_whom_they_may(file):
    assert violations(file, (ROOT / file).read_text(encoding="utf-8")) == []


TOOLS = [file for file in FILES if room_of(file) == "tools"]


@pytest.mark.parametrize("file", TOOLS, ids=str)
def test_inside_tools_imports_point_down(file):
    assert upward(file, (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("tools/runner_test.py", "from tools import runner_finetune"),
        ("tools/runner_test.py", "from tools.runner_finetune import check_labels"),
        ("tools/ablation.py", "import tools.demo"),
        ("tools/evaluation/svm.py", "from tools.runner_test_svm import run"),
        ("tools/training/run.py", "from tools.evaluation import svm"),
        ("tools/training/run.py", "from tools.reproduce import launch"),
    ],
)
def test_an_import_that_points_up_is_found(file, source):
    assert len(upward(Path(file), source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("tools/runner_test.py", "from tools.evaluation import svm\nfrom tools.training.run import Run"),
        ("tools/evaluation/svm.py", "from tools.training import run\nfrom tools.evaluation import probes"),
    ],
)
def test_an_import_that_points_down_is_not_found(file, source):
    assert upward(Path(file), source) == []


def test_every_room_is_read():
    assert {room_of(file) for file in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    "source",
    [
        "import utils.config",
        "from tools import engine",
        "def f():\n    from datasets.transforms import random_subset",
        "from .. import utils",
        "from ..utils import config",
        "import torch, main",
    ],
)
def test_a_forbidden_import_is_found(source):
    assert len(violations(Path("extensions/streams.py"), source)) == 1


@pytest.mark.parametrize(
    "source",
    ["import torch", "from extensions.knn_cuda import KNN", "from models import encoder", "from . import utils"],
)
def test_an_allowed_import_is_not_found(source):
    assert violations(Path("models/encoder.py"), source) == []


# The third-party packages come first: what they do on import is not ours.
IMPORT_ALL = """
import importlib, logging, pkgutil, random, sys, warnings
import easydict, h5py, numpy as np, open_clip, safetensors, sklearn.svm, tensorboardX, timm, torch, tqdm, yaml

def state():
    return {
        "warning filters": list(warnings.filters),
        "torch seed": torch.get_rng_state().tolist(),
        "NumPy seed": repr(np.random.get_state()),
        "Python seed": random.getstate(),
        "log handlers": list(logging.getLogger().handlers),
        "log level": logging.getLogger().level,
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "CUDA": torch.cuda.is_initialized(),
    }

before = state()
sys.path.insert(0, sys.argv[1])
for room in sys.argv[2:]:
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), room + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
after = state()
assert after == before, [name for name in before if after[name] != before[name]]
"""


def test_importing_does_nothing(tmp_path):
    command = [sys.executable, "-B", "-c", IMPORT_ALL, str(ROOT), *MAY_IMPORT]
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []
