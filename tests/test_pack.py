"""Packed clouds: the same items as from the files, whole or absent, and never those of other files."""

import fcntl
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets import pack as pack_module
from datasets.pack import check, pack
from datasets.packed import index_file, read_index
from datasets.shapenet55 import ShapeNet

N_POINTS, CHUNK = 16, 4
TRAIN = [f"{3001627 + i % 2}-m{i}.npy" for i in range(9)]
TEST = ["02691156-a.npy", TRAIN[0], "02691156-b.npy"]
NAMES = [*TRAIN, TEST[0], TEST[2]]  # 11 clouds: chunks of 4, 4 and 3
AGAIN = r"run `python -m datasets\.pack --data_path .*ShapeNet-55 --pc_path .*shapenet_pc --n_points 16`, or delete"


class Interruption(Exception):
    """Stands for Ctrl-C, which pytest keeps for itself."""


@pytest.fixture
def source(tmp_path):
    """Eleven files and their lists; returns the arguments of `pack` and `check`."""
    lists, clouds = tmp_path / "ShapeNet-55", tmp_path / "shapenet_pc"
    lists.mkdir()
    clouds.mkdir()
    (lists / "train.txt").write_text("\n".join(TRAIN))
    (lists / "test.txt").write_text("\n".join(TEST))
    rng = np.random.default_rng(0)
    for name in NAMES:
        np.save(clouds / name, rng.normal(size=(N_POINTS, 3)).astype(np.float32))
    return str(lists), str(clouds), N_POINTS


def data_file(source):
    (file,) = index_file(source[1]).parent.glob("clouds-*.npy")
    return file


def packed(source):
    pack(*source, chunk=CHUNK)
    return data_file(source)


def items(source, subset="train"):
    dataset = ShapeNet(*source, subset, npoints=8)
    return [dataset[i] for i in range(len(dataset))]


def flip(file, offset):
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)


def limit_reads(monkeypatch, most):
    """Let the packing read so many files and no more; returns the names read."""
    reads = []
    read_npy = pack_module.read_npy

    def read(path, shape, key):
        if len(reads) == most:
            raise Interruption
        reads.append(path.name)
        return read_npy(path, shape, key)

    monkeypatch.setattr(pack_module, "read_npy", read)
    return reads


def pack_in_part(source, reads, monkeypatch):
    """Interrupt the packing when so many files are read."""
    with monkeypatch.context() as patch:
        limit_reads(patch, reads)
        with pytest.raises(Interruption):
            pack(*source, chunk=CHUNK)


# ---------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("subset", ["train", "test", "whole"])
def test_packed_items_are_those_of_the_files(source, subset, caplog):
    expected = items(source, subset)
    file = packed(source)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        found = items(source, subset)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) and i == j for (a, i), (b, j) in zip(found, expected, strict=True))
    assert [record.message for record in caplog.records] == [f"reading the packed clouds {file}"]


def test_the_array_is_a_plain_one_in_the_order_of_the_index(source):
    clouds = np.load(packed(source), mmap_mode="r")
    names = list(read_index(index_file(source[1])).sources)
    assert names == NAMES
    assert clouds.dtype == np.float32
    assert np.array_equal(clouds, [np.load(Path(source[1], name)) for name in names])


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2"])
def test_files_of_other_floats_are_packed_as_they_are_read(source, dtype):
    path = Path(source[1], TRAIN[4])
    np.save(path, np.load(path).astype(dtype))
    expected = items(source)[4][0]
    packed(source)
    assert torch.equal(items(source)[4][0], expected)


def test_the_files_are_not_needed_any_more(source):
    expected = items(source)
    packed(source)
    shutil.rmtree(source[1])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(items(source), expected, strict=True))
    check(*source)


def test_changing_a_cloud_does_not_change_the_pack(source):
    packed(source)
    dataset = ShapeNet(*source, "train", 8)
    before = dataset.cloud(0).copy()
    dataset.cloud(0)[:] = 0
    assert np.array_equal(dataset.cloud(0), before)


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_read_the_pack(source, method, workers):
    expected = torch.stack([points for points, _ in items(source)])
    packed(source)
    context = multiprocessing.get_context(method)
    loader = DataLoader(ShapeNet(*source, "train", 8), 3, num_workers=workers, multiprocessing_context=context)
    assert torch.equal(torch.cat([points for points, _ in loader]), expected)


def test_a_data_set_pickles_without_its_clouds(source):
    packed(source)
    dataset = ShapeNet(*source, "train", 8).packed
    opened = pickle.loads(pickle.dumps(dataset))
    assert opened._clouds is None
    assert np.array_equal(opened[3], dataset[3])


def test_a_value_that_is_not_finite_is_named(source):
    file = packed(source)
    np.load(file, mmap_mode="r+")[2, 5] = np.nan
    with pytest.raises(ValueError, match=rf"{file.name}, {TRAIN[2]} \(row 2\): row 5 .*is not finite"):
        ShapeNet(*source, "train", 8)[2]


# ---------------------------------------------------------------------------------------------------- stale or damaged


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([*TRAIN, "1-new.npy"], "entry 9 .* was None, is 1-new.npy"),
        (TRAIN[:-1], rf"entry 8 .* was {TRAIN[-1]}, is None"),
        ([TRAIN[1], TRAIN[0], *TRAIN[2:]], rf"entry 0 .* was {TRAIN[0]}, is {TRAIN[1]}"),
    ],
)
def test_another_list_makes_the_pack_stale(source, names, message):
    packed(source)
    Path(source[0], "train.txt").write_text("\n".join(names))
    with pytest.raises(ValueError, match=rf"index\.json was made from another train\.txt.*{message}; {AGAIN}"):
        ShapeNet(*source, "train", 8)
    ShapeNet(*source, "test", 8)  # has its own list


def test_another_number_of_points_is_refused(source):
    packed(source)
    with pytest.raises(ValueError, match=r"index\.json: clouds have 16 points, not 12 \(N_POINTS\); run"):
        ShapeNet(*source[:2], 12, "train", 8)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.unlink(),
        lambda file: os.truncate(file, file.stat().st_size - 1),
        lambda file: os.truncate(file, 0),
        lambda file: file.write_bytes(b"no array"),
        lambda file: np.save(file, np.zeros((11, 15, 3), np.float32)),
        lambda file: np.save(file, np.zeros((11, 16, 3))),
        lambda file: np.savez(file.open("wb"), np.zeros((11, 16, 3), np.float32)),
    ],
    ids=["missing", "a byte short", "empty", "text", "shape", "float64", "npz"],
)
def test_a_foreign_array_is_refused_with_the_way_out(source, change):
    file = packed(source)
    change(file)
    with pytest.raises(ValueError, match=rf"{file.name}: .*; {AGAIN}"):
        ShapeNet(*source, "train", 8)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(version=2),
        lambda index: index.update(n_points="16"),
        lambda index: index.update(chunk=0),
        lambda index: index.update(lists={"train": TRAIN}),
        lambda index: index["lists"]["train"].append("not packed"),
        lambda index: index["lists"]["train"].append([]),
        lambda index: index.update(sources=list(index["sources"])),
        lambda index: index["sources"].update({TRAIN[0]: [1]}),
        lambda index: index["checksums"].pop(),
        lambda index: index.pop("lists"),
        lambda index: index.update(more=1),
    ],
)
def test_a_damaged_index_is_refused_with_the_way_out_and_made_anew(source, change):
    packed(source)
    path = index_file(source[1])
    whole = path.read_bytes()
    index = json.loads(whole)
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"index\.json: not an index of packed clouds.*{AGAIN}"):
        ShapeNet(*source, "train", 8)
    packed(source)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{", b"[" * 100_000])
def test_an_index_that_is_no_json_is_refused(source, content):
    packed(source)
    index_file(source[1]).write_bytes(content)
    with pytest.raises(ValueError, match=r"index\.json: not an index of packed clouds"):
        ShapeNet(*source, "train", 8)


# ---------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("after", range(len(NAMES)))
def test_an_interrupted_packing_continues_after_the_last_whole_chunk(source, after, monkeypatch, caplog):
    whole = packed(source).read_bytes()
    index = index_file(source[1]).read_bytes()
    shutil.rmtree(index_file(source[1]).parent)

    pack_in_part(source, after, monkeypatch)
    assert not index_file(source[1]).exists()
    assert ShapeNet(*source, "train", 8).packed is None  # nothing is used before it is whole

    reads = limit_reads(monkeypatch, len(NAMES))
    with caplog.at_level(logging.INFO):
        assert packed(source).read_bytes() == whole
    assert reads == NAMES[after // CHUNK * CHUNK :]
    assert ("continuing after" in caplog.text) == (after >= CHUNK)
    assert index_file(source[1]).read_bytes() == index
    assert len(list(index_file(source[1]).parent.iterdir())) == 2


@pytest.mark.parametrize("size", [0, 1, 127, 128, 500, 128 + 4 * 192 - 1, 128 + 4 * 192])
def test_a_partial_array_that_was_cut_short_is_completed(source, size, monkeypatch):
    whole = packed(source).read_bytes()
    shutil.rmtree(index_file(source[1]).parent)
    pack_in_part(source, 9, monkeypatch)
    os.truncate(data_file(source), size)
    assert packed(source).read_bytes() == whole


def test_a_journal_with_other_checksums_is_not_believed(source, monkeypatch):
    whole = packed(source).read_bytes()
    shutil.rmtree(index_file(source[1]).parent)
    pack_in_part(source, 9, monkeypatch)
    journal = data_file(source).with_suffix(".sums")
    journal.write_bytes(journal.read_bytes()[:70] + b"\xff")
    flip(data_file(source), 200)
    assert packed(source).read_bytes() == whole


def test_a_source_that_changes_between_two_attempts_is_packed_anew(source, monkeypatch):
    pack_in_part(source, 9, monkeypatch)
    np.save(Path(source[1], TRAIN[0]), np.ones((N_POINTS, 3), np.float32))
    assert (np.load(packed(source))[0] == 1).all()


def test_a_full_disk_is_noticed_before_anything_is_written(source, monkeypatch):
    usage = shutil.disk_usage(source[0])
    needed = 128 + len(NAMES) * N_POINTS * 12
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(ValueError, match=rf"shapenet_pc\.packed needs {needed:,} more bytes .*{needed - 1:,} free"):
        pack(*source)
    assert list(index_file(source[1]).parent.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    pack(*source)


def test_a_second_process_is_refused(source):
    folder = index_file(source[1]).parent
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(ValueError, match=r"another process is packing into .*; wait for it"):
            pack(*source)
    finally:
        os.close(handle)
    pack(*source)


# ---------------------------------------------------------------------------------------------------- packing again


def test_packing_again_changes_nothing(source, monkeypatch, caplog):
    before = packed(source).stat()
    limit_reads(monkeypatch, 0)
    with caplog.at_level(logging.INFO):
        assert packed(source).stat() == before
    assert "is up to date" in caplog.text


def test_an_array_that_is_gone_is_packed_anew(source):
    expected = items(source)
    packed(source).unlink()
    pack(*source, chunk=CHUNK)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(items(source), expected, strict=True))


def test_a_changed_file_replaces_the_pack(source):
    old = packed(source)
    np.save(Path(source[1], TRAIN[1]), np.ones((N_POINTS, 3), np.float32))
    new = packed(source)
    assert not old.exists()
    assert (np.load(new)[1] == 1).all()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.ones((15, 3), np.float32), r"shape \(15, 3\); expected \(16, 3\)"),
        (np.full((16, 3), np.inf), "row 0 .*is not finite"),
        (np.ones((16, 3), int), "expected floats"),
    ],
)
def test_a_foreign_file_is_not_packed(source, points, message):
    np.save(Path(source[1], TRAIN[5]), points)
    with pytest.raises(ValueError, match=f"{TRAIN[5]}: .*{message}"):
        pack(*source)
    assert not index_file(source[1]).exists()


def test_a_missing_file_is_named(source):
    Path(source[1], TRAIN[5]).unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of the 11 files listed in .* are missing, first .*{TRAIN[5]}"):
        pack(*source)


# ---------------------------------------------------------------------------------------------------- checking


@pytest.mark.parametrize(("row", "chunk"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (10, 2)])
def test_a_changed_byte_is_found_by_its_chunk_and_mended(source, row, chunk):
    file = packed(source)
    whole = file.read_bytes()
    flip(file, 128 + row * N_POINTS * 12)
    rows = NAMES[chunk * CHUNK : (chunk + 1) * CHUNK]
    found = rf"{file.name}: 1 of 3 chunks differ .*: chunk {chunk} \({rows[0]} to {rows[-1]}\); {AGAIN}"
    with pytest.raises(ValueError, match=found):
        check(*source)
    pack(*source, chunk=CHUNK)
    assert file.read_bytes() == whole
    check(*source)


@pytest.mark.parametrize("change", ["size", "date"])
def test_a_file_that_changed_since_is_named(source, change):
    packed(source)
    path = Path(source[1], TRAIN[6])
    status = path.stat()
    if change == "size":
        np.save(path, np.zeros((N_POINTS, 4), np.float32))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(ValueError, match=f"1 files of .* another size or date .* first {TRAIN[6]}; {AGAIN}"):
        check(*source)


def test_a_check_compares_both_lists(source):
    packed(source)
    Path(source[0], "test.txt").write_text("\n".join(TEST[1:]))
    with pytest.raises(ValueError, match=r"made from another test\.txt"):
        check(*source)


def test_a_check_needs_a_pack(source):
    with pytest.raises(FileNotFoundError, match=rf"index\.json does not exist; {AGAIN}"):
        check(*source)


def test_a_check_says_what_it_saw(source, caplog):
    packed(source)
    Path(source[1], TRAIN[0]).unlink()
    with caplog.at_level(logging.INFO):
        check(*source)
    assert "11 clouds are whole; 1 of their files are gone" in caplog.text


# ---------------------------------------------------------------------------------------------------- command line


def config_file(tmp_path, source, name="ShapeNet"):
    keys = f"DATA_PATH: {source[0]}, PC_PATH: {source[1]}, N_POINTS: {source[2]}"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{NAME: I2P_MAE}}\n"
        f"dataset: {{train: {{NAME: {name}, {keys}, others: {{subset: train, npoints: 8}}}}}}\n"
    )
    return str(config)


def test_the_command_packs_and_checks_what_a_config_reads(source, tmp_path):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "datasets.pack"]
    command += ["--config", config_file(tmp_path, source)]
    root = Path(__file__).parents[1]
    outcome = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 0, outcome.stderr
    assert "packed 11 clouds into" in outcome.stderr
    flip(data_file(source), 200)
    outcome = subprocess.run([*command, "--check"], cwd=root, capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1].startswith("error: ")
    assert "chunk 0" in outcome.stderr


def test_the_command_line_goes_before_the_config(source, tmp_path):
    arguments = ["--config", config_file(tmp_path, (source[0], "elsewhere", 5))]
    args = pack_module.parse_args([*arguments, "--pc_path", source[1]])
    assert (args.data_path, args.pc_path, args.n_points) == (source[0], source[1], 5)


def test_only_shapenet_is_packed(source, tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml: dataset\.train\.NAME is 'ScanObjectNN'; only ShapeNet"):
        pack_module.parse_args(["--config", config_file(tmp_path, source, "ScanObjectNN")])
