"""The frozen 2D teacher: what it computes, that it stays frozen, and every way to give it weights."""

import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor, nn

from models.teacher import CLIP_TOWERS, CLIPTeacher, build_teacher, tower_sizes
from tests.checkpoint_files import rewrite_for_another_numpy

SIZES = {"embed_dim": 12, "image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "heads": 2}


def untrained(visual_encoder: str | dict = SIZES, feat_dim: int = 12) -> CLIPTeacher:
    with pytest.warns(UserWarning, match="untrained"):
        return build_teacher(visual_encoder, feat_dim, "untrained")


@pytest.fixture
def teacher() -> CLIPTeacher:
    """A small teacher whose every tensor is random, biases and norms included."""
    teacher = untrained()
    generator = torch.Generator().manual_seed(5)
    for tensor in teacher.state_dict().values():
        tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return teacher


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(6))


@pytest.fixture
def clip_state(teacher) -> dict[str, Tensor]:
    """The state dict of a whole CLIP, image tower and (a token of) text tower."""
    visual = {f"visual.{key}": value.clone() for key, value in teacher.visual.state_dict().items()}
    return {"logit_scale": torch.tensor(4.6), "token_embedding.weight": torch.zeros(3, 4), **visual}


def assert_same_weights(ours: CLIPTeacher, other: CLIPTeacher) -> None:
    torch.testing.assert_close(ours.state_dict(), other.state_dict(), rtol=0, atol=0)


# What it computes


def test_features_are_open_clips_projected_patch_tokens(teacher, images):
    visual = teacher.visual
    visual.output_tokens = True
    with torch.no_grad():
        _, tokens = visual(images)  # (V, h·w, width), after ln_post
        expected = (tokens @ visual.proj).mT.reshape(3, 12, 4, 4)
    features, _ = teacher(images)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


def test_saliency_is_the_class_row_of_the_last_attention_matrix(teacher, images):
    matrices = []

    def attend_again(attn: nn.MultiheadAttention, args: tuple, kwargs: dict) -> None:
        query = args[0] if args else kwargs["query"]
        with torch.no_grad():
            matrices.append(nn.MultiheadAttention.forward(attn, query, query, query, need_weights=True)[1])

    attn = teacher.visual.transformer.resblocks[-1].attn
    with attn.register_forward_pre_hook(attend_again, with_kwargs=True):
        teacher.visual(images)
    _, saliency = teacher(images)
    torch.testing.assert_close(saliency.flatten(1), matrices[0][:, 0, 1:], rtol=1e-5, atol=1e-6)


def test_saliency_leaves_out_the_class_tokens_share(teacher, images):
    _, saliency = teacher(images)
    sums = saliency.flatten(1).sum(1)
    assert ((sums > 0.5) & (sums < 1 - 1e-3)).all()


def test_activation_is_quick_gelu_and_norm_eps_is_clips(teacher):
    assert all(isinstance(block.mlp.gelu, QuickGELU) for block in teacher.visual.transformer.resblocks)
    assert {module.eps for module in teacher.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}


def test_images_are_described_one_by_one(teacher, images):
    features, saliency = teacher(images)
    alone, saliency_alone = teacher(images[1:2])
    torch.testing.assert_close(alone[0], features[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(saliency_alone[0], saliency[1], rtol=1e-5, atol=1e-6)


def test_patch_grid_has_rows_first(teacher, images):
    changed = images.clone()
    changed[:, :, 8:16, 24:] += 1.0  # the patch in row 1, column 3
    # Without attention's and position's mixing, only the patch that changed differs.
    for block in teacher.visual.transformer.resblocks:
        block.attn.out_proj.weight.zero_()
    difference = (teacher(changed)[0] - teacher(images)[0]).abs().sum(1)  # (V, h, w)
    assert [divmod(int(i), 4) for i in difference.flatten(1).argmax(1)] == [(1, 3)] * 3
    assert (difference > 1e-6).sum() == 3


def test_wrong_image_size_is_refused(teacher):
    with pytest.raises(ValueError, match=re.escape("images are (2, 3, 48, 48), but this teacher takes (V, 3, 32, 32)")):
        teacher(torch.zeros(2, 3, 48, 48))


def test_golden_tower_sizes():
    sizes = {"embed_dim": 64, "image_size": 224, "patch_size": 16, "width": 192, "layers": 3, "heads": 3}
    teacher = untrained(sizes, feat_dim=64)
    features, saliency = teacher(torch.zeros(2, 3, 224, 224))
    assert features.shape == (2, 64, 14, 14)
    assert saliency.shape == (2, 14, 14)
    assert (teacher.feat_dim, teacher.image_size) == (64, 224)


def test_vit_b16():
    teacher = untrained("ViT-B/16", feat_dim=512)
    features, saliency = teacher(torch.zeros(1, 3, 224, 224))
    assert features.shape == (1, 512, 14, 14)
    assert saliency.shape == (1, 14, 14)
    assert sum(p.numel() for p in teacher.parameters()) == 86_192_640  # CLIP's ViT-B/16, text tower left out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_half_precision_on_a_gpu_agrees_with_the_cpu(teacher, images):
    expected = teacher(images)
    for ours, reference in zip(teacher.to("cuda")(images.to("cuda")), expected, strict=True):
        assert ours.dtype == torch.float32
        assert not torch.equal(ours.cpu(), reference)
        torch.testing.assert_close(ours.cpu(), reference, rtol=2e-2, atol=2e-2)


# That it stays frozen


def test_train_leaves_it_in_eval_mode(teacher):
    assert not any(module.training for module in teacher.train().modules())


def test_no_gradient_flows(teacher, images):
    features, saliency = teacher(images.requires_grad_())
    assert not features.requires_grad
    assert not saliency.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_callers_autocast_does_not_change_the_numbers_on_a_cpu(teacher, images, dtype):
    expected = teacher(images)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(teacher(images), expected, rtol=0, atol=0)


# Untrained weights


def test_untrained_is_deterministic_and_leaves_the_global_random_state():
    torch.manual_seed(1)
    first = untrained()
    drawn = torch.rand(2)
    torch.manual_seed(2)
    assert_same_weights(untrained(), first)
    torch.manual_seed(1)
    torch.testing.assert_close(torch.rand(2), drawn, rtol=0, atol=0)


def test_untrained_is_never_the_fallback():
    with pytest.raises(FileNotFoundError, match="no file and no tag"):
        build_teacher(SIZES, 12)


# Weights from files


def save_torchscript(state: dict[str, Tensor], path: Path) -> None:
    """Save as OpenAI does: half precision, in a TorchScript archive that carries other attributes too."""
    root = nn.Module()
    root.register_buffer("input_resolution", torch.tensor(32))
    for key, value in state.items():
        *parents, name = key.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.register_parameter(name, nn.Parameter(value.half()))
    torch.jit.script(root).save(str(path))


def save_pretraining_checkpoint(state: dict[str, Tensor], path: Path) -> None:
    """Save as the released pre-training checkpoints are, metrics as NumPy numbers included."""
    model = {"module.h_encoder.norm": torch.zeros(2)} | {f"module.clip_model.{k}": v for k, v in state.items()}
    metrics = {"acc": np.float64(91.2), "count": np.int64(3)}
    torch.save({"base_model": model, "optimizer": {}, "epoch": 7, "metrics": metrics, "best_metrics": metrics}, path)


SAVERS = {
    "bare.pt": torch.save,
    "legacy.bin": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "open_clip.pt": lambda state, path: torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path
    ),
    "model.safetensors": save_file,
    "released.pth": save_pretraining_checkpoint,
}


@pytest.mark.parametrize("name", SAVERS)
def test_every_file_format_loads(tmp_path, teacher, clip_state, images, name):
    SAVERS[name](clip_state, tmp_path / name)
    loaded = build_teacher(SIZES, 12, str(tmp_path / name))
    assert_same_weights(loaded, teacher)
    torch.testing.assert_close(loaded(images), teacher(images), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_torchscript_archive_in_half_precision_loads_as_float32(tmp_path, teacher, clip_state):
    save_torchscript(clip_state, tmp_path / "ViT.pt")
    loaded = build_teacher(SIZES, 12, str(tmp_path / "ViT.pt"))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert_same_weights(loaded, teacher.half().float())


def test_metrics_pickled_by_another_numpy_are_read(tmp_path, teacher, clip_state):
    save_pretraining_checkpoint(clip_state, tmp_path / "released.pth")
    rewrite_for_another_numpy(tmp_path / "released.pth", tmp_path / "other.pth")
    assert_same_weights(build_teacher(SIZES, 12, tmp_path / "other.pth"), teacher)


def test_loading_leaves_the_global_random_state(tmp_path, clip_state):
    torch.save(clip_state, tmp_path / "clip.pt")
    before = torch.get_rng_state()
    build_teacher(SIZES, 12, tmp_path / "clip.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_loaded_weights_do_not_depend_on_the_file_any_more(tmp_path, teacher, clip_state):
    path = tmp_path / "clip.pt"
    torch.save(clip_state, path)
    loaded = build_teacher(SIZES, 12, path)
    path.write_bytes(bytes(path.stat().st_size))
    assert_same_weights(loaded, teacher)


def test_missing_unknown_and_misshapen_tensors_are_all_named(tmp_path, clip_state):
    del clip_state["visual.proj"]
    clip_state["visual.extra"] = torch.zeros(1)
    clip_state["visual.positional_embedding"] = torch.zeros(50, 16)
    torch.save(clip_state, tmp_path / "clip.pt")
    with pytest.raises(ValueError) as error:
        build_teacher(SIZES, 12, tmp_path / "clip.pt")
    text = str(error.value)
    assert str(tmp_path / "clip.pt") in text
    assert "1 tensors missing (proj)" in text
    assert "1 tensors unknown (extra)" in text
    assert "positional_embedding (50, 16) instead of (17, 16)" in text


def test_file_without_an_image_tower_is_refused(tmp_path):
    torch.save({"h_encoder.weight": torch.zeros(2)}, tmp_path / "student.pth")
    with pytest.raises(ValueError, match=r"student\.pth holds no CLIP image tower.*h_encoder\.weight"):
        build_teacher(SIZES, 12, tmp_path / "student.pth")


@pytest.mark.parametrize("name", ["page.pt", "page.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><p>not found", b"PK\x03\x04 cut short"])
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
        build_teacher(SIZES, 12, tmp_path / name)


def test_file_with_code_in_it_is_refused(tmp_path, clip_state):
    torch.save({"base_model": clip_state, "metrics": Path("an object")}, tmp_path / "objects.pth")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        build_teacher(SIZES, 12, tmp_path / "objects.pth")


def test_missing_file_names_the_tags_and_the_ways_out(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        build_teacher("ViT-B/16", 512, tmp_path / "nowhere.pt")
    for hint in ("nowhere.pt", "openai", "pretrained: PATH", "clip_model.visual.*", "untrained"):
        assert hint in str(error.value)


# Weights from open_clip


def test_a_tag_is_downloaded_by_open_clip(tmp_path, monkeypatch, teacher, clip_state):
    asked = []

    def download(config: dict) -> str:
        asked.append(config)
        return str(tmp_path / "model.safetensors")

    save_file(clip_state, tmp_path / "model.safetensors")
    monkeypatch.setattr(open_clip, "download_pretrained", download)
    monkeypatch.setattr("models.teacher.clip.tower_sizes", lambda name: tower_sizes(SIZES))
    assert_same_weights(build_teacher("ViT-B/16", 12), teacher)
    assert asked == [open_clip.get_pretrained_cfg("ViT-B-16-quickgelu", "openai")]


def test_a_failed_download_says_what_to_do(monkeypatch):
    def download(config: dict) -> str:
        raise URLError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    with pytest.raises(FileNotFoundError) as error:
        build_teacher("ViT-B/16", 512)
    for hint in ("'openai'", "no route to host", "network", "model.clip_config", "PATH", "clip_model.visual.*"):
        assert hint in str(error.value)


@pytest.mark.parametrize("name", CLIP_TOWERS)
def test_every_named_tower_has_openais_weights(name):
    assert open_clip.is_pretrained_cfg(CLIP_TOWERS[name], "openai")


# Which tower


@pytest.mark.parametrize(
    ("name", "sizes"),
    [  # embed_dim, image_size, patch_size, width, layers, heads, as in the CLIP paper
        ("ViT-B/32", (512, 224, 32, 768, 12, 12)),
        ("ViT-B/16", (512, 224, 16, 768, 12, 12)),
        ("ViT-L/14", (768, 224, 14, 1024, 24, 16)),
        ("ViT-L/14@336px", (768, 336, 14, 1024, 24, 16)),
    ],
)
def test_sizes_of_the_named_towers(name, sizes):
    assert tower_sizes(name) == sizes


def test_a_tower_of_nearly_the_right_name_is_suggested():
    with pytest.raises(ValueError, match=r"visual_encoder is 'ViT-B-16' \(did you mean ViT-B/16\?\), but"):
        build_teacher("ViT-B-16", 512, "untrained")


@pytest.mark.parametrize("name", ["RN50", "ViT-B16"])
def test_unknown_tower_names_those_that_work(name):
    with pytest.raises(ValueError, match=f"{name}.*ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px"):
        build_teacher(name, 512, "untrained")


def test_feat_dim_must_be_the_towers():
    with pytest.raises(ValueError, match=r"feat_dim is 256, but .* makes 512 channels"):
        build_teacher("ViT-B/16", 256, "untrained")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"witdh": 16}, r"unknown key 'model\.clip_config\.visual_encoder\.witdh'; did you mean 'width'"),
        ({"layers": 0}, r"visual_encoder\.layers is 0: give a positive integer"),
        ({"heads": 2.0}, r"visual_encoder\.heads is 2\.0; expected int"),
        ({"patch_size": 5}, r"image_size is 32, which is no multiple of patch_size, 5"),
        ({"heads": 3}, r"width is 16, which is no multiple of heads, 3"),
    ],
)
def test_wrong_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build_teacher(SIZES | change, 12, "untrained")


def test_missing_sizes_are_named():
    with pytest.raises(ValueError, match=r"visual_encoder lacks layers, heads; valid: embed_dim"):
        build_teacher({key: SIZES[key] for key in ("embed_dim", "image_size", "patch_size", "width")}, 12, "untrained")
