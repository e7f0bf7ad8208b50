"""Generated shapes with classes and parts, written in the published layouts, so that the real readers run on them.

`python -m datasets.synthetic --root data` writes them all. They stand in for the real data in tests and demos only:
no number measured on them says anything about the real data sets.
"""

from .catalogue import CATALOGUE, FIRST_PART, SCAN_CLASSES
from .layouts import (
    write_demo,
    write_fewshot,
    write_meshes,
    write_modelnet,
    write_modelnet_svm,
    write_s3dis,
    write_scanobjectnn,
    write_shapenet,
    write_shapenetpart,
)
from .sampling import BACKGROUND, SCAN_VARIANTS, Cloud, sample_scan, sample_shape

__all__ = [
    "BACKGROUND",
    "CATALOGUE",
    "FIRST_PART",
    "SCAN_CLASSES",
    "SCAN_VARIANTS",
    "Cloud",
    "sample_scan",
    "sample_shape",
    "write_demo",
    "write_fewshot",
    "write_meshes",
    "write_modelnet",
    "write_modelnet_svm",
    "write_s3dis",
    "write_scanobjectnn",
    "write_shapenet",
    "write_shapenetpart",
]
