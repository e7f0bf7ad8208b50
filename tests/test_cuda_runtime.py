"""Compiling, caching and launching kernels. All but the launches on a GPU runs without one."""

import contextlib
import ctypes
import logging
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from extensions import cuda_runtime
from extensions.cuda_runtime import Kernels, as_c, blocks, cache_folder, cached_binary, compile_source
from tests.emulation import kernel_names

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "extensions").glob("*/kernels.cu"))
SCALE = """
extern "C" __global__ void scale(const float* x, float* out, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = factor * x[i] + 1.0f;
}
"""
ON_A_GPU = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))  # all that `ready` asks of a tensor


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "family" / "kernels.cu"
    file.parent.mkdir()
    file.write_text(SCALE)
    return file


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("I2P_MAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("I2P_MAE_KERNELS", raising=False)
    monkeypatch.setattr(cuda_runtime, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(cuda_runtime, "load_binary", lambda binary: binary)  # there may be no driver
    cuda_runtime._load.cache_clear()
    yield
    cuda_runtime._load.cache_clear()


@pytest.fixture
def _nvrtc() -> None:
    """Skip where nothing can be compiled, as with a PyTorch too old to bring what cuda-core needs."""
    try:
        from cuda.core import Program  # noqa: F401
    except ImportError as error:
        pytest.skip(f"cuda-core does not import, so kernels cannot be compiled: {error}")


@pytest.fixture
def compiled(monkeypatch):
    """Replace the compiler; the list of the architectures it was called for."""
    calls = []

    def compile_source(source: Path, arch: str) -> bytes:
        calls.append(arch)
        return f"binary {len(calls)} of {arch}".encode()

    monkeypatch.setattr(cuda_runtime, "compile_source", compile_source)
    return calls


# Compiling


@pytest.mark.usefixtures("_nvrtc")
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("kernels", SOURCES, ids=lambda path: path.parent.name)
def test_every_kernel_compiles_without_a_gpu(kernels, arch):
    try:
        binary = compile_source(kernels, arch)
    except Exception as error:
        if "gpu-architecture" in str(error):
            pytest.skip(f"this NVRTC does not know {arch}")
        raise
    assert binary.startswith(b"\x7fELF")
    assert all(name.encode() in binary for name in kernel_names(kernels))


def test_every_family_has_kernels():
    assert [path.parent.name for path in SOURCES] == ["chamfer_dist", "emd", "knn_cuda", "pointnet2_ops"]


@pytest.mark.usefixtures("_nvrtc")
def test_products_and_sums_are_not_fused(source, monkeypatch):
    binary = compile_source(source, "sm_90")
    monkeypatch.setitem(cuda_runtime.OPTIONS, "fma", True)
    assert compile_source(source, "sm_90") != binary


# The cache


def test_a_binary_is_compiled_once(source, tmp_path, compiled):
    first = cached_binary(source, "sm_90", tmp_path / "cache")
    assert cached_binary(source, "sm_90", tmp_path / "cache") == first == b"binary 1 of sm_90"
    assert compiled == ["sm_90"]


def test_the_source_the_architecture_the_versions_and_the_options_each_have_a_binary(
    source, tmp_path, compiled, monkeypatch
):
    def get() -> bytes:
        return cached_binary(source, "sm_90", tmp_path)

    binaries = [get(), cached_binary(source, "sm_80", tmp_path)]
    source.write_text(SCALE + "// another")
    binaries.append(get())
    monkeypatch.setattr(cuda_runtime.importlib.metadata, "version", lambda name: "0")
    binaries.append(get())
    monkeypatch.setattr(torch.version, "cuda", "0.0")
    binaries.append(get())
    monkeypatch.setattr(cuda_runtime, "OPTIONS", {"std": "c++20"})
    binaries.append(get())
    assert len(set(binaries)) == len(compiled) == 6


@pytest.mark.parametrize(
    "damage", [lambda kept: kept[:-1], lambda kept: kept[:10], lambda kept: b"", lambda kept: b"x" + kept[1:]]
)
def test_a_damaged_binary_is_compiled_anew(source, tmp_path, compiled, damage):
    cached_binary(source, "sm_90", tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cached_binary(source, "sm_90", tmp_path / "cache") == b"binary 2 of sm_90"
    assert cached_binary(source, "sm_90", tmp_path / "cache") == b"binary 2 of sm_90"
    assert len(compiled) == 2


def test_writers_at_the_same_time_leave_one_whole_file(source, tmp_path, monkeypatch):
    together = threading.Barrier(4)

    def compile_source(source: Path, arch: str) -> bytes:
        together.wait(timeout=60)  # all four have missed the cache
        return b"binary" * 100_000

    monkeypatch.setattr(cuda_runtime, "compile_source", compile_source)
    with ThreadPoolExecutor(4) as pool:
        binaries = list(pool.map(lambda _: cached_binary(source, "sm_90", tmp_path / "cache"), range(4)))
    assert set(binaries) == {b"binary" * 100_000}
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert cached_binary(source, "sm_90", tmp_path / "cache") == b"binary" * 100_000  # would wait if it compiled


def test_a_folder_that_cannot_be_made_is_only_logged(source, tmp_path, compiled, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.INFO):
        assert cached_binary(source, "sm_90", tmp_path / "file" / "cache") == b"binary 1 of sm_90"
    assert "are not kept in" in caplog.text
    assert str(tmp_path / "file" / "cache") in caplog.text


def test_a_disk_that_is_full_leaves_nothing_half_written(source, tmp_path, compiled, caplog, monkeypatch):
    def write_bytes(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with caplog.at_level(logging.INFO):
        assert cached_binary(source, "sm_90", tmp_path / "cache") == b"binary 1 of sm_90"
    assert "No space left on device" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_folder_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "cache"  # I2P_MAE_CACHE, see above
    monkeypatch.setenv("I2P_MAE_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("I2P_MAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/i2p-mae")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache" / "i2p-mae"


# Choosing between kernels and references


def test_kernels_are_not_for_tensors_on_the_cpu(source, compiled, monkeypatch):
    assert not Kernels(source).ready(torch.zeros(1))
    monkeypatch.setenv("I2P_MAE_KERNELS", "cuda")
    assert not Kernels(source).ready(torch.zeros(1))
    assert compiled == []


@pytest.mark.usefixtures("_nvrtc")
def test_kernels_are_ready_for_a_tensor_on_a_gpu_and_compile_once(source, monkeypatch, caplog):
    calls = []
    monkeypatch.setattr(cuda_runtime, "compile_source", lambda *call: calls.append(call) or compile_source(*call))
    assert Kernels(source).ready(ON_A_GPU)
    assert Kernels(source).ready(ON_A_GPU)
    assert calls == [(source, "sm_90")]
    assert caplog.records == []


def test_the_reference_can_be_chosen(source, compiled, monkeypatch):
    monkeypatch.setenv("I2P_MAE_KERNELS", "reference")
    assert not Kernels(source).ready(ON_A_GPU)
    assert compiled == []


@pytest.mark.parametrize("tensor", [torch.zeros(1), ON_A_GPU], ids=["cpu", "gpu"])
def test_an_unknown_choice_is_refused(source, monkeypatch, tensor):
    monkeypatch.setenv("I2P_MAE_KERNELS", "CUDA")
    with pytest.raises(ValueError, match="I2P_MAE_KERNELS is 'CUDA'; choose one of auto, reference, cuda"):
        Kernels(source).ready(tensor)


@pytest.mark.usefixtures("_nvrtc")
def test_what_does_not_compile_is_said_once_and_the_reference_runs(source, caplog):
    source.write_text("nonsense(")
    assert [Kernels(source).ready(ON_A_GPU) for _ in range(3)] == [False] * 3
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(source) in record.getMessage()
    assert "NVRTC_ERROR_COMPILATION" in record.getMessage()


@pytest.mark.usefixtures("_nvrtc")
def test_what_does_not_compile_is_an_error_where_kernels_are_asked_for(source, monkeypatch):
    source.write_text("nonsense(")
    monkeypatch.setenv("I2P_MAE_KERNELS", "cuda")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"I2P_MAE_KERNELS=cuda.*NVRTC_ERROR_COMPILATION"):
            Kernels(source).ready(ON_A_GPU)


@pytest.mark.usefixtures("_nvrtc")
def test_an_architecture_that_the_compiler_does_not_know_falls_back(source, monkeypatch, caplog):
    monkeypatch.setattr(cuda_runtime, "architecture", lambda device: "sm_12")
    assert not Kernels(source).ready(ON_A_GPU)
    assert "sm_12" in caplog.text
    assert "gpu-architecture" in caplog.text


def test_a_binary_that_the_driver_refuses_falls_back(source, compiled, monkeypatch, caplog):
    def refuse(binary: bytes) -> None:
        raise RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU")

    monkeypatch.setattr(cuda_runtime, "load_binary", refuse)
    assert not Kernels(source).ready(ON_A_GPU)
    assert "CUDA_ERROR_NO_BINARY_FOR_GPU" in caplog.text


def test_a_missing_package_falls_back_and_the_log_names_it(source, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    assert not Kernels(source).ready(ON_A_GPU)
    assert "pip install 'cuda-core[cu" in caplog.text


IMPORT_EXTENSIONS = """
import importlib, pkgutil, sys
import extensions
for module in pkgutil.walk_packages(extensions.__path__, "extensions."):
    importlib.import_module(module.name)
print([name for name in sys.modules if name.startswith("cuda.core")])
"""


def test_importing_extensions_compiles_nothing(tmp_path):
    command = [sys.executable, "-c", IMPORT_EXTENSIONS]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.strip() == "[]"
    assert not (tmp_path / "cache").exists()


# Launching


def test_arguments_become_what_kernels_take():
    tensor = torch.zeros(3)
    assert as_c(tensor) == tensor.data_ptr()
    assert (type(as_c(-7)), as_c(-7).value) == (ctypes.c_int, -7)
    assert (type(as_c(0.5)), as_c(0.5).value) == (ctypes.c_float, 0.5)


@pytest.mark.parametrize("argument", [torch.zeros(3, 2).T, 2**31, -(2**31) - 1])
def test_arguments_that_a_kernel_would_misread_are_refused(argument):
    with pytest.raises(AssertionError, match="kernels take"):
        as_c(argument)


class _OnGPU1(torch.Tensor):
    device = torch.device("cuda", 1)


@pytest.mark.usefixtures("_nvrtc")
def test_a_launch_is_on_the_tensor_s_device_and_pytorch_s_stream(source, compiled, monkeypatch):
    done = []
    fakes = {
        "Device": lambda index: SimpleNamespace(set_current=lambda: done.append(f"context of {index}")),
        "Stream": SimpleNamespace(from_handle=lambda handle: f"stream {handle}"),
        "launch": lambda stream, config, kernel, *arguments: done.append((stream, config.grid, kernel)),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(f"cuda.core.{name}", fake)
    monkeypatch.setattr(cuda_runtime, "load_binary", lambda binary: SimpleNamespace(get_kernel=lambda name: name))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=10 + device.index))
    Kernels(source).launch("scale", (2, 3), 64, 5, torch.zeros(1).as_subclass(_OnGPU1))
    assert done == ["context of 1", ("stream 11", (2, 3, 1), "scale")]  # without a context a launch fails


def test_the_name_of_every_test_that_needs_a_gpu_says_so():
    """Those are the tests that tests/gpu.sh runs."""
    pattern = re.compile(r"(?ms)^@pytest\.mark\.skipif\(not torch\.cuda\.is_available.*?^def (\w+)")
    names = [name for file in (ROOT / "tests").glob("test_*.py") for name in pattern.findall(file.read_text())]
    assert names
    assert [name for name in names if "gpu" not in name] == []


@pytest.mark.parametrize(("count", "expected"), [(0, 1), (1, 1), (256, 1), (257, 2), (2**33, 2**25)])
def test_blocks_cover_all_items(count, expected):
    assert blocks(count, 256) == expected


def test_kernels_take_contiguous_float32():
    given = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True).transpose(1, 2)
    (taken,) = cuda_runtime.contiguous_float32(given)
    assert (taken.dtype, taken.is_contiguous(), taken.requires_grad) == (torch.float32, True, False)
    assert torch.equal(taken, given.detach().float())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="launching a kernel needs a GPU")
@pytest.mark.parametrize("second_stream", [False, True])
def test_on_a_gpu_a_launch_runs_on_the_current_stream(source, monkeypatch, second_stream):
    monkeypatch.undo()  # the real architecture
    stream = torch.cuda.Stream() if second_stream else torch.cuda.current_stream()
    with torch.cuda.stream(stream):
        x = torch.full((1 << 24,), 2.0, device=torch.device("cuda"))
        out = torch.empty_like(x)
        for _ in range(10):  # each launch must wait for the copy before it
            x.add_(1)
            Kernels(source).launch("scale", blocks(x.numel(), 256), 256, x, out, 0.5, x.numel())
            x.copy_(out)
    stream.synchronize()
    expected = 2.0
    for _ in range(10):
        expected = 0.5 * (expected + 1) + 1
    assert torch.equal(out, torch.full_like(out, expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="launching a kernel needs a GPU")
def test_on_a_gpu_a_launch_may_be_the_first_work_of_a_thread(source, monkeypatch):
    monkeypatch.undo()  # the real architecture
    x = torch.ones(8, device=torch.device("cuda"))
    out = torch.zeros_like(x)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(Kernels(source).launch, "scale", 1, 32, x, out, 2.0, 8).result()
    torch.cuda.synchronize()
    assert out.tolist() == [3.0] * 8
