"""ACT's pre-training: masks, losses, what learns, a teacher that changes and one that does not, whole runs."""

import copy
import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build_model, check_model_config
from models.act import ACT_PointDistillation, cosine_loss
from models.transformer import Block
from tests.golden.fixtures import clouds, coarse_mask
from tests.playground import SHAPENET, SVM_DATA, TRAINING, make_playground, refuse, results_of, run, write_config
from tests.test_act_autoencoder import SMALL as AUTOENCODER
from tests.test_autoencode import CONFIG as AUTOENCODING
from tests.test_distributed import in_two_processes
from tools.evaluation.profiler import TEACHER, count
from tools.runner_pretrain import over_all_processes
from tools.training.builder import build_optimizer, parallel
from utils.config import load_config
from utils.distributed import rank, world_size

ROOT = Path(__file__).parents[1]
TEACHING = {key: value for key, value in AUTOENCODER.items() if key not in ("NAME", "visual_embed_pretrained")}
TRANSFORMER = {"embed_dim": 12, "depth": 3, "num_heads": 3, "cls_dim": 6, "decoder_num_heads": 3, "mask_ratio": 0.6}
SECTIONS = {"transformer_config": TRANSFORMER, "dvae_config": TEACHING | {"ckpt": "untrained"}}
SMALL = {"NAME": "ACT_PointDistillation", **SECTIONS}

pytestmark = pytest.mark.filterwarnings("ignore:.*is untrained")


def small(
    transformer: dict[str, Any] | None = None, teacher: dict[str, Any] | None = None, loss: Any = "cosine"
) -> ACT_PointDistillation:
    torch.manual_seed(0)
    changed = TRANSFORMER | {"drop_path_rate": 0.0} | (transformer or {})
    return ACT_PointDistillation(changed, SECTIONS["dvae_config"] | (teacher or {}), loss)


@pytest.fixture
def points():
    return clouds(2, 64, seed=1)


@pytest.fixture
def none():
    return torch.zeros(2, 8, 16)


@pytest.fixture
def mask():
    return coarse_mask(2, 8, 3, seed=2)


@pytest.fixture
def uneven():
    """Of one cloud five groups are masked, of the other two."""
    return torch.tensor([[True] * 5 + [False] * 3, [False] * 3 + [True] * 2 + [False] * 3])


# what is computed


def target_of(model, points, none):
    return model.dvae_tokenizer(model.group(points), none)


@pytest.mark.parametrize("loss", ["cosine", "l2", "smoothl1"])
def test_each_loss_is_a_mean_over_the_masked_groups_alone(loss, points, none, uneven):
    """Against a loop over the clouds, each alone; the cosine is averaged over groups, then over clouds."""
    model = small(loss=loss).eval()
    terms, sizes = [], []
    for cloud, hidden in zip(points, uneven, strict=True):
        target = target_of(model, cloud[None], none[:1])[0, hidden]
        tokens = [model.ACT_encoder.encoder(model.group(cloud[None]).neighborhoods)[0][~hidden]]
        centers = model.group(cloud[None]).centers[0]
        tokens = torch.cat([model.ACT_encoder.cls_token[0], *tokens])
        position = torch.cat([model.ACT_encoder.cls_pos[0], model.ACT_encoder.pos_embed(centers[~hidden])])
        encoded = model.ACT_encoder.norm(model.ACT_encoder.blocks(tokens[None], position[None]))[0, 1:]
        together = torch.cat([encoded, model.mask_token[0].expand(int(hidden.sum()), -1)])
        places = torch.cat([model.decoder_pos_embed(centers[~hidden]), model.decoder_pos_embed(centers[hidden])])
        decoded = model.ACT_decoder(together[None], places[None])[0, len(encoded) :]
        predicted = model.proj_head(model.ACT_decoder.norm(decoded))
        distance = {
            "cosine": 1 - F.cosine_similarity(predicted, target, dim=-1).mean(),
            "l2": (predicted - target).square().sum(),
            "smoothl1": F.smooth_l1_loss(predicted, target, reduction="sum"),
        }
        terms.append(distance[loss])
        sizes.append(target.numel())
    expected = sum(terms) / (2 if loss == "cosine" else sum(sizes))
    torch.testing.assert_close(model(points, uneven, none)["loss"], expected)


def test_the_cosine_is_zero_one_and_two():
    target, valid = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.ones(1, 2, dtype=torch.bool)
    for predicted, expected in ((3 * target, 0.0), (target.flip(-1), 1.0), (-target, 2.0)):
        assert cosine_loss(predicted, target, valid).item() == pytest.approx(expected)


def test_the_class_token_is_decoded_beside_tokens_of_an_earlier_block(points, none, mask):
    model = small({"cls_loss": True, "register_shallow_hook": 1}).eval()
    kept = []
    model.ACT_encoder.blocks.blocks[1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    group, found = model.group(points), model(points, mask, none)
    tokens = kept[0]  # (2, 4, 12), those of the class and of three groups
    seen = torch.stack([center[~row] for center, row in zip(group.centers, mask, strict=True)])
    hidden = torch.stack([center[row] for center, row in zip(group.centers, mask, strict=True)])
    encoded = model.ACT_encoder.norm(
        model.ACT_encoder.blocks.blocks[2](
            tokens + torch.cat([model.ACT_encoder.cls_pos.expand(2, -1, -1), model.ACT_encoder.pos_embed(seen)], dim=1)
        )
    )
    x = torch.cat([encoded[:, :1], tokens[:, 1:], model.mask_token.expand(2, 5, -1)], dim=1)
    places = [model.cls_pos.expand(2, -1, -1), model.decoder_pos_embed(seen), model.decoder_pos_embed(hidden)]
    predicted = model.proj_head(model.ACT_decoder.norm(model.ACT_decoder(x, torch.cat(places, dim=1))[:, -5:]))
    target = torch.stack([t[row] for t, row in zip(target_of(model, points, none), mask, strict=True)])
    expected = 1 - F.cosine_similarity(predicted, target, dim=-1).mean()
    torch.testing.assert_close(found["loss_class"], expected)
    torch.testing.assert_close(found["loss"], found["loss_token"] + expected)
    assert small().eval()(points, mask, none).keys() == {"loss", "visible_tokens"}


@pytest.mark.parametrize("kind", ["rand", "block"])
def test_masks_are_drawn_afresh_for_each_cloud(kind, points):
    model = small({"mask_type": kind}).eval()
    drawn = []
    model.ACT_encoder.register_forward_hook(lambda module, inputs, output: drawn.append(inputs[1].index))
    for seed in (3, 4, 3):
        assert model(points, generator=torch.Generator().manual_seed(seed))["visible_tokens"] == 4
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    group, seen = model.group(points.repeat(20, 1, 1)), []
    model(points.repeat(20, 1, 1))
    hidden = torch.ones(40, 8).scatter(1, drawn[-1], 0).bool()
    for centers, masked in zip(group.centers, hidden, strict=True):  # those of a block are the nearest to one of them
        nearest = torch.cdist(centers, centers).topk(4, largest=False).indices
        seen.append(any(set(row.tolist()) == set(masked.nonzero().flatten().tolist()) for row in nearest))
    assert all(seen) == (kind == "block")


@pytest.mark.parametrize(("proj", "kind"), [("linear", nn.Linear), ("conv", nn.Sequential), ("identity", nn.Identity)])
def test_each_projection_works_whatever_the_number_of_tokens(proj, kind, points, none, mask):
    model = small({"proj": proj}, {"decoder_dims": 12}).eval()
    assert type(model.proj_head) is kind
    names = {"linear": ["weight", "bias"], "conv": ["0.weight", "0.bias"], "identity": []}
    assert list(model.proj_head.state_dict()) == names[proj]
    assert 0 < model(points, mask, none)["loss"] < 2


def test_features_are_pooled_from_all_groups_and_need_no_teacher(points):
    model = small().eval()
    for part in ("dgcnn_1", "visual_embed", "dgcnn_2"):
        setattr(model.dvae_tokenizer, part, None)
    feature = model.encode(points)
    tokens, _ = model.ACT_encoder(model.group(points))
    assert tokens.shape == (2, 9, 12)
    torch.testing.assert_close(feature, torch.cat([tokens[:, 1:].mean(1), tokens[:, 1:].amax(1)], dim=1))


def test_encoder_and_decoder_start_as_released():
    model = build_model(
        {"NAME": "ACT_PointDistillation", "dvae_config": SMALL["dvae_config"] | {"encoder_dims": 384}}
        | {"transformer_config": {"depth": 10, "drop_path_rate": 0.28, "cls_loss": True, "decoder_depth": 5}}
    )
    encoder = model.ACT_encoder
    for parameter in (encoder.blocks.blocks[0].mlp.fc1.weight, encoder.lm_head.weight, encoder.cls_head[2].weight):
        assert parameter.std().item() == pytest.approx(0.02, rel=0.05)
    for parameter in (encoder.cls_token, encoder.cls_pos, model.mask_token, model.cls_pos):
        assert parameter.std().item() == pytest.approx(0.02, rel=0.15)
    bound = (6 / (384 + 1536)) ** 0.5  # of Xavier's uniform distribution
    weight = model.ACT_decoder.blocks[0].mlp.fc1.weight
    assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert not model.ACT_decoder.blocks[0].mlp.fc1.bias.any()
    assert not encoder.lm_head.bias.any()
    for stack, depth in ((encoder.blocks, 10), (model.ACT_decoder, 5)):
        rates = [block.drop_path.drop_prob for block in stack.modules() if isinstance(block, Block)]
        assert rates == pytest.approx([0.28 * i / (depth - 1) for i in range(depth)])


# what learns, and the teacher


def test_the_student_learns_but_for_its_two_heads_and_the_teacher_does_not(points, none, mask):
    model = small().train()
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, {"kwargs": {"lr": 0.01, "weight_decay": 0.5}})
    model(points, mask, none)["loss"].backward()
    optimizer.step()
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    idle = ("ACT_encoder.lm_head.", "ACT_encoder.cls_head.", "dvae_tokenizer.")
    assert moved == {key for key, _ in model.named_parameters() if not key.startswith(idle)}


def test_a_released_teacher_changes_from_pass_to_pass(points):
    """In training by noise, dropped prompts and statistics of the batch, which also drift; in evaluation by noise."""
    teacher = small().train().dvae_tokenizer
    group = teacher.group(points)
    assert teacher.training
    before = copy.deepcopy(teacher.state_dict())
    assert not torch.equal(teacher(group), teacher(group))
    drifted = {key for key, value in teacher.state_dict().items() if not torch.equal(value, before[key])}
    counters = {f"encoder.{part}_conv.1.num_batches_tracked" for part in ("first", "second")}
    assert counters < drifted
    assert {key.split(".")[-1] for key in drifted} == {"running_mean", "running_var", "num_batches_tracked"}
    still = torch.zeros(2, 8, 16)
    assert not torch.equal(teacher(group, still), teacher(group, still))  # prompts
    teacher.eval()
    assert torch.equal(teacher(group, still), teacher(group, still))
    assert not torch.equal(teacher(group), teacher(group))
    seeds = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert torch.equal(*(teacher(group, generator=seed) for seed in seeds))


def test_a_deterministic_teacher_never_changes(points):
    model = small(teacher={"deterministic": True})
    teacher = model.dvae_tokenizer
    group, before = model.group(points), copy.deepcopy(teacher.state_dict())
    assert model.ACT_encoder.training
    for _ in range(2):
        assert not any(module.training for module in teacher.modules())
        model.train()
    first = teacher(group)
    assert torch.equal(first, teacher(group))
    best = teacher.logits(group).argmax(-1)
    torch.testing.assert_close(first, teacher.features(teacher.codebook[best], group.centers))
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    alone = torch.cat([teacher(model.group(cloud[None])) for cloud in points])
    torch.testing.assert_close(first, alone)  # of the other clouds of the batch it knows nothing


def test_the_teacher_takes_the_drawn_word(points):
    teacher = small().eval().dvae_tokenizer
    group, noise = teacher.group(points), torch.zeros(2, 8, 16)
    noise[..., 3] = 100.0
    assert not (teacher.tokenize(points) == 3).all()
    drawn = teacher.codebook[3].expand(2, 8, -1)
    torch.testing.assert_close(teacher(group, noise), teacher.features(drawn, group.centers))


@pytest.mark.parametrize(
    ("transformer", "teacher", "message"),
    [
        ({"mask_ratio": 0}, {}, "mask_ratio 0 masks none or all of 8 tokens; choose between 0 and 1"),
        ({"mask_type": "tube"}, {}, "mask_type must be one of rand, block, got 'tube'"),
        ({"proj": "mlp"}, {}, "proj must be one of linear, conv, identity, got 'mlp'"),
        ({"decoder_depth": 0}, {}, "decoder_depth and cls_dim must be at least 1, got 0 and 6"),
        ({"cls_loss": True}, {}, "register_shallow_hook is the number of a block, 0 to 2, got 9"),
        ({"embed_dim": 24}, {}, r"encoder_dims, 12, must equal transformer_config\.embed_dim, 24"),
        ({"proj": "identity"}, {}, r"decoder_dims, 8, must equal transformer_config\.embed_dim, 12, with proj: ident"),
        ({}, {"ckpt": None}, r"dvae_config\.ckpt is not given.*ACT autoencoder of 16 words of 10 channels, 8 groups"),
        (
            {},
            {"ckpt": "absent.pth"},
            r"ckpt is 'absent\.pth', and there is no such file\. .* cfgs/act/autoencoder\.yaml .* trains .*`untrained`",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(transformer, teacher, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        small(transformer, teacher)


def test_slips_in_the_sections_are_named():
    for section, key, nearest in (
        ("transformer_config", "mask_rato", "mask_ratio"),
        ("dvae_config", "num_token", "num_tokens"),
    ):
        with pytest.raises(ValueError, match=rf"unknown key 'model\.{section}\.{key}'; did you mean '{nearest}'"):
            check_model_config({"NAME": "ACT_PointDistillation", section: {key: 1}})
    with pytest.raises(ValueError, match=r"model\.loss is 'kl'; expected"):
        check_model_config({"NAME": "ACT_PointDistillation", "loss": "kl"})


def test_a_teacher_is_loaded_strictly_with_its_transformer(tmp_path, recwarn):
    torch.manual_seed(7)
    trained = build_model(AUTOENCODER)
    trained.visual_embed[1].weight.data.fill_(3.0)
    torch.save(
        {"base_model": {f"module.{key}": value for key, value in trained.state_dict().items()}}, tmp_path / "a.pth"
    )
    recwarn.clear()
    model = small(teacher={"ckpt": str(tmp_path / "a.pth"), "visual_embed_pretrained": "timm"})  # not sought
    assert not [warning for warning in recwarn if "untrained" in str(warning.message)]
    for key, value in trained.state_dict().items():
        assert torch.equal(model.dvae_tokenizer.state_dict()[key], value), key
    assert not any(p.requires_grad for p in model.dvae_tokenizer.parameters())

    torch.save({"base_model": small().state_dict()}, tmp_path / "b.pth")
    with pytest.raises(
        ValueError,
        match=r"model\.dvae_config\.ckpt: .*hold an ACT pre-training model; give a checkpoint of an ACT autoenc",
    ):
        small(teacher={"ckpt": str(tmp_path / "b.pth")})


@pytest.mark.parametrize("loss", ["cosine", "l2", "smoothl1"])
def test_in_half_precision_the_losses_are_of_float32(loss, points, mask, none):
    model = small({"cls_loss": True, "register_shallow_hook": 1}, loss=loss).eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(points, mask, none)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert found["loss"].item() == pytest.approx(model(points, mask, none)["loss"].item(), rel=0.1)


def test_an_untrained_teacher_says_so_once_it_is_asked(points):
    model = small()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(points)
    with pytest.warns(UserWarning, match=r"model\.dvae_config\.ckpt is untrained: .* its targets say little"):
        model(points)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(points)


# figures


def test_the_released_model_costs_what_is_published():
    counted = count(load_config(ROOT / "cfgs/act/pre-train.yaml"), "", seed=0)
    assert counted["pass"] == "forward, 13 tokens visible"
    (teacher,) = [stage for stage in counted["stages"] if stage["name"] == TEACHER]
    assert counted["total"]["parameters"] == 29_185_152
    assert teacher["parameters"] == 116_185_883
    assert (counted["total"]["macs"] + teacher["macs"]) / 1e9 == pytest.approx(15.71, abs=0.005)


# several processes


def step_in_this_process(points, masks) -> torch.Tensor:
    """The gradient of a batch that the processes share, whose clouds do not depend on each other."""
    model = small(teacher={"deterministic": True}).double()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    network = parallel(model, Plain)
    points, masks = (tensor.chunk(world_size())[rank()] for tensor in (points, masks))
    over_all_processes(network(points.double(), masks), model.num_tokens)["loss"].backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


class Plain:
    sync_bn = compile = False


def test_two_processes_take_the_step_of_one(tmp_path):
    points, masks = clouds(4, 64, seed=1), coarse_mask(4, 8, 3, seed=2)
    expected = step_in_this_process(points, masks)
    for share in in_two_processes(tmp_path, step_in_this_process, points, masks):
        torch.testing.assert_close(share, expected, rtol=1e-6, atol=1e-9)


# whole runs

TEACHER_RUN, NAME = "act/autoencoder", "act/pre-train"
CKPT = f"experiments/{TEACHER_RUN}/teacher/ckpt-best.pth"
CONFIG = {
    **TRAINING,
    "dataset": {"train": SHAPENET, **SVM_DATA},
    "model": SMALL | {"dvae_config": TEACHING | {"ckpt": CKPT}},
}


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with the generated data sets and small configs, in which the teacher has been trained."""
    configs = {TEACHER_RUN: {**AUTOENCODING, "model": AUTOENCODER, "max_epoch": 0}, NAME: CONFIG}
    folder = make_playground(tmp_path_factory.mktemp("playground"), configs)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(TEACHER_RUN, "--exp_name", "teacher") == 0
    return folder


@pytest.fixture
def here(playground, monkeypatch):
    monkeypatch.chdir(playground)
    return playground


def test_a_chain_of_runs_is_resumed_exactly_and_probed(here, monkeypatch, recwarn):
    assert run(NAME, "--exp_name", "whole") == 0
    results = results_of(NAME, "whole")["pre-training"]
    for epoch in results["history"]:
        assert 0 < epoch["loss"] < 2
        assert epoch["visible_tokens"] == 4  # of 8, at the ratio of 0.6
        assert 0 <= epoch["evaluation"] <= 100
    calls = itertools.count()
    with monkeypatch.context() as patch:  # asked after each of two updates and each epoch: within the second epoch
        patch.setattr("tools.training.trainer.any_process", lambda *_: next(calls) == 3)
        assert run(NAME, "--exp_name", "stopped") == 75
    assert run(NAME, "--exp_name", "stopped", "--resume") == 0
    assert results_of(NAME, "stopped")["pre-training"]["history"] == results["history"]
    stopped, whole = (
        torch.load(f"experiments/{NAME}/{name}/ckpt-last.pth")["base_model"] for name in ("stopped", "whole")
    )
    assert all(torch.equal(stopped[key], value) for key, value in whole.items())
    teacher = torch.load(CKPT)["base_model"]
    assert whole.keys() > {f"dvae_tokenizer.{key}" for key in teacher}
    same = {key for key, value in teacher.items() if torch.equal(whole[f"dvae_tokenizer.{key}"], value)}
    assert {key.split(".")[0] for key in teacher.keys() - same} == {"encoder"}  # statistics have drifted, as released
    assert not [warning for warning in recwarn if "untrained" in str(warning.message)]

    (here / CKPT).rename(here / "moved.pth")  # features need no teacher
    assert (
        run(NAME, "--test_svm", "modelnet40", "--ckpts", f"experiments/{NAME}/whole/ckpt-last.pth", "--exp_name", "svm")
        == 0
    )
    (here / "moved.pth").rename(here / CKPT)
    assert results_of(NAME, "svm")["linear SVM"]["accuracy"] == results["history"][-1]["evaluation"]


def test_without_a_teacher_nothing_begins(here, capsys):
    absent = {**CONFIG, "model": SMALL | {"dvae_config": TEACHING | {"ckpt": "absent.pth"}}}
    write_config(here, "act/absent", absent)
    said = refuse(capsys, "act/absent")
    assert "model.dvae_config.ckpt is 'absent.pth'" in said
    assert "python main.py --config cfgs/act/autoencoder.yaml --exp_name autoencoder" in said
