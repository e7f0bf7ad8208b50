# PYTHON_ARGCOMPLETE_OK
"""Command line: make the processed .dat files of ModelNet40 with normals from its text files.

Each cloud becomes the farthest point sample of its lines, in the order picked, from the first line on. The published
files begin at a point drawn at random, so theirs are other samples of the same clouds.
"""

import argparse
import hashlib
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.hints import Entry
from datasets.listings import modelnet_files
from datasets.sources import SOURCES
from datasets.untrusted import load_npy, read_lines, read_table, require_folder, require_listed
from utils.command import Parser, integer_from, run_command
from utils.files import atomic_write, make_folder

if TYPE_CHECKING:  # PyTorch takes seconds to import, for which the command line does not wait
    import torch

logger = logging.getLogger(__name__)

SUBSETS = ("train", "test")
CHUNK = 16  # clouds that are sampled together, and kept as soon as they are done
AWAY = 1.0  # from the origin, around which the sampling takes points for padding


def process(folder: Path, n_points: int, subset: str, workers: int, device: "torch.device") -> Path:
    """Write modelnet40_<subset>_<n_points>pts_fps.dat: [list of (n_points, 6) float32, list of (1,) int32].

    Chunks that an interrupted call has finished are kept and taken over.

    Args:
        folder: modelnet40_normal_resampled, with the text files.
        n_points: points to keep of each cloud, at most as many as its file has lines.
        subset: train or test.
        workers: processes that parse and, on a CPU, sample.
        device: where is sampled.

    Returns:
        The file.

    Raises:
        FileNotFoundError: if the folder, a list or a listed file is missing.
        ValueError: if a file is not as described or has too few lines.
    """
    from utils.logger import progress

    path = folder / f"modelnet40_{subset}_{n_points}pts_fps.dat"
    if path.exists():
        logger.info("%s is there already and stays as it is", path)
        return path
    entry = Entry("ModelNet", "DATA_PATH", folder, n_points)
    names = read_lines(require_folder(folder, entry) / "modelnet40_shape_names.txt", entry)
    listing = folder / f"modelnet40_{subset}.txt"
    files, labels = modelnet_files(listing, names, entry)
    require_listed(files, listing, entry)
    digest = hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest()[:8]  # another list has chunks of its own
    chunks = folder / f".{path.name}.{digest}.chunks"
    make_folder(chunks)
    todo = [start for start in range(0, len(files), CHUNK) if not _chunk(chunks, start).is_file()]
    if len(todo) < -(-len(files) // CHUNK):
        logger.info("%s: going on, %d of %d chunks are left", path, len(todo), -(-len(files) // CHUNK))
    batches = [files[start : start + CHUNK] for start in todo]
    done = _sampled(batches, n_points, workers, device)
    for start, clouds in zip(todo, progress(done, f"{subset} (chunks)", len(todo)), strict=True):
        with atomic_write(_chunk(chunks, start)) as file:
            np.save(file, clouds)
    clouds = [cloud for start in range(0, len(files), CHUNK) for cloud in load_npy(_chunk(chunks, start))]
    with atomic_write(path) as file:
        pickle.dump([clouds, [np.array([label], np.int32) for label in labels]], file, protocol=4)
    shutil.rmtree(chunks)
    logger.info("wrote %s: %d clouds", path, len(clouds))
    return path


def _chunk(folder: Path, start: int) -> Path:
    return folder / f"{start:06d}.npy"


def _sampled(
    batches: Sequence[list[Path]], n_points: int, workers: int, device: "torch.device"
) -> Iterator[np.ndarray]:
    """Yield the samples (clouds, n_points, 6) of each batch of files in order, some batches ahead of who takes them."""
    on_cpu = device.type == "cpu"
    work = partial(_read_and_sample if on_cpu else _read, n_points)
    for clouds in map(work, batches) if workers == 1 else _in_processes(work, batches, workers):
        yield clouds if on_cpu else farthest(clouds, n_points, device)


def _in_processes(work: Callable[[list[Path]], Any], batches: Sequence[list[Path]], workers: int) -> Iterator[Any]:
    """Yield the results of all batches in order; no more of them wait than there is memory for."""
    interrupted = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that hands out work
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), signal.signal, interrupted) as pool:
        left = iter(batches)
        waiting = deque(pool.submit(work, batch) for batch in islice(left, 2 * workers))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting += [pool.submit(work, batch) for batch in islice(left, 1)]
        finally:
            pool.shutdown(cancel_futures=True)


def _read(n_points: int, files: list[Path]) -> list[np.ndarray]:
    """Read whole text files, (lines, 6) each; ValueError for one with fewer than `n_points` lines."""
    clouds = [read_table(path, 6, "DATA_PATH", ",") for path in files]
    for path, cloud in zip(files, clouds, strict=True):
        if len(cloud) < n_points:
            raise ValueError(f"{path} has {len(cloud)} points; {n_points} are asked for: lower --points")
    return clouds


def _read_and_sample(n_points: int, files: list[Path]) -> np.ndarray:
    import torch

    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # there are as many processes as cores
    return farthest(_read(n_points, files), n_points, torch.device("cpu"))


def farthest(clouds: list[np.ndarray], n_points: int, device: "torch.device") -> np.ndarray:
    """Pick points of each cloud one by one, each the farthest from those already picked.

    Args:
        clouds: (n, 6) float32 each, points and normals; n is at least `n_points`.
        n_points: points to pick.
        device: where.

    Returns:
        (clouds, n_points, 6) float32, rows of each cloud in the order picked; the first is its first. Ties go to the
        lowest row.
    """
    import torch

    from extensions.pointnet2_ops.pointnet2_utils import furthest_point_sample

    if len({len(cloud) for cloud in clouds}) > 1:
        return np.concatenate([farthest([cloud], n_points, device) for cloud in clouds])
    points = torch.from_numpy(np.stack(clouds)[..., :3]).to(device)
    points = points - points.amin(dim=1, keepdim=True) + AWAY  # distances stay; no point is near the origin
    picked = furthest_point_sample(points.contiguous(), n_points).cpu().numpy()
    return np.stack([cloud[rows] for cloud, rows in zip(clouds, picked, strict=True)])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog="python -m datasets.process_modelnet",
        description="Make modelnet40_{train,test}_<N>pts_fps.dat from the text files of ModelNet40 with normals. "
        "Interrupted, the same command goes on; files that are there are never touched.",
        examples=["python -m datasets.process_modelnet"],
    )
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets (%(default)s)")
    parser.add_argument(
        "--points", type=integer_from(1), default=8192, metavar="N", help="points to keep of each cloud (%(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=integer_from(1),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that read and, without a GPU, sample (one for each core)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Make both files."""
    args = parse_args(argv)
    from utils.device import choose_device
    from utils.logger import setup_logger

    setup_logger(None)
    for subset in SUBSETS:
        process(args.root / SOURCES["ModelNet"].home, args.points, subset, args.workers, choose_device())


if __name__ == "__main__":
    raise SystemExit(run_command(main, "interrupted; the same command goes on"))
