"""A zip archive from elsewhere, unpacked as a whole or not at all, and never out of its folder. Needs no PyTorch."""

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from datasets.untrusted import safe_join
from utils.files import make_folder, writing

MAX_ENTRIES = 200_000  # ShapeNetPart's archive has about 17,000
MAX_BYTES = 64 * 2**30  # unpacked; the largest, the text files of ModelNet40, are below 10 GiB
MAX_RATIO = 200  # unpacked to packed, of an entry of more than RATIO_FROM bytes; lines of numbers reach about 5
RATIO_FROM = 2**20
BLOCK = 2**20


def unpack(archive: Path, target: Path, landmark: str, show: Callable[[int, int], Any] | None = None) -> int:
    """Unpack the folder of an archive that holds `landmark` to `target`.

    All is written into a folder beside `target`, which takes its place when it is whole.

    Args:
        archive: the zip file.
        target: a folder that does not exist, or is empty.
        landmark: path of a file within the folder that is wanted, wherever in the archive that stands.
        show: called with the bytes that are written and those that there are.

    Returns:
        The number of files.

    Raises:
        ValueError: if `target` holds anything; if the archive is no zip file, damaged, without the landmark, would
            write elsewhere, holds links, or grows beyond all measure; if the disk is too full.
        OSError: if the disk cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already and stays as it is; move it away to unpack {archive.name}")
    partial = target.with_name(f".{target.name}.unpacking")
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = _wanted(opened, archive, landmark)
            _check_space(sum(info.file_size for info in entries.values()), target)
            shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
            make_folder(partial)
            _write(opened, archive, entries, partial, show)
        with writing(target):
            os.replace(partial, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{archive} is no zip archive, or damaged ({error}); delete it and get it anew") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(entries)


def _wanted(opened: zipfile.ZipFile, archive: Path, landmark: str) -> dict[str, zipfile.ZipInfo]:
    """The files of the landmark's folder by their path in it, once the whole table of contents is found harmless."""
    infos = opened.infolist()
    if len(infos) > MAX_ENTRIES:
        raise ValueError(f"{archive} has {len(infos):,} entries; more than {MAX_ENTRIES:,} are refused")
    for info in infos:
        _check_entry(info, archive)
    if (total := sum(info.file_size for info in infos)) > MAX_BYTES:
        raise ValueError(f"{archive} unpacks to {total:,} bytes; more than {MAX_BYTES:,} are refused")
    names = [info.filename for info in infos if not info.is_dir()]
    if len(set(names)) < len(names):
        raise ValueError(f"{archive} names a file twice; it is refused")
    bases = {name.removesuffix(landmark) for name in names if f"/{name}".endswith(f"/{landmark}")}
    if not bases:
        raise ValueError(f"{archive} has no {landmark}: it is another archive (it begins with {[*names, None][0]})")
    base = min(bases, key=len)
    return {
        info.filename.removeprefix(base): info for info in infos if info.filename.startswith(base) and not info.is_dir()
    }


def _check_entry(info: zipfile.ZipInfo, archive: Path) -> None:
    """Refuse an entry that would lead out of the folder, is no plain file, or grows beyond all measure."""
    safe_join(archive, info.orig_filename)  # as the archive has it: `filename` ends at a null byte
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(f"{archive}: {info.filename} is a link or a device; such an archive is refused")
    if info.file_size > max(RATIO_FROM, MAX_RATIO * info.compress_size):
        raise ValueError(
            f"{archive}: {info.filename} grows from {info.compress_size:,} to {info.file_size:,} bytes; more than "
            f"{MAX_RATIO}-fold is refused"
        )


def _check_space(needed: int, target: Path) -> None:
    folder = next(place for place in target.absolute().parents if place.exists())
    if needed > (free := shutil.disk_usage(folder).free):
        raise ValueError(
            f"{target} needs {needed:,} bytes and its disk has {free:,} free; make room, or put a symbolic link to a "
            f"folder of another disk in the place of {folder}"
        )


def _write(
    opened: zipfile.ZipFile,
    archive: Path,
    entries: dict[str, zipfile.ZipInfo],
    folder: Path,
    show: Callable[[int, int], Any] | None,
) -> None:
    """Write the files; zipfile compares checksums, and reads no more of an entry than it declares."""
    total, done = sum(info.file_size for info in entries.values()), 0
    for name, info in entries.items():
        path = folder / PurePosixPath(name)
        make_folder(path.parent)
        written = 0
        with writing(path), opened.open(info) as source, path.open("xb") as file:
            while block := source.read(BLOCK):
                written += len(block)
                file.write(block)
                if show:
                    show(done + written, total)
        if written < info.file_size:
            raise ValueError(f"{archive}: {name} ends after {written:,} of {info.file_size:,} bytes; get it anew")
        done += written
