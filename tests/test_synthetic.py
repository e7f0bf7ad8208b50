"""The generated shapes, their scans, and the layouts in which they are written."""

import json
import logging
import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import build_dataset, synthetic
from datasets.synthetic import BACKGROUND, CATALOGUE, FIRST_PART, SCAN_CLASSES, sample_scan, sample_shape
from datasets.synthetic.__main__ import main
from datasets.synthetic.primitives import (
    arc,
    both_sides,
    box,
    cylinder,
    ellipsoid,
    extrude,
    mirror,
    move,
    revolve,
    rotate,
    torus,
    triangle_areas,
    triangle_normals,
    tube,
)
from datasets.synthetic.publish import MARKER, publish
from datasets.synthetic.sampling import draw_surface, sample_surface
from datasets.untrusted import load_pickle

THREE = ["chair", "mug", "table"]


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def volume(triangles):
    """Volume by the divergence theorem: right only if the surface is closed and its normals point outwards."""
    return np.einsum("fi,fi->", triangles[:, 0], np.cross(triangles[:, 1], triangles[:, 2])) / 6


# Surfaces


@pytest.mark.parametrize(
    ("surface", "expected_volume", "expected_area"),
    [
        (box(1, 2, 3), 6, 22),
        (move(box(1, 2, 3), 5, -1, 2), 6, 22),
        (mirror(box(1, 2, 3), 0), 6, 22),
        (rotate(box(1, 2, 3), 1, 1.0), 6, 22),
        (both_sides(move(box(1, 2, 3), 2, 0, 0)), 12, 44),
        (extrude([(0, 0), (0, 1), (2, 0)], 0.5, axis=0), 0.5, 2 + 0.5 * (3 + 5**0.5)),
        (cylinder(1, 2), 2 * np.pi, 6 * np.pi),
        (cylinder(1, 2, axis=0), 2 * np.pi, 6 * np.pi),
        (cylinder(1, 3, 0), np.pi, np.pi * (1 + 10**0.5)),
        (ellipsoid(2, 2, 2), 4 / 3 * np.pi, 4 * np.pi),
        (torus(2, 0.5), np.pi**2, 4 * np.pi**2),
        (tube([(0, 0, 0), (1, 1, 1)], 0.5, segments=40), np.pi / 4 * 3**0.5, np.pi * (3**0.5 + 0.5)),
        (tube(arc(2, 0, 1), 0.2), 0.04 * np.pi * 2 * np.pi, 0.4 * np.pi * 2 * np.pi + 0.08 * np.pi),
        (revolve([(0, 0), (1, 0), (1, 1), (0, 1)], segments=4), 2, 4 + 4 * 2**0.5),
    ],
)
def test_surfaces_are_closed_and_as_large_as_they_should_be(surface, expected_volume, expected_area):
    # Round surfaces are polygons and fall short by a few per cent.
    assert volume(surface) == pytest.approx(expected_volume, rel=0.07)
    assert volume(surface) <= expected_volume * (1 + 1e-9)
    assert triangle_areas(surface).sum() == pytest.approx(expected_area, rel=0.04)


def test_sphere_normals_point_outwards():
    sphere = ellipsoid(2, 2, 2)
    centres = sphere.mean(axis=1)
    cosine = np.sum(triangle_normals(sphere) * centres, axis=1) / np.linalg.norm(centres, axis=1)
    assert cosine.min() > 0.95


def test_points_are_spread_evenly_by_area():
    rng = np.random.default_rng(0)
    surface = draw_surface("chair", rng)
    parts = sample_surface(surface, 20000, rng).parts
    areas = np.bincount(surface.parts, triangle_areas(surface.triangles))
    assert np.bincount(parts) / len(parts) == pytest.approx(areas / areas.sum(), abs=0.02)


def test_points_are_spread_evenly_within_a_triangle():
    rng = np.random.default_rng(0)
    triangle = np.array([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    points = sample_surface(synthetic.sampling.Surface(triangle, np.zeros(1, int)), 20000, rng).points
    assert points.mean(axis=0) == pytest.approx([1 / 3, 1 / 3, 0], abs=0.01)
    assert np.mean(points[:, 0] + points[:, 1] < 0.5) == pytest.approx(0.25, abs=0.02)


# Shapes


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(list(CATALOGUE)), index=st.integers(0, 10**6), seed=st.integers(0, 10**6))
def test_shape_is_centred_in_the_unit_sphere(name, index, seed):
    cloud = sample_shape(name, index, 256, seed)
    assert cloud.points.shape == cloud.normals.shape == (256, 3)
    assert cloud.points.dtype == cloud.normals.dtype == np.float32
    assert np.isfinite(cloud.points).all()
    assert cloud.points.mean(axis=0) == pytest.approx(0, abs=1e-5)
    assert np.linalg.norm(cloud.points, axis=1).max() == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(cloud.normals, axis=1) == pytest.approx(1, abs=1e-5)


def test_same_arguments_give_the_same_shape_whatever_was_drawn_before():
    first = sample_shape("lamp", 3, 100, seed=5, stream="a")
    sample_shape("chair", 0, 100)
    again = sample_shape("lamp", 3, 100, seed=5, stream="a")
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("change", [{"index": 1}, {"seed": 1}, {"stream": "b"}, {"class_name": "stool"}])
def test_another_index_seed_stream_or_class_gives_another_shape(change):
    arguments = {"class_name": "chair", "index": 0, "num_points": 100, "seed": 0, "stream": "a"}
    assert not np.array_equal(sample_shape(**arguments).points, sample_shape(**arguments | change).points)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_part_of_a_class_occurs(name):
    rng = np.random.default_rng(0)
    found = {int(part) for _ in range(60) for part in np.unique(draw_surface(name, rng).parts)}
    assert found == set(range(len(CATALOGUE[name].parts)))


def test_structure_varies_within_a_class():
    rng = np.random.default_rng(0)
    assert len({len(draw_surface("chair", rng).triangles) for _ in range(30)}) >= 10


def test_taxonomy_ids_are_distinct_and_have_eight_digits():
    ids = [shape_class.taxonomy for shape_class in CATALOGUE.values()]
    assert len(set(ids)) == len(ids) >= 16
    assert all(len(taxonomy) == 8 and taxonomy.isdigit() for taxonomy in ids)


def test_shapenetpart_ids_cover_the_fifty_parts_once():
    ids = [first + part for name, first in FIRST_PART.items() for part in range(len(CATALOGUE[name].parts))]
    assert sorted(ids) == list(range(50))


def test_unknown_class_names_the_nearest():
    with pytest.raises(ValueError, match=r"'chiar'.*did you mean 'chair'"):
        sample_shape("chiar", 0)


def test_a_cloud_of_a_single_point_is_refused():
    with pytest.raises(ValueError, match="num_points 1"):
        sample_shape("chair", 0, 1)


# Scans


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(SCAN_CLASSES),
    index=st.integers(0, 10**6),
    variant=st.sampled_from(synthetic.SCAN_VARIANTS),
)
def test_scan_is_finite_in_the_unit_sphere_and_shows_the_object(name, index, variant):
    cloud = sample_scan(name, index, 256, variant=variant)
    assert cloud.points.shape == (256, 3)
    assert cloud.points.dtype == np.float32
    assert np.linalg.norm(cloud.points, axis=1).max() == pytest.approx(1, abs=1e-5)
    assert np.any(cloud.parts != BACKGROUND)


def test_scan_depends_on_its_arguments_only():
    assert np.array_equal(sample_scan("mug", 1, 128).points, sample_scan("mug", 1, 128).points)
    assert not np.array_equal(sample_scan("mug", 1, 128).points, sample_scan("mug", 2, 128).points)


@pytest.mark.parametrize(("variant", "expected"), [("obj-bg", True), ("obj", False), ("pb", True)])
def test_background_is_there_except_in_obj(variant, expected):
    share = [np.mean(sample_scan("chair", index, 512, variant=variant).parts == BACKGROUND) for index in range(8)]
    assert bool(np.mean(share) > 0.1) is expected
    assert bool(np.max(share) > 0) is expected


def test_a_scan_sees_only_some_sides():
    def sides(cloud):
        azimuth = np.arctan2(cloud.normals[:, 2], cloud.normals[:, 0])
        sectors = np.histogram(azimuth[np.abs(cloud.normals[:, 1]) < 0.7], bins=12, range=(-np.pi, np.pi))[0]
        return np.sum(sectors > 0.02 * len(cloud.points))

    complete = [sides(sample_shape("bottle", index, 1024)) for index in range(10)]
    scanned = [sides(sample_scan("bottle", index, 1024, variant="obj")) for index in range(10)]
    assert np.mean(scanned) < np.mean(complete) - 1.5


def test_the_perturbed_box_cuts_the_shape_off_its_middle():
    def offset(variant, index):
        cloud = sample_scan("sofa", index, 512, variant=variant)
        middle = (cloud.points.min(axis=0) + cloud.points.max(axis=0)) / 2
        return np.linalg.norm((cloud.points[cloud.parts != BACKGROUND].mean(axis=0) - middle)[[0, 2]])

    plain, perturbed = ([offset(variant, index) for index in range(16)] for variant in ("obj-bg", "pb"))
    assert np.mean(perturbed) > 1.3 * np.mean(plain)


def test_unknown_scan_variant_is_refused():
    with pytest.raises(ValueError, match=r"'hard'.*obj-bg, obj, pb"):
        sample_scan("chair", 0, variant="hard")


# Layouts: the published files, and what the readers make of them


def test_shapenet_layout(tmp_path):
    folder = synthetic.write_shapenet(tmp_path, classes=THREE, train=2, test=1, num_points=64)
    assert folder == tmp_path / "ShapeNet55-34"
    listed = {split: (folder / f"ShapeNet-55/{split}.txt").read_text().split() for split in ("train", "test")}
    assert [len(names) for names in listed.values()] == [6, 3]
    on_disk = sorted(path.name for path in (folder / "shapenet_pc").iterdir())
    assert on_disk == sorted(listed["train"] + listed["test"])
    points = np.load(folder / "shapenet_pc" / listed["train"][0])
    assert points.shape == (64, 3)
    assert points.dtype == np.float32


def test_shapenet_reader(tmp_path):
    folder = synthetic.write_shapenet(tmp_path, classes=THREE, train=2, test=1, num_points=64)
    config = {"NAME": "ShapeNet", "DATA_PATH": folder / "ShapeNet-55", "PC_PATH": folder / "shapenet_pc"}
    dataset = build_dataset(config | {"N_POINTS": 64, "others": {"subset": "train", "npoints": 32}})
    assert dataset.class_names == sorted(CATALOGUE[name].taxonomy for name in THREE)
    assert dataset[0][0].shape == (32, 3)
    assert np.bincount(dataset.labels).tolist() == [2, 2, 2]


def test_modelnet_svm_layout(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.synthetic.layouts.SHAPES_PER_H5", 4)
    folder = synthetic.write_modelnet_svm(tmp_path, classes=THREE, train=2, test=1, num_points=64)
    assert folder == tmp_path / "modelnet40_ply_hdf5_2048"
    expected = [MARKER, "ply_data_test0.h5", "ply_data_train0.h5", "ply_data_train1.h5", "shape_names.txt"]
    assert files_in(folder) == expected
    with h5py.File(folder / "ply_data_train0.h5") as file:
        assert file["data"].shape == (4, 64, 3)
        assert file["data"].dtype == np.float32
        assert file["label"].shape == (4, 1)


def test_modelnet_svm_reader(tmp_path):
    folder = synthetic.write_modelnet_svm(tmp_path, classes=THREE, train=2, test=1, num_points=64)
    others = {"partition": "train", "num_points": 48}
    dataset = build_dataset({"NAME": "ModelNet40_SVM", "DATA_DIR": folder, "others": others})
    assert dataset.class_names == THREE
    assert sorted(dataset.labels) == [0, 0, 1, 1, 2, 2]
    assert dataset[0][0].shape == (48, 3)


@pytest.mark.parametrize("text", [False, True])
def test_modelnet_layout_and_reader(tmp_path, text):
    folder = synthetic.write_modelnet(tmp_path, classes=THREE, train=2, test=1, num_points=64, text=text)
    assert folder == tmp_path / "ModelNet" / "modelnet40_normal_resampled"
    assert (folder / "modelnet40_train_64pts_fps.dat").exists() is not text
    assert (folder / "chair" / "chair_0003.txt").exists() is text
    config = {"NAME": "ModelNet", "DATA_PATH": folder, "N_POINTS": 64, "NUM_CATEGORY": 3, "USE_NORMALS": True}
    for subset, labels in (("train", [0, 0, 1, 1, 2, 2]), ("test", [0, 1, 2])):
        dataset = build_dataset(config | {"others": {"subset": subset}})
        assert dataset.labels.tolist() == labels
        assert dataset[1][0].shape == (64, 6)


def test_modelnet_text_and_dat_hold_the_same_points(tmp_path):
    arguments = {"classes": ["mug"], "train": 1, "test": 1, "num_points": 32}
    dat = synthetic.write_modelnet(tmp_path / "dat", **arguments)
    text = synthetic.write_modelnet(tmp_path / "text", **arguments, text=True)
    (cloud,), (label,) = load_pickle(dat / "modelnet40_train_32pts_fps.dat")
    assert (cloud.shape, cloud.dtype, label.shape, label.dtype) == ((32, 6), np.float32, (1,), np.int32)
    assert np.loadtxt(text / "mug" / "mug_0001.txt", delimiter=",") == pytest.approx(cloud, abs=1e-6)


def test_scanobjectnn_layout_and_reader(tmp_path):
    folder = synthetic.write_scanobjectnn(tmp_path, classes=THREE, train=2, test=1, num_points=64)
    assert folder == tmp_path / "ScanObjectNN"
    plain = [f"{split}_objectdataset.h5" for split in ("test", "training")]
    augmented = [f"{split}_objectdataset_augmentedrot_scale75.h5" for split in ("test", "training")]
    expected = [f"main_split/{name}" for name in plain + augmented] + [f"main_split_nobg/{name}" for name in plain]
    assert files_in(folder) == sorted([MARKER, "shape_names.txt", *expected])
    labels = []
    for split in ("obj-bg", "obj", "pb"):
        config = {"NAME": "ScanObjectNN", "ROOT": folder, "SPLIT": split, "others": {"subset": "train"}}
        dataset = build_dataset(config)
        assert dataset[0][0].shape == (64, 3)
        labels.append(sorted(dataset.labels))
    assert labels == [[0, 0, 1, 1, 2, 2]] * 3


def test_scanobjectnn_refuses_more_than_its_fifteen_classes(tmp_path):
    with pytest.raises(ValueError, match="15 classes; got 24"):
        synthetic.write_scanobjectnn(tmp_path, classes=list(CATALOGUE))


def test_fewshot_layout(tmp_path):
    folder = synthetic.write_fewshot(tmp_path, classes=THREE, test=4, num_points=16, ways=[2], shots=[3], folds=2)
    assert folder == tmp_path / "ModelNetFewshot"
    assert files_in(folder) == ["2way_3shot/0.pkl", "2way_3shot/1.pkl", MARKER]
    fold = load_pickle(folder / "2way_3shot" / "0.pkl")
    assert {part: len(items) for part, items in fold.items()} == {"train": 6, "test": 8}
    assert [label for _, label, _ in fold["train"]] == [0, 0, 0, 1, 1, 1]
    points, label, name = fold["test"][-1]
    assert (points.shape, points.dtype, label) == ((16, 6), np.float32, 1)
    assert name in THREE
    seen = {cloud.tobytes() for cloud, _, _ in fold["train"]}
    assert len(seen) == 6
    assert not seen & {cloud.tobytes() for cloud, _, _ in fold["test"]}


def test_fewshot_needs_as_many_classes_as_ways(tmp_path):
    with pytest.raises(ValueError, match=r"10 classes.*got 3"):
        synthetic.write_fewshot(tmp_path, classes=THREE)


def test_s3dis_layout(tmp_path):
    folder = synthetic.write_s3dis(tmp_path, train=6, test=2, num_points=2000, side=2)
    assert files_in(folder) == [
        *(f"Area_{area}_office_{room}.npy" for area, room in ((1, 1), (1, 2), (2, 1), (3, 1), (4, 1))),
        *("Area_5_office_1.npy", "Area_5_office_2.npy", "Area_6_office_1.npy", MARKER),
    ]
    rooms = [np.load(path) for path in sorted(folder.glob("*.npy"))]
    for room in rooms:
        assert room.shape == (2000, 7)
        low, high = room[:, :3].min(0), room[:, :3].max(0)
        assert (low >= 0).all()
        assert (low < 0.02).all()
        assert high == pytest.approx([2, 2, 2.5], abs=0.02)
        for number, heights in ((1, (0, 0.05)), (0, (2.45, 2.5))):  # floor, ceiling
            z = room[room[:, 6] == number, 2]
            assert heights[0] <= z.min() <= z.max() <= heights[1]
        furniture = room[room[:, 6] > 2]
        assert len(furniture) == 1000
        assert set(furniture[:, 6]) <= {7, 8, 9, 10, 12}  # table, chair, sofa, bookcase, clutter
        assert furniture[:, 2].min() < 0.02
    assert not any(np.array_equal(room, rooms[0]) for room in rooms[1:])


def test_shapenetpart_layout(tmp_path):
    classes = ["airplane", "sofa", "table"]
    folder = synthetic.write_shapenetpart(tmp_path, classes=classes, train=2, test=1, num_points=256)
    assert folder == tmp_path / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    lines = (folder / "synsetoffset2category.txt").read_text().splitlines()
    assert [line.split() for line in lines] == [["Airplane", "02691156"], ["Table", "04379243"]]
    counts = {}
    for split in ("train", "val", "test"):
        listed = json.loads((folder / f"train_test_split/shuffled_{split}_file_list.json").read_text())
        counts[split] = len(listed)
        for place in listed:
            synset = place.split("/")[1]
            values = np.loadtxt(folder / f"{place.removeprefix('shape_data/')}.txt")
            assert values.shape == (256, 7)
            assert set(values[:, 6]) <= ({0, 1, 2, 3} if synset == "02691156" else {47, 48, 49})
    assert counts == {"train": 4, "val": 2, "test": 2}


def test_train_and_test_and_data_sets_share_no_shape(tmp_path):
    arguments = {"classes": ["mug"], "train": 2, "test": 2, "num_points": 32}
    shapenet = synthetic.write_shapenet(tmp_path, **arguments)
    svm = synthetic.write_modelnet_svm(tmp_path, **arguments)
    clouds = [np.load(path) for path in (shapenet / "shapenet_pc").iterdir()]
    for split in ("train", "test"):
        with h5py.File(svm / f"ply_data_{split}0.h5") as file:
            clouds.extend(file["data"][:])
    assert len({cloud.tobytes() for cloud in clouds}) == len(clouds) == 8


@pytest.mark.parametrize("seed", [0, 1])
def test_files_are_decided_by_the_seed(tmp_path, seed):
    first = synthetic.write_scanobjectnn(tmp_path / "a", 0, classes=["mug"], train=2, test=1, num_points=32)
    other = synthetic.write_scanobjectnn(tmp_path / "b", seed, classes=["mug"], train=2, test=1, num_points=32)
    assert (contents(first) == contents(other)) is (seed == 0)


@pytest.mark.parametrize("number", ["train", "test", "num_points"])
def test_numbers_must_be_positive(tmp_path, number):
    with pytest.raises(ValueError, match=f"{number} of the shapenet layout must be at least 1; got 0"):
        synthetic.write_shapenet(tmp_path, **{number: 0})
    assert files_in(tmp_path) == []


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="seed of the modelnet layout must not be negative; got -1"):
        synthetic.write_modelnet(tmp_path, seed=-1)


@pytest.mark.parametrize(
    ("classes", "message"), [([], "no classes"), (["mug", "mug"], "twice: mug"), (["mugs"], "did you mean 'mug'")]
)
def test_class_lists_are_checked(tmp_path, classes, message):
    with pytest.raises(ValueError, match=message):
        synthetic.write_modelnet_svm(tmp_path, classes=classes)


# Putting a data set in place


def write_hello(folder):
    (folder / "hello.txt").write_text("hello")


def test_foreign_data_is_never_touched(tmp_path):
    target = tmp_path / "ScanObjectNN"
    target.mkdir()
    (target / "real.h5").write_bytes(b"real")
    with pytest.raises(ValueError, match=r"ScanObjectNN exists.*--root"):
        publish(target, {"seed": 0}, write_hello)
    assert contents(tmp_path) == {"ScanObjectNN/real.h5": b"real"}


def test_the_same_request_is_skipped_and_said(tmp_path, caplog):
    target = publish(tmp_path / "set", {"seed": 0}, write_hello)
    with caplog.at_level(logging.INFO):
        publish(target, {"seed": 0}, lambda folder: pytest.fail("written again"))
    assert f"{target} is up to date" in caplog.text


def test_another_request_replaces_generated_data(tmp_path):
    target = publish(tmp_path / "set", {"seed": 0}, write_hello)
    publish(target, {"seed": 1}, lambda folder: (folder / "other.txt").touch())
    assert files_in(tmp_path) == [f"set/{MARKER}", "set/other.txt"]
    assert json.loads((target / MARKER).read_text()) == {"seed": 1}


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    publish(tmp_path / "set", {}, write_hello)
    assert files_in(tmp_path) == [f"set/{MARKER}", "set/hello.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, error):
    target = publish(tmp_path / "set", {"seed": 0}, write_hello)
    before = contents(tmp_path)

    def fail(folder):
        write_hello(folder)
        raise error

    with pytest.raises(error):
        publish(target, {"seed": 1}, fail)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


# Command line


def test_command_line_writes_the_layouts_asked_for(tmp_path):
    arguments = ["--root", str(tmp_path), "--classes", *THREE, "--train", "1", "--test", "1", "--points", "32"]
    main([*arguments, "--layouts", "shapenet", "scanobjectnn", "--shapenet", "2"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ScanObjectNN", "ShapeNet55-34"]
    assert len(list((tmp_path / "ShapeNet55-34" / "shapenet_pc").iterdir())) == 9


def test_command_line_takes_the_first_fifteen_classes_for_scans(tmp_path):
    classes = list(CATALOGUE)[:16]
    numbers = ["--train", "1", "--test", "1", "--points", "8"]
    main(["--root", str(tmp_path), "--layouts", "scanobjectnn", "--classes", *classes, *numbers])
    assert (tmp_path / "ScanObjectNN" / "shape_names.txt").read_text().split() == classes[:15]


@pytest.mark.slow
def test_command_line_reports_a_wrong_class_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "datasets.synthetic", "--root", str(tmp_path), "--classes", "chiar"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: unknown class 'chiar'")
    assert files_in(tmp_path) == []


@pytest.mark.slow
def test_command_line_reports_a_folder_it_cannot_make_without_a_traceback(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "datasets.synthetic", "--root", str(tmp_path / "file/data")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr.startswith(f"error: cannot write {tmp_path}/file/data/")
    assert "a file stands where a folder has to be" in finished.stderr
