"""What is made of files on disk where the published is missing: ShapeNet-55's lists, ModelNet40's processed files."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import build_dataset, lists, process_modelnet
from datasets.inspection import entries, inspect
from datasets.lists import write_lists
from datasets.packed import read_list
from datasets.process_modelnet import farthest, process
from datasets.synthetic import write_modelnet

# ---- lists ----


@pytest.fixture
def shapes(tmp_path):
    """Ten files of one taxonomy, five of another, one of a third, and others."""
    folder = tmp_path / "ShapeNet55-34/shapenet_pc"
    folder.mkdir(parents=True)
    for taxonomy, count in (("02691156", 10), ("03001627", 5), ("04554684", 1)):
        for i in range(count):
            np.save(folder / f"{taxonomy}-m{i}.npy", np.full((4, 3), i + 1, np.float32))
    (folder / "readme.npy").touch()
    return folder


def drawn(folder):
    return {subset: read_list(folder / f"{subset}.txt") for subset in ("train", "test")}


def test_a_fifth_of_each_taxonomy_is_held_out(shapes, tmp_path):
    assert write_lists(tmp_path / "a", shapes) == {"train": 13, "test": 3}
    found = drawn(tmp_path / "a")
    assert sorted(name.partition("-")[0] for name in found["test"]) == ["02691156", "02691156", "03001627"]
    assert sorted(found["train"] + found["test"]) == sorted(path.name for path in shapes.glob("0*"))
    assert json.loads((tmp_path / "a/lists.json").read_text()) == {
        "drawn_by": "python -m datasets.lists", "seed": 0, "share": 0.2, "published": False,
    }  # fmt: skip


def test_the_draw_depends_on_the_seed_and_the_files_of_the_taxonomy(shapes, tmp_path):
    write_lists(tmp_path / "a", shapes)
    write_lists(tmp_path / "b", shapes, seed=1)
    assert drawn(tmp_path / "a") != drawn(tmp_path / "b")
    for path in shapes.glob("03001627*"):
        path.unlink()
    write_lists(tmp_path / "c", shapes)
    of_first = [[name for name in drawn(tmp_path / place)["test"] if name.startswith("0269")] for place in "ac"]
    assert of_first[0] == of_first[1]


@pytest.mark.parametrize("name", ["train.txt", "test.txt"])
def test_lists_that_are_there_stay(shapes, tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / f"a/{name}").write_text("mine")
    with pytest.raises(ValueError, match=rf"{name} is there already and stays as it is"):
        write_lists(tmp_path / "a", shapes)
    assert [path.name for path in (tmp_path / "a").iterdir()] == [name]


def test_too_few_files_are_refused(shapes, tmp_path):
    for path in shapes.glob("0[23]*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"1 files .* are too few"):
        write_lists(tmp_path / "a", shapes)
    with pytest.raises(FileNotFoundError, match="PC_PATH"):
        write_lists(tmp_path / "a", tmp_path / "nowhere")


def test_the_command_writes_where_the_reader_looks(shapes, tmp_path, caplog):
    with caplog.at_level("INFO"):
        lists.main(["--root", str(tmp_path)])
    assert "13 train + 3 test; published: 41,952 train + 10,518 test. This is another split" in caplog.text
    (entry,) = entries(tmp_path, ["ShapeNet"])
    assert len(build_dataset({**entry, "N_POINTS": 4, "others": {"subset": "test", "npoints": 4}})) == 3
    assert inspect(entry).verdict == "other version"


# ---- processed files ----


def by_hand(points: np.ndarray, count: int) -> list[int]:
    """Farthest point sampling as it is defined, in double precision."""
    points = points.astype(np.float64)
    picked = [0]
    while len(picked) < count:
        distances = ((points[:, None] - points[picked]) ** 2).sum(axis=2).min(axis=1)
        picked.append(int(distances.argmax()))
    return picked


def test_samples_are_those_taken_by_hand_also_near_the_origin():
    rng = np.random.default_rng(0)
    clouds = [rng.normal(size=(60, 6)).astype(np.float32) for _ in range(3)]
    clouds[1][:, :3] *= 0.01  # within the radius that the sampling takes for padding
    clouds[2] = clouds[2][:50]
    for some in (clouds[:2], clouds):
        found = farthest(some, 20, torch.device("cpu"))
        for cloud, ours in zip(some, found, strict=True):
            np.testing.assert_array_equal(ours, cloud[by_hand(cloud[:, :3], 20)])


@pytest.fixture
def text_files(tmp_path):
    folder = write_modelnet(tmp_path, classes=["mug", "lamp"], train=3, test=1, num_points=40, text=True)
    (folder / "SYNTHETIC.json").unlink()
    return folder


def test_the_command_writes_what_the_reader_reads_and_goes_on(text_files, tmp_path, monkeypatch):
    monkeypatch.setattr(process_modelnet, "CHUNK", 2)
    arguments = ["--root", str(tmp_path), "--points", "16", "--workers", "1"]
    broken = text_files / "lamp/lamp_0002.txt"
    text = broken.read_text()
    broken.write_text(text.replace(",", ";"))
    with pytest.raises(ValueError, match=r"lamp_0002\.txt: not lines of 6"):
        process_modelnet.main(arguments)
    (chunks,) = text_files.glob(".modelnet40_train_16pts_fps.dat.*.chunks")
    kept = [path.name for path in chunks.iterdir()]
    assert set(kept) == {"000000.npy", "000002.npy"}
    assert not list(text_files.glob("*.dat"))
    broken.write_text(text)
    first = np.load(chunks / "000000.npy")
    np.save(chunks / "000000.npy", first + 1)  # to see that it is taken over, not made again
    process_modelnet.main(arguments)
    assert not chunks.exists()
    entry = {"NAME": "ModelNet", "DATA_PATH": str(text_files), "N_POINTS": 16, "NUM_CATEGORY": 2, "USE_NORMALS": True}
    data = build_dataset({**entry, "others": {"subset": "train"}})
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    names = [f"{name}/{name}_{i:04d}.txt" for name in ("mug", "lamp") for i in (1, 2, 3)]
    for i, name in enumerate(names):
        rows = np.loadtxt(text_files / name, dtype=np.float32, delimiter=",")
        np.testing.assert_array_equal(data.cloud(i), rows[by_hand(rows[:, :3], 16)] + (i < 2))
    content = pickle.loads((text_files / "modelnet40_test_16pts_fps.dat").read_bytes())
    assert [type(part) for part in content] == [list, list]
    assert [(cloud.shape, cloud.dtype) for cloud in content[0]] == [((16, 6), np.dtype("float32"))] * 2
    assert [(label.shape, label.dtype, int(label[0])) for label in content[1]] == [
        ((1,), np.dtype("int32"), 0),
        ((1,), np.dtype("int32"), 1),
    ]


@pytest.mark.slow
def test_several_processes_give_the_same_in_the_same_order(text_files, monkeypatch):
    monkeypatch.setattr(process_modelnet, "CHUNK", 1)
    one = process(text_files, 16, "train", 1, torch.device("cpu")).read_bytes()
    (text_files / "modelnet40_train_16pts_fps.dat").unlink()
    assert process(text_files, 16, "train", 2, torch.device("cpu")).read_bytes() == one


def test_a_file_that_is_there_stays(text_files):
    path = Path(text_files / "modelnet40_test_16pts_fps.dat")
    path.write_text("mine")
    assert process(text_files, 16, "test", 1, torch.device("cpu")) == path
    assert path.read_text() == "mine"


def test_too_few_points_are_told(text_files):
    with pytest.raises(ValueError, match=r"mug_0001\.txt has 40 points; 41 are asked for: lower --points"):
        process_modelnet._read(41, [text_files / "mug/mug_0001.txt"])


def test_missing_text_files_are_told_with_the_way_out(text_files):
    (text_files / "mug/mug_0002.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 6 files .*mug_0002\.txt .*datasets\.download ModelNet"):
        process(text_files, 16, "train", 1, torch.device("cpu"))
