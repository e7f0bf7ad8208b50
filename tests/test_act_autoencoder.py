"""ACT's autoencoder beside the tokenizer that it is: its 2D transformer, prompts, what learns, whole runs."""

import itertools
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from models import build_model
from models.visual_transformer import build_visual, filled_later
from tests.golden.fixtures import clouds
from tests.golden_numbers import load
from tests.playground import make_playground, refuse, results_of, run
from tests.test_autoencode import CONFIG as AUTOENCODING
from tools import runner_autoencode
from tools.evaluation.profiler import count
from tools.training.builder import build_scheduler
from utils.config import load_config

ROOT = Path(__file__).parents[1]
VIT = {"embed_dim": 24, "depth": 3, "num_heads": 3}
SMALL = {
    "NAME": "ACTPromptedDiscreteVAEwithVIT",
    "num_group": 8,
    "group_size": 6,
    "num_tokens": 16,
    "encoder_dims": 12,
    "tokens_dims": 10,
    "decoder_dims": 8,
    "num_prompt_token": 5,
    "visual_embed_type": VIT,
    "visual_embed_pretrained": "untrained",
}
NAME = "act/autoencoder"

pytestmark = pytest.mark.filterwarnings("ignore:the 2D transformer is untrained")


def small(**changes) -> nn.Module:
    torch.manual_seed(0)
    return build_model(SMALL | changes)


@pytest.fixture
def points():
    return clouds(2, 64, seed=1)


@pytest.fixture
def none():
    return torch.zeros(2, 8, 16)


# the transformer and its weights


def test_the_blocks_and_the_norm_of_timm_are_taken():
    visual = build_visual("test_vit", "untrained").eval()
    whole = timm.create_model("test_vit", num_classes=0).eval()
    whole.blocks.load_state_dict(visual[0].state_dict())
    whole.norm.load_state_dict(visual[1].state_dict())
    images = torch.randn(1, *whole.pretrained_cfg["input_size"])
    tokens = whole._pos_embed(whole.patch_embed(images))
    torch.testing.assert_close(visual[1](visual[0](tokens)), whole.forward_features(images))


def test_an_untrained_transformer_is_the_same_each_time_and_says_so():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    with pytest.warns(UserWarning, match="the 2D transformer is untrained"):
        one = build_visual(VIT, "untrained")
    assert torch.equal(torch.random.get_rng_state(), before)
    other = build_visual(VIT, "untrained")
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def official_names(visual: nn.ModuleList, first: str, second: str) -> dict[str, torch.Tensor]:
    """The tensors of a transformer, all others than those of an untrained one, under the names of a file."""
    return {
        key.replace("0.", first, 1) if key.startswith("0.") else key.replace("1.", second, 1): value + 1
        for key, value in visual.state_dict().items()
    }


@pytest.mark.parametrize("kind", ["timm", "safetensors", "autoencoder", "pre-training"])
def test_weights_come_from_a_file_of_timm_or_of_act(kind, tmp_path):
    with filled_later():
        other = build_visual(VIT, "untrained")
    if kind in ("timm", "safetensors"):
        state = official_names(other, "blocks.", "norm.") | {"cls_token": torch.zeros(1), "head.weight": torch.zeros(2)}
    else:
        prefix = "module.visual_embed." if kind == "autoencoder" else "module.dvae_tokenizer.visual_embed."
        state = official_names(other, f"{prefix}0.", f"{prefix}1.")
        state |= {"module.ACT_encoder.norm.weight": torch.zeros(3), "module.codebook": torch.zeros(3)}
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    save_file(state, path) if kind == "safetensors" else torch.save({"base_model": state}, path)
    visual = build_visual(VIT, str(path))
    for key, value in other.state_dict().items():
        assert torch.equal(visual.state_dict()[key], value + 1), key


def test_a_file_of_another_transformer_is_refused(tmp_path):
    with filled_later():
        shallow = build_visual(VIT | {"depth": 2}, "untrained")
    torch.save(official_names(shallow, "blocks.", "norm."), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth does not hold the blocks and the norm .*Missing key.*0\.2\."):
        build_visual(VIT, str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"visual_embed_type": "CLIP:ViT-B/16"},
            r"'CLIP:ViT-B/16': .*not supported.*patch16_clip_224\.openai",
        ),
        ({"visual_embed_type": "vit_base_patch16_348"}, "no model of timm; did you mean .*vit_base_patch16_384"),
        ({"visual_embed_type": "resnet18"}, "'resnet18', which is no plain vision transformer"),
        ({"visual_embed_pretrained": "timm"}, "no weights for a transformer of given sizes: write"),
        ({"visual_embed_pretrained": "absent.pth"}, "'absent.pth', which is no file. Write `visual_embed_pretrained"),
        ({"visual_embed_type": VIT | {"depth": 0}}, r"visual_embed_type\.depth is 0: give a positive integer"),
        ({"visual_embed_type": VIT | {"num_heads": 5}}, "embed_dim is 24, which is no multiple of num_heads, 5"),
        ({"visual_embed_type": {"embed_dim": 24}}, "visual_embed_type lacks depth, num_heads"),
        ({"visual_embed_dim": 25}, r"visual_embed_dim is 25, but .* has 24 channels: write visual_embed_dim: 24"),
        ({"num_prompt_token": -1}, "num_prompt_token must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        small(**changes)


def test_a_download_that_fails_names_the_ways_out(monkeypatch):
    def offline(name, pretrained=False, **_):
        assert not pretrained, "no network"

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kw: offline(*args, **kw) or create(*args, **kw))
    with pytest.raises(
        FileNotFoundError,
        match=r"the 2D transformer 'vit_base_patch16_384' could not be downloaded .*no network.*PATH.*untrained",
    ):
        build_visual("vit_base_patch16_384", "timm")
    with pytest.raises(FileNotFoundError, match="timm knows no weights of 'vit_small_patch16_18x2_224'"):
        build_visual("vit_small_patch16_18x2_224", "timm")


# prompts


class Recorder(nn.Module):
    """A block that keeps what it is given and hands on what it was told."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.norm1, self.block = block.norm1, block

    def forward(self, x):
        self.given, self.gave = x, self.block(x)
        return self.gave


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_stand_before_the_words_and_deep_ones_are_new_before_each_block(deep, points):
    model = small(use_deep_prompt=deep).eval()
    model.visual_embed[0] = nn.Sequential(*map(Recorder, model.visual_embed[0]))
    centers, codes = model.group(points).centers, torch.randn(2, 8, 10)
    with torch.no_grad():
        seen = model.look(codes, centers)
        places = model.visual_pos_embed(centers)
        first, second, third = model.visual_embed[0]
        for block, before in ((first, model.proj_pre(codes)), (second, first.gave[:, 5:]), (third, second.gave[:, 5:])):
            torch.testing.assert_close(block.given[:, 5:], before + places)
        torch.testing.assert_close(
            first.given[:, :5], (model.visual_prompt_token + model.visual_prompt_pos).expand(2, 5, -1)
        )
        if deep:
            prompts = model.deep_prompt_tokens + model.deep_prompt_pos  # (2, 5, D)
            torch.testing.assert_close(second.given[:, :5], prompts[0].expand(2, 5, -1))
            torch.testing.assert_close(third.given[:, :5], prompts[1].expand(2, 5, -1))
        else:
            torch.testing.assert_close(third.given[:, :5], second.gave[:, :5] + model.visual_prompt_pos)
        torch.testing.assert_close(seen, model.proj_post(model.visual_embed[1](third.gave[:, 5:])))


def test_prompts_are_dropped_by_a_tenth_in_training_alone(points, none):
    model = small(num_prompt_token=400)
    first = model.visual_embed[0][0] = Recorder(model.visual_embed[0][0])
    codes, centers = torch.randn(2, 8, 10), model.group(points).centers
    model.visual_prompt_pos.data.zero_()
    shares = []
    for training in (True, False):
        model.train(training).look(codes, centers)
        shares.append((first.given[:, :400] == 0).float().mean().item())
    assert shares == [pytest.approx(0.1, abs=0.01), 0.0]


def test_prompts_start_from_a_truncated_normal():
    model = small(num_prompt_token=200)
    for name in ("visual_prompt_token", "visual_prompt_pos", "deep_prompt_tokens", "deep_prompt_pos"):
        parameter = model.get_parameter(name)
        assert parameter.std().item() == pytest.approx(0.02, rel=0.05)
        assert parameter.abs().max() <= 2


# what learns


def learning(model: nn.Module, points, none) -> set[str]:
    """First names of the parameters that get a gradient other than zero."""
    model(points, noise=none)["loss"].backward()
    return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_the_transformer_is_frozen_unless_the_config_says_otherwise(points, none):
    everything = {name.split(".")[0] for name, _ in small().named_parameters()}
    assert learning(small(), points, none) == everything - {"visual_embed"}
    assert learning(small(freeze_visual_embed=False), points, none) == everything


def test_without_prompts_nothing_learns_through_a_frozen_transformer(points, none):
    prompts = {"visual_prompt_token", "visual_prompt_pos", "deep_prompt_tokens", "deep_prompt_pos"}
    everything = {name.split(".")[0] for name, _ in small().named_parameters()} - prompts
    through = {"visual_embed", "codebook", "proj_pre", "visual_pos_embed"}
    found = learning(small(num_prompt_token=0), points, none)
    assert found == everything - through  # the encoder learns by the divergence alone
    assert learning(small(num_prompt_token=0, freeze_visual_embed=False), points, none) == everything


# figures


def test_the_released_model_costs_what_is_published():
    counted = count(load_config(ROOT / f"cfgs/{NAME}.yaml"), NAME, seed=0)
    assert counted["total"]["parameters"] == 116_185_883
    macs = {stage["name"]: stage["macs"] for stage in counted["stages"]}
    assert (counted["total"]["macs"] - macs["codebook"]) / 1e9 == pytest.approx(15.21, abs=0.005)
    of_blocks = 12 * 128 * 12 * 768**2  # 12 blocks over 64 prompts and 64 words
    assert macs["image transformer"] == of_blocks + 64 * (2 * 384 * 768 + 3 * 128 + 128 * 768)


@pytest.mark.parametrize(("config", "case"), [("autoencoder", "act_autoencoder"), ("pre-train", "act_pretrain")])
def test_the_schedule_is_the_released_one_an_epoch_earlier(config, case):
    """The released code steps after an epoch: its epoch e runs at what ours gives epoch e − 1 (docs/FIDELITY.md, 4)."""
    golden, config = load("schedules")[case], load_config(ROOT / f"cfgs/act/{config}.yaml")
    assert config.max_epoch == golden["last_epoch"]
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=config.optimizer.kwargs.lr)
    scheduler = build_scheduler(optimizer, config.scheduler)
    released = {int(epoch): value for epoch, value in golden["values"].items()}
    assert released.pop(0) == released[1] == 1e-6
    assert released[300] < 2e-6
    for epoch, value in released.items():
        scheduler.step(epoch - 1)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(value, rel=1e-7)


# whole runs


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    configs = {NAME: {**AUTOENCODING, "model": SMALL | {"visual_embed_pretrained": "weights.pth"}}}
    return make_playground(tmp_path_factory.mktemp("playground"), configs)


@pytest.fixture
def here(playground, monkeypatch):
    monkeypatch.chdir(playground)
    return playground


def test_a_run_is_resumed_exactly_and_tested_without_the_weights_it_began_with(here, monkeypatch):
    given = official_names(build_visual(VIT, "untrained"), "blocks.", "norm.")
    torch.save(given, "weights.pth")
    assert run(NAME, "--exp_name", "whole") == 0
    calls = itertools.count()
    with monkeypatch.context() as patch:  # asked after each of two updates and each epoch: within the second epoch
        patch.setattr("tools.training.trainer.any_process", lambda *_: next(calls) == 3)
        assert run(NAME, "--exp_name", "stopped") == 75
    Path("weights.pth").unlink()
    assert run(NAME, "--exp_name", "stopped", "--resume") == 0
    ours, whole = (results_of(NAME, name)["autoencoding"] for name in ("stopped", "whole"))
    assert ours["history"] == whole["history"]
    states = [torch.load(f"experiments/{NAME}/{name}/ckpt-last.pth")["base_model"] for name in ("stopped", "whole")]
    for key, value in states[1].items():
        assert torch.equal(states[0][key], value), key
    for key, value in given.items():
        ours = key.replace("blocks.", "visual_embed.0.").replace(
            "norm.", "visual_embed.1."
        )  # norm1, norm2 have no point
        assert torch.equal(states[1][ours], value), key

    assert run(NAME, "--test", "--ckpts", f"experiments/{NAME}/whole/ckpt-best.pth", "--exp_name", "test") == 0
    assert results_of(NAME, "test")["autoencoding, test"]["CDL1"] == pytest.approx(whole["best_CDL1"])


def test_what_a_checkpoint_fills_is_not_downloaded(recwarn):
    """Neither sought nor warned of: with `timm`, sizes that timm has no weights for are refused."""
    model = runner_autoencode.build(SMALL | {"visual_embed_pretrained": "timm"}, filled=True)
    assert "visual_embed.1.weight" in model.state_dict()
    assert not [warning for warning in recwarn if "untrained" in str(warning.message)]
    with pytest.raises(ValueError, match="no weights for a transformer of given sizes"):
        runner_autoencode.build(SMALL | {"visual_embed_pretrained": "timm"}, filled=False)


def test_a_checkpoint_of_another_autoencoder_is_named(here, capsys, tmp_path):
    other = {key: value for key, value in SMALL.items() if not key.startswith(("visual", "num_prompt"))}
    torch.save({"base_model": build_model(other | {"NAME": "DiscreteVAE"}).state_dict()}, tmp_path / "dvae.pth")
    said = refuse(capsys, NAME, "--test", "--ckpts", tmp_path / "dvae.pth")
    assert "the file seems to hold a Point-BERT discrete autoencoder; give a checkpoint of an ACT autoencoder" in said
