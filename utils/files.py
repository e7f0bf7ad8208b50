"""Files that are whole or absent, folders that one process has to itself, and what tells one file from another."""

import errno
import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

_NO_ROOM = "make room, or put a symbolic link to a folder of another disk in its place"
_NOT_WRITABLE = "this is not writable: change its permissions, or start where you may write"
_IN_THE_WAY = "a file stands where a folder has to be: move it away"
_WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _NO_ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _NOT_WRITABLE),
    errno.EFBIG: "the disk or `ulimit -f` limits the size of a file",
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), _IN_THE_WAY),
}


@contextmanager
def writing(path: str | Path, *others: str | Path) -> Iterator[None]:
    """Let an error of the disk name the file or folder that is written in the block, and the way out.

    Args:
        path: what is written.
        *others: other names that an error may have for it.

    Raises:
        OSError: of the same number, for one that is about `path` or names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(path), *map(str, others)):
            raise
        raise unwritable(path, error) from error


def unwritable(path: str | Path, error: OSError) -> OSError:
    """The error of a file or folder that cannot be written, with its path and the way out."""
    way_out = f"; {_WAYS_OUT[error.errno]}" if error.errno in _WAYS_OUT else ""
    return OSError(error.errno, f"cannot write {path}: {os.strerror(error.errno or 0)}{way_out}")


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing; OSError if that is not possible."""
    with writing(path, *path.parents):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def atomic_write(path: str | Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Open a binary file for writing that takes its place under `path` only when the block ends without an error.

    The bytes go to a temporary file in the same folder and are on the disk before it is renamed; a reader sees the old
    file or the new one, never a part. On any error the temporary file is removed and the old file stays.

    Args:
        path: the file to write; its folder exists.
        previous: where the old file goes once the new one is whole, in the same folder; None = nowhere.

    Raises:
        OSError: if the folder does not exist or cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path, temporary):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename itself last
    finally:
        os.close(folder)


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Have a folder to oneself for the time of the block; the lock falls with the process, however it ends.

    It is a record lock, which forked children do not share: loader workers outlive a killed run for some seconds.

    Args:
        folder: an existing folder; the lock is its file `.lock`, which says who has it.
        wait: for another process that has it.

    Raises:
        ValueError: if another process has it and it is not waited for; the message says which.
    """
    path = folder / ".lock"
    with writing(path):
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed below)
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by {file.read().decode().strip() or 'another process'}; wait for it or stop it, "
                "or choose another --exp_name"
            ) from None
        holder = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n"
        with writing(path):
            file.truncate(0)
            file.write(holder.encode())
        yield


def in_use(folder: Path) -> bool:
    """Whether another process has a folder to itself, see `locked`."""
    try:
        with open(folder / ".lock", "r+b", buffering=0) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def size_and_date(path: Path) -> tuple[int, int]:
    """Size in bytes and time of modification in ns of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
