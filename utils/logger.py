"""Log lines on stderr and in the run's file, and progress of long loops."""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from .files import unwritable, writing

Item = TypeVar("Item")

_HANDLER_PREFIX = "i2p_mae:"
_TALKATIVE = ("matplotlib", "PIL")  # each font, each chunk of a picture
_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_BETWEEN_EARLY_LINES = 5.0
_LINES_PER_LOOP = 10
_SIZE = {"ncols": 80, "nrows": 24}  # of a terminal that does not say how large it is

logger = logging.getLogger(__name__)


class _BesideProgressBars(logging.StreamHandler):
    """Writes to stderr above any progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _LogFile(logging.FileHandler):
    """Writes to a file, as long as that is possible; says once that it is not."""

    given_up = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.given_up:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.given_up = True
        logger.warning("%s; the run goes on without its log", unwritable(self.baseFilename, error).strerror)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written is tried once more
            super().close()


def _informs() -> bool:
    """Whether this process is the one that informs."""
    from .distributed import is_main  # not at the top: PyTorch takes seconds to import, and not every command needs it

    return is_main()


def setup_logger(log_file: Path | None) -> None:
    """Send the root logger's messages to stderr (INFO and above) and to a file (everything).

    Of several processes only the main one informs; the others warn. Warnings of Python are lines of the log, those of
    the main process alone.

    A second call replaces the handlers of the first and leaves other people's alone.

    Args:
        log_file: the file to append to, in an existing folder; None for stderr only.

    Raises:
        OSError: if the file cannot be opened; the handlers of an earlier call then stay.
    """
    console = _BesideProgressBars(sys.stderr)
    console.setLevel(logging.INFO if _informs() else logging.WARNING)
    console.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    handlers: list[logging.Handler] = [console]
    if log_file is not None:
        with writing(log_file, log_file.absolute()):
            to_file = _LogFile(log_file, encoding="utf-8")
        to_file.setLevel(logging.DEBUG)
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(to_file)

    root = logging.getLogger()
    root.setLevel(logging.DEBUG)
    warnings.showwarning = _log_warning
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    for old in [handler for handler in root.handlers if (handler.name or "").startswith(_HANDLER_PREFIX)]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.name = _HANDLER_PREFIX + type(handler).__name__
        root.addHandler(handler)


def _log_warning(message: Warning | str, *place: object, **more: object) -> None:
    """Stand in for `warnings.showwarning`, which writes where in the source it was, and the source."""
    logger.log(logging.WARNING if _informs() else logging.INFO, "%s", " ".join(str(message).split()))


def progress(
    iterable: Iterable[Item], description: str, total: int | None = None, early: bool = True
) -> Iterator[Item]:
    """Yield the items of a loop and show how far it is: a bar on a terminal, a few log lines elsewhere.

    Args:
        iterable: what the loop runs over.
        description: a few words in front of the count.
        total: number of items, if `iterable` has no length.
        early: whether lines soon say how long it takes; False where that is known, as after the first epoch. A bar is
            there in any case.

    Returns:
        The items, unchanged and in order.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if not _informs():
        return iter(iterable)
    if sys.stderr.isatty():
        size: dict[str, Any] = {"dynamic_ncols": True} if _columns() else _SIZE
        return iter(tqdm(iterable, description, total, leave=False, file=sys.stderr, **size))
    return _logged(iterable, description, total, early)


def _columns() -> int:
    """Width of the terminal; 0 where it says none, as in some containers, in which tqdm would show no bar at all."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 0


def _logged(iterable: Iterable[Item], description: str, total: int | None, early: bool) -> Iterator[Item]:
    """Log about every tenth of the loop, no two within a minute; early ones, each after twice the time of the last."""
    start = last = time.monotonic()
    tenths_shown = 0
    for done, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        tenths = _LINES_PER_LOOP * done // total if total else tenths_shown + 1
        seconds, since = now - start, now - last
        soon = early and since >= _SECONDS_BETWEEN_EARLY_LINES and seconds >= 2 * (last - start)
        if soon or (tenths > tenths_shown and since >= _SECONDS_BETWEEN_LINES):
            count = f"{done}/{total} ({100 * done // total} %)" if total else f"{done}"
            left = f", about {seconds / done * (total - done):.0f} s left" if total else ""
            logger.info("%s: %s, %.0f s, %.2f/s%s", description, count, seconds, done / seconds, left)
            tenths_shown, last = tenths, now
