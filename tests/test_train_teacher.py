"""`python -m tools.train_teacher`: captions, shapes that nothing else uses, training, and the file that it writes."""

import json
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open
from torch import nn

from datasets.synthetic import CATALOGUE, Cloud, layouts, sample_shape
from datasets.synthetic.captions import describe, part_names, proportions
from models.projection import project
from models.teacher import build_teacher
from tools import train_teacher
from tools.training import small_clip

SIZES = {"embed_dim": 64, "image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 1}
TINY = ["--classes", "knife", "bookshelf", "--width", "32", "--layers", "1", "--image_size", "16", "--shapes", "6"]
TINY += ["--test", "3", "--epochs", "1"]


def cloud(extent: tuple[float, float, float], parts: tuple[int, ...] = (0,)) -> Cloud:
    corners = np.array([(0, 0, 0), extent], dtype=np.float32)
    points = np.repeat(corners, len(parts), axis=0)
    return Cloud(points, points, np.array(parts * 2, dtype=np.int64))


# Captions


@pytest.mark.parametrize(
    ("extent", "word"),
    [
        ((1, 1.5, 1), "tall"),
        ((1, 1.3, 1), "compact"),
        ((1, 0.3, 0.6), "flat"),
        ((1.5, 1, 1), "wide"),
        ((1, 1, 1.5), "deep"),
        ((2, 1, 1), "wide"),
        ((3, 1, 1), "flat"),
    ],
)
def test_proportions_by_hand(extent, word):
    assert proportions(cloud(extent)) == word


def test_parts_are_those_that_the_shape_has():
    assert part_names("chair", cloud((1, 1, 1), parts=(3, 0, 2))) == ["back", "leg", "arm"]
    for name in ("lamp", "vase"):
        drawn = sample_shape(name, 0, 512, stream="a test")
        assert set(part_names(name, drawn)) == {CATALOGUE[name].parts[part] for part in set(drawn.parts.tolist())}


def test_captions_say_what_is_true_in_several_ways():
    shape = cloud((1, 1.5, 1), parts=(1, 2))
    captions = {describe("chair", shape, np.random.default_rng(seed)) for seed in range(200)}
    nouns = {"chair", "tall chair"}
    ends = {"", " with seat", " with leg", " with seat and leg"}
    starts = {"a ", "a depth image of a ", "a 3D shape of a "}
    assert captions == {start + noun + end for start in starts for noun in nouns for end in ends}


def test_tokens_are_those_of_open_clip_numbered_anew():
    names = list(CATALOGUE)
    tokenize, known = small_clip.Tokenizer(names), open_clip.SimpleTokenizer(context_length=small_clip.CONTEXT)
    shapes = small_clip.draw_shapes(names, 1, 0, "a test")
    captions = [text for i in range(4) for text in shapes.captions(torch.arange(24), np.random.default_rng(i))]
    captions.append("a depth image of a compact motorbike with wheel, seat, tank, handle, light and frame")  # longest
    numbers = tokenize(captions)
    assert torch.equal(tokenize.tokens[numbers], known(captions))
    assert (numbers.argmax(1) == known(captions).argmax(1)).all()  # where CLIP reads the text
    assert known.decode(tokenize.tokens[numbers[-1]].tolist()).split("<end_of_text>")[0].endswith(" frame ")
    assert len(tokenize.tokens) < 150


# Shapes


def test_shapes_are_those_of_collections_that_no_data_set_is_written_from(monkeypatch, tmp_path):
    streams = set()

    def record(name: str, index: int, num_points: int, seed: int, stream: str, **more: object) -> Cloud:
        streams.add(stream)
        return sample_shape(name, index, num_points, seed, stream)

    monkeypatch.setattr(layouts, "sample_shape", record)
    monkeypatch.setattr(layouts, "sample_scan", record)
    settings = {"classes": ["knife", "mug"], "train": 1, "test": 1, "num_points": 16}
    for write in ("shapenet", "modelnet_svm", "modelnet", "scanobjectnn", "shapenetpart"):
        names = {"classes": ["mug"]} if write == "scanobjectnn" else {}
        getattr(layouts, f"write_{write}")(tmp_path, **settings | names)
    assert len(streams) >= 10
    assert not streams & {small_clip.TRAIN, small_clip.TEST}


def test_unseen_shapes_are_others_and_another_seed_gives_others():
    drawn = [
        small_clip.draw_shapes(["mug", "knife"], 2, seed, stream)
        for seed, stream in ((0, small_clip.TRAIN), (0, small_clip.TEST), (1, small_clip.TRAIN))
    ]
    assert drawn[0].labels.tolist() == [0, 0, 1, 1]
    first = [shapes.clouds[0].points for shapes in drawn]
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


# Training


def test_images_are_those_of_pre_training():
    points = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
    images, _ = project(points, 16)
    assert torch.equal(small_clip.views_of(points, 16)[2, 1], images[5])


def test_a_batch_has_each_class_once_and_an_epoch_each_shape():
    batches = []

    class Recorded(small_clip.Shapes):
        def captions(self, chosen, rng):
            batches.append(chosen.tolist())
            return super().captions(chosen, rng)

    names = ["knife", "mug", "lamp"]
    shapes = Recorded(*small_clip.draw_shapes(names, 4, 0, "a test"))
    tokenize = small_clip.Tokenizer(names)
    model = small_clip.build_clip(SIZES, len(tokenize.tokens))
    small_clip.train(model, tokenize, shapes, epochs=2, seed=0, device=torch.device("cpu"))
    assert [[shape // 4 for shape in batch] for batch in batches] == [[0, 1, 2]] * 8
    first, second = batches[:4], batches[4:]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(12))
    assert first != second


@pytest.mark.slow
def test_it_learns_to_tell_classes_apart():
    torch.manual_seed(0)
    names, cpu = ["knife", "bookshelf"], torch.device("cpu")
    seen, unseen = (small_clip.draw_shapes(names, n, 0, stream) for n, stream in ((24, "a"), (12, "b")))
    tokenize = small_clip.Tokenizer(names)
    model = small_clip.build_clip(SIZES, len(tokenize.tokens))
    nn.init.normal_(model.token_embedding.weight, std=0.3)  # captions that differ from the start need fewer steps
    losses = small_clip.train(model, tokenize, seen, epochs=40, seed=0, device=cpu)
    assert losses[-1] < losses[0] - 0.2
    assert small_clip.zero_shot_accuracy(model, tokenize, unseen, cpu) > 90
    wrong = unseen._replace(labels=1 - unseen.labels)
    assert small_clip.zero_shot_accuracy(model, tokenize, wrong, cpu) < 10


# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "new" / "a.safetensors"
    assert train_teacher.main([*TINY, "--output", str(path), "--seed", "3"]) == 0
    return path


def test_the_file_is_a_teacher(trained):
    with safe_open(trained, framework="pt") as file:
        about, names = file.metadata(), set(file.keys())
    sizes = json.loads(about["visual_encoder"])
    assert sizes == SIZES
    assert {"logit_scale", "token_embedding.weight", "visual.proj"} <= names
    teacher = build_teacher(sizes, pretrained=trained)
    features, saliency = teacher(torch.zeros(1, 3, 16, 16))
    assert features.shape == (1, 64, 2, 2)
    assert saliency.shape == (1, 2, 2)
    assert json.loads(about["seed"]) == 3
    assert json.loads(about["classes"]) == ["knife", "bookshelf"]
    assert json.loads(about["versions"])["torch"] == torch.__version__.partition("+")[0]
    assert about["command"].startswith("python -m tools.train_teacher --classes knife bookshelf --width 32")
    assert 0 <= json.loads(about["zero_shot_accuracy"]) <= 100


def test_a_picture_lies_beside_it(trained):
    assert trained.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in trained.parent.iterdir()) == ["a.png", "a.safetensors"]


def test_a_seed_gives_the_same_file_again(trained):
    again = trained.parents[1] / "b.safetensors"
    train_teacher.main([*TINY, "--output", str(again), "--seed", "3"])
    with safe_open(trained, framework="pt") as one, safe_open(again, framework="pt") as other:
        for key in one.keys():  # noqa: SIM118 (not a mapping)
            assert torch.equal(one.get_tensor(key), other.get_tensor(key)), key


def test_training_that_is_stopped_leaves_no_file(tmp_path, monkeypatch):
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save", stop)
    with pytest.raises(KeyboardInterrupt):
        train_teacher.main([*TINY, "--output", str(tmp_path / "a.safetensors")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--width", "100"], "--width is 100, which is no multiple of 32"),
        (["--image_size", "60"], "--image_size is 60, which is no multiple of 8"),
        (["--epochs", "0"], "0 must be at least 1"),
        (["--output", "a.pt"], "--output is a.pt; its name must end in .safetensors"),
        (["--classes", "char", "mug"], "--classes: unknown class 'char' of generated shapes; did you mean 'chair'?"),
        (["--classes", "mug"], "--classes needs two names at least"),
        (["--epoch", "3"], "unknown flag --epoch; did you mean --epochs?"),
    ],
)
def test_wrong_flags_are_told_in_one_line(capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        train_teacher.parse_args(flags)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_file_that_exists_is_never_replaced(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    path.write_text("kept")
    with pytest.raises(SystemExit):
        train_teacher.main([*TINY, "--output", str(path)])
    assert "exists: name another, or remove it" in capsys.readouterr().err
    assert path.read_text() == "kept"


# The file that the demo uses


def test_the_teacher_of_the_demo_is_the_file_that_its_description_names():
    root = Path(__file__).parent.parent
    path, text = root / "ckpts/demo-teacher.safetensors", (root / "ckpts/README.md").read_text()
    assert sha256(path.read_bytes()).hexdigest() in text
    assert path.stat().st_size <= 2_000_000
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    assert about["command"] in text
    assert f"{json.loads(about['zero_shot_accuracy']):.1f} %" in text
    assert json.loads(about["classes"]) == list(CATALOGUE)
    versions = json.loads(about["versions"])
    for name in ("python", "torch", "open_clip_torch", "numpy"):
        assert versions[name] in text


def test_the_teacher_of_the_demo_knows_shapes_that_it_has_not_seen():
    root = Path(__file__).parent.parent
    names = list(CATALOGUE)
    tokenize = small_clip.Tokenizer(names)
    with safe_open(root / "ckpts/demo-teacher.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        sizes = json.loads(file.metadata()["visual_encoder"])
    model = small_clip.build_clip(sizes, len(tokenize.tokens))
    model.load_state_dict(tensors)
    unseen = small_clip.draw_shapes(names, 3, 1, "a test")
    assert small_clip.zero_shot_accuracy(model, tokenize, unseen, torch.device("cpu")) > 85
