"""Files that are either whole or absent, and folders that one process has to itself."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO


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
def locked(folder: Path) -> Iterator[None]:
    """Have a folder to oneself for the time of the block; the lock falls with the process, however it ends.

    It is a record lock, which forked children do not share: loader workers outlive a killed run for some seconds.

    Args:
        folder: an existing folder; the lock is its file `.lock`, which says who has it.

    Raises:
        ValueError: if another process has it; the message says which.
    """
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by {file.read().strip() or 'another process'}; wait for it or stop it, "
                "or choose another --exp_name"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
        file.flush()
        yield
