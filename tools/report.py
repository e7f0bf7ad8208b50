"""What a run leaves behind: its folder, its log, its curves, its results."""

import json
import logging
from argparse import Namespace
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter

from utils.config import save_config
from utils.files import atomic_write
from utils.logger import setup_logger

logger = logging.getLogger(__name__)

EXPERIMENTS = Path("experiments")


class Run:
    """The folder of one experiment, open for the time of a `with` block.

    Args:
        folder: experiments/<config folder>/<config name>/<exp_name>.
        mode: name of what runs; results.json has one entry per mode.
        curves: folder for TensorBoard, None for a mode that draws no curves.
    """

    def __init__(self, folder: Path, mode: str, curves: Path | None) -> None:
        self.folder = folder
        self.mode = mode
        self.last_checkpoint = folder / "ckpt-last.pth"
        self.best_checkpoint = folder / "ckpt-best.pth"
        self._writer = SummaryWriter(str(curves)) if curves else None

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer:
            self._writer.close()

    def draw(self, values: Mapping[str, float], epoch: int) -> None:
        """Add a point to each TensorBoard curve."""
        assert self._writer is not None, f"{self.mode} draws no curves"
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Write the results of this mode into results.json beside those of other modes, and return them."""
        path = self.folder / "results.json"
        all_results = json.loads(path.read_text()) if path.exists() else {}
        with atomic_write(path) as file:
            file.write((json.dumps({**all_results, self.mode: results}, indent=2) + "\n").encode())
        logger.info("results in %s", path)
        return results


def open_run(config: dict[str, Any], args: Namespace, mode: str, *, training: bool) -> Run:
    """Make or enter the run's folder and start its log.

    Args:
        config: resolved config, written into the folder as config.yaml.
        args: command line; `config`, `exp_name` and `resume` are read.
        mode: name of what runs.
        training: whether it writes checkpoints. A mode that does not may use any folder and keeps its config.yaml.

    Raises:
        ValueError: if a training run finds the checkpoints of another and `--resume` is not given.
        FileNotFoundError: if there is nothing to resume.
    """
    source = Path(args.config).resolve()
    parent = EXPERIMENTS / source.parent.name / source.stem
    folder = parent / args.exp_name
    checkpoint = folder / "ckpt-last.pth"
    if training and checkpoint.exists() and not args.resume:
        raise ValueError(
            f"{folder} already holds a run ({checkpoint.name}); add --resume to continue it, "
            "or choose another --exp_name"
        )
    if training and args.resume and not checkpoint.exists():
        raise FileNotFoundError(f"nothing to resume: {checkpoint} does not exist; start without --resume")
    folder.mkdir(parents=True, exist_ok=True)
    setup_logger(folder / f"{datetime.now():%Y%m%d_%H%M%S}.log")
    if training or not (folder / "config.yaml").exists():
        save_config(config, folder / "config.yaml")
    logger.info("%s in %s", mode, folder)
    logger.debug("arguments: %s", vars(args))
    return Run(folder, mode, parent / "TFBoard" / args.exp_name if training else None)


def format_table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """Lay out rows as text in columns; floats get two decimals, numbers stand to the right.

    Args:
        rows: one sequence per row, as long as `headers`.
        headers: one per column.

    Returns:
        The table, one line per row under the headers and a rule, without a final newline.
    """
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    numeric = [all(isinstance(cell, (int, float)) for cell in column) for column in zip(*rows, strict=True)]
    numeric = numeric or [False] * len(headers)

    def line(texts: Sequence[str]) -> str:
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line(headers), "  ".join("-" * width for width in widths), *map(line, cells)])
