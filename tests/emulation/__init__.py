"""Running the kernels of a .cu file without a GPU: g++ compiles them with a header that plays CUDA."""

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from extensions.cuda_runtime import Argument, as_c

HEADER = Path(__file__).with_name("cuda_emulation.h")
SIGNATURE = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^)]*)\)')
FOLDER = Path(tempfile.gettempdir()) / "i2p-mae-emulation"


class EmulatedKernels:
    """Stands in for `extensions.cuda_runtime.Kernels`, on CPU tensors.

    Args:
        source: the .cu file.
        descending: resume the threads of a block in descending order.
    """

    def __init__(self, source: Path, descending: bool = False):
        if shutil.which("g++") is None:
            pytest.skip("g++ is needed to run the kernels without a GPU: install it to test them")
        self.library = ctypes.CDLL(str(_build(source)))
        self.descending = descending
        self.launched: set[str] = set()

    def ready(self, tensor: Tensor) -> bool:
        """Kernels always run."""
        return True

    def launch(self, name: str, grid: int | tuple[int, ...], block: int, *arguments: Argument) -> None:
        """Run one kernel to its end; arguments as for `Kernels.launch`."""
        dims = (grid,) if isinstance(grid, int) else tuple(grid)
        assert 1 <= block <= 1024
        assert all(1 <= size <= limit for size, limit in zip(dims, (2**31 - 1, 65535, 65535), strict=False))
        self.launched.add(name)
        values = [ctypes.c_void_p(c) if isinstance(c, int) else c for c in map(as_c, arguments)]
        getattr(self.library, f"emulate_{name}")(*dims, *(1,) * (3 - len(dims)), block, int(self.descending), *values)


BACKENDS = ("ascending", "descending", "gpu")


def use_backend(backend: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the operations of a module run its kernels for the time of a test.

    Args:
        backend: one of `BACKENDS`: emulated, threads in ascending or descending order, or on a GPU.
        module: has the `KERNELS`.
        monkeypatch: of the test.

    Returns:
        The device to put tensors on. Without a GPU, a test that needs one is skipped.
    """
    if backend == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no GPU to run the real kernels on")
        monkeypatch.setenv("I2P_MAE_KERNELS", "cuda")
        return "cuda"
    monkeypatch.setattr(module, "KERNELS", EmulatedKernels(module.KERNELS.source, backend == "descending"))
    return "cpu"


def kernel_names(source: Path) -> list[str]:
    """Names of all kernels of a .cu file."""
    return [name for name, _ in SIGNATURE.findall(source.read_text())]


def _build(source: Path) -> Path:
    text = source.read_text()
    entries = []
    for name, parameters in SIGNATURE.findall(text):
        names = [re.search(r"(\w+)\s*$", parameter)[1] for parameter in parameters.split(",")]
        entries.append(
            f'extern "C" void emulate_{name}(unsigned grid_x_, unsigned grid_y_, unsigned grid_z_, unsigned threads_, '
            f"int descending_, {parameters}) {{ emulation::run_grid({{grid_x_, grid_y_, grid_z_}}, threads_, "
            f"descending_, [=] {{ {name}({', '.join(names)}); }}); }}"
        )
    # Unnamed, because the compiler wants all variables of a section, as __shared__ ones are, of the same linkage.
    code = "\n".join([HEADER.read_text(), "namespace {", text, "}", *entries])
    library = FOLDER / f"{source.parent.name}-{hashlib.sha256(code.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            built = Path(folder) / "kernels.so"
            flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-w", "-x", "c++"]
            subprocess.run(["g++", *flags, "-", "-o", built], input=code, text=True, check=True)
            built.replace(library)
    return library
