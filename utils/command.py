"""What all commands share: a parser whose errors are one line, and how a command ends."""

import argparse
import logging
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .files import writing
from .nearest import did_you_mean, did_you_mean_path

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # as a shell reports a program that SIGPIPE ended
MAX_SEED = 2**32 - 1
COMPLETION = "_ARGCOMPLETE"  # set where a shell asks argcomplete what can follow
SPINS = "3000"  # a hundredth of libgomp's own: enough between two loops, too few to starve another job


class Reported(Exception):
    """An error that has been told already."""


class Parser(argparse.ArgumentParser):
    """A parser that takes whole flags only and says in one line what is wrong, with the nearest to what is misspelt.

    Of several processes on a machine, which have the same command line, the first says it.

    Args:
        examples: commands that `--help` ends with.
        **settings: of `argparse.ArgumentParser`.
    """

    def __init__(self, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.examples = examples
        self._unknown: str | None = None

    def format_help(self) -> str:
        """The help with the examples below it."""
        examples = "".join(f"  {example}\n" for example in self.examples)
        return super().format_help() + (f"\nexamples:\n{examples}" if examples else "")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, or complete what is typed where a shell asks for it, and end there."""
        if completes():
            _complete(self)
        flags = (str(arg).partition("=")[0] for arg in (sys.argv[1:] if args is None else args))
        self._unknown = next((f for f in flags if f.startswith("--") and f not in self._option_string_actions), None)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End the command with exit code 2; a flag that is missing may be there, misspelt."""
        unknown = re.match(r"unrecognized arguments: (--?[^\s=]+)", message)
        if unknown or (self._unknown and message.startswith("the following arguments are required")):
            flag = unknown[1] if unknown else self._unknown
            question = did_you_mean(flag, self._option_string_actions).strip()
            message = "; ".join(filter(None, [f"unknown flag {flag}", question]))
        self.exit(2, f"error: {message}; {self.prog} --help lists the flags\n" if speaks_first() else None)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(value, action.choices)
            choices = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}; {hint}choose from {choices}")


def completes() -> bool:
    """Whether a shell asks what can follow what is typed."""
    return COMPLETION in os.environ


def _complete(parser: argparse.ArgumentParser) -> NoReturn:
    """Tell the shell what can follow, and end; without argcomplete nothing."""
    try:
        import argcomplete
    except ModuleNotFoundError:
        sys.exit(1)
    argcomplete.autocomplete(parser)
    sys.exit(1)  # not reached: it ends the process


class Seeds(argparse.Action):
    """Takes several seeds, each once."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        if len(set(values)) < len(values):
            raise argparse.ArgumentError(self, f"{' '.join(map(str, values))} repeats a seed; give each once")
        setattr(namespace, self.dest, values)


def file_there(text: str) -> Path:
    """Argparse type: the path of a file that is there."""
    return _file_there(text, "")


def weights_file(text: str) -> Path:
    """Argparse type: the path of a file of weights that is there."""
    return _file_there(text, "ckpts/README.md says where to get the released ones")


def _file_there(text: str, way_out: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty path; name a file (is a variable of the shell not set?)")
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it, such as ckpt-best.pth")
    if not Path(text).is_file():
        more = f"{did_you_mean_path(text)}{way_out}".strip()
        raise argparse.ArgumentTypeError("; ".join(filter(None, [f"no such file: {text}", more])))
    return Path(text)


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
