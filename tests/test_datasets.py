"""The readers on tiny files in the published layouts, and what they say about missing, damaged and foreign ones."""

import hashlib
import logging
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets import DATASETS, build_dataset, check_dataset_config, fingerprint
from datasets.draws import DrawnDataset
from datasets.holdout import Part
from utils.config import load_config

RNG = np.random.default_rng(0)
WAY_OUT = r"data/README\.md.*python -m datasets\.check .*datasets\.download .*datasets\.synthetic --root"


def cloud(num_points=32, channels=3):
    return (RNG.normal(size=(num_points, channels)) * 3 + 1).astype(np.float32)


def write_h5(path, data, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = data, labels


# ---------------------------------------------------------------------------------------------------- files to read


@pytest.fixture
def shapenet(tmp_path):
    """Three shapes of two taxonomies; returns the config of the training subset."""
    lists, clouds = tmp_path / "ShapeNet-55", tmp_path / "shapenet_pc"
    lists.mkdir()
    clouds.mkdir()
    names = ["03001627-b1.npy", "02691156-a-2.npy", "03001627-c3.npy"]
    (lists / "train.txt").write_text("\n".join(names) + "\n")
    (lists / "test.txt").write_text(names[0])
    for name in names:
        np.save(clouds / name, cloud())
    others = {"subset": "train", "npoints": 16, "bs": 4}
    return {"NAME": "ShapeNet", "DATA_PATH": str(lists), "PC_PATH": str(clouds), "N_POINTS": 32, "others": others}


@pytest.fixture
def modelnet(tmp_path):
    """Text files of three shapes with 40 lines each, of which 32 are to be read."""
    folder = tmp_path / "modelnet40_normal_resampled"
    (folder / "night_stand").mkdir(parents=True)
    (folder / "bed").mkdir()
    (folder / "modelnet40_shape_names.txt").write_text("bed\nnight_stand\n")
    (folder / "modelnet40_train.txt").write_text("night_stand_0001\nbed_0001\nbed_0002\n")
    for name in ("night_stand_0001", "bed_0001", "bed_0002"):
        np.savetxt(folder / name.rsplit("_", 1)[0] / f"{name}.txt", cloud(40, 6), delimiter=",", fmt="%.6f")
    config = {"NAME": "ModelNet", "DATA_PATH": str(folder), "N_POINTS": 32, "NUM_CATEGORY": 2, "USE_NORMALS": False}
    return config | {"others": {"subset": "train"}}


@pytest.fixture
def modelnet_svm(tmp_path):
    folder = tmp_path / "modelnet40_ply_hdf5_2048"
    for i in (1, 0):
        labels = np.array([[2 * i], [2 * i + 1]], np.uint8)
        write_h5(folder / f"ply_data_train{i}.h5", np.stack([cloud(), cloud()]) + 100 * i, labels)
    others = {"partition": "train", "num_points": 8}
    return {"NAME": "ModelNet40_SVM", "DATA_DIR": str(folder), "others": others}


@pytest.fixture
def scanobjectnn(tmp_path):
    """Six files whose coordinates are all the number of the file, 0 to 5."""
    names = [
        f"{folder}/{part}_objectdataset{ending}.h5"
        for folder, ending in (("main_split", ""), ("main_split_nobg", ""), ("main_split", "_augmentedrot_scale75"))
        for part in ("training", "test")
    ]
    for number, name in enumerate(names):
        write_h5(tmp_path / name, np.full((3, 32, 3), number, np.float32), np.array([14, 0, 3], np.int32))
    return {"NAME": "ScanObjectNN", "ROOT": str(tmp_path), "SPLIT": "obj-bg", "others": {"subset": "train"}}


def changed(config, **values):
    """The config with other values; keys in lower case go into `others`."""
    result = {**config, "others": dict(config["others"])}
    for key, value in values.items():
        (result["others"] if key.islower() else result)[key] = value
    return result


@pytest.mark.parametrize("name", ["shapenet", "modelnet", "modelnet_svm", "scanobjectnn"])
def test_every_reader_keeps_the_common_interface(name, request):
    dataset = build_dataset(request.getfixturevalue(name))
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.shape == (len(dataset),)
    for index, label in enumerate(dataset.labels):
        points, item_label = dataset[index]
        assert points.dtype == torch.float32
        assert points.shape[1:] == (3,)
        assert type(item_label) is int
        assert item_label == label
        assert label < len(dataset.class_names)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("name", ["shapenet", "modelnet", "modelnet_svm", "scanobjectnn"])
def test_changing_an_item_does_not_change_the_data_set(name, request):
    dataset = build_dataset(request.getfixturevalue(name))
    before = dataset[0][0].clone()
    dataset[0][0].add_(1)
    assert torch.equal(dataset[0][0], before)


# ---------------------------------------------------------------------------------------------------- ShapeNet


def test_shapenet_labels_are_the_sorted_taxonomies(shapenet):
    dataset = build_dataset(shapenet)
    assert dataset.class_names == ["02691156", "03001627"]
    assert dataset.labels.tolist() == [1, 0, 1]


def test_shapenet_whole_is_the_training_shapes_and_then_the_test_shapes(shapenet):
    Path(shapenet["DATA_PATH"], "test.txt").write_text("04379243-d4.npy\n")
    np.save(Path(shapenet["PC_PATH"], "04379243-d4.npy"), cloud())
    parts = [build_dataset(changed(shapenet, subset=subset)) for subset in ("train", "test")]
    whole = build_dataset(changed(shapenet, subset="whole"))
    assert whole.class_names == ["02691156", "03001627", "04379243"]
    assert whole.labels.tolist() == [1, 0, 1, 2]
    files = [part.cloud(index) for part in parts for index in range(len(part))]
    for index, file in enumerate(files):
        np.testing.assert_array_equal(whole.cloud(index), file)
    Path(shapenet["PC_PATH"], "04379243-d4.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.txt"):
        build_dataset(changed(shapenet, subset="whole"))


def test_shapenet_items_are_different_points_of_the_file_on_the_unit_sphere(shapenet):
    points, _ = build_dataset(changed(shapenet, npoints=32))[0]
    file = torch.from_numpy(np.load(Path(shapenet["PC_PATH"]) / "03001627-b1.npy"))
    file = file - file.mean(dim=0)
    expected = file / file.norm(dim=1).max()
    torch.testing.assert_close(points[points[:, 0].argsort()], expected[expected[:, 0].argsort()])


def test_shapenet_draws_are_normalised_not_the_files(shapenet):
    points, _ = build_dataset(changed(shapenet, npoints=8))[0]
    torch.testing.assert_close(points.mean(dim=0), torch.zeros(3))
    torch.testing.assert_close(points.norm(dim=1).max(), torch.tensor(1.0))


def test_shapenet_draws_depend_on_seed_epoch_and_index_alone(shapenet):
    dataset, twin = build_dataset(shapenet), build_dataset(shapenet)
    first, other_item = dataset[0][0], dataset[2][0]
    assert torch.equal(first, twin[0][0])  # whatever was drawn before
    assert torch.equal(other_item, dataset[-1][0])
    dataset.set_epoch(1)
    assert not torch.equal(first, dataset[0][0])
    dataset.set_epoch(0)
    assert torch.equal(first, dataset[0][0])
    assert not torch.equal(first, build_dataset(changed(shapenet, seed=1))[0][0])


def test_shapenet_draws_differ_between_items(shapenet):
    for file in Path(shapenet["PC_PATH"]).iterdir():
        np.save(file, np.arange(96, dtype=np.float32).reshape(32, 3))
    dataset = build_dataset(changed(shapenet, npoints=32))
    assert not torch.equal(dataset[0][0], dataset[1][0])


def test_shapenet_persistent_workers_see_the_epoch(shapenet):
    dataset = build_dataset(shapenet)
    loader = DataLoader(dataset, batch_size=3, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        (points, _), *_ = loader
        assert torch.equal(points, torch.stack([dataset[i][0] for i in range(3)]))


# ---------------------------------------------------------------------------------------------------- ModelNet


def write_dat(config, clouds, labels):
    path = Path(config["DATA_PATH"]) / "modelnet40_train_32pts_fps.dat"
    path.write_bytes(pickle.dumps([clouds, labels]))


def on_unit_sphere(points):
    points = torch.as_tensor(points)
    centred = points - points.mean(dim=0)
    return centred / centred.norm(dim=1).max()


def test_modelnet_text_items_are_the_first_lines(modelnet, caplog):
    with caplog.at_level(logging.INFO):
        dataset = build_dataset(modelnet)
    assert [record.message for record in caplog.records if "32pts_fps.dat does not exist" in record.message]
    assert dataset.class_names == ["bed", "night_stand"]
    assert dataset.labels.tolist() == [1, 0, 0]
    lines = np.loadtxt(Path(modelnet["DATA_PATH"]) / "bed/bed_0001.txt", delimiter=",", dtype=np.float32)
    torch.testing.assert_close(dataset[1][0], on_unit_sphere(lines[:32, :3]))


@pytest.mark.parametrize("use_normals", [False, True])
def test_modelnet_dat_goes_before_text(modelnet, use_normals):
    clouds = [cloud(channels=6) for _ in range(2)]
    write_dat(modelnet, clouds, [np.array([0], np.int32), np.array([1], np.int32)])
    dataset = build_dataset(changed(modelnet, USE_NORMALS=use_normals))
    assert dataset.labels.tolist() == [0, 1]
    points, _ = dataset[1]
    torch.testing.assert_close(points[:, :3], on_unit_sphere(clouds[1][:, :3]))
    assert torch.equal(points[:, 3:], torch.as_tensor(clouds[1][:, 3 : 6 if use_normals else 3]))


def test_a_fingerprint_is_of_the_file_and_not_of_what_a_processor_rounds(modelnet):
    clouds, labels = [cloud() for _ in range(4)], [np.array([label]) for label in (0, 1, 1, 0)]
    write_dat(modelnet, [np.hstack([points, points]) for points in clouds], labels)
    digest = hashlib.sha256(np.array([0, 1, 1, 0]).tobytes() + b"bed\nnight_stand")
    for points in (clouds[0], clouds[2], clouds[3]):
        digest.update(points.tobytes())
    expected = {"name": "ModelNet", "clouds": 4, "sha256": digest.hexdigest()}
    assert fingerprint(build_dataset(modelnet)) == expected
    assert fingerprint(Part(build_dataset(modelnet), np.arange(4))) == expected


def test_modelnet_text_gives_normals_unchanged(modelnet):
    lines = np.loadtxt(Path(modelnet["DATA_PATH"]) / "bed/bed_0002.txt", delimiter=",", dtype=np.float32)
    points, _ = build_dataset(changed(modelnet, USE_NORMALS=True))[2]
    assert torch.equal(points[:, 3:], torch.from_numpy(lines[:32, 3:]))


def test_modelnet_gives_no_normals_unless_asked(modelnet):
    del modelnet["USE_NORMALS"]
    assert build_dataset(modelnet)[0][0].shape == (32, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([[cloud(32, 6)], [np.array([2])]], "label 2 of cloud 0; expected an integer from 0 to below 2"),
        ([[cloud(31, 6)], [np.array([0])]], r"cloud 0: shape \(31, 6\); expected \(32, 6\)"),
        ([[np.full((32, 6), np.nan)], [np.array([0])]], "cloud 0: row 0 .*is not finite"),
        ([[cloud(32, 6)], []], "1 clouds and 0 labels"),
        ([[], []], "0 clouds"),
        ([[cloud(32, 6)], [np.array([0, 1])]], r"labels of \[2\] numbers"),
        ([[cloud(32, 6)], ["bed"]], "labels are <U3"),
        ({"train": 1}, "list of clouds, list of labels"),
        ([1, 2], "list of clouds, list of labels"),
        ([[1.0], [0]], "cloud 0: holds float"),
    ],
)
def test_modelnet_refuses_a_foreign_dat(modelnet, content, message):
    path = Path(modelnet["DATA_PATH"]) / "modelnet40_train_32pts_fps.dat"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"32pts_fps\.dat.*" + message):
        build_dataset(modelnet)


def test_modelnet_names_the_missing_dat_before_it_misses_text_files(modelnet, caplog):
    (Path(modelnet["DATA_PATH"]) / "bed/bed_0001.txt").unlink()
    with caplog.at_level(logging.INFO), pytest.raises(FileNotFoundError):
        build_dataset(modelnet)
    assert "32pts_fps.dat does not exist" in caplog.text


def test_modelnet_reads_lists_as_windows_editors_write_them(modelnet):
    for name in ("modelnet40_shape_names.txt", "modelnet40_train.txt"):
        path = Path(modelnet["DATA_PATH"]) / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    dataset = build_dataset(modelnet)
    assert dataset.class_names == ["bed", "night_stand"]
    assert dataset.labels.tolist() == [1, 0, 0]


def test_modelnet_refuses_a_truncated_dat(modelnet):
    path = Path(modelnet["DATA_PATH"]) / "modelnet40_train_32pts_fps.dat"
    write_dat(modelnet, [cloud(32, 6)], [np.array([0])])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"32pts_fps\.dat: not a pickle"):
        build_dataset(modelnet)


# ---------------------------------------------------------------------------------------------------- .h5 layouts


def test_modelnet_svm_reads_files_in_order_and_the_first_points(modelnet_svm):
    dataset = build_dataset(modelnet_svm)
    assert dataset.labels.tolist() == [0, 1, 2, 3]
    with h5py.File(Path(modelnet_svm["DATA_DIR"]) / "ply_data_train1.h5") as file:
        assert torch.equal(dataset[3][0], torch.from_numpy(file["data"][1, :8]))


def test_modelnet_svm_takes_class_names_where_present(modelnet_svm):
    assert build_dataset(modelnet_svm).class_names == ["0", "1", "2", "3"]
    names = Path(modelnet_svm["DATA_DIR"]) / "shape_names.txt"
    names.write_text("bed\nchair\ndesk\nsofa\n")
    assert build_dataset(modelnet_svm).class_names == ["bed", "chair", "desk", "sofa"]
    names.write_text("bed\n")
    with pytest.raises(ValueError, match="label 1 of cloud 1; expected an integer from 0 to below 1"):
        build_dataset(modelnet_svm)


@pytest.mark.parametrize(
    ("split", "subset", "number"),
    [
        *(("obj-bg", "train", 0), ("obj-bg", "test", 1), ("obj", "train", 2)),
        *(("obj", "test", 3), ("pb", "train", 4), ("pb", "test", 5)),
    ],
)
def test_scanobjectnn_splits_are_the_published_files(scanobjectnn, split, subset, number):
    dataset = build_dataset(changed(scanobjectnn, SPLIT=split, subset=subset))
    assert torch.equal(dataset[0][0], torch.full((32, 3), float(number)))  # as they are: neither centred nor scaled
    assert dataset.labels.tolist() == [14, 0, 3]
    names = ["bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow"]
    assert dataset.class_names == [*names, "sink", "sofa", "toilet"]  # the published labels 0 … 14


def test_scanobjectnn_takes_the_first_points(scanobjectnn):
    path = Path(scanobjectnn["ROOT"]) / "main_split/training_objectdataset.h5"
    data = np.stack([cloud(), cloud()])
    write_h5(path, data, [0, 1])
    assert torch.equal(build_dataset(changed(scanobjectnn, npoints=5))[1][0], torch.from_numpy(data[1, :5]))


def test_scanobjectnn_refuses_a_label_beyond_its_classes(scanobjectnn):
    (Path(scanobjectnn["ROOT"]) / "shape_names.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"training_objectdataset\.h5: label 14 of cloud 0"):
        build_dataset(scanobjectnn)


# ---------------------------------------------------------------------------------------------------- missing files


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("shapenet", "DATA_PATH"), ("shapenet", "PC_PATH"), ("modelnet", "DATA_PATH")),
        *(("modelnet_svm", "DATA_DIR"), ("scanobjectnn", "ROOT")),
    ],
)
def test_a_missing_folder_names_itself_its_key_and_the_way_out(name, key, request):
    config = changed(request.getfixturevalue(name), **{key: "data/nowhere"})
    with pytest.raises(FileNotFoundError, match=f"folder /.*/data/nowhere does not exist.*key {key}.*{WAY_OUT}"):
        build_dataset(config)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("shapenet", "ShapeNet-55/train.txt"),
        ("shapenet", "shapenet_pc/03001627-c3.npy"),
        ("modelnet", "modelnet40_normal_resampled/modelnet40_shape_names.txt"),
        ("modelnet", "modelnet40_normal_resampled/modelnet40_train.txt"),
        ("modelnet", "modelnet40_normal_resampled/bed/bed_0002.txt"),
        ("scanobjectnn", "main_split/training_objectdataset.h5"),
    ],
)
def test_a_missing_file_is_named_when_the_data_set_is_built(name, file, request, tmp_path):
    config = request.getfixturevalue(name)
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file}.*config key .*{WAY_OUT}"):
        build_dataset(config)


def test_missing_h5_files_name_the_pattern(modelnet_svm):
    with pytest.raises(FileNotFoundError, match=rf"ply_data_test\*\.h5 exists.*DATA_DIR.*{WAY_OUT}"):
        build_dataset(changed(modelnet_svm, partition="test"))


# ---------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("shapenet", "ShapeNet-55/train.txt", "\n  \n", "the list is empty"),
        ("shapenet", "ShapeNet-55/train.txt", "03001627-b1.npy\n03001627.npy", "'03001627.npy' is not of the form"),
        ("shapenet", "ShapeNet-55/train.txt", "1-/../../b1.npy", "leads out of"),
        ("shapenet", "ShapeNet-55/train.txt", "../1-b.npy", "is not of the form"),
        ("shapenet", "ShapeNet-55/train.txt", "\udcff", "not a text file"),
        ("modelnet", "modelnet40_train.txt", "", "the list is empty"),
        ("modelnet", "modelnet40_train.txt", "bed0001", "'bed0001' is not of the form <class>_<number>"),
        ("modelnet", "modelnet40_train.txt", "sofa_0001", "class 'sofa' of 'sofa_0001' is not in modelnet40_shape"),
        ("modelnet", "modelnet40_train.txt", "../../bed_0001", "leads out of"),
        ("modelnet", "modelnet40_shape_names.txt", "bed\n", "names 1 classes, but NUM_CATEGORY is 2"),
    ],
)
def test_a_damaged_list_is_refused(name, file, text, message, request, tmp_path):
    config = request.getfixturevalue(name)
    folder = tmp_path if "/" in file else Path(config["DATA_PATH"])
    (folder / file).write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        build_dataset(config)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (cloud(31), r"shape \(31, 3\); expected \(32, 3\)"),
        (np.zeros((32, 3), int), "holds int64; expected floats"),
        (np.full((32, 3), np.inf), "row 0 .*is not finite"),
    ],
)
def test_shapenet_refuses_a_foreign_npy_by_name(shapenet, points, message):
    np.save(Path(shapenet["PC_PATH"]) / "03001627-c3.npy", points)
    with pytest.raises(ValueError, match=r"03001627-c3\.npy: " + message):
        build_dataset(shapenet)[2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3,4,5", "not lines of 6"),
        ("a,b,c,d,e,f", "not lines of 6"),
        ("1,2,nan,0,0,1", r"row 1 \(counted from 0\) is not finite"),
    ],
)
def test_modelnet_refuses_a_foreign_text_file_by_name(modelnet, line, message):
    path = Path(modelnet["DATA_PATH"]) / "bed/bed_0001.txt"
    path.write_text(f"1,2,3,0,0,1\n{line}\n")
    with pytest.raises(ValueError, match=r"bed_0001\.txt: " + message):
        build_dataset(modelnet)[1]


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize(("text", "shape"), [("1,2,3\n", r"\(1, 3\)"), ("", r"\(0, ")])
def test_modelnet_refuses_a_text_file_of_another_width(modelnet, text, shape):
    (Path(modelnet["DATA_PATH"]) / "bed/bed_0001.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"bed_0001\.txt: shape {shape}.*expected \(any, 6\)"):
        build_dataset(modelnet)[1]


def test_modelnet_refuses_a_text_file_with_too_few_points(modelnet):
    (Path(modelnet["DATA_PATH"]) / "bed/bed_0001.txt").write_text("1,2,3,0,0,1\n")
    with pytest.raises(ValueError, match=r"bed_0001\.txt: holds 1 points; N_POINTS asks for 32: set N_POINTS to 1, or"):
        build_dataset(modelnet)[1]


# ---------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("shapenet", {"npoints": 33}, "npoints is 33; give an integer of at least 1 and at most 32"),
        ("shapenet", {"npoints": "16"}, "npoints is '16'"),
        ("shapenet", {"N_POINTS": 0}, "N_POINTS is 0"),
        ("shapenet", {"subset": "val"}, "subset is 'val'; choose one of train, test"),
        ("shapenet", {"seed": -1}, "seed is -1"),
        ("shapenet", {"PC_PATH": 5}, r"dataset\.PC_PATH is 5; expected str"),
        ("modelnet", {"N_POINTS": 0}, "N_POINTS is 0"),
        ("modelnet", {"NUM_CATEGORY": 40}, "names 2 classes, but NUM_CATEGORY is 40"),
        ("modelnet", {"USE_NORMALS": "no"}, r"dataset\.USE_NORMALS is 'no'; expected bool"),
        ("modelnet_svm", {"num_points": 0}, "num_points is 0"),
        ("modelnet_svm", {"num_points": 33}, "have 32 points; num_points asks for 33: set num_points to 32, or "),
        ("modelnet_svm", {"partition": "training"}, "partition is 'training'"),
        ("scanobjectnn", {"SPLIT": "hardest"}, "SPLIT is 'hardest'; choose one of obj-bg, obj, pb"),
        ("scanobjectnn", {"npoints": 0}, "npoints is 0"),
    ],
)
def test_impossible_values_are_refused_with_their_key(name, change, message, request):
    with pytest.raises(ValueError, match=message):
        build_dataset(changed(request.getfixturevalue(name), **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"NAME": "ShapeNt"}, r"dataset\.train\.NAME: unknown name 'ShapeNt'; did you mean 'ShapeNet'\?"),
        ({"NAME": None}, r"dataset\.train\.NAME: unknown name None; valid: ShapeNet"),
        ({"PC_PTH": "x"}, r"'dataset\.train\.PC_PTH'.*did you mean 'PC_PATH'"),
        ({"npoint": 1}, r"'dataset\.train\.others\.npoint'.*did you mean 'others.npoints'"),
        ({"partition": "train"}, r"'dataset\.train\.others\.partition'"),
        ({"SPLIT": "obj"}, r"'dataset\.train\.SPLIT'"),
        ({"bs": 0}, r"dataset\.train\.others\.bs is 0; give an integer of at least 1"),
        ({"bs": "16"}, r"dataset\.train\.others\.bs is '16'"),
    ],
)
def test_unknown_names_and_keys_are_refused_with_the_nearest(change, message):
    config = {"NAME": "ShapeNet", "DATA_PATH": "a", "PC_PATH": "b", "N_POINTS": 8, "others": {}}
    config["others"] = {"subset": "train", "npoints": 4}
    with pytest.raises(ValueError, match=message):
        check_dataset_config(changed(config, **change), "dataset.train")


def test_all_missing_keys_are_named_where_they_belong():
    with pytest.raises(ValueError, match=r"dataset\.train lacks PC_PATH, others\.subset, others\.npoints"):
        check_dataset_config({"NAME": "ShapeNet", "DATA_PATH": "a", "N_POINTS": 8}, "dataset.train")


def test_others_must_hold_keys():
    with pytest.raises(ValueError, match=r"dataset\.test\.others is 'train'"):
        check_dataset_config({"NAME": "ScanObjectNN", "ROOT": "a", "SPLIT": "pb", "others": "train"}, "dataset.test")


SHIPPED = sorted((Path(__file__).parent.parent / "cfgs/dataset").glob("*.yaml"))


def test_the_shipped_entries_cover_the_data_sets():
    names = [path.stem for path in SHIPPED]
    assert {"ShapeNet-55", "ModelNet40", "ModelNet40_SVM"} <= set(names)
    assert {"ScanObjectNN_obj-bg", "ScanObjectNN_obj", "ScanObjectNN_pb"} <= set(names)


OTHERS = {
    "ShapeNet": {"subset": "train", "npoints": 2048},
    "ModelNet": {"subset": "train"},
    "ModelNet40_SVM": {"partition": "train", "num_points": 1024},
    "ScanObjectNN": {"subset": "train"},
    "ModelNetFewShot": {"subset": "train"},
    "ShapeNetPart": {"subset": "trainval", "npoints": 2048},
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_entry_is_complete(path, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {{NAME: I2P_MAE}}\ndataset: {{svm_train: {{_base_: {path}}}}}\n")
    entry = load_config(config).dataset.svm_train
    assert entry.NAME in DATASETS
    check_dataset_config({**entry, "others": OTHERS[entry.NAME]}, "dataset.svm_train")


# ---------------------------------------------------------------------------------------------------- fingerprints


class Clouds:
    """Clouds of one value each."""

    def __init__(self, labels=(0, 1, 0, 1, 1), values=(0, 1, 2, 3, 4), class_names=("a", "b")):
        self.labels, self.values, self.class_names = np.array(labels), values, class_names

    def __getitem__(self, index):
        return torch.full((2, 3), float(self.values[index])), int(self.labels[index])


class DrawnClouds(Clouds, DrawnDataset):
    """Clouds whose points are drawn anew every epoch."""


@pytest.mark.parametrize(
    "change",
    [
        {"labels": (1, 0, 0, 1, 1)},
        {"class_names": ("b", "a")},
        {"values": (9, 1, 2, 3, 4)},
        {"values": (0, 1, 9, 3, 4)},
        {"values": (0, 1, 2, 3, 9)},
    ],
)
def test_a_fingerprint_tells_labels_names_and_clouds_apart(change):
    before, after = fingerprint(Clouds()), fingerprint(Clouds(**change))
    assert before == fingerprint(Clouds())
    assert (before["name"], before["clouds"]) == ("Clouds", 5)
    assert before["sha256"] != after["sha256"]


def test_a_fingerprint_leaves_out_clouds_that_are_drawn_anew():
    assert fingerprint(DrawnClouds()) == fingerprint(DrawnClouds(values=(9, 9, 9, 9, 9)))
    assert fingerprint(DrawnClouds())["sha256"] != fingerprint(DrawnClouds(labels=(1, 0, 0, 1, 1)))["sha256"]
