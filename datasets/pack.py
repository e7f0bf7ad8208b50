# PYTHON_ARGCOMPLETE_OK
"""Command line: pack the files of ShapeNet-55 into one memory-mapped array, which reads faster; or check a pack."""

import argparse
import fcntl
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datasets.packed import SUBSETS, Index, PackedClouds, index_file, pack_again, read_index, read_list
from datasets.untrusted import check_count, read_npy, require_folder, require_listed, safe_join
from utils.command import Parser, run_command
from utils.config import load_config
from utils.files import atomic_write, make_folder, size_and_date, writing
from utils.logger import progress

logger = logging.getLogger(__name__)

CHUNK = 256  # clouds per checksum: 24 MiB of 8192 points each
NAMED_AT_MOST = 5  # damaged chunks in one message


def pack(data_path: str, pc_path: str, n_points: int, chunk: int = CHUNK) -> Path:
    """Pack all files that train.txt and test.txt name. What an interrupted call has written is checked and kept.

    Args:
        data_path: folder of train.txt and test.txt.
        pc_path: folder of the .npy files.
        n_points: points per file.
        chunk: clouds per checksum.

    Returns:
        The index, which is written when all else is whole.

    Raises:
        FileNotFoundError: if a folder, a list or a listed file is missing.
        ValueError: if a list or a file is not as described, the disk is too full, or another process is packing.
    """
    plan = _plan(data_path, pc_path, check_count(n_points, "N_POINTS"), chunk)
    path = index_file(pc_path)
    make_folder(path.parent)
    with _alone(path.parent):
        old = _read_old(path)
        data = path.with_name(plan.file)
        kept = _whole_chunks(data, plan, _recorded(data, plan, old))
        if old == replace(plan, checksums=kept):
            logger.info("%s is up to date", path.parent)
            return path
        if kept:
            logger.info("%s: continuing after %d of %d clouds", path.parent, _rows(kept, plan), len(plan.sources))
        path.unlink(missing_ok=True)
        for other in path.parent.glob("clouds-*"):
            if other.stem != data.stem:
                other.unlink()
        _check_space(data, plan)
        with writing(data):
            checksums = _write(data, plan, kept, Path(pc_path))
        with atomic_write(path) as file:
            file.write(replace(plan, checksums=checksums).to_json().encode())
        _journal(data).unlink()
    logger.info("packed %d clouds into %s", len(plan.sources), path.parent)
    return path


def check(data_path: str, pc_path: str, n_points: int) -> None:
    """Compare a pack with its checksums, with the lists, and with those of its sources that are still there.

    Raises:
        FileNotFoundError: if there is no pack, or a list is missing.
        ValueError: if a list or a source has changed since, or a byte of the pack has.
    """
    path, way_out = index_file(pc_path), pack_again(data_path, pc_path, n_points)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {way_out}")
    for subset in SUBSETS:
        PackedClouds(data_path, pc_path, n_points, {subset: read_list(Path(data_path, f"{subset}.txt"))})
    index = read_index(path)
    damaged = _damaged_chunks(path.with_name(index.file), index)
    if damaged:
        raise ValueError(
            f"{path.with_name(index.file)}: {len(damaged)} of {index.num_chunks} chunks differ from their checksums: "
            f"{', '.join(damaged[:NAMED_AT_MOST])}{', …' if len(damaged) > NAMED_AT_MOST else ''}; {way_out}"
        )
    files = {name: safe_join(Path(pc_path), name) for name in index.sources}
    present = {name: file for name, file in files.items() if file.is_file()}
    changed = [name for name, file in present.items() if list(size_and_date(file)) != index.sources[name]]
    if changed:
        raise ValueError(
            f"{len(changed)} files of {pc_path} have another size or date than when they were packed, first "
            f"{changed[0]}; {way_out}"
        )
    gone = len(files) - len(present)
    logger.info("%s: %d clouds are whole; %d of their files are gone", path.parent, len(files), gone)


def _plan(data_path: str, pc_path: str, n_points: int, chunk: int) -> Index:
    """List what is to be packed, in which order; the checksums are yet to come."""
    lists_folder, folder = require_folder(data_path, "DATA_PATH"), require_folder(pc_path, "PC_PATH")
    lists = {subset: read_list(lists_folder / f"{subset}.txt") for subset in SUBSETS}
    files = {name: safe_join(folder, name) for name in chain(*lists.values())}
    require_listed(list(files.values()), lists_folder, "PC_PATH")
    sources = {name: list(size_and_date(file)) for name, file in files.items()}
    return Index(n_points, check_count(chunk, "chunk"), lists, sources, [])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from packing into the same folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is packing into {folder}; wait for it") from error
        yield
    finally:
        os.close(handle)


def _read_old(path: Path) -> Index | None:
    """Read the index of an earlier pack, if there is one that can be read."""
    try:
        return read_index(path) if path.is_file() else None
    except ValueError as error:
        logger.warning("%s; it is made anew", error)
        return None


def _journal(data: Path) -> Path:
    """Where the checksums are kept until the index is written, a line per chunk."""
    return data.with_suffix(".sums")


def _recorded(data: Path, plan: Index, old: Index | None) -> list[str]:
    """The checksums of what was written from the same sources before."""
    if old is not None and old.file == plan.file:
        return old.checksums
    journal = _journal(data)
    return journal.read_text(encoding="utf-8", errors="replace").split() if journal.is_file() else []


def _header(plan: Index) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": plan.shape})
    return header.getvalue()


def _checksums(file: BinaryIO, plan: Index) -> Iterator[str]:
    """Yield the checksum of each chunk of an open array, from the first; of one that is cut short, of what is there."""
    file.seek(len(_header(plan)))
    for _ in range(plan.num_chunks):
        yield hashlib.sha256(file.read(plan.chunk * _cloud_bytes(plan))).hexdigest()


def _whole_chunks(data: Path, plan: Index, recorded: Sequence[str]) -> list[str]:
    """Return the checksums of the chunks, from the first, that are as recorded."""
    if not recorded or not data.is_file():
        return []
    with data.open("rb") as file:
        if file.read(len(_header(plan))) != _header(plan):
            return []
        whole = []
        found = progress(_checksums(file, plan), "checking what is packed (chunks)", plan.num_chunks)
        for now, then in zip(found, recorded, strict=False):
            if now != then:
                break
            whole.append(now)
    return whole


def _damaged_chunks(data: Path, index: Index) -> list[str]:
    """Say which chunks are not as recorded."""
    names = list(index.sources)
    damaged = []
    with data.open("rb") as file:
        found = progress(_checksums(file, index), "checking the pack (chunks)", index.num_chunks)
        for i, (now, then) in enumerate(zip(found, index.checksums, strict=True)):
            if now != then:
                rows = range(len(names))[i * index.chunk : (i + 1) * index.chunk]
                damaged.append(f"chunk {i} ({names[rows[0]]} to {names[rows[-1]]})")
    return damaged


def _rows(chunks: Sequence[str], plan: Index) -> int:
    """Clouds in the first chunks."""
    return min(len(chunks) * plan.chunk, len(plan.sources))


def _cloud_bytes(plan: Index) -> int:
    return plan.n_points * 3 * 4


def _check_space(data: Path, plan: Index) -> None:
    """Refuse to begin what the disk cannot hold."""
    present = data.stat().st_size if data.is_file() else 0
    needed = len(_header(plan)) + len(plan.sources) * _cloud_bytes(plan) - present
    free = shutil.disk_usage(data.parent).free
    if needed > free:
        raise ValueError(
            f"{data.parent} needs {needed:,} more bytes and its disk has {free:,} free; make room, or put a symbolic "
            "link to a folder of another disk in its place"
        )


def _write(data: Path, plan: Index, kept: Sequence[str], folder: Path) -> list[str]:
    """Write the chunks that are not kept, and the checksum of each as soon as it is there; return all checksums."""
    checksums = list(kept)
    remaining = progress(list(plan.sources)[_rows(kept, plan) :], "packing (clouds)")
    with data.open("r+b" if data.is_file() else "w+b") as file, _journal(data).open("w", encoding="utf-8") as journal:
        journal.writelines(f"{checksum}\n" for checksum in checksums)
        file.write(_header(plan))
        file.seek(_rows(kept, plan) * _cloud_bytes(plan), os.SEEK_CUR)
        while block := list(islice(remaining, plan.chunk)):
            clouds = np.stack([read_npy(safe_join(folder, name), plan.shape[1:], "PC_PATH") for name in block])
            clouds = clouds.astype("<f4", copy=False)
            file.write(clouds.data)
            file.flush()
            checksums.append(hashlib.sha256(clouds.data).hexdigest())
            journal.write(f"{checksums[-1]}\n")
            journal.flush()
        file.truncate()
        os.fsync(file.fileno())
    return checksums


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `data_path`, `pc_path` and `n_points` are those of the config unless they are given."""
    parser = Parser(
        prog="python -m datasets.pack",
        description="Pack the .npy files of ShapeNet-55 into one array beside them, <PC_PATH>.packed/, which "
        "pre-training then reads by itself. Interrupted, the same command continues.",
        examples=["python -m datasets.pack", "python -m datasets.pack --check"],
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("cfgs/pre-training/i2p-mae.yaml"),
        metavar="FILE",
        help="its dataset.train says where the files are (%(default)s)",
    )
    parser.add_argument("--data_path", metavar="FOLDER", help="of train.txt and test.txt, instead of the config's")
    parser.add_argument("--pc_path", metavar="FOLDER", help="of the .npy files, instead of the config's")
    parser.add_argument("--n_points", type=int, metavar="N", help="points per file, instead of the config's")
    parser.add_argument("--check", action="store_true", help="read the whole pack and compare it with its checksums")
    args = parser.parse_args(argv)
    if missing := [name for name in ("data_path", "pc_path", "n_points") if getattr(args, name) is None]:
        entry = load_config(args.config).dataset.get("train", {})
        if entry.get("NAME") != "ShapeNet":
            raise ValueError(
                f"{args.config}: dataset.train.NAME is {entry.get('NAME')!r}; only ShapeNet is packed here, "
                "ShapeNetPart by `python -m datasets.pack_parts`"
            )
        from datasets import (
            check_dataset_config,  # imports PyTorch, for which an error of the command line does not wait
        )

        check_dataset_config(entry, "dataset.train")
        for name in missing:
            setattr(args, name, entry[name.upper()])
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Pack or check, as the command line asks."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_args(argv)
    (check if args.check else pack)(args.data_path, args.pc_path, args.n_points)


if __name__ == "__main__":
    raise SystemExit(run_command(main, "interrupted; the same command continues"))
