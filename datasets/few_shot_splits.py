# PYTHON_ARGCOMPLETE_OK
"""Draw few-shot tasks from ModelNet40 and write them in the published layout, where the published files are missing.

Each class of a task has `shot` training clouds of ModelNet40's training split and, to test on, 20 clouds of its test
split, so that no cloud is in both. The folds are ours: the published ones hold other draws.
"""

import itertools
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.published import FOLDS, SHOTS, TEST_CLOUDS, WAYS, fold_name
from datasets.sources import MARKER
from datasets.untrusted import check_count, read_lines
from utils.command import Parser, run_command
from utils.files import atomic_write, make_folder
from utils.logger import progress, setup_logger

if TYPE_CHECKING:
    from datasets.modelnet40 import ModelNet

logger = logging.getLogger(__name__)


def write_folds(
    source: Path | str,
    out: Path | str,
    seed: int = 0,
    folds: int = FOLDS,
    num_points: int = 8192,
    test: int = TEST_CLOUDS,
    ways: Sequence[int] = WAYS,
    shots: Sequence[int] = SHOTS,
) -> list[Path]:
    """Write <way>way_<shot>shot/<fold>.pkl: {"train": [(points (N, 6) float32, label, class)], "test": …}.

    A file that is there already stays as it is. The content of a file depends on the source, the seed and its own
    setting and fold alone, whatever else is written.

    Args:
        source: folder modelnet40_normal_resampled, see `ModelNet`.
        out: folder ModelNetFewshot; made if missing.
        seed: of all draws.
        folds: folds of each setting.
        num_points: points per cloud, those of the source's .dat files or fewer than in its text files.
        test: test clouds of each class.
        ways: numbers of classes of a task.
        shots: numbers of training clouds of each class.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: if the source is missing.
        ValueError: if the source is not as described or has too few classes or clouds, or `out` holds generated shapes.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; give an integer of at least 0")
    check_count(folds, "folds")
    out = Path(out)
    if (out / MARKER).exists():
        raise ValueError(f"{out} holds generated shapes ({MARKER}); remove it, or write elsewhere with --out")
    tasks = list(itertools.product(ways, shots, range(folds)))
    missing = [task for task in tasks if not (out / fold_name(*task)).exists()]
    logger.info("%s: %d of %d folds exist and stay as they are", out, len(tasks) - len(missing), len(tasks))
    if not missing:
        return []
    splits = _read_source(source, num_points)
    _check_source(splits, max(ways), {"train": max(shots), "test": test})
    for way, shot, fold in progress(missing, "folds"):
        path = out / fold_name(way, shot, fold)
        make_folder(path.parent)
        rng = np.random.default_rng([seed, way, shot, fold])
        with atomic_write(path) as file:
            pickle.dump(_draw_task(splits, way, {"train": shot, "test": test}, rng), file, protocol=4)
    logger.info("%s: wrote %d folds, seed %d", out, len(missing), seed)
    return [out / fold_name(*task) for task in missing]


def _read_source(source: Path | str, num_points: int) -> dict[str, "ModelNet"]:
    names = Path(source) / "modelnet40_shape_names.txt"
    if not names.is_file():
        raise FileNotFoundError(f"{names} does not exist; --source is ModelNet40 with normals, see data/README.md")
    from datasets.modelnet40 import ModelNet  # imports PyTorch, for which an error of the command line does not wait

    classes = len(read_lines(names, "DATA_PATH"))
    return {
        subset: ModelNet(str(source), num_points, classes, subset, use_normals=True) for subset in ("train", "test")
    }


def _check_source(splits: dict[str, "ModelNet"], way: int, counts: dict[str, int]) -> None:
    """Refuse a source from which some task could not be drawn."""
    names = splits["train"].class_names
    if len(names) < way:
        raise ValueError(f"tasks of {way} classes need as many to draw from; --source has {len(names)}")
    for subset, count in counts.items():
        available = np.bincount(splits[subset].labels, minlength=len(names))
        if available.min() < count:
            raise ValueError(
                f"class {names[available.argmin()]} of --source has {available.min()} clouds in its {subset} split; "
                f"{count} are needed"
            )


def _draw_task(
    splits: dict[str, "ModelNet"], way: int, counts: dict[str, int], rng: np.random.Generator
) -> dict[str, list[tuple[np.ndarray, int, str]]]:
    names = splits["train"].class_names
    task: dict[str, list[tuple[np.ndarray, int, str]]] = {subset: [] for subset in splits}
    for label, category in enumerate(rng.choice(len(names), way, replace=False)):
        for subset, split in splits.items():
            of_class = np.flatnonzero(split.labels == category)
            chosen = rng.choice(of_class, counts[subset], replace=False)
            task[subset] += [(split[i][0].numpy(), label, names[category]) for i in chosen]
    return task


def main(argv: list[str] | None = None) -> None:
    """Write the folds that the command line asks for."""
    parser = Parser(
        prog="python -m datasets.few_shot_splits",
        description="Draw few-shot tasks from ModelNet40 with normals, in the layout of ModelNetFewshot (about 2 GB). "
        "Files that exist are never touched.",
        examples=["python -m datasets.few_shot_splits", "python -m datasets.few_shot_splits --folds 2 --test 10"],
    )
    source, out = Path("data/ModelNet/modelnet40_normal_resampled"), Path("data/ModelNetFewshot")
    parser.add_argument("--source", type=Path, default=source, help="folder to draw from (%(default)s)")
    parser.add_argument("--out", type=Path, default=out, help="folder to write (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all draws (%(default)s)")
    parser.add_argument("--folds", type=int, default=FOLDS, help="folds of each setting (%(default)s)")
    parser.add_argument("--points", type=int, default=8192, help="points per cloud (%(default)s)")
    parser.add_argument("--test", type=int, default=TEST_CLOUDS, help="test clouds per class (%(default)s)")
    args = parser.parse_args(argv)
    setup_logger(None)
    write_folds(args.source, args.out, args.seed, args.folds, args.points, args.test)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
