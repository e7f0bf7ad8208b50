# PYTHON_ARGCOMPLETE_OK
"""Command line: download a published data set and put it where it belongs, or say what a person has to do for it."""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from datasets.fetch import download
from datasets.hints import check_source
from datasets.sources import SOURCES, Source
from utils.command import Parser, run_command
from utils.files import make_folder, sha256_of
from utils.nearest import did_you_mean_path

logger = logging.getLogger(__name__)


def steps(name: str, root: Path) -> str:
    """What a person has to do, where there is no file to download."""
    source = SOURCES[name]
    lines = [f"{source.title} cannot be downloaded by a command: a form or a drive stands in the way. By hand:"]
    lines += [f"  {i}. {step.format(root=root)}" for i, step in enumerate(source.steps, 1)]
    return "\n".join([*lines, f"terms: {source.terms}", f"afterwards: python -m datasets.check {name} --root {root}"])


def get(name: str, root: Path, archive: Path | None = None, sha256: str | None = None, keep: bool = False) -> Path:
    """Download the archive of a data set, or take one that is there, and unpack it to its place.

    Args:
        name: one of `SOURCES`, with an archive.
        root: folder of the data sets.
        archive: a file that was got in another way; it stays.
        sha256: which the archive must have.
        keep: leave a downloaded archive in `root`.

    Returns:
        The folder.
    """
    from datasets.archives import unpack  # reads arrays' libraries, for which the command line does not wait

    source, target = SOURCES[name], root / SOURCES[name].home
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"{target} is there already and stays as it is: `python -m datasets.check {name} --root {root}` says what "
            "it holds; move it away to get it anew"
        )
    logger.info("terms: %s", source.terms)
    whole = archive or root / str(source.archive)
    if archive is None:
        download(str(source.url), whole, sha256 or source.sha256)
    elif not whole.is_file():
        raise FileNotFoundError(f"--archive {whole}: there is no such file. {did_you_mean_path(whole)}".strip())
    elif sha256 is not None and (found := sha256_of(whole)) != sha256.lower():
        raise ValueError(f"{whole} has the SHA-256 {found}, not {sha256.lower()}")
    make_folder(target.parent)
    with tqdm(unit="B", unit_scale=True, desc="unpacking", leave=False, disable=not sys.stderr.isatty()) as bar:
        files = unpack(whole, target, str(source.landmark), lambda done, total: _update(bar, done, total))
    logger.info("%s: %d files", target, files)
    if archive is None and not keep:
        whole.unlink()
    return target


def _update(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog="python -m datasets.download",
        description="Download a published data set and unpack it where it belongs. Interrupted, the same command goes "
        "on. What is there already is never touched. Where a form or a drive stands in the way, the steps to do by "
        "hand are printed and the exit code is 1.",
        examples=["python -m datasets.download ModelNet40_SVM"],
    )
    name = parser.add_argument("name", metavar="NAME", help=f"of {', '.join(SOURCES)}")
    name.completer = lambda **_: list(SOURCES)  # of argcomplete, where a shell asks it
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets (%(default)s)")
    parser.add_argument("--sha256", type=_digest, metavar="HEX", help="refuse an archive with another SHA-256")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="unpack this one, instead of downloading")
    parser.add_argument("--keep_archive", action="store_true", help="leave the archive in --root when it is unpacked")
    args = parser.parse_args(argv)
    check_source(parser, args.name)
    return args


def _digest(text: str) -> str:
    if re.fullmatch(r"[0-9a-fA-F]{64}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not 64 hexadecimal digits")
    return text.lower()


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit code."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source: Source = SOURCES[args.name]
    if args.archive is not None and source.landmark is None:
        raise ValueError(f"--archive: {source.title} has no single archive; without it, its steps are printed")
    if args.archive is None and source.url is None:
        print(steps(args.name, args.root))
        return 1
    get(args.name, args.root, args.archive, args.sha256, args.keep_archive)
    for step in source.steps if args.archive is None else ():
        logger.info("beside it: %s", step.format(root=args.root))
    from datasets.check import main as check

    return check([args.name, "--root", str(args.root)])


if __name__ == "__main__":
    raise SystemExit(run_command(main, "interrupted; the same command goes on"))
