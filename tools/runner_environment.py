"""`--env`: what a run would find on this machine. Paste it into a bug report."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from datasets.sources import SOURCES
from extensions import chamfer_dist, emd, knn_cuda
from extensions.pointnet2_ops import pointnet2_utils
from utils.device import choose_device, device_name
from utils.tables import format_table

PACKAGES = (
    *("torch", "torchvision", "cuda-core", "timm", "open_clip_torch", "safetensors", "easydict", "pyyaml", "numpy"),
    *("h5py", "scikit-learn", "tensorboardX", "tqdm", "matplotlib"),
)
KERNELS = {"chamfer_dist": chamfer_dist, "emd": emd, "knn_cuda": knn_cuda, "pointnet2_ops": pointnet2_utils}
PACK = "ShapeNet55-34/shapenet_pc.packed"
DATA = (*(folder for source in SOURCES.values() for folder in source.folders.values()), PACK)


def report(data: Path = Path("data"), checkpoints: Path = Path("ckpts")) -> str:
    """Tables of versions, devices, kernels, data sets and checkpoints.

    Args:
        data: folder of the data sets.
        checkpoints: folder of weights.
    """
    sections = {
        "versions": [("python", platform.python_version()), *((name, _version(name)) for name in PACKAGES)],
        "machine": _machine(),
        "kernels": [(name, _kernels(module)) for name, module in KERNELS.items()],
        f"data in {data}/": [(name, _folder(data / name)) for name in DATA],
        f"weights in {checkpoints}/": _weights(checkpoints),
    }
    return "\n\n".join(format_table(rows, [title, ""]) for title, rows in sections.items())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> list[tuple[str, object]]:
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


def _folder(path: Path) -> str:
    return (
        f"{sum(1 for _ in path.iterdir())} entries" if path.is_dir() else "missing: python -m datasets.check says more"
    )


def _weights(folder: Path) -> list[tuple[str, str]]:
    found = sorted(folder.rglob("*.pth")) if folder.is_dir() else []
    rows = [(str(path.relative_to(folder)), f"{path.stat().st_size / 1e6:.1f} MB") for path in found]
    return rows or [("none", "see ckpts/README.md")]
