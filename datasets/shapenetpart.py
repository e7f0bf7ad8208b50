"""ShapeNetPart: shapes of 16 categories whose points are labelled with 50 parts, one text file each."""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.draws import DrawnDataset
from datasets.hints import Entry
from datasets.listings import part_categories, part_files
from datasets.packed_parts import PackedParts, read_shape, shape_name
from datasets.published import CATEGORIES, NUM_PARTS, PARTS
from datasets.transforms import normalize_unit_sphere
from datasets.untrusted import (
    check_choice,
    check_count,
    require_folder,
    require_listed,
)

logger = logging.getLogger(__name__)

SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}


def parts_of_categories() -> Tensor:
    """Return (16, 50) bool, True = the part belongs to the category."""
    ids = torch.arange(NUM_PARTS)
    return torch.stack([(ids >= parts.start) & (ids < parts.stop) for parts in PARTS.values()])


class ShapeNetPart(DrawnDataset):
    """Clouds of `npoints` points, drawn with replacement anew every epoch, of shapes scaled to the unit sphere.

    Items are points (npoints, 3), the category, and the part of each point (npoints,). Files are parsed at first access
    and kept in memory, about 40 KB a shape and process. Where `python -m datasets.pack_parts` has packed them, the pack
    is read instead, with the same result; the text files are then not needed any more.

    Args:
        root: folder of synsetoffset2category.txt, train_test_split/shuffled_{train,val,test}_file_list.json and
            <synset>/<id>.txt, with `x y z nx ny nz part` a line. It may hold a part of the published categories.
        subset: train, val, trainval (both) or test.
        npoints: points to draw per item.
        seed: the draw depends on (seed, epoch, index) alone, whichever worker makes it.
        normalize: False leaves the shapes as the files hold them.

    Raises:
        FileNotFoundError: if the folder, a list, or a listed file is missing.
        ValueError: if an argument, a list, or (when read) a file is not as described.
    """

    def __init__(self, root: str | Path, subset: str, npoints: int, seed: int = 0, normalize: bool = True) -> None:
        super().__init__(seed)
        self.npoints, self.normalize = check_count(npoints, "npoints"), normalize
        check_choice(subset, tuple(SPLITS), "subset")
        self.entry = Entry("ShapeNetPart", "ROOT", root, npoints)
        folder = require_folder(root, self.entry)
        category_of = part_categories(folder / "synsetoffset2category.txt", self.entry)
        self.class_names = CATEGORIES
        self.packed = PackedParts.of(root)
        if self.packed is not None:
            logger.info("reading the packed shapes %s", self.packed.data)
        self.files: list[Path] = []
        labels: list[int] = []
        for split in SPLITS[subset]:
            listing = folder / f"train_test_split/shuffled_{split}_file_list.json"
            files, categories = part_files(listing, folder, category_of, self.entry)
            if self.packed is None:
                require_listed(files, listing, self.entry)
            else:
                self.packed.require([shape_name(path) for path in files], listing)
            self.files += files
            labels += categories
        self.labels = np.array(labels, dtype=np.int64)
        self._clouds: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        index = range(len(self))[index]
        if index not in self._clouds:
            self._clouds[index] = self._read(index)
        points, parts = self._clouds[index]
        chosen = torch.randint(len(points), (self.npoints,), generator=self.generator(index))
        return points[chosen], int(self.labels[index]), parts[chosen].long()

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        """All points of a shape (n, 3) and their parts (n,) uint8."""
        path = self.files[index]
        if self.packed is not None:
            rows = self.packed[shape_name(path)]
        else:
            rows = read_shape(path, int(self.labels[index]), self.entry)
        points, parts = torch.from_numpy(rows[:, :3].copy()), torch.from_numpy(rows[:, 3].astype(np.uint8))
        return normalize_unit_sphere(points) if self.normalize else points, parts
