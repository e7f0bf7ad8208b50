"""ModelNet40 in its two published layouts: with normals for fine-tuning, as .h5 files for the linear SVM."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.hints import Entry
from datasets.listings import modelnet_files
from datasets.pickled import read_processed
from datasets.transforms import normalize_unit_sphere
from datasets.untrusted import (
    check_choice,
    check_count,
    check_labels,
    check_points,
    check_single_labels,
    read_h5,
    read_lines,
    read_table,
    require_folder,
    require_listed,
)

logger = logging.getLogger(__name__)


class ModelNet(Dataset):
    """Whole clouds of ModelNet40, scaled to the unit sphere: from the processed .dat file, or else from text files.

    Args:
        data_path: folder modelnet40_normal_resampled, with modelnet40_shape_names.txt and either
            modelnet40_<subset>_<n_points>pts_fps.dat or modelnet40_<subset>.txt and <class>/<class>_<number>.txt.
        n_points: points per cloud: those of the .dat file, or read from the top of a text file.
        num_category: classes that the names file must hold.
        subset: train or test.
        use_normals: items are (n, 6) with normals, instead of (n, 3).

    Raises:
        FileNotFoundError: if the folder, a list, or a listed file is missing.
        ValueError: if an argument or a file (a text file: when read) is not as described.
    """

    def __init__(
        self, data_path: str | Path, n_points: int, num_category: int, subset: str, use_normals: bool = False
    ) -> None:
        self.n_points = check_count(n_points, "N_POINTS")
        self.use_normals = check_choice(use_normals, (True, False), "USE_NORMALS")
        check_count(num_category, "NUM_CATEGORY")
        check_choice(subset, ("train", "test"), "subset")
        self.entry = Entry("ModelNet", "DATA_PATH", data_path, n_points, num_category)
        folder = require_folder(data_path, self.entry)

        names_file = folder / "modelnet40_shape_names.txt"
        self.class_names = read_lines(names_file, self.entry)
        if len(set(self.class_names)) != num_category:
            found = len(set(self.class_names))
            raise ValueError(f"{names_file} names {found} classes, but NUM_CATEGORY is {num_category}; make it {found}")

        processed = folder / f"modelnet40_{subset}_{n_points}pts_fps.dat"
        self.clouds: list[Path] | list[np.ndarray]
        if processed.is_file():
            self.clouds, self.labels = self._read_processed(processed)
        else:
            logger.info("%s does not exist: reading text files, which takes longer", processed)
            names = " ".join(path.name for path in folder.glob(f"modelnet40_{subset}_*pts_fps.dat"))
            if there := re.findall(r"_(\d+)pts_fps\.dat", names):
                instead = f"there are .dat files of {' and '.join(there)} points: set N_POINTS to that; "
                self.entry = replace(self.entry, instead=instead)
            self.clouds, self.labels = self._read_listing(folder / f"modelnet40_{subset}.txt")

    def _read_processed(self, path: Path) -> tuple[list[np.ndarray], np.ndarray]:
        clouds, labels = read_processed(path, self.entry)
        for i, cloud in enumerate(clouds):  # in place, so that the unused normals are freed one by one
            cloud = check_points(cloud, f"{path}, cloud {i}", (self.n_points, 6), self.entry)
            clouds[i] = cloud if self.use_normals else cloud[:, :3].copy()
        return clouds, check_single_labels(labels, path, len(self.class_names))

    def _read_listing(self, listing: Path) -> tuple[list[Path], np.ndarray]:
        files, labels = modelnet_files(listing, self.class_names, self.entry)
        require_listed(files, listing, self.entry)
        return files, np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        points = torch.from_numpy(self.cloud(index))
        normalized = normalize_unit_sphere(points[:, :3])
        if self.use_normals:
            normalized = torch.cat([normalized, points[:, 3:]], dim=1)
        return normalized, int(self.labels[index])

    def cloud(self, index: int) -> np.ndarray:
        """Return a cloud as it is: (n_points, 3 or 6) float32."""
        cloud = self.clouds[index]
        return self._read_text(cloud) if isinstance(cloud, Path) else cloud

    def _read_text(self, path: Path) -> np.ndarray:
        points = read_table(path, 6, self.entry, ",", self.n_points)
        if len(points) < self.n_points:
            raise ValueError(f"{path}: holds {len(points)} points; {self.entry.of_points(len(points))}")
        return points


class ModelNet40_SVM(Dataset):
    """The first `num_points` points of each cloud of modelnet40_ply_hdf5_2048, as they are.

    Args:
        data_dir: folder of ply_data_<partition>*.h5; shape_names.txt, where present, gives the class names.
        partition: train or test.
        num_points: points per cloud.

    Raises:
        FileNotFoundError: if the folder or the files are missing.
        ValueError: if an argument or a file is not as described.
    """

    def __init__(self, data_dir: str | Path, partition: str, num_points: int) -> None:
        check_count(num_points, "num_points")
        check_choice(partition, ("train", "test"), "partition")
        entry = Entry("ModelNet40_SVM", "DATA_DIR", data_dir, num_points)
        folder = require_folder(data_dir, entry)
        paths = sorted(folder.glob(f"ply_data_{partition}*.h5"))
        if not paths:
            raise FileNotFoundError(
                f"no file {folder}/ply_data_{partition}*.h5 exists (config key {entry}); {entry.way_out()}"
            )
        points, labels = zip(*(read_h5(path, entry, num_points) for path in paths), strict=True)
        self.points = np.concatenate(points)
        names = folder / "shape_names.txt"
        if names.is_file():
            self.class_names = read_lines(names, entry)
        else:
            self.class_names = [str(label) for label in range(int(max(map(np.max, labels))) + 1)]
        self.labels = check_labels(np.concatenate(labels), folder, len(self.class_names))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.points[index].copy()), int(self.labels[index])
