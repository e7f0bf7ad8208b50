"""What a run finds on this machine: versions, devices, kernels."""

import importlib.metadata
import os
import platform

import torch

from extensions import chamfer_dist, emd, knn_cuda
from extensions.pointnet2_ops import pointnet2_utils
from utils.device import choose_device, device_name
from utils.tables import format_table

PACKAGES = (
    *("torch", "torchvision", "cuda-core", "timm", "open_clip_torch", "safetensors", "easydict", "pyyaml", "numpy"),
    *("h5py", "scikit-learn", "tensorboardX", "tqdm", "matplotlib"),
)
KERNELS = {"chamfer_dist": chamfer_dist, "emd": emd, "knn_cuda": knn_cuda, "pointnet2_ops": pointnet2_utils}
Rows = list[tuple[str, object]]


def sections() -> dict[str, Rows]:
    """Rows of each table, by its title."""
    return {
        "versions": [("python", platform.python_version()), *((name, _version(name)) for name in PACKAGES)],
        "machine": _machine(),
        "kernels": [(name, _kernels(module)) for name, module in KERNELS.items()],
    }


def tables(rows: dict[str, Rows]) -> str:
    """Write tables below each other."""
    return "\n\n".join(format_table(part, [title, ""]) for title, part in rows.items())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> Rows:
    device = choose_device()
    return [
        ("system", f"{platform.system()} {platform.machine()}"),
        ("CPU cores", os.cpu_count()),
        ("device of a run", str(device)),
        ("its name", device_name(device)),
        ("GPUs", torch.cuda.device_count()),
        ("CUDA of PyTorch", torch.version.cuda or "none"),
        ("I2P_MAE_KERNELS", os.environ.get("I2P_MAE_KERNELS", "auto (not set)")),
    ]


def _kernels(module: object) -> str:
    """Whether the kernels of an extension run, and if not why."""
    device = choose_device()
    if device.type == "cpu":
        return "plain PyTorch: there is no GPU"
    try:
        ready = module.KERNELS.ready(torch.empty(1, device=device))
    except (ValueError, RuntimeError) as error:
        return f"refused: {error}"
    return "CUDA kernels" if ready else "plain PyTorch: see the warning above, or I2P_MAE_KERNELS"
