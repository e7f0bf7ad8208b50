"""The classes: name, ShapeNet taxonomy id, part names and the function that draws a shape."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..published import PARTS
from . import furniture, household, vehicles
from .primitives import Triangles


class ShapeClass(NamedTuple):
    """One class of shapes; a shape may lack some of the parts, but their order is fixed."""

    taxonomy: str
    parts: tuple[str, ...]
    draw: Callable[[np.random.Generator], dict[str, Triangles]]


def _entry(taxonomy: str, parts: str, draw: Callable[[np.random.Generator], dict[str, Triangles]]) -> ShapeClass:
    return ShapeClass(taxonomy, tuple(parts.split()), draw)


CATALOGUE: dict[str, ShapeClass] = {
    "airplane": _entry("02691156", "body wing tail engine", vehicles.airplane),
    "bag": _entry("02773838", "handle body", household.bag),
    "bed": _entry("02818832", "frame board leg mattress pillow", furniture.bed),
    "bookshelf": _entry("02871439", "side shelf back divider book", furniture.bookshelf),
    "bottle": _entry("02876657", "body neck cap handle", household.bottle),
    "cap": _entry("02954340", "panel peak", household.cap),
    "car": _entry("02958343", "roof hood wheel body", vehicles.car),
    "chair": _entry("03001627", "back seat leg arm", furniture.chair),
    "desk": _entry("03179701", "top leg drawer panel shelf", furniture.desk),
    "earphone": _entry("03261776", "headphone band wire", household.earphone),
    "guitar": _entry("03467517", "head neck body", household.guitar),
    "knife": _entry("03624134", "blade handle", household.knife),
    "lamp": _entry("03636649", "base shade canopy pole", furniture.lamp),
    "laptop": _entry("03642806", "keyboard screen", household.laptop),
    "monitor": _entry("03211117", "screen housing neck foot", furniture.monitor),
    "motorbike": _entry("03790512", "wheel seat tank handle light frame", vehicles.motorbike),
    "mug": _entry("03797390", "handle body", household.mug),
    "pistol": _entry("03948459", "barrel handle trigger", household.pistol),
    "rocket": _entry("04099429", "body fin nose", vehicles.rocket),
    "skateboard": _entry("04225987", "wheel deck truck", vehicles.skateboard),
    "sofa": _entry("04256520", "base cushion back leg arm", furniture.sofa),
    "stool": _entry("04326896", "seat leg ring", furniture.stool),
    "table": _entry("04379243", "top leg support", furniture.table),
    "vase": _entry("04522168", "body foot handle plant", household.vase),
}

# ShapeNetPart category → first of its published part ids; the parts of a class above follow in order.
FIRST_PART: dict[str, int] = {name.lower(): parts.start for name, parts in PARTS.items()}

# The 15 classes of a stand-in for ScanObjectNN: things that stand on a floor or on a table.
SCAN_CLASSES: tuple[str, ...] = (
    "bag",
    "bed",
    "bookshelf",
    "bottle",
    "chair",
    "desk",
    "lamp",
    "laptop",
    "monitor",
    "motorbike",
    "mug",
    "sofa",
    "stool",
    "table",
    "vase",
)
