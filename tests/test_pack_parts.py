"""ShapeNetPart packed: the same items as from the text files, and what is wrong with a pack is told."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from datasets import build_dataset
from datasets.pack_parts import check, main, pack
from datasets.packed_parts import PackedParts, pack_folder
from tests.test_shapenetpart import config, folder, write_list, write_shape  # noqa: F401


def items(folder, subset="trainval"):  # noqa: F811
    dataset = build_dataset(config(folder, subset=subset))
    return [dataset[i] for i in range(len(dataset))]


def same(ours, others):
    return len(ours) == len(others) and all(
        torch.equal(a[0], b[0]) and a[1] == b[1] and torch.equal(a[2], b[2]) for a, b in zip(ours, others, strict=True)
    )


def test_a_pack_gives_the_items_of_the_text_files_without_them(folder, caplog):  # noqa: F811
    expected = {subset: items(folder, subset) for subset in ("trainval", "test")}
    pack(folder)
    for path in folder.glob("*/*.txt"):
        path.unlink()
    with caplog.at_level("INFO", "datasets.shapenetpart"):
        assert all(same(items(folder, subset), expected[subset]) for subset in expected)
    assert f"reading the packed shapes {pack_folder(folder)}/shapes.f32" in caplog.text


def test_rows_are_the_coordinates_and_the_part(folder):  # noqa: F811
    pack(folder)
    text = np.loadtxt(folder / "02773838/b1.txt")
    np.testing.assert_array_equal(PackedParts(folder)["02773838/b1"], text[:, [0, 1, 2, 6]].astype(np.float32))


def test_a_pack_travels_to_other_processes_without_its_data(folder):  # noqa: F811
    pack(folder)
    packed = PackedParts(folder)
    rows = packed["04379243/t2"]
    copy = pickle.loads(pickle.dumps(packed))
    assert copy._rows is None
    np.testing.assert_array_equal(copy["04379243/t2"], rows)


def test_a_damaged_shape_is_named(folder):  # noqa: F811
    file = pack(folder) / "shapes.f32"
    shape = PackedParts(folder).shapes["04379243/t1"]
    with file.open("r+b") as out:
        out.seek(16 * shape.first)
        out.write(b"\x00\x00\x80\x3f")
    with pytest.raises(ValueError, match=r"shapes\.f32 is damaged at 04379243/t1; run `python -m datasets\.pack_parts"):
        items(folder)
    with pytest.raises(ValueError, match="is damaged at 04379243/t1"):
        check(folder)


@pytest.mark.parametrize("change", ["cut", "version", "no json", "nested", "gone"])
def test_a_damaged_pack_is_refused(folder, change):  # noqa: F811
    place = pack(folder)
    index = place / "index.json"
    if change == "cut":
        os.truncate(place / "shapes.f32", 16)
    elif change == "version":
        index.write_text(json.dumps(json.loads(index.read_text()) | {"version": 2}))
    elif change == "gone":
        (place / "shapes.f32").unlink()
    else:
        index.write_text("[" * 100_000 if change == "nested" else "{")
    with pytest.raises(ValueError, match=r"run `python -m datasets\.pack_parts --root .*` again"):
        build_dataset(config(folder))


def test_a_list_with_other_shapes_than_the_pack_is_told(folder):  # noqa: F811
    pack(folder)
    write_shape(folder, "04379243/t3", [47])
    write_list(folder, "train", ["shape_data/04379243/t1", "shape_data/04379243/t3"])
    with pytest.raises(ValueError, match=r"1 of the 2 shapes listed in .* are not in .*, first 04379243/t3"):
        build_dataset(config(folder))
    pack(folder)
    assert len(items(folder, "train")) == 2


def test_files_that_changed_since_are_told_by_a_check(folder, caplog):  # noqa: F811
    pack(folder)
    (folder / "02773838/b2.txt").unlink()
    with caplog.at_level("INFO"):
        check(folder)
    assert "4 shapes are whole; 1 of their files are gone" in caplog.text
    write_shape(folder, "02773838/b1", [4, 5])
    with pytest.raises(ValueError, match=r"1 files of .* have another size or date .*, first 02773838/b1; run"):
        check(folder)


def test_what_cannot_be_read_leaves_no_pack(folder):  # noqa: F811
    pack(folder)
    write_shape(folder, "02773838/b2", [47])  # the part of a table
    with pytest.raises(ValueError, match="has the part 47; the parts of the category Bag are 4 to 5"):
        pack(folder)
    assert PackedParts.of(folder) is None
    assert {path.name for path in pack_folder(folder).iterdir()} == {"shapes.f32", ".lock"}
    assert len(items(folder, "train")) == 2  # from the text files


def test_the_command_packs_and_checks(folder):  # noqa: F811
    with pytest.raises(FileNotFoundError, match=r"\.packed does not exist; run `python .* --root .*`$"):
        main(["--root", str(folder), "--check"])
    main(["--root", str(folder)])
    main(["--root", str(folder), "--check"])
    assert PackedParts.of(folder) is not None
