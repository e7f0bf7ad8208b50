"""I2P_MAE and Point_M2AE as wholes: what they return, who learns, what the teacher may touch, what is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from extensions.pointnet2_ops import pointnet2_utils
from models import MODELS, build_model, check_model_config
from models.i2p_mae import I2P_MAE
from models.masked_autoencoder import MaskedAutoencoder
from models.point_m2ae import Point_M2AE
from models.propagation import TokenPropagation, interpolate_features
from models.teacher import build_teacher

SMALL: dict[str, Any] = {
    "num_groups": (32, 16, 8),
    "group_sizes": (8, 4, 4),
    "encoder_dims": (24, 48, 96),
    "encoder_depths": (1, 1, 1),
    "decoder_dims": (96, 48),
    "num_heads": 3,
}
TOWER = {"embed_dim": 16, "image_size": 32, "patch_size": 8, "width": 24, "layers": 1, "heads": 2}
MASK = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 1, 0]]).bool()


class ToyTeacher(nn.Module):
    """Features and saliency straight from the pixels; its one parameter shows where the teacher is."""

    def __init__(self) -> None:
        super().__init__()
        self.feat_dim, self.image_size = 5, 32
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = nn.functional.avg_pool2d(self.scale * images, 8)  # (V, 3, 4, 4)
        features = torch.cat([pooled, pooled[:, :2].square()], dim=1)
        saliency = pooled[:, 0].flatten(1).softmax(1).view_as(pooled[:, 0])
        return features.float(), saliency.float()


def clip_teacher() -> nn.Module:
    with pytest.warns(UserWarning, match="untrained"):
        return build_teacher(TOWER, 16, "untrained")


def i2p_mae(**settings: Any) -> I2P_MAE:
    torch.manual_seed(0)
    return I2P_MAE(teacher=ToyTeacher(), **SMALL | settings)


def point_m2ae(**settings: Any) -> Point_M2AE:
    torch.manual_seed(0)
    return Point_M2AE(**SMALL | settings)


def leaking_point_m2ae(**settings: Any) -> Point_M2AE:
    return point_m2ae(padding_leak=True, local_radius=(0.32, 0.64, 1.28), **settings)


BOTH = pytest.mark.parametrize("build", [i2p_mae, point_m2ae])


@pytest.fixture(scope="module")
def points() -> Tensor:
    points = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    return points / points.norm(dim=-1).amax(1)[:, None, None]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Losses


def test_i2p_mae_returns_its_losses(points):
    losses = i2p_mae()(points)
    assert set(losses) == {"loss", "loss_3d", "loss_2d", "visible_tokens", "visible_saliency"}
    assert all(value.shape == () and value.isfinite() for value in losses.values())
    torch.testing.assert_close(losses["loss"], losses["loss_3d"] + losses["loss_2d"])


def test_point_m2ae_returns_its_losses(points):
    losses = point_m2ae()(points)
    assert set(losses) == {"loss", "loss_3d", "visible_tokens"}
    assert losses["loss"].isfinite()
    assert losses["loss"] == losses["loss_3d"]


@BOTH
def test_losses_carry_a_graph_and_what_is_only_logged_does_not(build, points):
    losses = build()(points)
    assert {name: value.requires_grad for name, value in losses.items()} == {n: n.startswith("loss") for n in losses}


class _Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: constants copied from the host, numbers read back (`tolist` is not seen)."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.lift_fresh.default, torch.ops.aten._local_scalar_dense.default)
        return func(*args, **(kwargs or {}))


@BOTH
def test_nothing_but_the_token_counts_waits_for_the_device(build, points, monkeypatch):
    monkeypatch.setattr(pointnet2_utils, "_check_index", lambda *_: None)  # reads them, on a CPU alone
    model = build()
    with _Waits() as waits:
        model(points)["loss"].backward()
    assert waits.count == 0


UNUSED = {"h_encoder.encoder_norms.0.weight", "h_encoder.encoder_norms.0.bias"}  # the decoder starts at level 1


def without_gradient(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}


@BOTH
def test_the_gradient_reaches_every_parameter_but_the_finest_norm(build, points):
    model = build()
    model(points)["loss"].backward()
    assert without_gradient(model) == UNUSED


def test_the_gradient_stops_at_the_clip_tower(points):
    teacher = clip_teacher()
    model = I2P_MAE(teacher=teacher, **SMALL)
    model(points)["loss"].backward()
    assert without_gradient(model) == UNUSED
    assert all(p.grad is None for p in teacher.parameters())


def capture(model: nn.Module, points: Tensor, mask: Tensor) -> dict[str, Any]:
    """The losses of a forward with the gradient that arrives at each decoded token: `gradient` (B, G_1, C)."""
    decoded = []

    def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
        output.retain_grad()
        decoded.append(output)

    with model.decoder_norm.register_forward_hook(keep):
        losses = model(points, mask)
    losses["loss"].backward()
    return {**losses, "gradient": decoded[0].grad}


def level_1_mask(model: MaskedAutoencoder, points: Tensor) -> Tensor:
    return model.h_encoder(model.group(points), MASK)[1].mask


@BOTH
def test_the_3d_loss_is_at_masked_tokens_only(build, points):
    model = build()
    if build is i2p_mae:
        nn.init.zeros_(model.rec_head_2d.weight)  # no gradient from the 2D loss passes
    masked = level_1_mask(model, points)
    gradient = capture(model, points, MASK)["gradient"]
    assert masked.any()
    assert not gradient[~masked].any()
    assert gradient[masked].any(-1).all()


def test_the_2d_loss_is_at_visible_tokens_only(points):
    model = i2p_mae()
    nn.init.zeros_(model.rec_head_3d.weight)
    masked = level_1_mask(model, points)
    gradient = capture(model, points, MASK)["gradient"]
    assert not gradient[masked].any()
    assert gradient[~masked].any(-1).all()


def brute_force_chamfer(predicted: Tensor, true: Tensor) -> Tensor:
    """Chamfer L2 of (M, k', 3) against (M, k, 3), the means over all M together."""
    squared = (predicted[:, :, None] - true[:, None]).square().sum(-1)
    return squared.amin(2).mean() + squared.amin(1).mean()


@BOTH
def test_the_3d_loss_is_the_chamfer_distance_of_what_reconstruct_shows(build, points):
    model = build().eval()
    with torch.no_grad():
        result, losses = model.reconstruct(points, MASK), model(points, MASK)
    masked = ~result["visible"]
    expected = brute_force_chamfer(result["predictions"][masked], result["neighborhoods"][masked])
    torch.testing.assert_close(losses["loss_3d"], expected, rtol=1e-4, atol=1e-6)


def test_the_2d_loss_compares_each_neighbour_and_view_with_its_back_projected_feature(points):
    model = i2p_mae().eval()
    decoded, errors = [], []
    with torch.no_grad():
        with model.decoder_norm.register_forward_hook(lambda module, args, output: decoded.append(output)):
            losses = model(points, MASK)
        groups, views = model.group(points), model.look(points)
        visible = ~level_1_mask(model, points)
        for b in range(2):
            for g in visible[b].nonzero().flatten():
                predicted = model.rec_head_2d(decoded[0][b, g]).view(4, 3, 5)  # (k, view, feature)
                neighbors = groups[1].points[:, g]  # (B, k, 3)
                target = views.features_at(neighbors)[:, b].transpose(0, 1)  # (k, view, feature)
                errors.append((predicted - target).square())
    torch.testing.assert_close(losses["loss_2d"], torch.stack(errors).mean(), rtol=1e-4, atol=1e-6)


def test_visible_saliency_is_a_share(points):
    assert all(0 <= i2p_mae()(points, generator=seeded(seed))["visible_saliency"] <= 1 for seed in range(3))


def test_visible_saliency_by_hand(points):
    model = i2p_mae()
    saliency = model.look(points).saliency_at(model.group(points)[-1].centers)
    expected = torch.stack([row[~mask].sum() / row.sum() for row, mask in zip(saliency, MASK, strict=True)]).mean()
    torch.testing.assert_close(model(points, MASK)["visible_saliency"], expected)


# The mask


def drawn_mask(model: MaskedAutoencoder, points: Tensor, **arguments: Any) -> Tensor:
    masks = []
    with model.h_encoder.register_forward_pre_hook(lambda module, args: masks.append(args[1])), torch.no_grad():
        model(points, **arguments)
    return masks[0]


def test_released_settings_leave_13_of_64_tokens_visible():
    assert Point_M2AE(encoder_depths=(0, 0, 0)).num_visible == 13


@BOTH
@pytest.mark.parametrize(("mask_ratio", "masked"), [(0.5, 4), (0.7, 5)])  # 0.7 · 8 = 5.6, rounded down
def test_the_mask_ratio_says_how_many_tokens_are_masked(build, points, mask_ratio, masked):
    assert drawn_mask(build(mask_ratio=mask_ratio), points).sum(1).tolist() == [masked, masked]


@BOTH
def test_a_given_mask_is_used(build, points):
    assert torch.equal(drawn_mask(build(), points, coarse_mask=MASK), MASK)


@BOTH
def test_the_generator_decides_the_draw(build, points):
    model = build().eval()
    losses = [model(points, generator=seeded(seed))["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_three_coarse_tokens_are_enough(points):
    losses = i2p_mae(num_groups=(32, 16, 3), mask_ratio=0.5)(points)
    assert all(loss.isfinite() for loss in losses.values())


def test_a_low_mask_temperature_shows_the_most_salient_tokens(points):
    model = i2p_mae(mask_temperature=1e-7, mask_ratio=0.6)
    saliency = model.look(points).saliency_at(model.group(points)[-1].centers)
    top = saliency.topk(model.num_visible, dim=1).indices
    expected = torch.ones_like(saliency, dtype=torch.bool).scatter(1, top, False)
    assert torch.equal(drawn_mask(model, points), expected)
    shown = model.reconstruct(points)["visible"]
    assert torch.equal(shown, model.reconstruct(points, expected)["visible"])


def test_point_m2ae_masks_at_random(points):
    model = point_m2ae().eval()
    many = points[:1].expand(20_000, -1, -1)
    counts = (~model.mask(model._uniform_logits(many), None, seeded())).sum(0)
    assert model.num_visible == 2
    assert ((counts - 5000).abs() < 310).all()  # 20,000 · 2/8, five standard deviations


@BOTH
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK[:, :7], r"coarse_mask must be bool \(2, 8\) with True = masked, got torch.bool \(2, 7\)"),
        (MASK[:1], r"got torch.bool \(1, 8\)"),
        (MASK.float(), r"got torch.float32 \(2, 8\)"),
        (torch.ones_like(MASK), "at least one token visible and one masked"),
        (torch.zeros_like(MASK), "at least one token visible and one masked"),
        (torch.stack([MASK[0], torch.ones(8).bool()]), "in every sample"),
    ],
    ids=["groups", "batch", "dtype", "all masked", "none masked", "one sample all masked"],
)
def test_a_wrong_mask_is_refused(build, points, mask, message):
    with pytest.raises(ValueError, match=message):
        build()(points, mask)


@BOTH
def test_a_mask_that_hides_no_finer_token_gives_a_finite_loss(build):
    """Neighbourhoods overlap: with one coarse token masked, every level-1 token can still be visible."""
    model = build(num_groups=(16, 4, 4))
    points = torch.randn(1, 40, 3, generator=seeded())
    mask = torch.tensor([[True, False, False, False]])
    assert not model.h_encoder(model.group(points), mask)[1].mask.any()
    assert all(value.isfinite() for value in model(points, mask).values())


# The teacher


def test_the_teacher_is_no_part_of_the_state():
    teacher = clip_teacher()
    model = I2P_MAE(teacher=teacher, **SMALL)
    assert not any("teacher" in name for name in model.state_dict())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in model.parameters()}
    assert teacher not in list(model.modules())


def test_the_teacher_stays_in_eval_mode():
    teacher = clip_teacher()
    I2P_MAE(teacher=teacher, **SMALL).train()
    assert not any(module.training for module in teacher.modules())


def test_the_teacher_follows_the_model(points):
    model = i2p_mae().double()
    assert model.teacher.scale.dtype == torch.float64
    nn.Sequential(model).to("meta")
    assert model.teacher.scale.device.type == "meta"


def test_a_deep_copy_has_its_own_teacher():
    model = i2p_mae()
    twin = copy.deepcopy(model)
    assert twin.teacher is not model.teacher
    assert torch.equal(twin.teacher.scale, model.teacher.scale)
    assert not any("teacher" in name for name in twin.state_dict())


@BOTH
def test_a_deep_copy_computes_the_same(build, points):
    model = build().eval()
    assert copy.deepcopy(model)(points, MASK)["loss"] == model(points, MASK)["loss"]


@BOTH
def test_the_models_run_in_double_precision(build, points):
    model = build().eval()
    single = model(points, MASK)["loss"]
    double = model.double()(points.double(), MASK)["loss"]
    double.backward()
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)


def test_the_teacher_sees_images_of_its_own_size(points):
    teacher = ToyTeacher()
    teacher.image_size = 48
    shapes = []
    teacher.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    I2P_MAE(teacher=teacher, **SMALL).look(points)
    assert shapes == [(6, 3, 48, 48)]


def test_the_feature_width_of_the_teacher_sizes_the_2d_head():
    assert i2p_mae().rec_head_2d.out_channels == 4 * 3 * 5
    without = I2P_MAE(clip_config={"visual_encoder": None, "feat_dim": 7}, **SMALL)
    assert without.rec_head_2d.out_channels == 4 * 3 * 7


def test_the_teacher_of_a_config(points):
    with pytest.warns(UserWarning, match="untrained"):
        model = I2P_MAE(clip_config={"visual_encoder": TOWER, "feat_dim": 16, "pretrained": "untrained"}, **SMALL)
    assert model.look(points).features.shape == (6, 16, 4, 4)


def test_without_a_teacher_there_are_features_but_no_losses(points):
    model = I2P_MAE(clip_config={"visual_encoder": None, "feat_dim": 512}, **SMALL)
    assert model.encode(points).shape == (2, 96)
    for method in (model, model.reconstruct):
        with pytest.raises(ValueError, match=r"model\.clip_config\.visual_encoder"):
            method(points)


@pytest.mark.parametrize(
    "given", [{}, {"teacher": ToyTeacher(), "clip_config": {"visual_encoder": None, "feat_dim": 5}}]
)
def test_one_teacher_must_be_named(given):
    with pytest.raises(ValueError, match=r"either model\.clip_config or teacher="):
        I2P_MAE(**given, **SMALL)


# Features and reconstruction


@BOTH
def test_features_of_a_cloud_do_not_depend_on_its_batch(build, points):
    model = build().eval()
    together, alone = model.encode(points), model.encode(points[1:])
    assert together.shape == (2, 96)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_i2p_mae_pools_by_max_and_point_m2ae_by_mean_plus_max(points):
    mae, m2ae = i2p_mae().eval(), point_m2ae().eval()
    empty = torch.zeros(2, 8, dtype=torch.bool)
    tokens = mae.h_encoder(mae.group(points), empty)[-1].tokens
    torch.testing.assert_close(mae.encode(points), tokens.max(1).values)
    tokens = m2ae.h_encoder(m2ae.group(points), empty)[-1].tokens
    torch.testing.assert_close(m2ae.encode(points), tokens.mean(1) + tokens.max(1).values)


@pytest.mark.parametrize(("build", "predicted"), [(i2p_mae, 4), (point_m2ae, 8)])
def test_reconstruct_shapes(build, predicted, points):
    result = build().reconstruct(points, MASK)
    assert {name: tuple(value.shape) for name, value in result.items()} == {
        "visible": (2, 16),
        "neighborhoods": (2, 16, 4, 3),
        "predictions": (2, 16, predicted, 3),
    }
    assert result["visible"].dtype == torch.bool


@BOTH
def test_reconstruct_shows_absolute_points(build, points):
    model = build().eval()
    head = model.rec_head if build is point_m2ae else model.rec_head_3d
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, 0.25)
    result, group = model.reconstruct(points, MASK), model.group(points)[1]
    assert torch.equal(result["predictions"], (group.centers[:, :, None] + 0.25).expand_as(result["predictions"]))
    assert torch.equal(result["neighborhoods"], group.points)
    assert torch.equal(result["visible"], ~level_1_mask(model, points))


def test_the_mask_token_stands_at_the_masked_centres(points):
    model = i2p_mae().eval()
    inputs = []
    encoded = model.h_encoder(model.group(points), MASK)
    with model.h_decoder[0].register_forward_pre_hook(lambda module, args: inputs.append(args[0])):
        model.decode(model.group(points), encoded)
    assert torch.equal(inputs[0][MASK], model.mask_token.expand(MASK.sum(), -1))
    assert torch.equal(inputs[0][~MASK], encoded[2].scattered()[~MASK])


# Carrying coarse tokens to the finer level


def test_interpolation_by_hand():
    # Distances 1, 2, 3 of the nearest three: weights 1, 1/4, 1/9 over their sum; the fourth has no say.
    coarse = torch.tensor([[[1.0, 0, 0], [9, 0, 0], [0, 2, 0], [0, 0, -3]]])
    features = torch.tensor([[[1.0, 0], [100, 100], [0, 1], [2, 2]]])
    weights = torch.tensor([1, 1 / 4, 1 / 9]) / (1 + 1 / 4 + 1 / 9)
    expected = weights @ features[0, [0, 2, 3]]
    torch.testing.assert_close(interpolate_features(torch.zeros(1, 1, 3), coarse, features), expected.view(1, 1, 2))


def test_interpolation_of_centres_that_nearly_coincide():
    # Squared distances 1e-8 and 4e-8, each plus 1e-8: weights 5 and 2 over their sum; the third is too far to count.
    coarse = torch.tensor([[[1e-4, 0, 0], [0, 2e-4, 0], [0, 0, 1]]])
    features = torch.tensor([[[7.0], [0], [0]]])
    torch.testing.assert_close(interpolate_features(torch.zeros(1, 1, 3), coarse, features), torch.tensor([[[5.0]]]))


def test_interpolation_at_a_coarse_centre_is_its_feature(points):
    features = torch.randn(2, 10, 4, generator=seeded())
    interpolated = interpolate_features(points[:, 3:5], points[:, :10], features)
    torch.testing.assert_close(interpolated, features[:, 3:5], rtol=1e-4, atol=1e-4)


def test_token_propagation_equals_its_literal_formulation(points):
    torch.manual_seed(0)
    propagation = TokenPropagation(6, 4, 1).double().eval()
    fine, coarse = points.double(), points[:, :10].double()
    tokens, coarse_tokens = (torch.randn(2, n, c, generator=seeded()).double() for n, c in ((64, 4), (10, 6)))
    weights = {name: value.squeeze(-1) for name, value in propagation.state_dict().items() if value.dim() == 3}
    biases = dict(propagation.named_parameters())

    def conv_norm(x: Tensor, name: str) -> Tensor:
        """The convolution and the still neutral norm, (B, N, C) to (B, N, dim)."""
        x = x @ weights[f"{name}.0.weight"].T + biases[f"{name}.0.bias"]
        return x / (1 + 1e-5) ** 0.5

    x = torch.cat([tokens, interpolate_features(fine, coarse, coarse_tokens)], dim=-1)
    x = nn.functional.gelu(conv_norm(x, "fuse.net"))
    residual = nn.functional.gelu(conv_norm(x, "extraction.operation.0.net1"))
    expected = nn.functional.gelu(conv_norm(residual, "extraction.operation.0.net2") + x)
    torch.testing.assert_close(propagation(fine, coarse, tokens, coarse_tokens), expected, rtol=1e-10, atol=1e-10)


# Clouds at the edge


@BOTH
def test_fewer_points_than_groups(build, points):
    model = build()
    losses = model(points[:, :20])
    losses["loss"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@BOTH
@pytest.mark.parametrize("place", [0.0, 0.5])
def test_points_that_are_all_in_one_place(build, place):
    losses = build()(torch.full((2, 40, 3), place))
    assert all(value.isfinite() for value in losses.values())


# Settings


@BOTH
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_groups": (32, 16)}, r"num_groups must hold 3 values ≥ 1, fine to coarse, got \[32, 16\]"),
        ({"num_groups": (32, 16, 2)}, "must end with at least 3"),
        ({"group_sizes": (8, 4, 20)}, "level 2 makes 8 groups of 20 out of 16 tokens"),
        ({"num_heads": 5}, "24 channels do not divide into 5 heads"),
        ({"num_heads": 0}, "24 channels do not divide into 0 heads"),
        ({"decoder_up_blocks": ()}, "decoder_up_blocks must hold 2 values"),
        ({"decoder_dims": (96, 24)}, r"decoder_dims must be \[96, 48\].*got \[96, 24\]"),
        ({"decoder_dims": (96,)}, r"decoder_dims must be \[96, 48\]"),
        ({"decoder_depths": (1,)}, "decoder_depths"),
        ({"mask_ratio": 0.0}, "mask_ratio 0.0 masks none or all of 8 tokens"),
        ({"mask_ratio": 1.0}, "mask_ratio 1.0 masks none or all of 8 tokens"),
        ({"mask_ratio": -0.5}, "mask_ratio -0.5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_refused(build, settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_a_padding_leak_needs_a_radius():
    with pytest.raises(
        ValueError, match=r"padding_leak: true acts through local_radius, which is \[0\.0, 0\.0, 0\.0\]"
    ):
        point_m2ae(padding_leak=True)
    with pytest.raises(ValueError, match=r"which is \[0, 0, 0\]; give the released \[0\.32, 0\.64, 1\.28\]"):
        build_model({"NAME": "Point_M2AE", "local_radius": [0, 0, 0], "padding_leak": True})


def test_a_padding_leak_is_a_setting_of_point_m2ae_alone():
    check_model_config({"NAME": "Point_M2AE", **RELEASED, "local_radius": [0.32, 0.64, 1.28], "padding_leak": True})
    with pytest.raises(ValueError, match=r"model\.padding_leak is 'yes'; expected bool"):
        check_model_config({"NAME": "Point_M2AE", "padding_leak": "yes"})
    with pytest.raises(ValueError, match=r"unknown key 'model\.padding_leak'"):
        check_model_config({"NAME": "I2P_MAE", "padding_leak": True})


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_mask_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=f"mask_temperature must be positive, got {temperature}"):
        i2p_mae(mask_temperature=temperature)


RELEASED = {
    "mask_ratio": 0.8,
    "group_sizes": [16, 8, 8],
    "num_groups": [512, 256, 64],
    "encoder_depths": [5, 5, 5],
    "encoder_dims": [96, 192, 384],
    "decoder_depths": [1, 1],
    "decoder_dims": [384, 192],
    "decoder_up_blocks": [1, 1],
    "drop_path_rate": 0.1,
    "num_heads": 6,
}
CLASSIFIER = {
    "group_sizes": [48, 24, 24],
    "num_groups": [512, 256, 64],
    "encoder_depths": [5, 5, 5],
    "encoder_dims": [96, 192, 384],
    "local_radius": [0.24, 0.48, 0.96],
    "drop_path_rate": 0.1,
    "num_heads": 6,
}


@pytest.mark.parametrize(
    "config",
    [
        {
            "NAME": "I2P_MAE",
            **RELEASED,
            "local_radius": [0, 0, 0],
            "clip_config": {"visual_encoder": "ViT-B/16", "feat_dim": 512},
        },
        {"NAME": "Point_M2AE", **RELEASED, "local_radius": [0.32, 0.64, 1.28]},
        {"NAME": "I2P_MAE_ModelNet40", **CLASSIFIER, "smooth": 0.2},
        {"NAME": "Point_M2AE_ModelNet40", **CLASSIFIER, "smooth": 0.3},
        {"NAME": "I2P_MAE_ScanObjectNN", **CLASSIFIER},
        {"NAME": "Point_M2AE_ScanObjectNN", **CLASSIFIER},
    ],
    ids=lambda config: config["NAME"],
)
def test_released_settings_are_accepted(config):
    before = copy.deepcopy(config)
    check_model_config(config)
    if config["NAME"] != "I2P_MAE":  # building its teacher would fetch CLIP's weights
        assert isinstance(build_model(config), nn.Module)
    assert config == before


@pytest.mark.parametrize(
    "name", [name for name in MODELS if name not in ("Point_NN", "Point_BERT", "ACT_PointDistillation")]
)
@pytest.mark.parametrize("check", [check_model_config, build_model])
def test_an_unknown_key_is_named_with_its_place_and_the_nearest(check, name):
    config = {"NAME": name, "group_sise": [16, 8, 8], "clip_config": None}  # the two left out have no group_size
    if name != "I2P_MAE":
        del config["clip_config"]
    with pytest.raises(ValueError, match=r"unknown key 'model\.group_sise'.*did you mean 'group_sizes?'"):
        check(config)


def test_the_place_of_the_model_in_the_config_is_named():
    with pytest.raises(ValueError, match=r"student\.depth"):
        check_model_config({"NAME": "Point_M2AE", "depth": 3}, where="student")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("I2PMAE", r"model\.NAME: unknown name 'I2PMAE'; did you mean 'I2P_MAE'"),
        ("resnet", r"unknown name 'resnet'; valid: I2P_MAE, Point_M2AE"),
        (None, r"model\.NAME"),
    ],
)
def test_an_unknown_name_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        build_model({"NAME": name} if name else {})


@pytest.mark.parametrize(
    ("clip_config", "message"),
    [
        (
            {"visual_encoder": None, "feature_dim": 512, "feat_dim": 512},
            r"unknown key 'model\.clip_config\.feature_dim'; did you mean 'feat_dim'",
        ),
        ({"visual_encoder": None}, r"model\.clip_config lacks feat_dim"),
    ],
)
def test_the_keys_of_clip_config_are_checked(clip_config, message):
    with pytest.raises(ValueError, match=message):
        build_model({"NAME": "I2P_MAE", "clip_config": clip_config})


def test_building_leaves_the_config_as_it_was():
    config = {"NAME": "I2P_MAE", "clip_config": {"visual_encoder": None, "feat_dim": 16}, **SMALL}
    before = copy.deepcopy(config)
    assert build_model(config).training
    assert config == before
