"""Features of files, and the search among them: what is computed, resumed, refused, found and drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.folder import Folder
from models import load_encoder
from tests.test_folder import cloud, write
from tests.test_library import FEATURES_ONLY, POINT_MAE, model_of, saved
from tools import features, search
from tools.evaluation import feature_files, retrieval
from tools.evaluation.feature_files import Draw, read_features
from tools.evaluation.kept import save_arrays

NAMES = [f"{kind}/{i}.{ending}" for kind in ("cone", "cube") for i, ending in enumerate(("npy", "txt", "xyz", "csv"))]


@pytest.fixture(scope="module")
def playground(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("playground")
    for number, name in enumerate(NAMES):
        (folder / "shapes" / name).parent.mkdir(parents=True, exist_ok=True)
        save = np.save if name.endswith(".npy") else np.savetxt
        save(folder / "shapes" / name, cloud(number, 50))
    write(folder / "more", "alone.npy", points=7)
    saved(folder / "a.pth", model_of(FEATURES_ONLY), FEATURES_ONLY)
    saved(folder / "b.pth", model_of(POINT_MAE), POINT_MAE)
    return folder


@pytest.fixture(autouse=True)
def _here(here):
    return here


def run(output: Path, *inputs: object, flags: tuple = ()) -> int:
    argv = [*inputs, "--ckpts", "a.pth", "--npoints", 64, "--batch_size", 3, "-o", output, *flags]
    return features.main([str(word) for word in argv])


def test_features_are_those_of_the_test_clouds_of_a_folder(tmp_path, capsys):
    assert run(tmp_path / "a.npz", "shapes", "more/alone.npy", flags=("--up", "z", "--seed", "4")) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.npz'}: 9 features of 96 channels\n"
    found = read_features(tmp_path / "a.npz")
    assert found.paths == [*(f"shapes/{name}" for name in NAMES), "more/alone.npy"]
    assert found.labels == ["cone"] * 4 + ["cube"] * 4 + [""]
    assert found.points.tolist() == [50] * 8 + [7]
    test = Folder("shapes", "test", npoints=64, up="z", split_seed=4)
    model = model_of(FEATURES_ONLY)
    assert len(test) == 2
    for i, path in enumerate(test.paths):
        with torch.no_grad():
            expected = model.encode(test[i][0].unsqueeze(0))[0]
        np.testing.assert_allclose(found.features[found.paths.index(f"shapes/{path}")], expected, atol=1e-5)
    assert found.origin["draw"] == {"npoints": 64, "up": "z", "seed": 4}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.npz"]


def test_parquet_holds_the_same(tmp_path):
    for name in ("a.npz", "a.parquet"):
        run(tmp_path / name, "shapes")
    ours, theirs = (read_features(tmp_path / name) for name in ("a.npz", "a.parquet"))
    assert np.array_equal(ours.features, theirs.features)
    assert np.array_equal(ours.points, theirs.points)
    assert (ours.paths, ours.labels, ours.origin) == (theirs.paths, theirs.labels, theirs.origin)


def counted(monkeypatch, stop: int = 1000) -> list[str]:
    """The names of the files that are read from now on, until Ctrl-C at one of them."""
    read, names = Draw.read, []

    def reading(self, shape):
        if len(names) == stop:
            raise KeyboardInterrupt
        names.append(shape.name)
        return read(self, shape)

    monkeypatch.setattr(Draw, "read", reading)
    return names


def test_what_was_interrupted_goes_on(tmp_path, monkeypatch):
    run(tmp_path / "whole.npz", "shapes")
    with monkeypatch.context() as patch:
        counted(patch, stop=7)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a.npz", "shapes")
    assert [path.name for path in tmp_path.iterdir() if path.name != "whole.npz"] == ["a.npz.partial.npz"]
    names = counted(monkeypatch)
    run(tmp_path / "a.npz", "shapes")
    assert names == ["shapes/cube/2.xyz", "shapes/cube/3.csv"]  # batches of three: the third was not encoded
    ours, whole = read_features(tmp_path / "a.npz"), read_features(tmp_path / "whole.npz")
    np.testing.assert_allclose(ours.features, whole.features, atol=1e-5)
    assert ours.paths == whole.paths
    assert not (tmp_path / "a.npz.partial.npz").exists()


def test_what_is_encoded_is_kept_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files, "SECONDS_BETWEEN_SAVES", 0.0)
    saves = []
    monkeypatch.setattr(feature_files, "save_arrays", lambda path, arrays, origin: saves.append(len(arrays["paths"])))
    run(tmp_path / "a.npz", "shapes")
    assert saves[:3] == [3, 6, 8]


def test_a_file_that_has_changed_is_read_again_and_another_origin_refused(tmp_path, monkeypatch):
    write(tmp_path / "own", "0.npy", "1.npy", points=20)
    (tmp_path / "own" / "2.npy").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"1 of 3 files cannot be read: .*own/2\.npy: not a readable .* --skip_bad 1$"):
        run(tmp_path / "a.npz", tmp_path / "own")
    np.save(tmp_path / "own" / "0.npy", np.random.default_rng(0).normal(size=(30, 3)))
    with pytest.raises(ValueError, match=r"a\.npz\.partial\.npz holds features of another origin: draw\.up is 'y'"):
        run(tmp_path / "a.npz", tmp_path / "own", flags=("--up", "z"))
    names = counted(monkeypatch)
    run(tmp_path / "a.npz", tmp_path / "own", flags=("--skip_bad", "1"))
    assert [Path(name).name for name in names] == ["0.npy", "2.npy"]
    assert read_features(tmp_path / "a.npz").points.tolist() == [30, 20]


def test_what_cannot_be_encoded_is_told(tmp_path, capsys):
    (tmp_path / "bad.npy").write_bytes(b"garbage")
    for inputs, message in (
        ((tmp_path / "bad.npy",), r"1 of 1 files cannot be read"),
        (("none.npy",), "none.npy does not exist"),
        (("a.pth",), "a.pth is of no kind that is read: .npy"),
        (("more", "more/alone.npy"), "more/alone.npy is named twice"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run(tmp_path / "a.npz", *inputs, flags=("--skip_bad", "5"))
    (tmp_path / "a.npz").touch()
    for output, message in ((tmp_path / "a.npz", "which exists"), (tmp_path / "a.csv", "must end in .npz or .parquet")):
        with pytest.raises(SystemExit):
            run(output, "shapes")
        assert message in capsys.readouterr().err
    arrays = {"labels": np.array(["", ""]), "points": np.ones(2), "features": np.ones((1, 4), np.float32)}
    save_arrays(tmp_path / "c.npz", {"paths": np.array(["a", "b"]), **arrays}, {"what": "features"})
    with pytest.raises(ValueError, match=r"c\.npz holds no features"):
        read_features(tmp_path / "c.npz")
    for content in (b"", b"PK", b"PAR1"):
        for name in ("b.npz", "b.parquet"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match="holds no features"):
                read_features(tmp_path / name)


# search


@pytest.fixture(scope="module")
def kept(playground) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(playground)
        run(playground / "kept.npz", "shapes")
    return playground / "kept.npz"


def test_the_nearest_are_found_and_the_query_left_out(kept, capsys):
    found = read_features(kept)
    assert search.main([str(kept), "shapes/cone/1.txt", "more/alone.npy", "--top", "3"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[:2] for line in lines] == [
        *(["shapes/cone/1.txt", str(rank)] for rank in (1, 2, 3)),
        *(["more/alone.npy", str(rank)] for rank in (1, 2, 3)),
    ]
    alone = Draw(64, "y", 0).read(feature_files.find_shapes([Path("more/alone.npy")])[0])[0]
    with torch.no_grad():
        queries = [found.features[1], load_encoder("a.pth")(alone[None]).feature[0].numpy()]
    mean = sum(found.features.astype(float)) / len(found.features)
    for query, answers in zip(queries, (lines[:3], lines[3:]), strict=True):
        centred = query - mean
        cosines = {
            path: float(centred @ row / np.linalg.norm(centred) / np.linalg.norm(row))
            for path, row in zip(found.paths, found.features - mean, strict=True)
            if query is not queries[0] or path != "shapes/cone/1.txt"
        }
        expected = sorted(cosines, key=lambda path: -cosines[path])[:3]
        assert [line[4] for line in answers] == expected
        assert [float(line[2]) for line in answers] == pytest.approx([cosines[path] for path in expected], abs=1e-3)
        assert [line[3] for line in answers] == [path.split("/")[1] for path in expected]


@pytest.mark.parametrize("count", [1, 2])
def test_of_one_or_two_features_the_cosines_are_plain(kept, count):
    found = read_features(kept)
    few = replace(found, paths=found.paths[:count], features=found.features[:count])
    _, cosines = retrieval.nearest(few, ["a"], found.features[-1:], 5)
    lengths = np.linalg.norm(found.features, axis=1)
    expected = found.features[:count] @ found.features[-1] / lengths[:count] / lengths[-1]
    assert cosines[0] == pytest.approx(expected, abs=1e-5)


def test_what_was_found_is_drawn(kept, tmp_path, monkeypatch, caplog):
    panels = []
    monkeypatch.setattr("tools.evaluation.retrieval.draw_clouds", lambda rows, path: panels.extend(rows))
    read = Draw.read

    def gone(self, shape):
        if shape.name == "shapes/cube/0.npy":
            raise FileNotFoundError("it is gone")
        return read(self, shape)

    monkeypatch.setattr(Draw, "read", gone)
    search.main([str(kept), "shapes/cone/0.npy", "--top", "7", "-o", str(tmp_path / "a.png")])
    (row,) = panels
    assert row[0][0] == "0.npy"
    assert len(row) == 8
    assert [len(clouds) for title, clouds in row].count(0) == 1
    assert "not drawn: it is gone" in caplog.text


def test_the_picture_is_one(kept, tmp_path):
    search.main([str(kept), "shapes/cone/0.npy", "shapes/cone/1.txt", "--top", "2", "-o", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_another_checkpoint_is_refused(kept):
    with pytest.raises(ValueError, match=r"kept\.npz was made with another checkpoint than b\.pth: give that one"):
        search.main([str(kept), "more/alone.npy", "--ckpts", "b.pth"])
    with pytest.raises(
        FileNotFoundError, match=r"c\.pth, the checkpoint of .*kept.npz, is not there: give --ckpts FILE"
    ):
        search.main([str(kept), "more/alone.npy", "--ckpts", "c.pth"])
