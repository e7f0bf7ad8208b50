"""Write generated shapes in the published layouts of the data sets that they stand in for."""

import itertools
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..published import FOLDS, SCAN_SPLITS, SHOTS, TEST_AREA, WAYS, fold_name
from .catalogue import CATALOGUE, FIRST_PART, SCAN_CLASSES
from .primitives import Triangles
from .publish import publish
from .rooms import FURNITURE, sample_room
from .sampling import Cloud, check_classes, draw_shape, sample_scan, sample_shape

# Part of every marker: raise it when the same request gives other files.
VERSION = 1
SHAPES_PER_H5 = 2048
DEMO_POINTS = 1024


def write_demo(root: Path | str) -> None:
    """Write what the demo learns from: unlabelled shapes (ShapeNet's layout) and labelled scans (ScanObjectNN's)."""
    write_shapenet(root, train=80, test=1, num_points=DEMO_POINTS)
    write_scanobjectnn(root, train=20, test=40, num_points=DEMO_POINTS)


def write_shapenet(
    root: Path | str,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    train: int = 100,
    test: int = 10,
    num_points: int = 8192,
) -> Path:
    """Write ShapeNet55-34: ShapeNet-55/{train,test}.txt and shapenet_pc/<taxonomy>-<model>.npy, float32 (N, 3).

    Args:
        root: folder of the data sets.
        seed: seed of the collection.
        classes: names of `CATALOGUE`; None takes all.
        train: shapes per class in train.txt.
        test: shapes per class in test.txt.
        num_points: points per shape, 8192 in the published files.

    Returns:
        The folder written.

    Raises:
        ValueError: if a class is unknown, a number is not positive, or the folder holds data that was not generated.
    """
    names = _choose(classes)
    request = _request("shapenet", seed, names, train=train, test=test, num_points=num_points)

    def write(folder: Path) -> None:
        clouds = folder / "shapenet_pc"
        lists = folder / "ShapeNet-55"
        clouds.mkdir()
        lists.mkdir()
        for split, count in (("train", train), ("test", test)):
            files = []
            for name, index in _each(names, count):
                cloud = sample_shape(name, index, num_points, seed, f"shapenet/{split}")
                files.append(f"{CATALOGUE[name].taxonomy}-{split}{index:05d}.npy")
                np.save(clouds / files[-1], cloud.points)
            _write_lines(lists / f"{split}.txt", files)

    return publish(Path(root) / "ShapeNet55-34", request, write)


def write_modelnet_svm(
    root: Path | str,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    train: int = 20,
    test: int = 10,
    num_points: int = 2048,
) -> Path:
    """Write modelnet40_ply_hdf5_2048: ply_data_{train,test}*.h5 (`data` (n, N, 3), `label` (n, 1)), shape_names.txt.

    Args, returns and raises as `write_shapenet`; a label is an index into `classes`.
    """
    names = _choose(classes)
    request = _request("modelnet_svm", seed, names, train=train, test=test, num_points=num_points)

    def write(folder: Path) -> None:
        _write_lines(folder / "shape_names.txt", names)
        for split, count in (("train", train), ("test", test)):
            draw = partial(sample_shape, num_points=num_points, seed=seed, stream=f"modelnet_svm/{split}")
            points, labels = _stack(names, count, draw, seed)
            for number, start in enumerate(range(0, len(points), SHAPES_PER_H5)):
                chunk = slice(start, start + SHAPES_PER_H5)
                _write_h5(folder / f"ply_data_{split}{number}.h5", points[chunk], labels[chunk, None].astype(np.uint8))

    return publish(Path(root) / "modelnet40_ply_hdf5_2048", request, write)


def write_modelnet(
    root: Path | str,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    train: int = 20,
    test: int = 10,
    num_points: int = 8192,
    text: bool = False,
) -> Path:
    """Write ModelNet/modelnet40_normal_resampled, as processed .dat files or as one text file per shape.

    The .dat files modelnet40_{train,test}_<N>pts_fps.dat hold [list of (N, 6) float32, list of (1,) int32]. Points are
    in random order, so the first n are an even sample too; farthest point sampling has not put them in order.

    Args:
        root, seed, classes, train, test: as in `write_shapenet`; a label is an index into `classes`.
        num_points: points per shape; 8192 in the published .dat files, 10000 in the published text files.
        text: write text files instead of the .dat files.

    Returns:
        The folder written.

    Raises:
        ValueError: as `write_shapenet`.
    """
    names = _choose(classes)
    request = _request("modelnet", seed, names, train=train, test=test, num_points=num_points) | {"text": text}

    def write(folder: Path) -> None:
        _write_lines(folder / "modelnet40_shape_names.txt", names)
        for split, count in (("train", train), ("test", test)):
            first = 1 if split == "train" else train + 1
            _write_lines(folder / f"modelnet40_{split}.txt", [f"{n}_{first + i:04d}" for n, i in _each(names, count)])
            draw = partial(sample_shape, num_points=num_points, seed=seed, stream=f"modelnet/{split}")
            shapes = ((name, index, draw(name, index)) for name, index in _each(names, count))
            if text:
                for name, index, cloud in shapes:
                    path = folder / name / f"{name}_{first + index:04d}.txt"
                    path.parent.mkdir(exist_ok=True)
                    np.savetxt(path, _with_normals(cloud), fmt="%.6f", delimiter=",")
            else:
                rows = [(_with_normals(cloud), np.array([names.index(name)], np.int32)) for name, _, cloud in shapes]
                content = [list(column) for column in zip(*rows, strict=True)]
                _write_pickle(folder / f"modelnet40_{split}_{num_points}pts_fps.dat", content)

    return publish(Path(root) / "ModelNet" / "modelnet40_normal_resampled", request, write)


def write_scanobjectnn(
    root: Path | str,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    train: int = 20,
    test: int = 10,
    num_points: int = 2048,
) -> Path:
    """Write ScanObjectNN: h5 files of `data` (n, N, 3) and `label` (n,), and shape_names.txt.

    main_split and main_split_nobg hold {training,test}_objectdataset.h5: with background, and without. main_split also
    holds {training,test}_objectdataset_augmentedrot_scale75.h5, cut out with perturbed boxes. Row i of the three shows
    the same scene.

    Args, returns and raises as `write_shapenet`; a label is an index into `classes`, of which there are at most 15,
    `SCAN_CLASSES` by default.
    """
    names = _choose(SCAN_CLASSES if classes is None else classes)
    if len(names) > len(SCAN_CLASSES):
        raise ValueError(f"ScanObjectNN has {len(SCAN_CLASSES)} classes; got {len(names)}: {', '.join(names)}")
    request = _request("scanobjectnn", seed, names, train=train, test=test, num_points=num_points)

    def write(folder: Path) -> None:
        _write_lines(folder / "shape_names.txt", names)
        for variant, (split_folder, ending) in SCAN_SPLITS.items():
            (folder / split_folder).mkdir(exist_ok=True)
            for split, count in (("training", train), ("test", test)):
                stream = f"scanobjectnn/{split}"
                draw = partial(sample_scan, num_points=num_points, seed=seed, stream=stream, variant=variant)
                points, labels = _stack(names, count, draw, seed)
                path = folder / split_folder / f"{split}_objectdataset{ending}.h5"
                _write_h5(path, points, labels.astype(np.int32))

    return publish(Path(root) / "ScanObjectNN", request, write)


def write_fewshot(
    root: Path | str,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    test: int = 20,
    num_points: int = 2048,
    ways: Sequence[int] = WAYS,
    shots: Sequence[int] = SHOTS,
    folds: int = FOLDS,
) -> Path:
    """Write ModelNetFewshot/<way>way_<shot>shot/<fold>.pkl: {"train": [(points (N, 6), label, class)], "test": …}.

    A fold draws its classes and its training shapes from a common pool, its test shapes from another; label is the
    index among the fold's classes, class the name.

    Args:
        root, seed, classes: as in `write_shapenet`.
        test: test shapes per class and fold.
        num_points: points per shape, 8192 in the published files.
        ways: numbers of classes of a fold.
        shots: numbers of training shapes per class.
        folds: folds of each setting.

    Returns:
        The folder written.

    Raises:
        ValueError: as `write_shapenet`, and if there are fewer classes than the largest of `ways`.
    """
    names = _choose(classes)
    if max(ways) > len(names):
        raise ValueError(
            f"few-shot tasks of {max(ways)} classes need as many to draw from; got {len(names)}: {', '.join(names)}; "
            "name more with --classes, or leave fewshot out of --layouts"
        )
    numbers = {"test": test, "num_points": num_points, "folds": folds}
    request = _request("fewshot", seed, names, **numbers) | {"ways": list(ways), "shots": list(shots)}

    def draw(name: str, count: int, split: str) -> list[np.ndarray]:
        clouds = (sample_shape(name, index, num_points, seed, f"fewshot/{split}") for index in range(count))
        return [_with_normals(cloud) for cloud in clouds]

    def write(folder: Path) -> None:
        train_pool = {name: draw(name, 2 * max(shots), "train") for name in names}
        test_pool = {name: draw(name, test, "test") for name in names}
        for way, shot in itertools.product(ways, shots):
            (folder / f"{way}way_{shot}shot").mkdir()
            for fold in range(folds):
                rng = np.random.default_rng([seed, way, shot, fold])
                chosen = [names[i] for i in rng.choice(len(names), way, replace=False)]
                content: dict[str, list] = {"train": [], "test": []}
                for label, name in enumerate(chosen):
                    picked = rng.choice(len(train_pool[name]), shot, replace=False)
                    content["train"] += [(train_pool[name][i], label, name) for i in picked]
                    content["test"] += [(points, label, name) for points in test_pool[name]]
                _write_pickle(folder / fold_name(way, shot, fold), content)

    return publish(Path(root) / "ModelNetFewshot", request, write)


def write_shapenetpart(
    root: Path | str,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    train: int = 20,
    test: int = 10,
    num_points: int = 2048,
) -> Path:
    """Write shapenetcore_partanno_segmentation_benchmark_v0_normal: <synset>/<id>.txt, x y z nx ny nz part per line.

    With synsetoffset2category.txt and train_test_split/shuffled_{train,val,test}_file_list.json. Part ids are the
    published ones of each category; classes that are no category of ShapeNetPart are left out.

    Args, returns and raises as `write_shapenet`; there are as many shapes for validation as for the test.
    """
    names = [name for name in _choose(classes) if name in FIRST_PART]
    if not names:
        raise ValueError(
            f"none of the classes {', '.join(classes or ())} is in ShapeNetPart; it has {', '.join(FIRST_PART)}"
        )
    request = _request("shapenetpart", seed, names, train=train, test=test, num_points=num_points)

    def write(folder: Path) -> None:
        categories = [f"{name.capitalize()}\t{CATALOGUE[name].taxonomy}" for name in names]
        _write_lines(folder / "synsetoffset2category.txt", categories)
        lists = folder / "train_test_split"
        lists.mkdir()
        for name in names:
            (folder / CATALOGUE[name].taxonomy).mkdir()
        for split, count in (("train", train), ("val", test), ("test", test)):
            listed = []
            for name, index in _shuffled(_each(names, count), seed):
                cloud = sample_shape(name, index, num_points, seed, f"shapenetpart/{split}")
                place = f"{CATALOGUE[name].taxonomy}/{split}{index:05d}"
                values = np.column_stack([cloud.points, cloud.normals, cloud.parts + FIRST_PART[name]])
                np.savetxt(folder / f"{place}.txt", values, fmt="%.6f")
                listed.append(f"shape_data/{place}")
            (lists / f"shuffled_{split}_file_list.json").write_text(json.dumps(listed))

    return publish(Path(root) / "shapenetcore_partanno_segmentation_benchmark_v0_normal", request, write)


def write_s3dis(
    root: Path | str, seed: int = 0, train: int = 20, test: int = 10, num_points: int = 40_000, side: float = 3.0
) -> Path:
    """Write stanford_indoor3d: Area_<area>_office_<n>.npy, (N, 7) float64 with x y z r g b class a row, in metres.

    Args:
        root, seed: as in `write_shapenet`.
        train: rooms of the areas 1, 2, 3, 4 and 6, in turn.
        test: rooms of area 5.
        num_points: points of a room; the published ones have about a million.
        side: of the rooms' square floors, metres.

    Returns:
        The folder written.

    Raises:
        ValueError: if a number is not positive, or the folder holds data that was not generated.
    """
    request = _request("s3dis", seed, list(FURNITURE), train=train, test=test, num_points=num_points) | {"side": side}
    areas = [area for area in range(1, 7) if area != TEST_AREA]

    def write(folder: Path) -> None:
        for number in range(train):
            area, room = areas[number % len(areas)], number // len(areas) + 1
            np.save(folder / f"Area_{area}_office_{room}.npy", sample_room(area, room, num_points, side, seed))
        for room in range(1, test + 1):
            path = folder / f"Area_{TEST_AREA}_office_{room}.npy"
            np.save(path, sample_room(TEST_AREA, room, num_points, side, seed))

    return publish(Path(root) / "stanford_indoor3d", request, write)


def write_meshes(
    root: Path | str, seed: int = 0, classes: Sequence[str] | None = None, train: int = 20, test: int = 10
) -> Path:
    """Write meshes/{train,test}/<class>/<class>_NNNN.ply, .obj or .off in turn: data as one's own could look.

    Args, returns and raises as `write_shapenet`.
    """
    names = _choose(classes)
    request = _request("meshes", seed, names, train=train, test=test)
    writers = (_write_ply, _write_obj, _write_off)

    def write(folder: Path) -> None:
        for split, count in (("train", train), ("test", test)):
            for name, index in _each(names, count):
                triangles = draw_shape(name, index, seed, f"meshes/{split}").triangles
                path = folder / split / name / f"{name}_{index:04d}"
                path.parent.mkdir(parents=True, exist_ok=True)
                writers[index % len(writers)](path, triangles)

    return publish(Path(root) / "meshes", request, write)


def _choose(classes: Sequence[str] | None) -> list[str]:
    names = list(CATALOGUE if classes is None else classes)
    if not names:
        raise ValueError(f"no classes to generate; name some of {', '.join(CATALOGUE)}")
    check_classes(names)
    return names


def _request(layout: str, seed: int, names: list[str], **numbers: int) -> dict[str, Any]:
    """Return what decides the content of a data set, after a check that each number is positive."""
    for key, value in numbers.items():
        if value < 1:
            raise ValueError(f"{key} of the {layout} layout must be at least 1; got {value}")
    if seed < 0:
        raise ValueError(f"the seed of the {layout} layout must not be negative; got {seed}")
    return {"version": VERSION, "layout": layout, "seed": seed, "classes": names, **numbers}


def _each(names: list[str], count: int) -> Iterator[tuple[str, int]]:
    return ((name, index) for name in names for index in range(count))


def _shuffled(shapes: Iterator[tuple[str, int]], seed: int) -> list[tuple[str, int]]:
    listed = list(shapes)
    return [listed[i] for i in np.random.default_rng([seed, len(listed)]).permutation(len(listed))]


def _stack(names: list[str], count: int, draw: Callable[[str, int], Cloud], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points (n, N, 3) float32 and labels (n,) of `count` shapes per class, shuffled."""
    shapes = _shuffled(_each(names, count), seed)
    points = np.stack([draw(name, index).points for name, index in shapes])
    return points, np.array([names.index(name) for name, _ in shapes])


def _with_normals(cloud: Cloud) -> np.ndarray:
    return np.hstack([cloud.points, cloud.normals])


def _write_h5(path: Path, points: np.ndarray, labels: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=points)
        file.create_dataset("label", data=labels)


def _write_ply(path: Path, triangles: Triangles) -> None:
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {3 * len(triangles)}\nproperty float x\n"
        f"property float y\nproperty float z\nelement face {len(triangles)}\n"
        "property list uchar int vertex_indices\nend_header\n"
    )
    faces = np.empty(len(triangles), np.dtype([("corners", "u1"), ("face", "<i4", (3,))]))
    faces["corners"], faces["face"] = 3, np.arange(3 * len(triangles)).reshape(-1, 3)
    path.with_suffix(".ply").write_bytes(header.encode() + triangles.astype("<f4").tobytes() + faces.tobytes())


def _write_obj(path: Path, triangles: Triangles) -> None:
    vertices = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in triangles.reshape(-1, 3)]
    faces = [f"f {3 * i + 1} {3 * i + 2} {3 * i + 3}" for i in range(len(triangles))]
    _write_lines(path.with_suffix(".obj"), [*vertices, *faces])


def _write_off(path: Path, triangles: Triangles) -> None:
    vertices = [f"{x:.6f} {y:.6f} {z:.6f}" for x, y, z in triangles.reshape(-1, 3)]
    faces = [f"3 {3 * i} {3 * i + 1} {3 * i + 2}" for i in range(len(triangles))]
    _write_lines(path.with_suffix(".off"), ["OFF", f"{len(vertices)} {len(faces)} 0", *vertices, *faces])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def _write_pickle(path: Path, content: Any) -> None:
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=4)
