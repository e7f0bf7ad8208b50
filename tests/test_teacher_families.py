"""Teachers of open_clip and timm: what they compute, against the library's own, and where their weights come from."""

import math
from pathlib import Path
from urllib.error import URLError

import open_clip
import pytest
import timm
import torch
import yaml
from open_clip.model import _build_vision_tower
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor, nn

from models import check_model_config
from models.i2p_mae import I2P_MAE
from models.teacher import CLIPTeacher, Teacher, TimmTeacher, build_teacher, feature_width
from models.teacher.saliency import first_row, similarity_to_mean
from tests.test_pretraining_models import SMALL
from tools.evaluation.features import without_teacher

TIMM = {  # model → image size, grid, channels, what sums an image up
    "test_vit": (64, 4, 64, "class token"),
    "test_vit2": (64, 4, 64, "mean"),  # one register
    "test_vit3": (48, 3, 96, "pool"),  # one register, which the pool sees too
    "eva02_tiny_patch14_224": (42, 3, 192, "class token"),  # rotary positions
    "vit_tiny_patch16_dinov3_qkvb": (48, 3, 192, "class token"),  # four registers
    "deit_tiny_distilled_patch16_224": (48, 3, 192, "class token"),  # two tokens in front
}
VISION = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "head_width": 12}
OPEN_CLIP = {  # name → config; small ones of the kinds that open_clip has
    "classed": {"embed_dim": 20, "vision_cfg": VISION | {"ls_init_value": 0.1}},
    "averaged": {
        "embed_dim": 20,
        "vision_cfg": VISION | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    },
    "pooled": {
        "embed_dim": 20,
        "vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5},
    },
    "of-timm": {
        "embed_dim": 96,
        "vision_cfg": {
            "timm_model_name": "test_vit3",
            "timm_pool": "map",
            "timm_proj": "none",
            "image_size": 160,
        },
    },
}


def randomised(teacher: Teacher) -> Teacher:
    """Shift every tensor of a teacher, norms and biases included, so that its attention is far from even."""
    generator = torch.Generator().manual_seed(5)
    for tensor in teacher.state_dict().values():
        tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return teacher


def untrained(visual_encoder: str, **settings: object) -> Teacher:
    with pytest.warns(UserWarning, match="untrained"):
        return build_teacher(visual_encoder, pretrained="untrained", **settings)


def noise(teacher: Teacher, count: int = 2) -> Tensor:
    size = teacher.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(6))


@pytest.fixture(scope="module", params=TIMM)
def timm_teacher(request) -> tuple[str, Teacher]:
    size = TIMM[request.param][0]
    return request.param, randomised(untrained(f"timm:{request.param}", image_size=size, normalisation="imagenet"))


@pytest.fixture
def small_open_clip(monkeypatch) -> None:
    """Let open_clip have the small models of `OPEN_CLIP` beside its own."""
    known = open_clip.get_model_config
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: OPEN_CLIP.get(name) or known(name))


@pytest.fixture(params=OPEN_CLIP)
def clip_teacher(request, small_open_clip) -> tuple[str, Teacher]:
    return request.param, randomised(untrained(f"open_clip:{request.param}", normalisation="imagenet"))


# Features


def test_features_of_timm_are_its_own_intermediates(timm_teacher):
    name, teacher = timm_teacher
    images = noise(teacher)
    with torch.no_grad():
        (expected,) = teacher.model.forward_intermediates(images, 1, norm=True, intermediates_only=True)
    features, saliency = teacher(images)
    size, grid, width, _ = TIMM[name]
    assert (teacher.image_size, teacher.feat_dim) == (size, width)
    assert features.shape == (2, width, grid, grid)
    assert saliency.shape == (2, grid, grid)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


def test_features_of_open_clip_are_its_own_intermediates(clip_teacher):
    name, teacher = clip_teacher
    images = noise(teacher)
    visual = teacher.model if name == "of-timm" else teacher.visual
    with torch.no_grad():
        if name == "of-timm":
            (expected,) = visual.forward_intermediates(images, 1, norm=True, intermediates_only=True)
        else:
            settings = {"indices": 1, "intermediates_only": True, "normalize_intermediates": name != "pooled"}
            (expected,) = visual.forward_intermediates(images, **settings)["image_intermediates"]
            if name != "pooled":
                expected = torch.einsum("vchw,cd->vdhw", expected, visual.proj)
    assert expected.shape[1] == {"classed": 20, "averaged": 20, "pooled": 24, "of-timm": 96}[name]
    torch.testing.assert_close(teacher(images)[0], expected, rtol=1e-5, atol=1e-5)


def test_the_grid_has_rows_first_and_no_other_tokens(timm_teacher):
    _, teacher = timm_teacher
    images = noise(teacher, 1)
    changed = images.clone()
    patch = teacher.image_size // teacher.grid[0]
    changed[:, :, patch : 2 * patch, 2 * patch : 3 * patch] += 1.0  # the patch in row 1, column 2
    kept = [block.attn.proj.weight.clone() for block in teacher.model.blocks]
    for block in teacher.model.blocks:  # without attention's mixing only that patch's token differs
        block.attn.proj.weight.zero_()
    difference = (teacher(changed)[0] - teacher(images)[0]).abs().sum(1)[0]
    for block, weight in zip(teacher.model.blocks, kept, strict=True):
        block.attn.proj.weight.copy_(weight)
    assert (difference > 1e-6).nonzero().tolist() == [[1, 2]]


# Saliency


def attention_of_class_token(model: nn.Module, images: Tensor) -> Tensor:
    """The first row of the last block's attention matrix, which timm forms where it does not call PyTorch's."""
    matrices = []
    attn = model.blocks[-1].attn
    attn.fused_attn = False
    with attn.attn_drop.register_forward_hook(lambda module, args, output: matrices.append(args[0])), torch.no_grad():
        model.forward_features(images)
    attn.fused_attn = True
    return matrices[0][:, :, 0].mean(1)


def attention_of_pool(model: nn.Module, images: Tensor) -> Tensor:
    """Softmax of the pool's own queries and keys."""
    seen = {}
    pool = model.attn_pool
    hooks = [
        layer.register_forward_hook(lambda module, args, output, key=key: seen.update({key: output}))
        for key, layer in (("query", pool.q), ("keys", pool.kv))
    ]
    with torch.no_grad():
        model.forward_head(model.forward_features(images))
    for hook in hooks:
        hook.remove()
    heads, width = pool.num_heads, pool.head_dim
    rows = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        query, key = seen["query"][:, 0, part], seen["keys"][:, :, part]  # (V, d), (V, N, d): keys before values
        rows.append(torch.einsum("vd,vnd->vn", query, key).div(math.sqrt(width)).softmax(1))
    return torch.stack(rows).mean(0)


def test_saliency_of_timm_is_the_models_own(timm_teacher):
    name, teacher = timm_teacher
    images = noise(teacher)
    _, grid, _, summary = TIMM[name]
    features, saliency = teacher(images)
    if summary == "mean":
        vectors = nn.functional.normalize(features.flatten(2), dim=1)
        mean = nn.functional.normalize(features.flatten(2).mean(2, keepdim=True), dim=1)
        expected = (vectors * mean).sum(1).softmax(1)
    else:
        row = (attention_of_pool if summary == "pool" else attention_of_class_token)(teacher.model, images)
        expected = row[:, -grid * grid :]
        assert row.shape[1] > grid * grid  # class and register tokens
        assert expected.std() > 1e-3  # not even
    torch.testing.assert_close(saliency.flatten(1), expected, rtol=1e-4, atol=1e-6)


def test_saliency_of_open_clip_is_the_towers_own(clip_teacher):
    name, teacher = clip_teacher
    images = noise(teacher)
    features, saliency = teacher(images)
    rows = []
    if name == "of-timm":
        expected = attention_of_pool(teacher.model, images)[:, 1:]
    elif name == "averaged":
        expected = similarity_to_mean(features.flatten(2).mT)
    else:
        attn = teacher.visual.attn_pool.attn if name == "pooled" else teacher.visual.transformer.resblocks[-1].attn

        def form_weights(module: nn.MultiheadAttention, args: tuple, kwargs: dict) -> None:
            query, key = args[0], args[1]
            rows.append(module.forward(query, key, key, need_weights=True)[1][:, 0, 1:])

        with attn.register_forward_pre_hook(form_weights, with_kwargs=True), torch.no_grad():
            teacher.visual(images)
        expected = rows[0]
    torch.testing.assert_close(saliency.flatten(1), expected, rtol=1e-4, atol=1e-6)


def test_a_row_of_attention_is_what_attention_makes_of_unit_vectors():
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 5, 4, generator=draw) for _ in range(2))
    bias = torch.randn(1, 3, 5, 5, generator=draw)
    units = torch.eye(5).expand(2, 3, 5, 5)
    for settings in ({}, {"attn_mask": bias}, {"scale": 0.3}):
        matrix = nn.functional.scaled_dot_product_attention(query, key, units, **settings)
        torch.testing.assert_close(first_row(query, key, units, **settings), matrix[:, :, 0].mean(1))


def test_similarity_to_the_mean_by_hand():
    patches = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])  # mean (1, 1/3): cosines 3, 1, 3 over √10
    expected = torch.tensor([[3.0, 1.0, 3.0]]) / math.sqrt(10)
    torch.testing.assert_close(similarity_to_mean(patches), expected.softmax(1))


# Normalisation


def unit_images(teacher: Teacher) -> Tensor:
    return noise(teacher).sigmoid()


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize(
    ("visual_encoder", "settings", "own"),
    [
        ("timm:test_vit", {"image_size": 32}, HALF),
        ("timm:vit_tiny_patch16_dinov3_qkvb", {"image_size": 32}, IMAGENET),
        ("timm:test_vit", {"image_size": 32, "normalisation": "imagenet"}, IMAGENET),
        ("open_clip:classed", {}, OPENAI),
        ("open_clip:classed", {"normalisation": "imagenet"}, IMAGENET),
        ({"embed_dim": 8, "image_size": 16, "patch_size": 8, "width": 8, "layers": 1, "heads": 1}, {}, IMAGENET),
        (
            {"embed_dim": 8, "image_size": 16, "patch_size": 8, "width": 8, "layers": 1, "heads": 1},
            {"normalisation": "own"},
            OPENAI,
        ),
    ],
)
def test_images_reach_the_model_in_its_statistics(small_open_clip, visual_encoder, settings, own):
    teacher = untrained(visual_encoder, **settings)
    images, seen = unit_images(teacher), []
    inner = teacher.model.patch_embed if isinstance(teacher, TimmTeacher) else teacher.visual.conv1
    with inner.register_forward_pre_hook(lambda module, args: seen.append(args[0])):
        teacher(normalised(images, *IMAGENET))
    torch.testing.assert_close(seen[0], normalised(images, *own), rtol=1e-5, atol=1e-5)


def test_the_statistics_of_open_clip_are_those_of_the_tag(small_open_clip, monkeypatch):
    tags = {
        "half": dict(zip(("mean", "std"), HALF, strict=True)),
        "clip": dict(zip(("mean", "std"), OPENAI, strict=True)),
    }
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: list(tags))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: tags.get(tag, {}))
    teacher = untrained("open_clip:classed")  # no tag of its own: the first
    torch.testing.assert_close(teacher.gain.flatten(), torch.tensor(IMAGENET[1]) / 0.5)


# That it stays frozen


def test_every_family_is_frozen_and_draws_nothing(small_open_clip):
    for name, size in (("timm:test_vit", 32), ("open_clip:pooled", 32), ("open_clip:averaged", 32)):
        torch.manual_seed(1)
        first = untrained(name, image_size=size).train()
        drawn = torch.rand(2)
        torch.manual_seed(2)
        torch.testing.assert_close(untrained(name, image_size=size).state_dict(), first.state_dict(), rtol=0, atol=0)
        torch.manual_seed(1)
        assert torch.equal(torch.rand(2), drawn)
        assert not any(module.training for module in first.modules())
        assert not any(parameter.requires_grad for parameter in first.parameters())
        features, saliency = first(noise(first).requires_grad_())
        assert not features.requires_grad
        assert not saliency.requires_grad


def test_the_attention_is_read_where_timm_would_not_call_pytorchs():
    model = timm.create_model("test_vit", img_size=32, num_classes=0)
    for block in model.blocks:
        block.attn.fused_attn = False  # as under TIMM_FUSED_ATTN=0
    _, saliency = TimmTeacher("test_vit", model, IMAGENET)(torch.zeros(1, 3, 32, 32))
    assert saliency.sum() > 0.5


# Sizes and names


def test_the_width_is_the_models():
    assert untrained("timm:test_vit", image_size=32).feat_dim == 64
    assert feature_width({"visual_encoder": "timm:vit_small_patch14_dinov2"}) == 384
    assert feature_width({"visual_encoder": "ViT-L/14"}) == 768
    assert feature_width({"visual_encoder": "clip:ViT-B/16", "pretrained": "nowhere.pt"}) == 512
    assert feature_width({"visual_encoder": "open_clip:ViT-B-16-SigLIP", "pretrained": "webli"}) == 768
    assert feature_width({"visual_encoder": None, "feat_dim": 7}) == 7


def test_a_wrong_width_is_refused_before_weights_are_looked_for():
    with pytest.raises(
        ValueError, match=r"feat_dim is 512, but .*'timm:test_vit' makes 64 channels: write feat_dim: 64"
    ):
        build_teacher("timm:test_vit", 512, "nowhere.pth")


def test_a_model_without_its_teacher_keeps_its_2d_head():
    clip_config = {"visual_encoder": "timm:test_vit", "pretrained": "untrained", "image_size": 32}
    with pytest.warns(UserWarning, match="untrained"):
        model = I2P_MAE(clip_config=clip_config, **SMALL)
    config = without_teacher({"clip_config": clip_config})
    assert config == {"clip_config": {"visual_encoder": None, "feat_dim": 64}}
    assert I2P_MAE(**config, **SMALL).rec_head_2d.weight.shape == model.rec_head_2d.weight.shape


def test_own_image_sizes():
    assert untrained("timm:test_vit").image_size == 160
    assert untrained("timm:deit_tiny_distilled_patch16_224").image_size == 224


def test_named_clip_in_both_ways():
    sizes = [parameter.shape for parameter in untrained("clip:ViT-B/32").parameters()]
    assert sizes == [parameter.shape for parameter in untrained("ViT-B/32").parameters()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"visual_encoder": "timm:vit_smal_patch14_dinov2"},
            "no model of timm; did you mean vit_small_patch14_dinov2,",
        ),
        ({"visual_encoder": "timm:resnet18"}, "'resnet18', which is no plain vision transformer"),
        ({"visual_encoder": "timm:resnet18", "image_size": 64}, "'timm:resnet18', which takes no image_size"),
        ({"visual_encoder": "timm:swin_tiny_patch4_window7_224"}, "is no plain vision transformer"),
        ({"visual_encoder": "timm:vit_small_patch16_18x2_224"}, "one attention in each block"),
        (
            {"visual_encoder": "timm:vit_small_patch14_dinov2.lvd124m"},
            r"'lvd124m', which is no tag of 'vit_small_patch14_dinov2' in timm \(tags: lvd142m\); did you mean lvd142m",
        ),
        (
            {"visual_encoder": "timm:vit_base_patch16_224.mae", "pretrained": "augreg_in1k"},
            "names two weights of 'vit_base_patch16_224', 'mae' and 'augreg_in1k'",
        ),
        (
            {"visual_encoder": "timm:vit_small_patch14_dinov2", "image_size": 224 + 3},
            "image_size, 227 for 'vit_small_patch14_dinov2', is no multiple of its patches of 14 pixels: give 224, say",
        ),
        (
            {"visual_encoder": "ViT-B/16", "image_size": 100},
            "image_size, 100 for .*, is no multiple of its patches of 16 pixels",
        ),
        ({"visual_encoder": "timm:test_vit", "image_size": 0}, "image_size is 0: give a positive integer"),
        (
            {"visual_encoder": "open_clip:ViT-B-16-SigLP", "pretrained": "webli"},
            "no model of open_clip; did you mean ViT-B-16-SigLIP,",
        ),
        ({"visual_encoder": "open_clip:RN50", "pretrained": "openai"}, "'RN50', which is no plain vision transformer"),
        ({"visual_encoder": "open_clip:convnext_base", "pretrained": "untrained"}, "is no plain vision transformer"),
        (
            {"visual_encoder": "open_clip:ViT-B-16-SigLIP"},
            r"lacks pretrained: give one of .*'ViT-B-16-SigLIP' \(webli\)",
        ),
        ({"visual_encoder": "dino:vit"}, "'dino:vit', but .* open_clip:NAME, timm:NAME"),
    ],
)
def test_what_cannot_be_a_teacher_is_told(settings, message):
    with pytest.raises(ValueError, match=message):
        build_teacher(**settings)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("ViT-L-14-CLIPA", 768),
        ("coca_ViT-B-32", 768),
        ("xlm-roberta-base-ViT-B-32", 512),
        ("EVA01-g-14", 1408),
        ("PE-Core-T-16-384", 192),
        ("MobileCLIP-B", 768),
        ("ViTamin-S", 384),
        ("vit_medium_patch16_gap_256", 512),
        ("vit_relpos_medium_patch16_cls_224", 512),
    ],
)
def test_every_kind_of_open_clips_vision_transformers_is_taken(name, width):
    assert feature_width({"visual_encoder": f"open_clip:{name}", "pretrained": "untrained"}) == width


def test_a_model_whose_patches_do_not_cover_its_own_images_needs_a_size():
    clip_config = {"visual_encoder": "timm:vit_so400m_patch14_siglip_384"}  # 27 × 14 = 378
    with pytest.raises(ValueError, match=r"image_size, 384 for .* of its patches of 14 pixels: give 378"):
        feature_width(clip_config)
    assert feature_width({**clip_config, "image_size": 378}) == 1152


# Weights


def state_of(name: str, **settings: object) -> dict[str, Tensor]:
    """Random weights of a model of timm, its head included."""
    model = timm.create_model(name, **settings)
    draw = torch.Generator().manual_seed(9)
    return {key: torch.randn(value.shape, generator=draw) for key, value in model.state_dict().items()}


def assert_holds(teacher: TimmTeacher, state: dict[str, Tensor]) -> None:
    bare = {key: value for key, value in state.items() if not key.startswith("head.")}
    torch.testing.assert_close(dict(teacher.model.state_dict()), bare, rtol=0, atol=0)


@pytest.mark.parametrize("file", ["a.safetensors", "a.pth", "headless.pth", "wrapped.pth", "half.safetensors"])
def test_files_of_timm_load_in_full(tmp_path, file):
    state = state_of("test_vit")
    saved = {key: value for key, value in state.items() if file != "headless.pth" or not key.startswith("head.")}
    if file == "half.safetensors":
        saved = {key: value.half() for key, value in saved.items()}
        state = {key: value.float() for key, value in saved.items()}
    content = {"model": saved} if file == "wrapped.pth" else saved
    (save_file if file.endswith("safetensors") else torch.save)(content, tmp_path / file)
    before = torch.get_rng_state()
    teacher = build_teacher("timm:test_vit", pretrained=tmp_path / file)
    assert torch.equal(torch.get_rng_state(), before)
    assert_holds(teacher, state)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}


def test_a_file_of_another_model_is_refused(tmp_path):
    state = state_of("test_vit")
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors does not hold the weights of 'test_vit2': .*reg_token"):
        build_teacher("timm:test_vit2", pretrained=tmp_path / "a.safetensors")
    del state["norm.bias"]
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b\.safetensors does not hold .*norm\.bias"):
        build_teacher("timm:test_vit", pretrained=tmp_path / "b.safetensors")


def test_a_damaged_file_and_one_that_is_not_there_are_told(tmp_path):
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"page\.pth cannot be read as weights"):
        build_teacher("timm:test_vit", pretrained=tmp_path / "page.pth")
    with pytest.raises(
        FileNotFoundError, match=r"no file and no tag of 'timm:test_vit' \(tags: r160_in1k\).*default.*PATH"
    ):
        build_teacher("timm:test_vit", pretrained=tmp_path / "nowhere.pth")


def test_position_embeddings_follow_the_image_size(tmp_path):
    state = state_of("test_vit")  # 10×10 patches
    ramp = torch.arange(10.0).repeat_interleave(10)  # each patch's row
    state["pos_embed"][0, 1:] = ramp[:, None]
    save_file(state, tmp_path / "a.safetensors")
    teacher = build_teacher("timm:test_vit", pretrained=tmp_path / "a.safetensors", image_size=320)  # 20×20
    rows = teacher.model.pos_embed[0, 1:].view(20, 20, -1)
    assert teacher.grid == (20, 20)
    expected = (torch.arange(20.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(rows[2:-2, 7, 0], expected[2:-2], rtol=0, atol=0.05)
    torch.testing.assert_close(teacher.model.pos_embed[0, 0], state["pos_embed"][0, 0], rtol=0, atol=0)


def test_position_embeddings_of_clip_follow_the_image_size(tmp_path):
    sizes = {"embed_dim": 8, "image_size": 80, "patch_size": 8, "width": 8, "layers": 1, "heads": 1}
    state = {f"visual.{key}": value for key, value in untrained(sizes).visual.state_dict().items()}
    state["visual.positional_embedding"][1:] = torch.arange(10.0).repeat_interleave(10)[:, None]
    save_file(state, tmp_path / "clip.safetensors")
    teacher = build_teacher(sizes, pretrained=tmp_path / "clip.safetensors", image_size=160)
    rows = teacher.visual.positional_embedding[1:].view(20, 20, -1)
    assert teacher(torch.zeros(1, 3, 160, 160))[0].shape == (1, 8, 20, 20)
    torch.testing.assert_close(rows[2:-2, 7, 0], ((torch.arange(20.0) + 0.5) / 2 - 0.5)[2:-2], rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("name", "pretrained"), [("test_vit", None), ("test_vit", "r160_in1k"), ("test_vit.r160_in1k", "default")]
)
def test_weights_of_timm_are_downloaded_by_timm(monkeypatch, name, pretrained):
    state, asked = state_of("test_vit"), []

    def download(place: str, *args: object, **settings: object) -> dict[str, Tensor]:
        asked.append(place)
        return dict(state)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    assert_holds(build_teacher(f"timm:{name}", pretrained=pretrained), state)
    assert asked == ["timm/test_vit.r160_in1k"]


def test_a_failed_download_of_timm_says_what_to_do(monkeypatch):
    def download(*args: object, **settings: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    with pytest.raises(FileNotFoundError) as error:
        build_teacher("timm:test_vit")
    for hint in ("'default'", "'timm:test_vit'", "no route to host", "network", "PATH"):
        assert hint in str(error.value)


def test_a_model_of_which_timm_has_no_weights_is_told():
    with pytest.raises(FileNotFoundError, match=r"timm knows no weights of 'test_vit4' \(tags: none\).*untrained"):
        build_teacher("timm:test_vit4")


def save_tower(name: str, path: object) -> dict[str, Tensor]:
    config = OPEN_CLIP[name]
    tower = _build_vision_tower(config["embed_dim"], config["vision_cfg"])
    draw = torch.Generator().manual_seed(9)
    state = {f"visual.{key}": torch.randn(value.shape, generator=draw) for key, value in tower.state_dict().items()}
    save_file(state | {"logit_scale": torch.ones(1)}, path)
    return state


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_files_of_open_clip_load_in_full(tmp_path, small_open_clip, name):
    state = save_tower(name, tmp_path / "a.safetensors")
    teacher = build_teacher(f"open_clip:{name}", pretrained=tmp_path / "a.safetensors")
    ours = teacher.model if name == "of-timm" else teacher.visual
    prefix = "visual.trunk." if name == "of-timm" else "visual."
    torch.testing.assert_close({prefix + key: value for key, value in ours.state_dict().items()}, state, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"a\.safetensors holds another image tower"):
        build_teacher("open_clip:ViT-S-32-alt", pretrained=tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["classed", "of-timm"])
def test_a_tower_of_another_image_size(tmp_path, small_open_clip, name):
    save_tower(name, tmp_path / "a.safetensors")
    teacher = build_teacher(f"open_clip:{name}", pretrained=tmp_path / "a.safetensors", image_size=48)
    grid = 3 if name == "of-timm" else 6
    assert teacher(torch.zeros(1, 3, 48, 48))[1].shape == (1, grid, grid)


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b88k", False)])
def test_the_activation_of_open_clip_is_the_one_of_the_tag(tmp_path, monkeypatch, tag, quick):
    asked = []
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: {**OPEN_CLIP["classed"]})
    monkeypatch.setattr(
        open_clip, "download_pretrained", lambda config: asked.append(config) or tmp_path / "a.safetensors"
    )
    save_tower("classed", tmp_path / "a.safetensors")
    teacher = build_teacher("open_clip:ViT-B-16", pretrained=tag)
    assert asked == [open_clip.get_pretrained_cfg("ViT-B-16", tag)]
    assert isinstance(teacher, CLIPTeacher)
    assert isinstance(teacher.visual.transformer.resblocks[0].mlp.gelu, QuickGELU) == quick


# What the documentation shows


def test_the_configs_of_the_documentation_name_teachers():
    text = (Path(__file__).parents[1] / "docs/TEACHERS.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("clip_config: ")]
    widths = [feature_width({**yaml.safe_load(line)["clip_config"], "feat_dim": None}) for line in lines]
    assert widths == [512, 384, 768, 768, 512]
    for line in lines:
        check_model_config({"NAME": "I2P_MAE", **yaml.safe_load(line)})


# Pre-training under them


@pytest.mark.parametrize(
    ("visual_encoder", "image_size"),
    [
        ("timm:test_vit", 32),
        ("timm:test_vit3", 32),
        pytest.param("timm:vit_small_patch14_dinov2", 56, marks=pytest.mark.slow),
        pytest.param("open_clip:ViT-B-16-SigLIP", 32, marks=pytest.mark.slow),
        pytest.param("open_clip:EVA02-B-16", 32, marks=pytest.mark.slow),
    ],
)
def test_pre_training_under_it(visual_encoder, image_size):
    clip_config = {"visual_encoder": visual_encoder, "pretrained": "untrained", "image_size": image_size}
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="untrained"):
        model = I2P_MAE(clip_config=clip_config, **SMALL)
    before = {key: value.clone() for key, value in model.teacher.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    points = torch.nn.functional.normalize(torch.randn(2, 64, 3), dim=-1)
    losses = []
    for _ in range(4):
        output = model(points, generator=torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        output["loss"].backward()
        optimizer.step()
        losses.append(output["loss_2d"].item())
    assert losses[-1] < losses[0]
    torch.testing.assert_close(dict(model.teacher.state_dict()), before, rtol=0, atol=0)
    assert not any("teacher" in key for key in model.state_dict())
