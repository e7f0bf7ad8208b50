"""`python -m datasets.check` on whole, incomplete, damaged and foreign files."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from datasets.check import main
from datasets.inspection import _clouds, entries, inspect
from datasets.pack import pack
from datasets.sources import SOURCES, layout_rows, origin_rows
from datasets.synthetic import (
    write_fewshot,
    write_modelnet,
    write_modelnet_svm,
    write_s3dis,
    write_scanobjectnn,
    write_shapenet,
    write_shapenetpart,
)
from utils.tables import markdown_table

ROOT = Path(__file__).parents[1]
TEN = ["bag", "bed", "bottle", "chair", "desk", "knife", "lamp", "laptop", "mug", "table"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All data sets, generated."""
    root = tmp_path_factory.mktemp("data")
    write_shapenet(root, classes=["chair", "mug"], train=2, test=1, num_points=8)
    write_modelnet_svm(root, classes=["chair", "lamp"], train=2, test=1, num_points=8)
    write_modelnet(root, classes=["chair", "lamp"], train=2, test=1, num_points=8, text=True)
    write_scanobjectnn(root, classes=["bag", "bed"], train=2, test=1, num_points=8)
    write_fewshot(root, classes=TEN, test=1, num_points=2)
    write_shapenetpart(root, classes=["mug", "knife"], train=2, test=1, num_points=8)
    write_s3dis(root, train=2, test=1, num_points=30)
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy to damage, which nothing marks as generated."""
    shutil.copytree(made, tmp_path / "data")
    for marker in (tmp_path / "data").rglob("SYNTHETIC.json"):
        marker.unlink()
    return tmp_path / "data"


def look(root, name, full=False, split=""):
    return next(inspect(e, full) for e in entries(root, [name]) if e.get("SPLIT", "") == split)


def shown(capsys, *arguments):
    code = main([*map(str, arguments)])
    return code, capsys.readouterr().out


def test_generated_data_are_whole_and_called_so(made, capsys):
    code, text = shown(capsys, "--root", made)
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()[2:11]] == [
        *("ShapeNet", "ModelNet40_SVM", "ModelNet", "ModelNetFewShot"),
        *("ScanObjectNN", "ScanObjectNN", "ScanObjectNN", "ShapeNetPart"),
        "S3DIS",
    ]
    assert all(" generated " in line for line in text.splitlines()[2:11])


def test_nothing_there_is_missing_with_the_way_out_once(tmp_path, capsys):
    code, text = shown(capsys, "ScanObjectNN", "ModelNet40_SVM", "--root", tmp_path)
    assert code == 1
    assert text.count(" missing, the folder is not there") == 4
    assert text.count("way out: ") == 2
    assert f"`python -m datasets.download ModelNet40_SVM --root {tmp_path}` downloads it" in text
    assert f"`python -m datasets.download ScanObjectNN --root {tmp_path}` says how to get it" in text
    assert "terms: its own, to be accepted on its page" in text


def test_json_is_for_scripts(root, capsys):
    code, text = shown(capsys, "ModelNet", "--root", root, "--json")
    (found,) = json.loads(text)
    assert code == 0
    assert found["verdict"] == "subset"
    assert found["whole"] is True
    assert found["splits"]["train"] == {"clouds": 4, "points": None, "labels": {"chair": 2, "lamp": 2}}
    assert found["missing"] == {"count": 0, "files": []}
    assert found["published"] == {"train": 9843, "test": 2468}
    assert found["url"] == "https://shapenet.cs.stanford.edu/media/modelnet40_normal_resampled.zip"


def test_missing_files_are_counted_and_the_first_are_named(root, capsys):
    (root / "ShapeNet55-34/ShapeNet-55/test.txt").unlink()
    for path in sorted((root / "ShapeNet55-34/shapenet_pc").glob("*-train*"))[:4]:
        path.unlink()
    code, text = shown(capsys, "ShapeNet", "--root", root)
    assert code == 1
    assert "incomplete, 5 of 6 files are missing" in text
    assert f"missing: 5 files, {root}/ShapeNet55-34/ShapeNet-55/test.txt, " in text
    assert "03001627-train00001.npy and 2 more" in text


@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        ("ModelNet", "", "ModelNet/modelnet40_normal_resampled/lamp/lamp_0001.txt"),
        ("ModelNet", "", "ModelNet/modelnet40_normal_resampled/modelnet40_shape_names.txt"),
        ("ScanObjectNN", "pb", "ScanObjectNN/main_split/test_objectdataset_augmentedrot_scale75.h5"),
        ("ScanObjectNN", "obj", "ScanObjectNN/main_split_nobg/training_objectdataset.h5"),
        ("ModelNetFewShot", "", "ModelNetFewshot/10way_20shot/9.pkl"),
        ("ShapeNetPart", "", "{part}/train_test_split/shuffled_val_file_list.json"),
        ("ShapeNetPart", "", "{part}/03797390/test00000.txt"),
    ],
)
def test_each_kind_of_missing_file_is_found(root, name, split, file):
    path = root / file.format(part=SOURCES["ShapeNetPart"].home)
    path.unlink()
    found = look(root, name, split=split)
    assert found.verdict == "incomplete"
    assert found.missing == [str(path)]


def test_rooms_that_are_not_there_are_missing_and_other_files_wrong(root):
    folder = root / "stanford_indoor3d"
    (folder / "Area_5_office_1.npy").unlink()
    found = look(root, "S3DIS")
    assert found.verdict == "incomplete"
    assert found.missing == [str(folder / "Area_5_<room>.npy")]
    assert {subset: split["clouds"] for subset, split in found.splits.items()} == {"train": 2, "test": 0}
    np.save(folder / "Area_5_hall_1.npy", np.zeros((4, 6)))
    (problem,) = look(root, "S3DIS").problems
    assert problem == f"{folder}/Area_5_hall_1.npy: shape (4, 6); expected (points, 7)"


def test_all_seven_h5_files_of_the_published_modelnet_are_expected(root):
    assert [Path(path).name for path in look(root, "ModelNet40_SVM").missing] == [
        *(f"ply_data_train{i}.h5" for i in (1, 2, 3, 4)),
        "ply_data_test1.h5",
    ]


def published(monkeypatch, name, **clouds):
    """Let so many clouds be the published number."""
    titled = SimpleNamespace(title="two", clouds=clouds)
    monkeypatch.setitem(SOURCES[name].versions, "", titled)


def test_verdicts_are_by_counts_and_classes(root, monkeypatch):
    assert look(root, "ShapeNet").verdict == "subset"
    published(monkeypatch, "ShapeNet", train=4, test=2)
    found = look(root, "ShapeNet")
    assert (found.verdict, found.reason) == ("published", "4 train + 2 test clouds, as published")
    assert found.splits["train"] == {"clouds": 4, "points": 8, "labels": {"03001627": 2, "03797390": 2}}
    published(monkeypatch, "ShapeNet", train=4, test=3)
    assert look(root, "ShapeNet").verdict == "subset"
    published(monkeypatch, "ShapeNet", train=3, test=2)
    assert look(root, "ShapeNet").verdict == "foreign"
    lists = root / "ShapeNet55-34/ShapeNet-55"
    clouds = root / "ShapeNet55-34/shapenet_pc"
    (lists / "test.txt").write_text("00000001-a.npy\n")
    shutil.copy(next(clouds.glob("*.npy")), clouds / "00000001-a.npy")
    assert "00000001 is no class of ShapeNet-55" in look(root, "ShapeNet").reason


def test_processed_files_are_judged_by_their_size_and_counted_when_read(root, monkeypatch):
    shutil.rmtree(root / "ModelNet")
    folder = write_modelnet(root, classes=["chair", "lamp"], train=30, test=10, num_points=64)
    (folder / "SYNTHETIC.json").unlink()
    published(monkeypatch, "ModelNet", train=60, test=20)
    assert look(root, "ModelNet").verdict == "published"
    assert look(root, "ModelNet").splits["train"]["clouds"] is None
    assert look(root, "ModelNet", full=True).splits["train"]["labels"] == {"chair": 30, "lamp": 30}
    published(monkeypatch, "ModelNet", train=80, test=20)
    assert look(root, "ModelNet").verdict == "subset"
    published(monkeypatch, "ModelNet", train=40, test=20)
    assert look(root, "ModelNet").verdict == "foreign"


@pytest.mark.parametrize("clouds", [9700, 9843, 9900])
def test_the_size_of_a_dat_file_tells_how_many_clouds_it_has(clouds):
    split = {"clouds": None, "points": 8192, "bytes": clouds * (8192 * 24 + 150)}  # 24 a point, the rest around it
    assert (_clouds(split, 9843) == 9843) == (clouds == 9843)


def test_text_files_are_said_not_to_be_what_figures_were_measured_on(root):
    assert any("`python -m datasets.process_modelnet`" in note for note in look(root, "ModelNet").notes)


# ---- damage ----


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("ShapeNet", "ShapeNet55-34/ShapeNet-55/train.txt", b"chair\n", "is not of the form <taxonomy>-<model>.npy"),
        ("ShapeNet", "ShapeNet55-34/shapenet_pc/03001627-train00001.npy", b"short", "not of 224 bytes as the others"),
        ("ShapeNet", "ShapeNet55-34/shapenet_pc/03001627-train00001.npy", b"", "empty; get them anew"),
        ("ModelNet40_SVM", "modelnet40_ply_hdf5_2048/ply_data_test0.h5", b"<html>", "not a readable .h5 file"),
        ("ModelNet", "ModelNet/modelnet40_normal_resampled/modelnet40_train.txt", b"x", "not of the form <class>_"),
        ("ShapeNetPart", "{part}/synsetoffset2category.txt", b"Sofa 1", "is not of the form <category> <synset>"),
    ],
)
def test_damage_is_found_at_a_glance(root, name, file, content, message, capsys):
    (root / file.format(part=SOURCES["ShapeNetPart"].home)).write_bytes(content)
    code, text = shown(capsys, name, "--root", root)
    assert code == 1
    assert " damaged " in text
    assert message in text


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, r"not finite; replace the damaged file"), (0.0, "all zeros; get them anew")],
)
def test_every_cloud_is_read_when_asked_for(root, value, message, capsys):
    path = root / "ShapeNet55-34/shapenet_pc/03001627-train00001.npy"
    np.save(path, np.full((8, 3), value, np.float32))
    assert shown(capsys, "ShapeNet", "--root", root)[0] == 0
    code, text = shown(capsys, "ShapeNet", "--root", root, "--full")
    assert code == 1
    assert message in text
    assert str(path) in text


def test_a_damaged_cloud_of_an_h5_file_is_found_when_read(root):
    with h5py.File(root / "ScanObjectNN/main_split/test_objectdataset.h5", "r+") as file:
        file["data"][1] = np.inf
    assert look(root, "ScanObjectNN", split="obj-bg").verdict == "subset"
    (problem, *_) = look(root, "ScanObjectNN", full=True, split="obj-bg").problems
    assert "test_objectdataset.h5: cloud 1, row 0" in problem


def test_duplicates_and_the_range_are_told(root, capsys):
    clouds = root / "ShapeNet55-34/shapenet_pc"
    np.save(clouds / "03001627-train00001.npy", np.full((8, 3), 3, np.float32))
    shutil.copy(clouds / "03001627-train00001.npy", clouds / "03001627-train00000.npy")
    _, text = shown(capsys, "ShapeNet", "--root", root, "--full")
    assert "1 clouds are the same as another, first" in text
    assert "read: 6 clouds, farthest point 1 to 5.2 from 0" in text


def test_all_readers_files_are_read(made):
    found = [inspect(entry, full=True) for entry in entries(made, SOURCES)]
    assert [finding.ranges["clouds"] for finding in found] == [6, 6, 6, FOLD_CLOUDS, 6, 6, 6, 8, 3]
    assert {finding.verdict for finding in found} == {"generated"}


FOLD_CLOUDS = 10 * (5 * 11 + 5 * 21 + 10 * 11 + 10 * 21)  # of each setting ten folds: shots and one test cloud a class


def test_a_pack_stands_for_its_files(root):
    lists, clouds = (root / "ShapeNet55-34" / name for name in ("ShapeNet-55", "shapenet_pc"))
    pack(str(lists), str(clouds), 8)
    for path in clouds.glob("*.npy"):
        path.unlink()
    entry = {**next(entries(root, ["ShapeNet"])), "N_POINTS": 8}
    assert inspect(entry).verdict == "subset"
    assert inspect(entry, full=True).ranges["clouds"] == 6
    (lists / "train.txt").write_text("03001627-other.npy\n")
    assert "was made from another train.txt" in inspect(entry).problems[0]


# ---- the command ----


def test_a_config_is_looked_up_where_it_reads(root, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    entry = f"{{NAME: ScanObjectNN, ROOT: {root}/ScanObjectNN, SPLIT: obj, others: {{subset: train}}}}"
    config.write_text(f"dataset: {{svm_train: {entry}, svm_test: {entry}}}\nmodel: {{NAME: I2P_MAE}}\n")
    code, text = shown(capsys, "--config", config)
    assert code == 0
    assert text.count("ScanObjectNN, OBJ-ONLY: ") == 1
    assert "OBJ-BG" not in text
    with pytest.raises(ValueError, match="reads none of ShapeNet; name a folder with --root"):
        main(["ShapeNet", "--config", str(config)])
    for entry, message in (
        ("NAME: ScanObjectNN, ROOT: x, SPLIT: hard", "SPLIT of ScanObjectNN is 'hard'; choose one of obj-bg, obj, pb"),
        ("NAME: ShapeNet, DATA_PATH: x", "PC_PATH of ShapeNet is None; give the path of a folder"),
    ):
        config.write_text(f"dataset: {{train: {{{entry}}}}}\nmodel: {{NAME: I2P_MAE}}\n")
        with pytest.raises(ValueError, match=message):
            main(["--config", str(config)])


def test_a_misspelt_name_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["ShapeNetPrat"])
    assert ended.value.code == 2
    assert "NAME: unknown name 'ShapeNetPrat'; did you mean 'ShapeNetPart'?" in capsys.readouterr().err


def test_another_number_of_points_than_the_config_asks_for_is_told(root):
    entry = {**next(entries(root, ["ShapeNet"])), "N_POINTS": 9}
    (problem,) = inspect(entry).problems
    assert "holds 8 points; N_POINTS asks for 9: set N_POINTS to 8, or " in problem
    assert "--points 9`" in problem


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("name", SOURCES)
def test_whatever_files_hold_is_told_and_not_raised(root, name):
    rng = np.random.default_rng(0)
    hostile = [pickle.dumps(value) for value in (5, {"train": 5}, {"train": [(1,)], "test": [(1, 2, 3)]}, [[1], [2]])]
    contents = [b"", rng.bytes(300), b"[1, 2]", b"{", b"1 2 3", *hostile]
    files = [path for path in (root / SOURCES[name].home).rglob("*") if path.is_file()]
    kinds = {path.suffix + path.stem.strip("0123456789")[:12]: path for path in files}
    for path in kinds.values():
        whole = path.read_bytes()
        for content in (*contents, whole[: len(whole) // 2]):
            path.write_bytes(content)
            for entry in entries(root, [name]):
                found = inspect(entry, full=True)
                assert found.whole or found.problems or found.missing
        path.write_bytes(whole)


# ---- the table of facts ----


def test_facts_are_the_published_ones():
    assert {name: [len(s.classes), *(v.clouds for v in s.versions.values())] for name, s in SOURCES.items()} == {
        "ShapeNet": [55, {"train": 41952, "test": 10518}],
        "ModelNet40_SVM": [40, {"train": 9840, "test": 2468}],
        "ModelNet": [40, {"train": 9843, "test": 2468}],
        "ModelNetFewShot": [40, {}],
        "ScanObjectNN": [
            15,
            {"train": 2309, "test": 581},
            {"train": 2309, "test": 581},
            {"train": 11416, "test": 2882},
        ],
        "ShapeNetPart": [16, {"train": 12137, "val": 1870, "test": 2874}],
        "S3DIS": [13, {"train": 204, "test": 68}],
    }
    assert all(len(set(source.classes)) == len(source.classes) for source in SOURCES.values())


def test_the_tables_of_the_documents_are_those_of_the_facts():
    layout = markdown_table(layout_rows(), ["data set", "used for", "folder", "files"])
    assert layout in (ROOT / "data/README.md").read_text()
    origin = markdown_table(
        origin_rows(), ["NAME", "version", "clouds", "points", "archive", "size", "published by", "terms"]
    )
    assert origin in (ROOT / "docs/DATASET.md").read_text()
