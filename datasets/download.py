"""Command line: download a published data set and put it where it belongs, or say what a person has to do for it."""

import argparse
import fcntl
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from datasets.hints import check_source
from datasets.sources import SOURCES, Source
from utils.command import Parser, run_command
from utils.files import atomic_write, make_folder, writing

logger = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte
TRIES = 5  # in a row that bring nothing
PAUSE = 2.0  # seconds before the second try; doubled before each further one
BLOCK = 2**20
LOGGED_EVERY = 10.0  # seconds, where there is no terminal
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class Transient(Exception):
    """What may be over at the next try."""


@dataclass
class Record:
    """What is known of an archive: kept beside it, so that another call can go on, and afterwards.

    Attributes:
        url: where it was asked for.
        validator: ETag or date by which the server knows this version; "" = it gave none.
        size: bytes of the whole; None = the server does not say.
        sha256: of the whole, once it is there.
    """

    url: str
    validator: str = ""
    size: int | None = None
    sha256: str = ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to anything less."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme != "https":
            raise ValueError(f"{req.full_url} redirects to {newurl}, which is not encrypted; it is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, archive: Path, sha256: str | None = None) -> Record:
    """Download an archive, or go on with what an earlier call has of it.

    Args:
        url: http or https. Proxies are those of the environment (`https_proxy`, `no_proxy`).
        archive: where it goes; until it is whole, beside it under `<name>.part`. One that is there is only compared.
        sha256: which it must have; None = any.

    Returns:
        What is known of it, also in `<name>.json`.

    Raises:
        ValueError: if the server refuses or does not answer, the disk is too full, another process downloads it, or it
            has another checksum.
        OSError: if the disk cannot be written.
    """
    make_folder(archive.parent)
    part, record_file = archive.with_name(f"{archive.name}.part"), archive.with_name(f"{archive.name}.json")
    record = _read_record(record_file, url)
    if not archive.exists():
        with _alone(part) as file:
            record = _fetch(url, file, part, record, lambda known: _write_record(record_file, known))
        with writing(archive):
            os.replace(part, archive)
    record.size, record.sha256 = archive.stat().st_size, _sha256(archive)
    _write_record(record_file, record)
    logger.info("%s: %s bytes, SHA-256 %s", archive, f"{record.size:,}", record.sha256)
    if sha256 is not None and record.sha256 != sha256.lower():
        raise ValueError(
            f"{archive} has the SHA-256 {record.sha256}, not {sha256.lower()}: it is damaged or another version; "
            "delete it to download it anew"
        )
    return record


def _fetch(url: str, file: BinaryIO, part: Path, record: Record, keep: Callable[[Record], None]) -> Record:
    """Append to `file` until it is whole; where the server has another version by now, begin anew."""
    fruitless = 0
    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            return _receive(url, file, part, record, keep)
        except (Transient, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        fruitless = 0 if file.seek(0, os.SEEK_END) > before else fruitless + 1
        if fruitless == TRIES:
            raise ValueError(
                f"{url}: {reason}; {file.tell():,} bytes are in {part}, and the same command goes on from there"
            )
        logger.warning("%s; trying again", reason)
        time.sleep(PAUSE * 2 ** max(fruitless - 1, 0))


def _receive(url: str, file: BinaryIO, part: Path, record: Record, keep: Callable[[Record], None]) -> Record:
    """Ask once for what is missing, and write what comes."""
    start = file.seek(0, os.SEEK_END)
    if start and not record.validator:
        logger.info("%s: by nothing that is known of it can the server tell the version; beginning anew", part)
        start = 0
    if record.size is not None and start == record.size:
        return record
    with _open(url, start, record.validator) as answer:
        first, size = _position(answer)
        if start and first != start:
            logger.info(
                "%s: the server sends the whole file again (another version, or no ranges): beginning anew", url
            )
        if first not in (0, start):
            raise Transient(f"{url} sends bytes from {first}, where {start} were asked for")
        if first and (_validator(answer), size) != (record.validator, record.size):
            file.truncate(0)
            raise Transient(f"{url} has another version by now: beginning anew")
        with writing(part):
            file.truncate(first)
            file.seek(first)
        record.validator, record.size = _validator(answer), size
        keep(record)
        _check_space(part, size, first)
        for block in _shown(answer, part.name, first, size):
            with writing(part):
                file.write(block)
    with writing(part):
        file.flush()
    if size is not None and file.tell() < size:
        raise Transient(f"{url}: the connection ended after {file.tell():,} of {size:,} bytes")
    return record


def _open(url: str, start: int, validator: str) -> Any:
    """Send the request; ValueError if the server refuses, `Transient` if it may not at another time."""
    headers = {"User-Agent": "i2p-mae datasets.download", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    opener = urllib.request.build_opener(_Redirects)
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is there is longer than the file
            return _open(url, 0, "")
        if error.code in TRANSIENT:
            raise Transient(f"{url}: the server answers {error.code} {error.reason}") from error
        raise ValueError(f"{url}: the server answers {error.code} {error.reason}; see docs/DATASET.md") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, (TimeoutError, ConnectionError)):
            raise Transient(f"{url}: {error.reason}") from error
        raise ValueError(
            f"{url} cannot be reached ({error.reason}); get it in another way and unpack it with --archive FILE"
        ) from error


def _position(answer: Any) -> tuple[int, int | None]:
    """The first byte that an answer sends, and the size of the whole."""
    if answer.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if match is None:
            raise Transient(f"{answer.url} sends a part without saying which")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _validator(answer: Any) -> str:
    """What tells this version of the file from others, if the server says so; weak ETags do not serve for ranges."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")


def _check_space(part: Path, size: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if size is not None and size - start > free:
        raise ValueError(
            f"{part} needs {size - start:,} more bytes and its disk has {free:,} free; make room, or choose a folder "
            "of another disk with --root"
        )


def _shown(answer: Any, name: str, start: int, size: int | None) -> Iterator[bytes]:
    """Yield the blocks of an answer, and show how far it is: a bar on a terminal, a line at times elsewhere."""
    begin = last = time.monotonic()
    done = start
    looks = {"unit": "B", "unit_scale": True, "dynamic_ncols": True, "leave": False, "file": sys.stderr}
    with tqdm(desc=name, initial=start, total=size, disable=not sys.stderr.isatty(), **looks) as bar:
        while block := answer.read1(BLOCK):
            yield block
            done += len(block)
            bar.update(len(block))
            now = time.monotonic()
            if bar.disable and now - last >= LOGGED_EVERY:
                share = f" of {size / 1e6:,.0f} ({100 * done // size} %)" if size else ""
                rate = (done - start) / (now - begin) / 1e6
                logger.info("%s: %s%s MB, %.1f MB/s", name, f"{done / 1e6:,.0f}", share, rate)
                last = now


@contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """Open what is there of a file, for this process alone."""
    with writing(part):
        file = part.open("a+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is downloading {part}; wait for it") from error
        with part.open("r+b") as writable:  # one opened to append would write at the end, wherever it is
            yield writable


def _read_record(path: Path, url: str) -> Record:
    """What an earlier call has kept, if it is of the same url."""
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Record(url)
    sound = isinstance(record.validator, str) and (record.size is None or type(record.size) is int)
    return record if record.url == url and sound else Record(url)


def _write_record(path: Path, record: Record) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(asdict(record), indent=1) + "\n").encode())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


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
        raise FileNotFoundError(f"--archive {whole}: there is no such file")
    elif sha256 is not None and (found := _sha256(whole)) != sha256.lower():
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
    )
    parser.add_argument("name", metavar="NAME", help=f"of {', '.join(SOURCES)}")
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
