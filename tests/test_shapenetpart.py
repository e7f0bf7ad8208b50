"""The reader of ShapeNetPart on tiny files in the published layout, and what it says about foreign ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets import build_dataset, check_dataset_config
from datasets.published import CATEGORIES, NUM_PARTS, PARTS
from datasets.shapenetpart import parts_of_categories
from datasets.synthetic import CATALOGUE, FIRST_PART, write_shapenetpart
from datasets.untrusted import MAX_LIST_BYTES

SYNSETS = {"Bag": "02773838", "Table": "04379243"}
RNG = np.random.default_rng(0)


def write_shape(folder: Path, name: str, parts: list[int]) -> None:
    """Write a file with a random point per part."""
    path = folder / f"{name}.txt"
    path.parent.mkdir(exist_ok=True)
    np.savetxt(path, np.column_stack([RNG.normal(size=(len(parts), 6)) * 3 + 1, parts]), fmt="%.6f")


def write_list(folder: Path, split: str, content: object) -> None:
    (folder / f"train_test_split/shuffled_{split}_file_list.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """Four shapes: a table and a bag to train on, a bag to validate, a table to test on."""
    (tmp_path / "train_test_split").mkdir()
    (tmp_path / "synsetoffset2category.txt").write_text("".join(f"{n}\t{s}\n" for n, s in SYNSETS.items()))
    for split, names in {
        "train": ["04379243/t1", "02773838/b1"],
        "val": ["02773838/b2"],
        "test": ["04379243/t2"],
    }.items():
        write_list(tmp_path, split, [f"shape_data/{name}" for name in names])
        for name in names:
            write_shape(tmp_path, name, [47, 48, 49, 47] if "t" in name else [4, 5, 5])
    return tmp_path


def config(folder: Path, **others: object) -> dict:
    return {"NAME": "ShapeNetPart", "ROOT": str(folder), "others": {"subset": "train", "npoints": 8, **others}}


def test_the_parts_cover_fifty_once_and_follow_each_other():
    ids = [part for parts in PARTS.values() for part in parts]
    assert ids == list(range(50)) == list(range(NUM_PARTS))
    first = ["Airplane", "Bag", "Cap", "Car", "Chair", "Earphone", "Guitar", "Knife", "Lamp", "Laptop", "Motorbike"]
    assert [*first, "Mug", "Pistol", "Rocket", "Skateboard", "Table"] == CATEGORIES  # the published labels 0 … 15


def test_the_parts_agree_with_those_of_the_generated_shapes():
    assert {name.lower(): parts for name, parts in PARTS.items()} == {
        name: range(first, first + len(CATALOGUE[name].parts)) for name, first in FIRST_PART.items()
    }


def test_parts_of_categories_as_a_table():
    table = parts_of_categories()
    assert table.shape == (16, 50)
    assert [torch.nonzero(row).flatten().tolist() for row in table] == [list(parts) for parts in PARTS.values()]


def test_shapes_are_scaled_unless_told_otherwise(folder):
    rows = np.loadtxt(folder / f"{SYNSETS['Table']}/t1.txt")[:, :3].astype(np.float32)
    stored, scaled = (build_dataset(config(folder, npoints=64) | {"NORMALIZE": flag})[0][0] for flag in (False, True))
    assert {tuple(point) for point in stored.tolist()} == {tuple(row) for row in rows.tolist()}
    assert scaled.norm(dim=1).max() == pytest.approx(1)
    assert torch.equal(build_dataset(config(folder, npoints=64))[0][0], scaled)


@pytest.mark.parametrize(
    ("subset", "names"),
    [("train", ["t1", "b1"]), ("val", ["b2"]), ("trainval", ["t1", "b1", "b2"]), ("test", ["t2"])],
)
def test_splits(folder, subset, names):
    dataset = build_dataset(config(folder, subset=subset))
    assert [path.stem for path in dataset.files] == names
    assert dataset.labels.tolist() == [CATEGORIES.index("Table" if name[0] == "t" else "Bag") for name in names]
    assert dataset.labels.dtype == np.int64


def test_items(folder):
    dataset = build_dataset(config(folder))
    for index, (label, own) in enumerate([(15, {47, 48, 49}), (1, {4, 5})]):
        points, category, parts = dataset[index]
        assert points.shape == (8, 3)
        assert points.dtype == torch.float32
        assert type(category) is int
        assert category == label == dataset.labels[index]
        assert parts.shape == (8,)
        assert parts.dtype == torch.int64
        assert set(parts.tolist()) <= own
    with pytest.raises(IndexError):
        dataset[2]


def test_points_are_those_of_the_file_in_the_unit_sphere_with_their_parts(folder):
    rows = torch.from_numpy(np.loadtxt(folder / "04379243/t1.txt")).float()
    centred = rows[:, :3] - rows[:, :3].mean(dim=0)
    shape = torch.cat([centred / centred.norm(dim=1).max(), rows[:, 6:]], dim=1)
    points, _, parts = build_dataset(config(folder, npoints=200))[0]
    items = torch.cat([points, parts.unsqueeze(1).float()], dim=1)
    nearest = (items.unsqueeze(1) - shape).abs().amax(dim=-1).min(dim=1)
    assert nearest.values.max() < 1e-5
    counts = torch.bincount(nearest.indices, minlength=4)
    assert counts.min() >= 25  # each of the 4 is drawn about 50 times
    assert counts.max() > counts.min()  # with replacement


def test_draws_depend_on_seed_epoch_and_index_alone(folder):
    dataset, twin = build_dataset(config(folder)), build_dataset(config(folder))
    last = dataset[-1]
    first = dataset[0]
    assert torch.equal(first[0], twin[0][0])  # whatever was drawn before
    assert torch.equal(last[0], twin[1][0])
    assert not torch.equal(first[0], build_dataset(config(folder, seed=1))[0][0])
    dataset.set_epoch(1)
    assert not torch.equal(first[0], dataset[0][0])
    dataset.set_epoch(0)
    assert torch.equal(first[0], dataset[0][0])


def test_a_new_epoch_reaches_running_workers(folder):
    dataset = build_dataset(config(folder))
    loader = DataLoader(dataset, 2, num_workers=1, persistent_workers=True)
    before = next(iter(loader))[0]
    dataset.set_epoch(1)
    (after, _, _), *_ = list(loader)
    assert not torch.equal(before, after)
    assert torch.equal(after[0], dataset[0][0])


def test_a_file_is_parsed_once(folder):
    dataset = build_dataset(config(folder))
    before = dataset[0][0].clone()
    dataset[0][0].add_(1)
    dataset.files[0].unlink()
    assert torch.equal(dataset[0][0], before)


def test_generated_shapes_are_read(tmp_path):
    folder = write_shapenetpart(tmp_path, classes=["mug", "stool", "knife"], train=2, test=1, num_points=64)
    dataset = build_dataset(config(folder, subset="trainval"))
    assert len(dataset) == 6
    for index in range(len(dataset)):
        points, category, parts = dataset[index]
        assert CATEGORIES[category] in ("Mug", "Knife")
        assert parts_of_categories()[category][parts].all()
        assert points.norm(dim=1).max() <= 1 + 1e-5


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("synsetoffset2category.txt", "synsetoffset2category.txt does not exist"),
        ("train_test_split/shuffled_train_file_list.json", "shuffled_train_file_list.json does not exist"),
        ("02773838/b1.txt", r"1 of the 2 files listed in .*shuffled_train.* are missing, first .*02773838/b1\.txt"),
    ],
)
def test_a_missing_file_is_named_when_the_data_set_is_built(folder, file, message):
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{message}.*config key ROOT.*data/README\.md"):
        build_dataset(config(folder))


def test_a_missing_folder_is_named():
    with pytest.raises(FileNotFoundError, match=r"data/nowhere does not exist \(config key ROOT\)"):
        build_dataset(config(Path("data/nowhere")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shape_data/02773838", "is not of the form shape_data/<synset>/<id>"),
        ("shape_data/1234/b1", "with a synset of synsetoffset2category.txt"),
        ("shape_data/02773838/../b1", "is not of the form"),
        ("shape_data/02773838/..\\b1", "leads out of"),
        ("/etc/passwd", "is not of the form"),
    ],
)
def test_a_foreign_name_in_a_list_is_refused(folder, name, message):
    write_list(folder, "train", [name])
    with pytest.raises(ValueError, match=message):
        build_dataset(config(folder))


@pytest.mark.parametrize("line", ["Sofa\t04256520", "Bag", "Bag 1 2"])
def test_a_foreign_category_is_refused(folder, line):
    (folder / "synsetoffset2category.txt").write_text(line)
    with pytest.raises(ValueError, match=r"synsetoffset2category\.txt: '.*' is not of the form <category> <synset>"):
        build_dataset(config(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("\udcff", "not a JSON file"),
        ("[]", "expected a list of one or more strings"),
        ("{}", "expected a list"),
        ('["shape_data/02773838/b1", 3]', "expected a list"),
        (" " * (MAX_LIST_BYTES + 1), "67108865 bytes; a list of more than 67108864 is refused"),
    ],
    ids=["empty", "deep", "bytes", "no shape", "mapping", "number", "huge"],
)
def test_a_damaged_list_is_refused(folder, text, message):
    path = folder / "train_test_split/shuffled_train_file_list.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"shuffled_train_file_list\.json: {message}"):
        build_dataset(config(folder))


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3 0 0 1 47\n1 2 3 0 0 1 46\n", r"row 1 \(counted from 0\) has the part 46; .* Table are 47 to 49"),
        ("1 2 3 0 0 1 47.5\n", r"row 0 .* has the part 47\.5"),
        ("1 2 3 0 0 1 47\n1 nan 3 0 0 1 47\n", "row 1 .*is not finite"),
        ("1 2 3 47\n", r"shape \(1, 4\); expected \(any, 7\)"),
        ("1 2 3 0 0 1 47\n1 2 3\n", "not lines of 7 numbers"),
        ("1 2 3 0 0 1 # 47\n", "not lines of 7 numbers"),
        ("", r"expected \(any, 7\)"),
    ],
)
def test_a_foreign_shape_is_refused_by_name(folder, text, message):
    (folder / "04379243/t1.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"t1\.txt: .*{message}"):
        build_dataset(config(folder))[0]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"subset": "training"}, "subset is 'training'; choose one of train, val, trainval, test"),
        ({"npoints": 0}, "npoints is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_values_are_refused_with_their_key(folder, others, message):
    with pytest.raises(ValueError, match=message):
        build_dataset(config(folder, **others))


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match=r"dataset\.train lacks ROOT, others\.subset, others\.npoints"):
        check_dataset_config({"NAME": "ShapeNetPart"}, "dataset.train")
