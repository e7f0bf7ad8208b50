"""Files that are either whole or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file for writing that takes its place under `path` only when the block ends without an error.

    The bytes go to a temporary file in the same folder and are on the disk before it is renamed; a reader sees the old
    file or the new one, never a part. On any error the temporary file is removed and the old file stays.

    Args:
        path: the file to write; its folder exists.

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
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename itself last
    finally:
        os.close(folder)
