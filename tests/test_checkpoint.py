"""Checkpoints: what is read, what is refused, what is said, and that writes are whole."""

import contextlib
import io
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from easydict import EasyDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.loading import CLASSIFIER_HEAD, SEGMENTER_HEAD, loading_rules
from utils.checkpoint import LoadingRules, load_weights, read_checkpoint, save_checkpoint
from utils.files import atomic_write, locked


class Encoder(nn.Module):
    def __init__(self, width: int, norms: bool) -> None:
        super().__init__()
        self.token_embed = nn.ModuleList([nn.Sequential(nn.Conv1d(3, width, 1), nn.BatchNorm1d(width))])
        self.encoder_blocks = nn.ModuleList([nn.Linear(width, width)])
        if norms:
            self.encoder_norms = nn.ModuleList([nn.LayerNorm(width)])


class Pretrain(nn.Module):
    """A pre-training model with the official names; `heads` as in I2P-MAE or in Point-M2AE."""

    loading = loading_rules()

    def __init__(self, width: int = 4, heads: tuple[str, ...] = ("rec_head_3d", "rec_head_2d")) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.randn(1, width))
        self.h_encoder = Encoder(width, norms=True)
        self.h_decoder = nn.ModuleList([nn.Linear(width, width)])
        self.decoder_pos_embeds = nn.ModuleList([nn.Linear(3, width)])
        self.token_prop = nn.ModuleList([nn.Linear(width, width)])
        self.decoder_norm = nn.LayerNorm(width)
        for head in heads:
            self.add_module(head, nn.Linear(width, 3))


class Classifier(nn.Module):
    loading = loading_rules(new=CLASSIFIER_HEAD)

    def __init__(self, classes: int = 5, width: int = 4) -> None:
        super().__init__()
        self.h_encoder = Encoder(width, norms=False)
        self.norm = nn.LayerNorm(width)
        self.cls_head_finetune = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, classes)
        )


class Segmenter(nn.Module):
    loading = loading_rules(new=SEGMENTER_HEAD)

    def __init__(self, parts: int = 6, width: int = 4) -> None:
        super().__init__()
        self.h_encoder = Encoder(width, norms=True)
        self.label_conv = nn.Sequential(nn.Conv1d(2, width, 1))
        self.propagations = nn.ModuleList([nn.Linear(width, width)])
        self.convs1, self.convs2 = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)
        self.convs3, self.convs4 = nn.Conv1d(width, width, 1), nn.Conv1d(width, parts, 1)
        self.bns1, self.bns2, self.bns3 = nn.BatchNorm1d(width), nn.BatchNorm1d(width), nn.BatchNorm1d(width)


class Foreign(nn.Linear):
    """Has none of the official names."""

    loading = loading_rules()


def filled(model: nn.Module, value: float) -> nn.Module:
    for tensor in model.state_dict().values():
        tensor.fill_(value)
    return model


def save(path: Path, model_or_state: nn.Module | dict) -> Path:
    state = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
    torch.save({"base_model": state, "epoch": 3}, path)
    return path


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def refusal(model: nn.Module, path: Path, strict: bool = False) -> str:
    """The message of a refused load, after checking that the model is as it was."""
    before = snapshot(model)
    with pytest.raises(ValueError) as caught:
        load_weights(model, path, strict)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert str(path) in str(caught.value)
    return str(caught.value)


# shapes of files that load


@pytest.mark.parametrize("container", ["base_model", "model_state_dict", "state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_official_shape_of_file_loads(tmp_path: Path, container: str | None, prefix: str) -> None:
    state = {prefix + key: value for key, value in filled(Classifier(), 7).state_dict().items()}
    torch.save({container: state, "epoch": 1} if container else state, tmp_path / "a.pth")
    model = Classifier()
    report = load_weights(model, tmp_path / "a.pth", strict=True)
    assert all((value == 7).all() for value in model.state_dict().values())
    assert set(report.loaded) == set(model.state_dict())


@pytest.mark.parametrize("kind", ["f4", "f8", "i4", "i8"])
@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"], ids=["NumPy 2", "NumPy 1"])
def test_a_numpy_number_beside_the_weights_is_read(tmp_path: Path, kind: str, module: bytes) -> None:
    number = np.dtype(kind).type(7)
    own = number.__reduce__()[0].__module__.encode()
    file = io.BytesIO()
    torch.save({"metrics": number}, file, _use_new_zipfile_serialization=False)
    (tmp_path / "a.pth").write_bytes(file.getvalue().replace(b"c" + own + b"\n", b"c" + module + b"\n"))
    assert read_checkpoint(tmp_path / "a.pth") == {"metrics": 7}


def test_classifier_starts_from_a_pre_training_file(tmp_path: Path) -> None:
    teacher = {"clip_model.visual.proj": torch.zeros(2), "clip_model.token_embedding.weight": torch.zeros(2)}
    state = filled(Pretrain(), 7).state_dict() | teacher
    model = filled(Classifier(), 1)
    report = load_weights(model, save(tmp_path / "a.pth", state))
    for key, value in model.state_dict().items():
        assert (value == (7 if key.startswith("h_encoder.") else 1)).all(), key
    heads = {key for key in model.state_dict() if not key.startswith("h_encoder.")}
    assert set(report.missing) == heads
    assert set(report.ignored) == {key for key in state if key not in report.loaded}
    assert report.unexpected == report.mismatched == ()


def test_report_counts_what_loaded_and_names_what_did_not(tmp_path: Path) -> None:
    state = Pretrain().state_dict() | {"clip_model.visual.proj": torch.zeros(2)}
    text = str(load_weights(Classifier(), save(tmp_path / "a.pth", state)))
    assert "loaded 9 of the model's 20 tensors" in text
    assert "not in the file, kept as initialised: norm (2), cls_head_finetune (9)" in text
    for group in ("decoder (9)", "reconstruction heads (4)", "encoder norms (2)", "teacher (1)"):
        assert group in text
    assert text.endswith("chosen by: unknown, the file does not say")


def test_report_says_what_chose_the_weights(tmp_path: Path) -> None:
    torch.save({"base_model": Pretrain().state_dict(), "chosen_by": "accuracy on X"}, tmp_path / "a.pth")
    assert str(load_weights(Classifier(), tmp_path / "a.pth")).endswith("; chosen by: accuracy on X")


def test_order_of_a_report_does_not_depend_on_hashing(tmp_path: Path) -> None:
    state = Pretrain().state_dict()
    report = load_weights(Classifier(), save(tmp_path / "a.pth", state))
    assert list(report.ignored) == [key for key in state if key in set(report.ignored)]


def test_segmenter_starts_from_a_pre_training_file_with_its_encoder_norms(tmp_path: Path) -> None:
    model = filled(Segmenter(), 1)
    load_weights(model, save(tmp_path / "a.pth", filled(Pretrain(), 7)))
    assert (model.h_encoder.encoder_norms[0].weight == 7).all()
    assert (model.convs4.weight == 1).all()


def test_head_of_another_size_keeps_its_initialisation_and_is_reported(tmp_path: Path) -> None:
    model = filled(Classifier(classes=9), 1)
    report = load_weights(model, save(tmp_path / "a.pth", filled(Classifier(classes=5), 7)))
    assert report.mismatched == ("cls_head_finetune.2.weight", "cls_head_finetune.2.bias")
    assert (model.cls_head_finetune[2].weight == 1).all()
    assert (model.cls_head_finetune[0].weight == 7).all()
    assert "of another shape, kept as initialised: cls_head_finetune (2)" in str(report)


def test_pre_training_model_loads_a_released_file_strictly_without_its_teacher(tmp_path: Path) -> None:
    state = filled(Pretrain(), 7).state_dict() | {"clip_model.visual.proj": torch.zeros(2)}
    model = Pretrain()
    report = load_weights(model, save(tmp_path / "a.pth", state), strict=True)
    assert report.ignored == ("clip_model.visual.proj",)
    assert (model.mask_token == 7).all()


def test_dtype_of_the_model_stays(tmp_path: Path) -> None:
    model = Classifier()
    load_weights(model, save(tmp_path / "a.pth", Classifier().double()))
    assert model.norm.weight.dtype == torch.float32


class Renamed(nn.Linear):
    """Released files have its tensors below another name, with a decoder beside them."""

    loading = LoadingRules(leftover={"decoder.": "decoder"}, renamed={"MAE_encoder.": ""})


def test_names_translate_as_the_model_says(tmp_path: Path) -> None:
    state = {f"module.MAE_encoder.{key}": value for key, value in filled(nn.Linear(2, 2), 7).state_dict().items()}
    model = Renamed(2, 2)
    report = load_weights(model, save(tmp_path / "a.pth", state | {"module.decoder.x": torch.zeros(1)}))
    assert report.loaded == ("weight", "bias")
    assert report.ignored == ("decoder.x",)
    assert (model.weight == 7).all()


def test_a_model_that_says_nothing_takes_its_own_tensors_and_no_others(tmp_path: Path) -> None:
    state = filled(nn.Linear(2, 2), 7).state_dict()
    model = nn.Linear(2, 2)
    load_weights(model, save(tmp_path / "a.pth", state))
    assert (model.weight == 7).all()
    assert "1 unexpected: mask_token" in refusal(model, save(tmp_path / "b.pth", state | {"mask_token": torch.ones(1)}))


# files that do not fit


@pytest.mark.parametrize("strict", [False, True])
def test_file_with_none_of_our_tensors_is_refused(tmp_path: Path, strict: bool) -> None:
    text = refusal(Classifier(), save(tmp_path / "a.pth", nn.Linear(2, 2)), strict)
    assert "0 of the model's 20 tensors" in text
    assert "none of our models" in text


def test_misspelt_prefix_loads_nothing_and_is_refused(tmp_path: Path) -> None:
    state = {f"model.{key}": value for key, value in Pretrain().state_dict().items()}
    text = refusal(Classifier(), save(tmp_path / "a.pth", state))
    assert "missing: h_encoder.token_embed.0.0.weight" in text
    assert "unexpected: model.mask_token" in text


def test_one_missing_encoder_tensor_is_an_error(tmp_path: Path) -> None:
    state = Pretrain().state_dict()
    del state["h_encoder.encoder_blocks.0.bias"]
    text = refusal(Classifier(), save(tmp_path / "a.pth", state))
    assert "h_encoder.encoder_blocks.0.bias" in text
    assert "8 of the model's 20" in text


def test_encoder_of_another_width_is_refused_with_both_shapes(tmp_path: Path) -> None:
    text = refusal(Classifier(width=6), save(tmp_path / "a.pth", Pretrain(width=4)))
    assert "8 of another shape: h_encoder.token_embed.0.0.weight [4, 3, 1] for [6, 3, 1]" in text
    assert "an I2P-MAE pre-training model" in text


def test_unknown_tensor_is_refused(tmp_path: Path) -> None:
    state = Pretrain().state_dict() | {"h_encoder.extra": torch.zeros(1)}
    assert "1 unexpected: h_encoder.extra" in refusal(Classifier(), save(tmp_path / "a.pth", state))


def test_pre_training_file_is_no_strict_classifier(tmp_path: Path) -> None:
    text = refusal(Classifier(classes=5), save(tmp_path / "a.pth", Pretrain()), strict=True)
    assert "the file seems to hold an I2P-MAE pre-training model" in text
    assert "give a checkpoint of a classifier with 5 classes, or the config" in text


def test_way_out_of_a_fine_tune_names_pre_training_models_too(tmp_path: Path) -> None:
    text = refusal(Classifier(classes=5), save(tmp_path / "a.pth", nn.Linear(2, 2)))
    assert "a classifier with 5 classes or a pre-training model" in text


def test_strict_refuses_another_number_of_classes(tmp_path: Path) -> None:
    text = refusal(Classifier(classes=9), save(tmp_path / "a.pth", Classifier(classes=5)), strict=True)
    assert "the file seems to hold a classifier with 5 classes" in text
    assert "cls_head_finetune.2.bias [5] for [9]" in text


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (Pretrain(), "an I2P-MAE pre-training model"),
        (Pretrain(heads=("rec_head",)), "a Point-M2AE pre-training model"),
        (Classifier(classes=3), "a classifier with 3 classes"),
        (Segmenter(parts=8), "a part segmenter with 8 parts"),
    ],
)
def test_kind_of_a_foreign_file_is_recognised(tmp_path: Path, model: nn.Module, kind: str) -> None:
    assert f"seems to hold {kind}" in refusal(Foreign(2, 2), save(tmp_path / "a.pth", model))


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"base_model": {}}, {"base_model": {"a": "b"}}])
def test_file_without_tensors_is_refused(tmp_path: Path, content: dict) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert "holds no model" in refusal(Classifier(), tmp_path / "a.pth")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_lost_or_resized_encoder_tensor_is_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = Pretrain().state_dict()
    used = [key for key in state if key in Classifier().state_dict()]
    key = data.draw(st.sampled_from(used))
    if data.draw(st.booleans()):
        del state[key]
    else:
        state[key] = torch.zeros(*state[key].shape, 2)
    assert key in refusal(Classifier(), save(tmp_path_factory.mktemp("lost") / "a.pth", state))


# reading


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        read_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"not a checkpoint at all", "damaged"),
        (b"\n<!DOCTYPE html><html>Quota exceeded</html>", "web page"),
        (b"<HTML><body>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "damaged"),
    ],
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.pth .*{message}"):
        read_checkpoint(tmp_path / "a.pth")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_tensor_alone_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds a Tensor, not a dictionary"):
        read_checkpoint(tmp_path / "a.pth")


class Payload:
    """An object that touches a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def test_object_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"base_model": {}, "metrics": Payload(str(tmp_path / "ran"))}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"Python object \(posix\.mkdir\)"):
        read_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


@settings(max_examples=80, deadline=None)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_cut_or_scrambled_file_never_raises_anything_else(
    zipped: bool, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.pth"
    state = {"base_model": {"a": torch.arange(6.0), "b": torch.ones(2)}, "epoch": 3}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        path.write_bytes(content[: data.draw(st.integers(0, len(content) // 2))])
        with pytest.raises(ValueError, match=r"a\.pth is not read"):
            read_checkpoint(path)
        return
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        assert isinstance(read_checkpoint(path), dict)


# writing


def test_saved_state_reads_back(tmp_path: Path) -> None:
    state = {"base_model": {"a": torch.arange(3)}, "epoch": 3, "config": {"x": [1, 2.5, None, "y"]}, "rng": (1, (2, 3))}
    save_checkpoint(tmp_path / "a.pth", state)
    loaded = read_checkpoint(tmp_path / "a.pth")
    assert torch.equal(loaded["base_model"].pop("a"), torch.arange(3))
    assert loaded == {**state, "base_model": {}}
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("value", [EasyDict(a=1), Path("x"), lambda: None], ids=["EasyDict", "Path", "function"])
def test_state_that_could_not_be_read_back_is_refused_and_the_old_file_stays(tmp_path: Path, value: object) -> None:
    save_checkpoint(tmp_path / "a.pth", {"epoch": 1})
    with pytest.raises(ValueError, match=r"a\.pth is not written"):
        save_checkpoint(tmp_path / "a.pth", {"epoch": 2, "config": value})
    assert read_checkpoint(tmp_path / "a.pth") == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_full_disk_is_an_os_error_and_the_old_file_stays(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", {"epoch": 1})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(OSError):
            save_checkpoint(tmp_path / "a.pth", {"epoch": 2, "big": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert read_checkpoint(tmp_path / "a.pth") == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "absent" / "a.pth", {"epoch": 1})


def test_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"%d" % (1 // 0))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_lock_says_who_has_it_now(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path):
            assert re.fullmatch(rf"process {os.getpid()} on .+ since .+\n", (tmp_path / ".lock").read_text())
