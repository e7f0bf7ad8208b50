"""`--env`: what a run would find on this machine. Paste it into a bug report."""

from pathlib import Path

from datasets.sources import SOURCES
from tools.training.environment import sections, tables

PACK = "ShapeNet55-34/shapenet_pc.packed"
DATA = (*(folder for source in SOURCES.values() for folder in source.folders.values()), PACK)


def report(data: Path = Path("data"), checkpoints: Path = Path("ckpts")) -> str:
    """Tables of versions, devices, kernels, data sets and checkpoints.

    Args:
        data: folder of the data sets.
        checkpoints: folder of weights.
    """
    found = {
        f"data in {data}/": [(name, _folder(data / name)) for name in DATA],
        f"weights in {checkpoints}/": _weights(checkpoints),
    }
    return tables({**sections(), **found})


def _folder(path: Path) -> str:
    return (
        f"{sum(1 for _ in path.iterdir())} entries" if path.is_dir() else "missing: python -m datasets.check says more"
    )


def _weights(folder: Path) -> list[tuple[str, str]]:
    found = sorted(folder.rglob("*.pth")) if folder.is_dir() else []
    rows = [(str(path.relative_to(folder)), f"{path.stat().st_size / 1e6:.1f} MB") for path in found]
    return rows or [("none", "see ckpts/README.md")]
