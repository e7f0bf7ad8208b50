"""Point-MAE's models: masks, order, padding, initialisation, stochastic depth, sizes, schedules, checkpoints."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from models import build_model
from models.initialisation import init_truncated_normal
from models.masking import draw_block_mask
from models.point_mae import Point_MAE
from models.point_transformer import PointTransformer
from models.transformer import BlockStack
from tests.golden.fixtures import clouds
from tests.golden_numbers import load
from tools.evaluation.profiler import profile
from tools.training.builder import build_scheduler
from utils.checkpoint import load_weights
from utils.config import load_config

ROOT = Path(__file__).parent.parent
TRANSFORMER = {"trans_dim": 24, "encoder_dims": 24, "depth": 3, "num_heads": 3}
PRETRAINING = {
    "NAME": "Point_MAE",
    "num_group": 10,
    "group_size": 8,
    "transformer_config": {**TRANSFORMER, "drop_path_rate": 0.0, "decoder_depth": 2, "decoder_num_heads": 3},
}
CLASSIFIER = {"NAME": "PointTransformer", "num_group": 10, "group_size": 8, "cls_dim": 4, **TRANSFORMER}
SEGMENTER = {"NAME": "Point_MAE_SEG", "num_group": 10, "group_size": 8, "point_dims": [16, 12], **TRANSFORMER}
VISIBLE_4 = torch.tensor([False] * 4 + [True] * 6)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def points() -> Tensor:
    return clouds(3, 64, seed=5)


@pytest.fixture
def model() -> Point_MAE:
    torch.manual_seed(0)
    return build_model(PRETRAINING).eval()


def with_transformer(**settings: object) -> dict:
    return PRETRAINING | {"transformer_config": PRETRAINING["transformer_config"] | settings}


# masks


def masked_counts(config: dict, points: Tensor, draws: int = 40) -> tuple[list[Tensor], Tensor]:
    """Masks that a model draws, and the centres of its groups."""
    model = build_model(config)
    group = model.group(points)
    masks = []
    for seed in range(draws):
        visible, masked = model.split(group, None, seeded(seed))
        mask = torch.ones(group.centers.shape[:2], dtype=torch.bool).scatter(1, visible.index, False)
        assert torch.equal(masked.index.sort(1).values, masked.index)  # in the order of the groups
        assert torch.equal(visible.index.sort(1).values, visible.index)
        assert mask.gather(1, masked.index).all()
        masks.append(mask)
    return masks, group.centers


@pytest.mark.parametrize(("ratio", "masked"), [(0.6, 6), (0.69, 6), (0.1, 1)])
@pytest.mark.parametrize("mask_type", ["rand", "block"])
def test_the_ratio_masks_so_many_tokens_of_every_cloud_rounded_down(points, ratio, masked, mask_type):
    masks, _ = masked_counts(with_transformer(mask_ratio=ratio, mask_type=mask_type), points, draws=3)
    assert all(mask.sum(1).tolist() == [masked] * 3 for mask in masks)


def test_the_released_ratio_leaves_26_of_64_tokens():
    with torch.device("meta"):
        assert build_model({"NAME": "Point_MAE"}).num_visible == 26


def test_a_random_mask_is_uniform_and_its_own_for_each_cloud(points):
    masks, _ = masked_counts(PRETRAINING, points, draws=300)
    share = torch.stack(masks).float().mean(0)  # (B, G)
    assert (share - 0.6).abs().max() < 0.12  # four standard deviations of 300 draws
    assert any(not torch.equal(mask[0], mask[1]) for mask in masks)


def test_a_block_is_a_token_and_those_nearest_to_it(points):
    masks, centers = masked_counts(with_transformer(mask_type="block"), points)
    distance = torch.cdist(centers, centers)
    blocks = [{frozenset(row.topk(6, largest=False).indices.tolist()) for row in of_cloud} for of_cloud in distance]
    for mask in masks:
        for cloud, row in enumerate(mask):
            assert frozenset(row.nonzero().flatten().tolist()) in blocks[cloud]
    assert all(len({tuple(mask[cloud].tolist()) for mask in masks}) > 3 for cloud in range(3))
    assert any(not torch.equal(mask[0], mask[1]) for mask in masks)


def test_every_token_can_be_the_middle_of_a_block():
    centers = torch.arange(5.0).view(1, 5, 1).expand(1, 5, 3)
    alone = [draw_block_mask(centers, 4, seeded(seed)).nonzero()[0, 1].item() for seed in range(60)]
    assert set(alone) == set(range(5))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.ones(3, 9, dtype=torch.bool),
            r"mask must be bool \(3, 10\) with True = masked, got torch.bool \(3, 9\)",
        ),
        (torch.ones(3, 10), r"got torch.float32 \(3, 10\)"),
        (torch.ones(3, 10, dtype=torch.bool), "mask must leave at least one token visible and one masked"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(model, points, mask, message):
    with pytest.raises(ValueError, match=message):
        model(points, mask)


def test_what_is_masked_has_no_say_in_what_is_encoded(model, points):
    mask = VISIBLE_4.expand(3, -1)
    group = model.group(points)
    visible, _ = model.split(group, mask, None)
    before = model.MAE_encoder.encode_group(group, visible)
    group.neighborhoods[:, 4:] += 1.0
    group.centers[:, 4:] += 1.0
    assert torch.equal(model.MAE_encoder.encode_group(group, visible), before)


def test_clouds_with_masks_of_different_sizes_are_as_each_alone(model, points):
    """The loss is the mean over the masked tokens of the whole batch, and padding has no say."""
    masks = torch.stack([VISIBLE_4, torch.arange(10) > 0, torch.arange(10) > 7])
    with torch.no_grad():
        together = model(points, masks)
        alone = [model(points[i : i + 1], masks[i : i + 1])["loss"] for i in range(3)]
    counts = masks.sum(1).tolist()
    assert counts == [6, 9, 2]
    expected = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(together["loss"], expected)
    assert together["visible_tokens"] == pytest.approx((4 + 1 + 8) / 3)


def test_a_drawn_mask_gives_what_the_same_mask_given_gives(model, points):
    visible, _ = model.split(model.group(points), None, seeded(3))
    mask = torch.ones(3, 10, dtype=torch.bool).scatter(1, visible.index, False)
    with torch.no_grad():
        torch.testing.assert_close(model(points, generator=seeded(3))["loss"], model(points, mask)["loss"])


def test_the_decoder_sees_the_centres_of_masked_tokens_only_through_its_own_embedding(model, points):
    group, mask = model.group(points), VISIBLE_4.expand(3, -1)
    visible, masked = model.split(group, mask, None)
    with torch.no_grad():
        encoded = model.MAE_encoder.encode_group(group, visible)
        before = model.decode(group, encoded, visible, masked)
        assert before.shape == (3, 6, 8, 3)
        model.decoder_pos_embed[2].weight.zero_()  # then all masked places are alike
        model.decoder_pos_embed[2].bias.zero_()
        after = model.decode(group, encoded, visible, masked)
    assert (before[:, 0] - before[:, 1]).abs().max() > 1e-4
    torch.testing.assert_close(after, after[:, :1].expand_as(after))


# what is handed out


def test_the_feature_is_the_mean_beside_the_maximum(model, points):
    with torch.no_grad():
        tokens = model.MAE_encoder.encode_group(model.group(points))
        feature = model.encode(points)
    assert feature.shape == (3, 48)
    torch.testing.assert_close(feature, torch.cat([tokens.mean(1), tokens.max(1).values], 1))


def test_a_reconstruction_joins_what_is_visible_with_what_is_predicted(model, points):
    mask = torch.stack([VISIBLE_4, torch.arange(10) > 0, torch.arange(10) > 7])
    found = model.reconstruct(points, mask)
    group = model.group(points)
    assert torch.equal(found["visible"], ~mask)
    assert torch.equal(found["neighborhoods"], group.points)
    torch.testing.assert_close(found["predictions"][~mask], group.points[~mask])
    visible, masked = model.split(group, mask, None)
    with torch.no_grad():
        predicted = model.decode(group, model.MAE_encoder.encode_group(group, visible), visible, masked)
    for cloud in range(3):
        own = predicted[cloud][: int(mask[cloud].sum())] + group.centers[cloud][mask[cloud]].unsqueeze(1)
        torch.testing.assert_close(found["predictions"][cloud][mask[cloud]], own)


def test_a_classifier_is_one_of_its_class_token_and_the_largest_of_the_others(points):
    torch.manual_seed(0)
    model = build_model(CLASSIFIER).eval()
    seen = {}
    model.norm.register_forward_hook(lambda module, args, output: seen.update(tokens=output))
    model.cls_head_finetune.register_forward_pre_hook(lambda module, args: seen.update(feature=args[0]))
    with torch.no_grad():
        model(points)
    tokens = seen["tokens"]
    assert tokens.shape == (3, 11, 24)
    assert torch.equal(seen["feature"], torch.cat([tokens[:, 0], tokens[:, 1:].max(1).values], 1))


def test_a_segmenter_taps_every_third_of_its_blocks_through_one_norm(points):
    model = build_model(SEGMENTER | {"depth": 6}).eval()
    outputs = []
    for block in model.blocks.blocks:
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    tokens, position = torch.randn(2, 10, 24, generator=seeded()), torch.randn(2, 10, 24, generator=seeded(1))
    with torch.no_grad():
        tapped = model.tap(tokens, position)
        assert torch.equal(tapped, torch.cat([model.norm(outputs[i]) for i in (1, 3, 5)], -1))
    assert len(outputs) == 6


def test_a_segmenter_takes_one_hot_categories_and_normalises_over_parts(points):
    model = build_model(SEGMENTER).eval()
    category = torch.tensor([4, 15, 0])
    with torch.no_grad():
        log_probs = model(points, category)
        one_hot = model(points, torch.nn.functional.one_hot(category, 16))
    assert torch.equal(log_probs, one_hot)
    assert log_probs.shape == (3, 64, 50)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 64))


def test_a_segmenter_mixes_as_the_literal_concatenation(points):
    model = build_model(SEGMENTER).double()
    local = torch.randn(2, 12, 5, generator=seeded(), dtype=torch.float64)
    of_cloud = torch.randn(2, 2 * 72 + 64, generator=seeded(1), dtype=torch.float64)
    literal = model.convs1(torch.cat([local, of_cloud.unsqueeze(-1).expand(-1, -1, 5)], 1))
    torch.testing.assert_close(model.mix(of_cloud, local), literal)


def test_some_blocks_of_a_stack_in_turn_are_all_of_it():
    stack = BlockStack(24, 3, [0.0] * 4)
    x, position = torch.randn(2, 5, 24, generator=seeded()), torch.randn(2, 5, 24, generator=seeded(1))
    with torch.no_grad():
        half = stack(x, position, last=2)
        assert torch.equal(stack(half, position, first=2), stack(x, position))
        assert not torch.equal(half, stack(x, position))


# how models start


def std_of(tensor: Tensor) -> float:
    return float(tensor.detach().std())


def test_the_encoder_starts_truncated_normal_and_the_decoder_xavier():
    torch.manual_seed(0)
    model = build_model(PRETRAINING)
    for module in model.MAE_encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            assert std_of(module.weight) == pytest.approx(0.02, rel=0.2)
            assert module.bias is None or not module.bias.any()
    for module in model.MAE_decoder.modules():
        if isinstance(module, nn.Linear):
            bound = (6 / sum(module.weight.shape)) ** 0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound
            assert module.bias is None or not module.bias.any()
    assert 0.005 < std_of(model.mask_token) < 0.035
    for module in (model.decoder_pos_embed[2], model.increase_dim[0]):  # as PyTorch does
        assert module.bias.any()
        assert module.weight.abs().max() <= module.weight.shape[1] ** -0.5


@pytest.mark.parametrize("config", [CLASSIFIER, SEGMENTER], ids=lambda config: config["NAME"])
def test_downstream_models_start_as_pytorch_does(config):
    torch.manual_seed(0)
    model = build_model(config)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            bound = module.weight[0].numel() ** -0.5
            assert 0.5 * bound < module.weight.abs().max() <= bound


def test_the_tokens_of_a_classifier_start_truncated_normal():
    torch.manual_seed(0)
    model = build_model(CLASSIFIER | {"trans_dim": 384, "encoder_dims": 384})
    for parameter in (model.cls_token, model.cls_pos):
        assert std_of(parameter) == pytest.approx(0.02, rel=0.2)


def test_norms_keep_their_start():
    norm = nn.LayerNorm(4)
    init_truncated_normal(norm)
    assert torch.equal(norm.weight, torch.ones(4))


def test_stochastic_depth_drops_whole_samples_in_training_only(points):
    torch.manual_seed(0)
    model = build_model(CLASSIFIER | {"drop_path_rate": 0.9, "depth": 2})
    drop = [module for module in model.modules() if isinstance(module, DropPath)][-1]
    kept = []
    drop.register_forward_hook(lambda module, args, output: kept.append(output.flatten(1).any(1)))
    x = torch.ones(4000, 1, 1)
    drop(x)
    assert kept[0].float().mean() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(drop.eval()(x), x)


# settings


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_transformer(encoder_dims=16), "encoder_dims 16 must equal trans_dim 24"),
        (with_transformer(mask_ratio=0.05), "mask_ratio 0.05 masks none or all of 10 tokens"),
        (with_transformer(mask_ratio=1.0), "mask_ratio 1.0 masks none or all"),
        (with_transformer(depth=0), "depth must be at least 1, got 24 and 0"),
        (with_transformer(decoder_depth=0), "decoder_depth must be at least 1, got 0"),
        (with_transformer(num_heads=5), "24 channels do not divide into 5 heads"),
        (with_transformer(drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
        (PRETRAINING | {"num_group": 0}, "num_group must be at least 1 and group_size at least 1, got 0 and 8"),
        (CLASSIFIER | {"cls_dim": 1}, "cls_dim must be at least 2, got 1"),
        (CLASSIFIER | {"group_size": 0}, "group_size at least 1, got 10 and 0"),
        (SEGMENTER | {"depth": 4}, "depth must be a multiple of 3, got 4"),
        (SEGMENTER | {"num_group": 2}, "num_group must be at least 3"),
        (SEGMENTER | {"num_parts": 1}, "num_parts must be at least 2"),
        (SEGMENTER | {"point_dims": [16]}, "point_dims must hold 2 values"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_model(config)


def test_without_a_config_too_a_classifier_takes_no_tokens_of_another_width():
    with pytest.raises(ValueError, match="encoder_dims 256 must equal trans_dim 24"):
        PointTransformer(4, trans_dim=24, encoder_dims=256, num_heads=3)


@pytest.mark.parametrize(("keyword", "value"), [("mask_type", "ring"), ("loss", "emd")])
def test_choices_are_checked_without_a_config_too(keyword, value):
    settings = {"transformer_config": {"mask_type": value}} if keyword == "mask_type" else {"loss": value}
    with pytest.raises(ValueError, match=f"{keyword} must be .* got '{value}'"):
        Point_MAE(**settings)


# costs


@pytest.mark.parametrize(
    ("config", "num_points", "case"),
    [
        ({"NAME": "PointTransformer", "cls_dim": 40}, 1024, ("point_mae_finetune", "finetune_modelnet")),
        (
            {"NAME": "PointTransformer", "cls_dim": 15, "num_group": 128},
            2048,
            ("point_mae_finetune", "finetune_scan_hardest"),
        ),
        ({"NAME": "Point_MAE_SEG"}, 2048, ("act_part_segmentation",)),
    ],
)
def test_multiply_adds_are_those_of_the_official_models(config, num_points, case):
    file, *name = case
    golden = load(file)
    golden = golden[name[0]] if name else golden
    inputs = (clouds(1, num_points, seed=0), *([torch.tensor([3])] if "SEG" in config["NAME"] else []))
    stages = profile(build_model(config), *inputs)
    assert sum(stage.macs for stage in stages) == golden["macs_per_cloud"]["macs"]
    assert sum(stage.products for stage in stages) == golden["macs_per_cloud"]["attn"]
    assert {stage.name for stage in stages if stage.products} == {"encoder blocks"}
    assert sum(stage.parameters for stage in stages) == golden["params"]


# schedules


@pytest.mark.parametrize(
    ("config", "case"),
    [
        ("point-mae/pre-train", "point_mae_pretrain"),
        ("point-mae/modelnet40", "point_mae_and_bert_finetune"),
        ("point-mae/scan_pb", "point_mae_and_bert_finetune"),
        ("point-mae/few-shot", "few_shot_point_mae_and_bert"),
        ("point-mae/part-segmentation", "point_mae_part_segmentation"),
        ("point-bert/modelnet40_8k", "point_mae_and_bert_finetune"),
        ("point-bert/few-shot", "few_shot_point_mae_and_bert"),
        ("act/scan_pb", "act_finetune"),
        ("act/scan_obj_linear", "act_linear_and_mlp3"),
        ("act/modelnet40_mlp3", "act_linear_and_mlp3"),
        ("act/part-segmentation", "act_part_segmentation"),
    ],
)
def test_the_schedule_is_the_released_one_an_epoch_earlier(config, case):
    """The released code steps after an epoch: its epoch e runs at what ours gives epoch e − 1 (docs/FIDELITY.md, 4)."""
    golden, config = load("schedules")[case], load_config(ROOT / f"cfgs/{config}.yaml")
    assert config.max_epoch == golden["last_epoch"]
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=config.optimizer.kwargs.lr)
    scheduler = build_scheduler(optimizer, config.scheduler)
    released = {int(epoch): value for epoch, value in golden["values"].items()}
    assert released.pop(0) == released[1] == 1e-6
    assert len(released) > 10
    for epoch, value in released.items():
        scheduler.step(epoch - 1)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(value, rel=1e-7)


# checkpoints


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A pre-training checkpoint of released shapes and names, saved from several GPUs."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("ckpts") / "pretrain.pth"
    state = {f"module.{key}": value for key, value in build_model({"NAME": "Point_MAE"}).state_dict().items()}
    assert {key.removeprefix("module.") for key in state} == {key for key, *_ in load("point_mae_pretrain")["keys"]}
    torch.save({"base_model": state, "optimizer": {}, "epoch": 300, "metrics": 0.0, "best_metrics": 0.0}, path)
    return path


def first_names(keys: tuple[str, ...]) -> Counter:
    """How many tensors of each first name, without the counters that the official loader never lists."""
    return Counter(key.split(".")[0] for key in keys if not key.endswith("num_batches_tracked"))


def assert_taken(model: nn.Module, path: Path, loaded: tuple[str, ...], prefix: str = "module.MAE_encoder.") -> None:
    """The loaded tensors are those of the file."""
    state = torch.load(path, weights_only=True)["base_model"]
    for key in loaded:
        assert torch.equal(model.state_dict()[key], state[f"{prefix}{key}"]), key


def test_a_released_file_fills_the_classifier(released):
    golden = load("checkpoint_loading")["Point-MAE"]["classifier"]
    model = build_model({"NAME": "PointTransformer", "cls_dim": 40})
    report = load_weights(model, released)
    assert len(report.loaded) == golden["loaded"]
    assert sorted(key for key in report.missing if not key.endswith("num_batches_tracked")) == golden["missing"]
    assert first_names(report.ignored) == golden["unexpected_by_first_name"]
    assert not report.unexpected
    assert not report.mismatched
    assert_taken(model, released, report.loaded)
    text = str(report)
    assert "loaded 156 of the model's 174 tensors" in text
    assert "kept as initialised: cls_token (1), cls_pos (1), cls_head_finetune (16)" in text
    assert "not needed from the file: decoder (53)" in text


def test_a_released_file_fills_the_segmenter(released):
    golden = load("checkpoint_loading")["Point-MAE"]["part_segmenter"]
    model = build_model({"NAME": "Point_MAE_SEG"})
    report = load_weights(model, released)
    assert first_names(report.missing) == golden["missing_by_first_name"]
    assert first_names(report.ignored) == golden["unexpected_by_first_name"]
    assert_taken(model, released, report.loaded)


def small(tmp_path: Path, config: dict, prefix: str = "") -> Path:
    path = tmp_path / f"{config['NAME']}.pth"
    torch.save({"base_model": {prefix + key: value for key, value in build_model(config).state_dict().items()}}, path)
    return path


def test_a_file_loads_strictly_into_its_own_model(tmp_path):
    for config in (PRETRAINING, CLASSIFIER, SEGMENTER):
        report = load_weights(build_model(config), small(tmp_path, config, prefix="module."), strict=True)
        assert len(report.loaded) == len(build_model(config).state_dict())


def test_what_another_wrapper_calls_base_model_is_taken_too(tmp_path):
    path = small(tmp_path, CLASSIFIER, prefix="module.base_model.")
    model = build_model(CLASSIFIER | {"cls_dim": 7})
    report = load_weights(model, path)
    assert all(key.startswith("cls_head_finetune.8.") for key in report.mismatched)
    assert len(report.mismatched) == 2
    assert_taken(model, path, report.loaded, prefix="module.base_model.")


def test_a_segmenter_starts_from_a_classifier_without_its_head(tmp_path):
    report = load_weights(build_model(SEGMENTER), small(tmp_path, CLASSIFIER))
    assert first_names(report.ignored).keys() == {"cls_token", "cls_pos", "cls_head_finetune"}
    assert "heads (18)" in str(report)


KINDS = {
    "Point_MAE": (PRETRAINING, "a Point-MAE pre-training model"),
    "PointTransformer": (CLASSIFIER, "a single-scale classifier with 4 classes"),
    "Point_MAE_SEG": (SEGMENTER, "a single-scale part segmenter with 50 parts"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_another_family_is_named_and_refused(name, tmp_path):
    config, kind = KINDS[name]
    with pytest.raises(ValueError, match=f"the file seems to hold {kind}; give a checkpoint of a classifier with 40"):
        load_weights(build_model({"NAME": "I2P_MAE_ModelNet40"}), small(tmp_path, config))


def test_a_hierarchical_file_is_named_and_refused(tmp_path):
    config = {"NAME": "Point_M2AE_SEG", "encoder_dims": [12, 24, 48], "encoder_depths": [1, 1, 1], "num_heads": 3}
    path = small(tmp_path, config | {"point_dims": [8, 8]})
    with pytest.raises(
        ValueError,
        match="seems to hold a part segmenter with 50 parts; give a checkpoint of a single-scale classifier with 4 "
        "classes or a Point-MAE pre-training model with the same encoder",
    ):
        load_weights(build_model(CLASSIFIER), path)


def test_a_pre_training_file_is_no_trained_classifier(tmp_path):
    with pytest.raises(ValueError, match="the file seems to hold a Point-MAE pre-training model"):
        load_weights(build_model(CLASSIFIER), small(tmp_path, PRETRAINING), strict=True)


def test_an_encoder_of_another_width_is_refused(tmp_path):
    narrow = TRANSFORMER | {"trans_dim": 12, "encoder_dims": 12}
    path = small(tmp_path, CLASSIFIER | narrow)
    with pytest.raises(ValueError, match=r"of another shape: encoder\.second_conv\.3\.weight"):
        load_weights(build_model(SEGMENTER), path)
