"""Put a generated data set in place as a whole or not at all, and never in the place of another one."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.files import make_folder, writing

from ..sources import MARKER

logger = logging.getLogger(__name__)


def publish(folder: Path, request: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """Write a data set into a temporary sibling of `folder`, then rename it to `folder`.

    A folder that already holds what is requested is left as it is; one generated from another request is replaced.

    Args:
        folder: where the data set belongs; parents are made.
        request: everything that decides the content, storable as JSON; kept in the folder's `MARKER`.
        write: called with the temporary folder.

    Returns:
        `folder`.

    Raises:
        ValueError: if `folder` holds anything that was not generated.
    """
    if _holds(folder, request):
        logger.info("%s is up to date", folder)
        return folder
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    make_folder(partial)
    try:
        with writing(folder):
            write(partial)
            (partial / MARKER).write_text(json.dumps(request, indent=1) + "\n")
        _replace(folder, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    logger.info("wrote %s", folder)
    return folder


def _holds(folder: Path, request: dict[str, Any]) -> bool:
    """Return whether `folder` was generated from `request`; refuse a folder with content of another origin."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    marker = folder / MARKER
    if not marker.is_file():
        raise ValueError(
            f"{folder} exists and holds no {MARKER}, so it was not generated and stays as it is; "
            "write the generated shapes elsewhere with --root, or move that folder away"
        )
    try:
        return json.loads(marker.read_text()) == request
    except json.JSONDecodeError as error:
        raise ValueError(f"{marker} is not JSON ({error}); remove {folder} if it holds generated shapes") from error


def _replace(folder: Path, partial: Path) -> None:
    """Rename `partial` to `folder`; what was there before is removed afterwards."""
    if not folder.exists():
        partial.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old)
