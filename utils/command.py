"""What all commands share: a parser whose errors are one line, and how a command ends."""

import argparse
import difflib
import logging
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .files import writing

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # as a shell reports a program that SIGPIPE ended
MAX_SEED = 2**32 - 1
SPINS = "3000"  # a hundredth of libgomp's own: enough between two loops, too few to starve another job


class Reported(Exception):
    """An error that has been told already."""


class Parser(argparse.ArgumentParser):
    """A parser that takes whole flags only and says in one line what is wrong, with the nearest flag to a misspelt one.

    Of several processes on a machine, which have the same command line, the first says it.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """End the command with exit code 2."""
        unknown = re.match(r"unrecognized arguments: (--?[^\s=]+)", message)
        if unknown:
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            message = f"unknown flag {unknown[1]}" + (f"; did you mean {near[0]}?" if near else "")
        self.exit(2, f"error: {message}; {self.prog} --help lists the flags\n" if speaks_first() else None)


class Seeds(argparse.Action):
    """Takes several seeds, each once."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        if len(set(values)) < len(values):
            raise argparse.ArgumentError(self, f"{' '.join(map(str, values))} repeats a seed; give each once")
        setattr(namespace, self.dest, values)


def integer_from(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """Make an argparse type: an integer in [lowest, highest]."""

    def integer(text: str) -> int:
        value = int(text)
        if value < lowest or (highest is not None and value > highest):
            allowed = f"at least {lowest}" if highest is None else f"between {lowest} and {highest}"
            raise argparse.ArgumentTypeError(f"{value} must be {allowed}")
        return value

    return integer


def add_seeds(flags: Any, default: Sequence[int] | None, help: str) -> None:
    """Add `--seeds` to a parser or a group of flags."""
    flags.add_argument(
        "--seeds", type=integer_from(0, MAX_SEED), nargs="+", action=Seeds, default=default, metavar="S", help=help
    )


def run_command(command: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Call what a command does and return its exit code.

    OpenMP's threads are told to spin only briefly while they wait, before what the command does imports PyTorch:
    spinning takes the cores from whatever else runs there, and a training step beside another takes several times as
    long.

    What a user can mend, a `ValueError` or an `OSError`, ends in one line on stderr and 1, Ctrl-C in 130. Where nobody
    reads the output any more, as after `| head`, the command ends silently with 141.

    Args:
        command: its exit code is what it returns, 0 for None.
        interrupted: what is said after Ctrl-C.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    try:
        try:
            return command() or 0
        finally:
            with writing("the output"):
                sys.stdout.flush()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return EXIT_INTERRUPTED
    except Reported:
        return 1
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and _output_ends():
            return EXIT_CLOSED_PIPE
        if speaks_first():
            report(error)
        return 1


def report(error: Exception) -> None:
    """Tell an error in one line on stderr, and with its traceback in the log file."""
    logger.debug("traceback", exc_info=error)
    print(f"error: {describe(error)}", file=sys.stderr)


def describe(error: Exception) -> str:
    """Put the message of an error on one line; of one from a loader's worker, the message without its traceback."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return re.sub(r"^\[Errno -?\d+\] ", "", " ".join(text.split()))


def speaks_first() -> bool:
    """Whether this process says what each on this machine would say: the first of those that torchrun started."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _output_ends() -> bool:
    """Drop what is left of the output, if it cannot be written; return whether stdout is a pipe without a reader."""
    try:
        number = sys.stdout.fileno()
    except OSError:  # it is kept in memory
        return False
    output = select.poll()
    output.register(number, 0)
    unread = any(event & select.POLLERR for _, event in output.poll(0))
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return unread
