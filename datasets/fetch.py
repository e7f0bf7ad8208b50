"""A file from a server: resumed, never mixed from two versions, and with its checksum beside it. Needs no PyTorch."""

import fcntl
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from utils.files import atomic_write, make_folder, sha256_of, writing

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
    record.size, record.sha256 = archive.stat().st_size, sha256_of(archive)
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
        if error.code == 416 and start:  # what is there is longer than the file
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
    except (OSError, ValueError, TypeError, RecursionError):
        return Record(url)
    sound = isinstance(record.validator, str) and (record.size is None or type(record.size) is int)
    return record if record.url == url and sound else Record(url)


def _write_record(path: Path, record: Record) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(asdict(record), indent=1) + "\n").encode())
