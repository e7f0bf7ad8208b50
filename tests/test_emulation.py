"""The emulation that runs kernels without a GPU: it must show a wrong kernel wrong, and run a right one right."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.emulation import EmulatedKernels, kernel_names

ROOT = Path(__file__).parents[1]
THREADS = 64

NEIGHBOUR = """
extern "C" __global__ void neighbour(const float* x, float* out, int offset) {
    __shared__ float shared[64];
    int i = blockIdx.x * 64 + threadIdx.x;
    shared[threadIdx.x] = x[i];
    BARRIER
    out[i] = shared[(threadIdx.x + 64 + offset) % 64];
}
"""


@pytest.fixture
def emulated(tmp_path):
    def build(source: str, descending: bool = False) -> EmulatedKernels:
        file = tmp_path / "kernels.cu"
        file.write_text(source)
        return EmulatedKernels(file, descending)

    return build


def is_right(kernels: EmulatedKernels, offset: int) -> bool:
    x = torch.arange(3 * THREADS, dtype=torch.float32)  # three blocks
    out = torch.full_like(x, -1)
    kernels.launch("neighbour", 3, THREADS, x, out, offset)
    return torch.equal(out.view(3, THREADS), x.view(3, THREADS).roll(-offset, 1))


@pytest.mark.parametrize("offset", [-1, 1])
@pytest.mark.parametrize("descending", [False, True])
def test_a_barrier_makes_every_order_right(emulated, descending, offset):
    assert is_right(emulated(NEIGHBOUR.replace("BARRIER", "__syncthreads();"), descending), offset)


@pytest.mark.parametrize("offset", [-1, 1])
def test_a_missing_barrier_shows_in_one_of_the_orders(emulated, offset):
    source = NEIGHBOUR.replace("BARRIER", "")
    assert not (is_right(emulated(source), offset) and is_right(emulated(source, descending=True), offset))


@pytest.mark.parametrize("descending", [False, True])
def test_a_barrier_of_a_warp_does_not_hold_up_the_block(emulated, descending):
    source = NEIGHBOUR.replace("BARRIER", "__syncwarp();")
    assert not is_right(emulated(source, descending), 32)  # the other warp's values


def test_shared_memory_starts_as_nan_in_every_block(emulated):
    kernels = emulated("""
extern "C" __global__ void leak(float* out) {
    __shared__ float shared[32];
    out[blockIdx.x * 32 + threadIdx.x] = shared[threadIdx.x];
    shared[threadIdx.x] = 1.0f;
}
""")
    out = torch.zeros(64)
    kernels.launch("leak", 2, 32, out)
    assert out.isnan().all()


SHUFFLES = """
extern "C" __global__ void shuffles(const int* x, int* out) {
    int i = threadIdx.x;
    out[i] = __shfl_sync(0xffffffff, x[i], 5);
    out[64 + i] = __shfl_xor_sync(0xffffffff, x[i], 16);
    out[128 + i] = __shfl_down_sync(0xffffffff, x[i], 3);
    out[192 + i] = __shfl_up_sync(0xffffffff, x[i], 3);
}
"""


@pytest.mark.parametrize("descending", [False, True])
def test_shuffles_stay_within_their_warp(emulated, descending):
    x = torch.arange(THREADS, dtype=torch.int32)
    out = torch.full((4, THREADS), -1, dtype=torch.int32)
    emulated(SHUFFLES, descending).launch("shuffles", 1, THREADS, x, out)
    lane, warp = x % 32, x // 32 * 32
    assert torch.equal(out[0], warp + 5)
    assert torch.equal(out[1], warp + (lane ^ 16))
    assert torch.equal(out[2], torch.where(lane + 3 < 32, x + 3, x))  # beyond the warp a lane keeps its own value
    assert torch.equal(out[3], torch.where(lane - 3 >= 0, x - 3, x))


@pytest.mark.parametrize("descending", [False, True])
def test_every_thread_of_a_grid_of_three_dimensions_runs_once(emulated, descending):
    kernels = emulated(
        """
extern "C" __global__ void count(int* out, float* total) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    atomicAdd(&out[block * blockDim.x + threadIdx.x], 1);
    atomicAdd(total, 0.5f);
}
""",
        descending,
    )
    out, total = torch.zeros(2, 3, 4, 32, dtype=torch.int32), torch.zeros(1)
    kernels.launch("count", (4, 3, 2), 32, out, total)
    assert out.eq(1).all()
    assert total.item() == 0.5 * out.numel()


DIVERGENT = """
import sys, torch
from pathlib import Path
from tests.emulation import EmulatedKernels
EmulatedKernels(Path(sys.argv[1])).launch("divergent", 1, 32, torch.zeros(1))
"""


def test_threads_at_different_barriers_abort(emulated, tmp_path):
    emulated("""
extern "C" __global__ void divergent(float* x) {
    if (threadIdx.x % 2) __syncthreads();
    else __syncwarp();
}
""")
    command = [sys.executable, "-c", DIVERGENT, str(tmp_path / "kernels.cu")]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == -signal.SIGABRT
    assert "wait at different barriers" in outcome.stderr


def test_kernels_are_found_and_launches_noted(emulated, tmp_path):
    kernels = emulated(
        NEIGHBOUR.replace("BARRIER", "__syncthreads();")
        + '\nextern "C" __global__ void __launch_bounds__(256) idle(int n) {}\n'
    )
    assert kernel_names(tmp_path / "kernels.cu") == ["neighbour", "idle"]
    assert kernels.launched == set()
    kernels.launch("idle", 1, 256, 7)
    assert kernels.launched == {"idle"}
    with pytest.raises(AttributeError, match="emulate_unknown"):
        kernels.launch("unknown", 1, 32)


@pytest.mark.parametrize(("grid", "block"), [(1, 1056), (1, 0), (0, 32), ((1, 65536), 32), ((1, 1, 65536), 32)])
def test_what_a_gpu_cannot_launch_is_refused(emulated, grid, block):
    with pytest.raises(AssertionError):
        emulated('extern "C" __global__ void idle(int n) {}').launch("idle", grid, block, 1)


def test_without_a_compiler_tests_skip_and_say_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"g\+\+ is needed"):
        EmulatedKernels(tmp_path / "kernels.cu")
