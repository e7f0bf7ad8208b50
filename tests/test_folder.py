"""Data of one's own: folders and lists, splits, draws, and the cache of what was read."""

import io
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import build_dataset, check_dataset_config, fingerprint, name_of
from datasets.folder import Folder
from datasets.holdout import Part
from datasets.own import cache as points_cache
from datasets.own.cache import PointsCache
from datasets.own.files import draw_split, list_files
from tests.playground import REPOSITORY


def cloud(number, points=20):
    """A cloud that no other number gives, off the origin."""
    return np.random.default_rng(number).normal(5, 1, (points, 3)).astype(np.float32)


def write(root, *paths, points=20):
    """Write a cloud to each path below a folder; of the i-th path, cloud i."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / path, cloud(number, points))
    return root


def classes(root, count=10, names=("chair", "mug")):
    return write(root, *(f"{name}/{i}.npy" for name in names for i in range(count)))


def listed(root):
    """path → (label, split)."""
    listing = list_files(root)
    labels, splits = listing.labels or [None] * len(listing.paths), listing.splits or [None] * len(listing.paths)
    return dict(zip(listing.paths, zip(labels, splits, strict=True), strict=True))


# ---- which files ----


def test_layouts_of_folders(tmp_path):
    assert listed(write(tmp_path / "flat", "b.npy", "a.npy")) == {"a.npy": (None, None), "b.npy": (None, None)}
    assert listed(write(tmp_path / "classes", "mug/1.npy", "car/deep/er/2.npy", "train/3.npy")) == {
        "mug/1.npy": ("mug", None),
        "car/deep/er/2.npy": ("car", None),
        "train/3.npy": ("train", None),  # beside other classes but without test: a class
    }
    expected = {"train/mug/1.npy": ("mug", "train"), "test/mug/2.npy": ("mug", "test")}
    assert listed(write(tmp_path / "on_top", "train/mug/1.npy", "test/mug/2.npy", "val/mug/3.npy")) == expected
    assert listed(write(tmp_path / "no_classes", "train/1.npy", "test/2.npy")) == {
        "train/1.npy": (None, "train"),
        "test/2.npy": (None, "test"),
    }
    assert listed(write(tmp_path / "below", "mug/train/1.npy", "mug/test/2.npy")) == {
        "mug/train/1.npy": ("mug", "train"),
        "mug/test/2.npy": ("mug", "test"),
    }


def test_other_files_are_left_alone_and_counted(tmp_path):
    root = write(tmp_path / "mine", "mug/1.npy", "mug/.hidden.npy", "__MACOSX/mug/1.npy")
    (root / "mug/wood.mtl").touch()
    (root / "LICENSE").touch()
    listing = list_files(root)
    assert (listing.paths, listing.others) == (["mug/1.npy"], {".mtl": 1, "none": 1})


def make_list(root, name, text):
    write(root, "clouds/1.npy", "clouds/2.npy")
    (root / name).write_text(text)
    return root / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mine.csv", "path,label,split\nclouds/1.npy,mug,train\nclouds/2.npy,car,test\n"),
        ("mine.csv", "\ufeffsplit,path,label\r\ntest,./clouds/2.npy,car\r\ntrain,clouds/1.npy, mug\r\n"),
        (
            "mine.json",
            '[{"path": "clouds/1.npy", "label": "mug", "split": "train"}, '
            '{"path": "clouds/2.npy", "split": "test", "label": "car"}]',
        ),
    ],
)
def test_lists(tmp_path, name, text):
    expected = {"clouds/1.npy": ("mug", "train"), "clouds/2.npy": ("car", "test")}
    assert listed(make_list(tmp_path, name, text)) == expected


def test_lists_without_classes_and_splits(tmp_path):
    expected = {"clouds/1.npy": (None, None), "clouds/2.npy": (None, None)}
    assert listed(make_list(tmp_path, "mine.json", '["clouds/2.npy", "clouds/1.npy"]')) == expected
    assert listed(make_list(tmp_path, "mine.csv", "path\nclouds/1.npy\nclouds/2.npy\n")) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path,lable\nclouds/1.npy,mug\n", "unknown key 'lable' in the first line of .*did you mean 'label'"),
        ("a.csv", "path,label\n../1.npy,mug\n", "path '../1.npy' leads out of"),
        ("a.csv", "path\n/etc/passwd\n", "path '/etc/passwd' leads out of"),
        ("a.csv", "path\nclouds/9.npy\n", "a.csv, entry 1: file .*9.npy does not exist"),
        ("a.csv", "path\nclouds/1.txt~\n", r"a.csv, entry 1: clouds/1.txt~ is of no kind that is read: .npy, .npz"),
        ("a.csv", "path,split\nclouds/1.npy,val\n", "a.csv, entry 1: split is 'val'; choose one of train, test"),
        ("a.csv", "path,label\nclouds/1.npy,mug\nclouds/2.npy,\n", "1 of 2 files have no class, first clouds/2.npy"),
        ("a.csv", "path\nclouds/1.npy\n./clouds/1.npy\n", "lists clouds/1.npy more than once"),
        ("a.csv", "path\n", "the list is empty"),
        ("a.json", '{"path": "clouds/1.npy"}', "expected a list of paths, or of mappings with path, label, split"),
        ("a.json", '[{"path": 3}]', r"entry 1 is \{'path': 3\}; expected texts"),
        ("a.json", "[", "not a .json list"),
        ("a.yaml", "", "ROOT is the file .*a.yaml; give a folder, or a list that ends in .csv or .json"),
    ],
)
def test_lists_that_are_refused(tmp_path, name, text, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        list_files(make_list(tmp_path, name, text))


def test_nothing_leads_out_of_the_folder(tmp_path):
    outside = write(tmp_path / "outside", "1.npy")
    root = write(tmp_path / "mine", "mug/1.npy")
    for place, target in (("mug/link.npy", outside / "1.npy"), ("car", outside)):
        (root / place).symlink_to(target)
        with pytest.raises(ValueError, match=rf"{place} is a link that leads out of"):
            list_files(root)
        (root / place).unlink()
    (root / "mug/again.npy").symlink_to(root / "mug/1.npy")
    assert list(listed(root)) == ["mug/1.npy", "mug/again.npy"]
    (root / "loop").symlink_to(root)
    with pytest.raises(ValueError, match="loop is a link to a folder of the same data"):
        list_files(root)
    inside = make_list(tmp_path / "mine", "a.csv", "path\nclouds/link.npy\n")
    (tmp_path / "mine/clouds/link.npy").symlink_to(outside / "1.npy")
    with pytest.raises(ValueError, match=r"entry 1: clouds/link\.npy is a link that leads out of"):
        list_files(inside)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["1.npy", "mug/2.npy"], "1 of 2 files have no class, first 1.npy; give all of them one, or none"),
        (["mug/train/1.npy", "mug/2.npy"], "1 of 2 files have no split, first mug/2.npy"),
        (["train/mug/1.npy", "test/mug/2.npy", "rest/3.npy"], "has folders beside train and test: rest; move them"),
    ],
)
def test_folders_that_are_refused(tmp_path, paths, message):
    with pytest.raises(ValueError, match=message):
        list_files(write(tmp_path, *paths))


def test_what_is_no_data_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist \(config key ROOT\); docs/OWN_DATA.md"):
        list_files(tmp_path / "nowhere")
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"holds no file that is read .*but 1 .jpg"):
        list_files(tmp_path)


# ---- the split ----


def test_a_fifth_of_each_class_is_held_out(tmp_path):
    root = classes(tmp_path / "mine", 10)
    write(root, "lamp/1.npy", "pen/1.npy", "pen/2.npy")
    listing = list_files(root)
    split = draw_split(listing, 0)
    held = [listing.labels[i] for i, value in enumerate(split) if value == "test"]
    assert sorted(held) == ["chair", "chair", "mug", "mug", "pen"]  # lamp has one cloud only
    assert draw_split(listing, 0) == split
    assert draw_split(listing, 1) != split


def test_the_split_does_not_depend_on_seeds_of_runs_and_covers_all(tmp_path):
    root = classes(tmp_path / "mine", 10)
    parts = {subset: [Folder(root, subset, 8, seed=seed).paths for seed in (0, 7)] for subset in ("train", "test")}
    assert parts["train"][0] == parts["train"][1]
    assert len(parts["train"][0]) == 16
    assert sorted(parts["train"][0] + parts["test"][0]) == list_files(root).paths
    assert Folder(root, "test", 8).split_drawn


def test_without_classes_all_clouds_train(tmp_path):
    root = write(tmp_path / "mine", "1.npy", "2.npy")
    data = Folder(root, "train", 8)
    assert (data.paths, data.class_names, data.labels.tolist()) == (["1.npy", "2.npy"], [], [0, 0])
    assert not data.split_drawn
    with pytest.raises(ValueError, match="Folder mine has no clouds of the test split, and without classes none is"):
        Folder(root, "test", 8)


def test_labels_count_the_classes_of_both_splits(tmp_path):
    root = write(tmp_path / "mine", "train/b/1.npy", "train/c/2.npy", "test/a/3.npy", "test/c/4.npy")
    train, test = Folder(root, "train", 8), Folder(root, "test", 8)
    assert train.class_names == test.class_names == ["a", "b", "c"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 2], [0, 2])
    assert [label for _, label in (train[0], train[1])] == [1, 2]


# ---- clouds ----


def rows(points):
    return {tuple(row) for row in np.round(np.asarray(points, dtype=np.float64), 5)}


def test_clouds_are_drawn_anew_in_training_and_stay_in_testing(tmp_path):
    root = write(tmp_path / "mine", "train/a/1.npy", "test/a/2.npy", points=200)
    train, test = (Folder(root, subset, 50, normalise=False) for subset in ("train", "test"))
    first, held = train[0][0], test[0][0]
    assert first.shape == held.shape == (50, 3)
    assert rows(first) < rows(cloud(0, 200))
    assert rows(held) < rows(cloud(1, 200))
    assert torch.equal(first, train[0][0])
    for data in (train, test):
        data.set_epoch(1)
    assert not torch.equal(first, train[0][0])
    assert torch.equal(held, test[0][0])
    assert torch.equal(held, Folder(root, "test", 50, normalise=False, seed=9)[0][0])
    assert not torch.equal(first, Folder(root, "train", 50, normalise=False, seed=9)[0][0])


def test_the_first_points_of_a_file_are_no_better_than_others(tmp_path):
    """Scanners write points in the order in which they see them."""
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine/1.npy", np.arange(3000.0).reshape(1000, 3))
    points = Folder(tmp_path / "mine", "train", 100, normalise=False).cloud(0)
    assert 1000 < points[:100].mean() < 2000


def test_fewer_points_repeat_as_often_as_needed(tmp_path):
    root = write(tmp_path / "mine", "1.npy", points=8)
    points = Folder(root, "train", 20, normalise=False)[0][0]
    counts = np.unique(points.numpy(), axis=0, return_counts=True)[1]
    assert sorted(counts) == [2, 2, 2, 2, 3, 3, 3, 3]


def test_large_clouds_are_thinned_at_random_once(tmp_path):
    root = write(tmp_path / "mine", "1.npy", points=500)
    data = Folder(root, "train", 20, n_points=100, normalise=False)
    assert data.cloud(0).shape == (100, 3)
    assert rows(data.cloud(0)) < rows(cloud(0, 500))
    assert data.record(0).points == 500
    other = Folder(root, "train", 20, n_points=100, normalise=False, split_seed=1)
    assert rows(other.cloud(0)) != rows(data.cloud(0))
    with pytest.raises(ValueError, match="npoints is 101"):
        Folder(root, "train", 101, n_points=100)


def test_up_and_normalise(tmp_path):
    root = write(tmp_path / "mine", "1.npy")
    as_is = Folder(root, "train", 20, normalise=False)[0][0]
    assert rows(as_is) == rows(cloud(0))
    x, y, z = Folder(root, "train", 20, up="z", normalise=False)[0][0].T
    assert torch.equal(torch.stack([x, -z, y], dim=1), as_is)  # what pointed along z points along y, and no mirror
    scaled = Folder(root, "train", 20)[0][0]
    assert torch.allclose(scaled.mean(dim=0), torch.zeros(3), atol=1e-6)
    assert scaled.norm(dim=1).max().item() == pytest.approx(1)


def test_far_coordinates_keep_their_digits(tmp_path):
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine/1.npy", cloud(0).astype(np.float64) * 1e-3 + (5e5, 5e6, 0))
    near = write(tmp_path / "near", "1.npy")
    far = Folder(tmp_path / "mine", "train", 20)[0][0]
    assert torch.allclose(far[far[:, 0].argsort()], sorted_by_x(Folder(near, "train", 20)[0][0]), atol=1e-4)


def sorted_by_x(points):
    return points[points[:, 0].argsort()]


def test_unreadable_files(tmp_path):
    root = classes(tmp_path / "mine", 4)
    (root / "mug/2.npy").write_bytes(b"junk")
    (root / "mug/9.ply").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"^2 of 9 files of Folder mine cannot be read, first .*2.npy: not a readable"):
        Folder(root, "train", 8)
    with pytest.raises(ValueError, match=r"SKIP_BAD: 2$"):
        Folder(root, "train", 8, skip_bad=1)
    data = [Folder(root, subset, 8, skip_bad=2) for subset in ("train", "test")]
    assert sorted(data[0].paths + data[1].paths) == [f"chair/{i}.npy" for i in range(4)] + [
        f"mug/{i}.npy" for i in (0, 1, 3)
    ]
    assert list(data[0].unreadable) == ["mug/2.npy", "mug/9.ply"]


# ---- the config and the results ----


def test_a_config_entry_builds_it(tmp_path):
    root = classes(tmp_path / "mine", 5)
    entry = {"NAME": "Folder", "ROOT": str(root), "UP": "z", "NORMALISE": False, "SKIP_BAD": 1, "SPLIT_SEED": 2}
    data = build_dataset({**entry, "N_POINTS": 16, "others": {"subset": "train", "npoints": 8, "bs": 2, "seed": 1}})
    assert (data.up, data.normalise, data.npoints, data.seed) == ("z", False, 8, 1)
    assert (data.cache.n_points, data.cache.seed) == (16, 2)
    for key, value, message in (
        ("UP", "x", "dataset.train.UP is 'x'; expected"),
        ("NORMALISE", 1, "dataset.train.NORMALISE is 1; expected bool"),
        ("SEED", 1, "unknown key 'dataset.train.SEED'; did you mean 'SPLIT_SEED'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_dataset_config({**entry, key: value, "others": {"subset": "train", "npoints": 8}}, "dataset.train")


def test_results_name_the_folder_and_know_its_files(tmp_path):
    root = classes(tmp_path / "my_shapes", 5)
    data = Folder(root, "train", 8)
    assert name_of(data) == name_of(Part(data, np.array([0]))) == "Folder my_shapes"
    before = fingerprint(data)
    assert (before["name"], before["clouds"]) == ("Folder my_shapes", 8)
    assert fingerprint(Folder(root, "train", 8, seed=5)) == before
    assert fingerprint(Part(data, np.array([0, 1]))) != fingerprint(Part(data, np.array([0, 2])))
    np.save(root / data.paths[0], cloud(99))
    assert fingerprint(Folder(root, "train", 8)) != before


# ---- the cache ----


@pytest.fixture
def reads(monkeypatch):
    """The files that are read, not taken from the cache."""
    seen, read = [], points_cache.read_points
    monkeypatch.setattr(points_cache, "read_points", lambda path, *more: (seen.append(path.name), read(path, *more))[1])
    return seen


def test_files_are_read_once(tmp_path, reads):
    root = write(tmp_path / "mine", "train/a/1.npy", "test/a/2.npy")
    first = Folder(root, "train", 8)[0][0]
    assert reads == ["2.npy", "1.npy"]
    assert torch.equal(Folder(root, "train", 8)[0][0], first)
    assert len(Folder(root, "test", 8)[0][0]) == 8
    assert len(reads) == 2
    assert {path.suffix for path in (tmp_path / "mine.packed").iterdir()} == {".json", ".f32", ""}


def test_another_file_size_date_or_setting_reads_again(tmp_path, reads):
    root = write(tmp_path / "mine", "1.npy")

    def read_again(**settings):
        reads.clear()
        points = Folder(root, "train", 8, **{"normalise": False} | settings)[0][0]
        return bool(reads), points

    assert read_again()[0]
    assert not read_again(up="z", seed=3, skip_bad=2)[0]
    assert read_again(n_points=9)[0]
    assert read_again(split_seed=1)[0]
    assert read_again(normalise=True)[0]
    assert not read_again()[0]  # that of the first settings is still there
    os.utime(root / "1.npy", ns=(1, 1))
    assert read_again()[0]
    np.save(root / "1.npy", cloud(7))
    again, points = read_again()
    assert again
    assert rows(points) < rows(cloud(7))
    write(root, "1.npy", "2.npy")
    assert read_again()[0]
    of_settings = [path.stem.split("-")[1] for path in (tmp_path / "mine.packed").glob("*.json")]
    assert len(of_settings) == len(set(of_settings)) == 4  # of each settings the latest


def test_a_damaged_cache_is_noticed(tmp_path, reads, caplog):
    root = write(tmp_path / "mine", "1.npy", "2.npy")
    data = Folder(root, "train", 8)
    content = bytearray(data.cache.data.read_bytes())
    content[-1] ^= 1
    data.cache.data.write_bytes(content)
    again = Folder(root, "train", 8)
    assert len(again[0][0]) == 8
    with pytest.raises(ValueError, match=r"\.f32 is damaged at 2.npy; delete .*mine.packed, and it is made anew$"):
        again[1]
    reads.clear()
    for damage in (lambda: os.truncate(data.cache.data, 30), lambda: data.cache.index.write_text('{"records": 3}')):
        damage()
        assert len(Folder(root, "train", 8)[1][0]) == 8
        assert "cannot be used" in caplog.text
    assert len(reads) == 4


def test_an_interrupted_read_leaves_no_cache(tmp_path, monkeypatch):
    root = write(tmp_path / "mine", "1.npy", "2.npy")
    read = points_cache.read_points

    def stop(path, *more):
        if path.name == "2.npy":
            raise KeyboardInterrupt
        return read(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(points_cache, "read_points", stop)
        with pytest.raises(KeyboardInterrupt):
            Folder(root, "train", 8)
    assert [path.name for path in (tmp_path / "mine.packed").iterdir()] == [".lock"]
    assert len(Folder(root, "train", 8)) == 2


def test_what_the_disk_refuses_is_no_fault_of_the_file(tmp_path, monkeypatch):
    root = write(tmp_path / "mine", "1.npy", "2.npy")

    def refuse(path, *more):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(points_cache, "read_points", refuse)
        with pytest.raises(PermissionError, match=r"1\.npy"):
            Folder(root, "train", 8, skip_bad=2)
    assert len(Folder(root, "train", 8)) == 2


def test_where_nothing_can_be_written_the_cache_is_elsewhere(tmp_path, monkeypatch, reads):
    root = write(tmp_path / "mine", "1.npy")
    monkeypatch.setenv("I2P_MAE_CACHE", str(tmp_path / "cache"))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    data = Folder(root, "train", 8)
    assert data.cache.data.parent.parent == tmp_path / "cache/own-data"
    assert not (tmp_path / "mine.packed").exists()
    assert torch.equal(Folder(root, "train", 8)[0][0], data[0][0])
    assert len(reads) == 1


def test_a_pickled_data_set_opens_the_file_again(tmp_path):
    data = Folder(write(tmp_path / "mine", "1.npy", points=5000), "train", 8)
    before = data[0][0]
    content = pickle.dumps(data)
    assert len(content) < 5000
    assert torch.equal(pickle.loads(content)[0][0], before)


OTHER_PROCESS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from utils.files import locked
with locked(Path(sys.argv[2])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_processes_wait_for_the_one_that_reads(tmp_path, reads):
    root = write(tmp_path / "mine", "1.npy")
    made = Folder(root, "train", 8).cache  # what the other process is about to make
    made.index.rename(made.index.with_suffix(".kept"))
    command = [sys.executable, "-c", OTHER_PROCESS, str(REPOSITORY), str(made.index.parent)]
    reads.clear()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        waiting = threading.Thread(target=lambda: PointsCache(root, root, ["1.npy"], 8192, True, 0))
        waiting.start()
        time.sleep(0.3)
        assert waiting.is_alive()
        made.index.with_suffix(".kept").rename(made.index)
        other.stdin.close()
        waiting.join(20)
        assert not waiting.is_alive()
    assert reads == []


def test_records_say_what_the_files_hold(tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    file = io.BytesIO()
    np.save(file, np.array([[0, 0, 0], [2, 1, 4.0]]))
    for name in ("a.npy", "b.npy"):
        (root / name).write_bytes(file.getvalue())
    data = Folder(root, "train", 8)
    assert list(data.record(0).extents) == [2, 1, 4]
    assert data.record(0).sha256 == data.record(1).sha256
    content = json.loads(data.cache.index.read_text())
    assert set(content["records"]) == {"a.npy", "b.npy"}
