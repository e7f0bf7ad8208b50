"""Log lines on stderr and in the run's file, and progress of long loops."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from .distributed import is_main

Item = TypeVar("Item")

_HANDLER_PREFIX = "i2p_mae:"
_SECONDS_BETWEEN_LINES = 5.0
_LINES_PER_LOOP = 10

logger = logging.getLogger(__name__)


class _BesideProgressBars(logging.StreamHandler):
    """Writes to stderr above any progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def setup_logger(log_file: Path | None) -> None:
    """Send the root logger's messages to stderr (INFO and above) and to a file (everything).

    Of several processes only the main one informs; the others warn.

    A second call replaces the handlers of the first and leaves other people's alone.

    Args:
        log_file: the file to append to, in an existing folder; None for stderr only.

    Raises:
        OSError: if the file cannot be opened; the handlers of an earlier call then stay.
    """
    console = _BesideProgressBars(sys.stderr)
    console.setLevel(logging.INFO if is_main() else logging.WARNING)
    console.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    handlers: list[logging.Handler] = [console]
    if log_file is not None:
        to_file = logging.FileHandler(log_file, encoding="utf-8")
        to_file.setLevel(logging.DEBUG)
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(to_file)

    root = logging.getLogger()
    root.setLevel(logging.DEBUG)
    for old in [handler for handler in root.handlers if (handler.name or "").startswith(_HANDLER_PREFIX)]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.name = _HANDLER_PREFIX + type(handler).__name__
        root.addHandler(handler)


def progress(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of a loop and show how far it is: a bar on a terminal, a few log lines elsewhere.

    Args:
        iterable: what the loop runs over.
        description: a few words in front of the count.
        total: number of items, if `iterable` has no length.

    Returns:
        The items, unchanged and in order.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if not is_main():
        return iter(iterable)
    if sys.stderr.isatty():
        return iter(tqdm(iterable, description, total, leave=False, dynamic_ncols=True, file=sys.stderr))
    return _logged(iterable, description, total)


def _logged(iterable: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    """Log about every tenth of the loop, but no two lines within `_SECONDS_BETWEEN_LINES`."""
    start = last = time.monotonic()
    tenths_shown = 0
    for done, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        tenths = _LINES_PER_LOOP * done // total if total else tenths_shown + 1
        if tenths > tenths_shown and now - last >= _SECONDS_BETWEEN_LINES:
            count = f"{done}/{total} ({100 * done // total} %)" if total else f"{done}"
            logger.info("%s: %s, %.0f s, %.2f/s", description, count, now - start, done / (now - start))
            tenths_shown, last = tenths, now
