"""The hierarchical encoder: padding and masked tokens have no say, levels merge as described, initialisation."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models.encoder import HierarchicalEncoder, check_encoder, local_attention_mask
from models.masked_autoencoder import MaskedAutoencoder
from models.tokenizer import Group, group_levels, take

NUM_GROUPS, GROUP_SIZES, DIMS = (32, 16, 8), (8, 4, 4), (24, 48, 96)


@pytest.fixture(scope="module")
def encoder() -> HierarchicalEncoder:
    torch.manual_seed(0)
    return HierarchicalEncoder(DIMS, (1, 1, 1), num_heads=3, drop_path_rate=0.1).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def points() -> Tensor:
    return torch.randn(3, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def groups(points) -> list[Group]:
    return group_levels(points, NUM_GROUPS, GROUP_SIZES)


@pytest.fixture(scope="module")
def uneven_mask() -> Tensor:
    """(3, 8) bool, True = masked: 2, 6 and 1 visible."""
    visible = [[0, 5], [0, 1, 3, 4, 6, 7], [2]]
    return torch.stack([torch.ones(8).index_fill(0, torch.tensor(row), 0).bool() for row in visible])


def sample(groups: list[Group], b: int) -> list[Group]:
    return [
        Group(g.centers[b : b + 1], g.index[b : b + 1], g.points[b : b + 1], g.neighborhoods[b : b + 1]) for g in groups
    ]


def test_padding_has_no_influence(encoder, groups, uneven_mask):
    together = encoder(groups, uneven_mask)
    assert all(level.packing.attention_mask is not None for level in together)
    for b in range(3):
        alone = encoder(sample(groups, b), uneven_mask[b : b + 1])
        for batch_level, level in zip(together, alone, strict=True):
            valid = batch_level.packing.valid[b]
            assert level.packing.attention_mask is None
            torch.testing.assert_close(batch_level.tokens[b, valid], level.tokens[0], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def leaking_encoder() -> HierarchicalEncoder:
    """Two blocks at level 0, so that it shows what padding itself attends to."""
    torch.manual_seed(0)
    leaking = HierarchicalEncoder(DIMS, (2, 1, 1), num_heads=3).eval().requires_grad_(False)
    leaking.padding_radius = (1.3, 0.0, 2.0)
    return leaking


def with_padding_radius(encoder: HierarchicalEncoder, *radii: float) -> HierarchicalEncoder:
    encoder = copy.deepcopy(encoder)
    encoder.padding_radius = radii
    return encoder


def test_padding_that_acts_is_a_token_at_the_origin(leaking_encoder, groups, uneven_mask):
    """The blocks of level 0 over the visible tokens of a sample, then its padding, by a mask that is spelled out."""
    level = leaking_encoder(groups, uneven_mask)[0]
    counts = (~level.mask).sum(1).tolist()
    raw = leaking_encoder.token_embed[0](groups[0].neighborhoods)
    reached = 0
    for b, count in enumerate(counts):
        padding = torch.zeros(max(counts) - count, 3)
        centers = torch.cat([groups[0].centers[b, ~level.mask[b]], padding])
        tokens = torch.cat([raw[b, ~level.mask[b]], padding.new_zeros(len(padding), DIMS[0])])
        allowed = torch.zeros(max(counts), max(counts), dtype=torch.bool)
        for i, query in enumerate(centers):
            for j, key in enumerate(centers):
                allowed[i, j] = (i < count and j < count) or (query - key).norm() < 1.3
        reached += int(allowed[:count, count:].any(1).sum())
        assert count == max(counts) or not allowed[:count, count:].all()
        position = leaking_encoder.encoder_pos_embeds[0](centers)
        expected = leaking_encoder.encoder_blocks[0](tokens[None], position[None], allowed[None, None])[0, :count]
        expected = leaking_encoder.encoder_norms[0](expected)
        torch.testing.assert_close(level.tokens[b, :count], expected, rtol=1e-4, atol=1e-5)
    assert reached > 5


@pytest.mark.parametrize("acting", range(3))
def test_padding_acts_where_its_radius_is_positive(encoder, groups, uneven_mask, acting):
    leaking = with_padding_radius(encoder, *(2.0 * (level == acting) for level in range(3)))
    levels = zip(encoder(groups, uneven_mask), leaking(groups, uneven_mask), strict=True)
    same = [torch.equal(plain.scattered(), other.scattered()) for plain, other in levels]
    assert same == [level < acting for level in range(3)]


def test_without_padding_none_acts(encoder, groups, uneven_mask):
    alone, mask = sample(groups, 1), uneven_mask[1:2]
    for plain, other in zip(encoder(alone, mask), with_padding_radius(encoder, 2, 2, 2)(alone, mask), strict=True):
        assert torch.equal(plain.tokens, other.tokens)


@pytest.mark.parametrize("name", ["encoder", "leaking_encoder"])
def test_masked_tokens_do_not_enter_attention(request, name, groups, uneven_mask):
    """At level 0, the points of a masked group may be anything: the visible tokens stay as they are."""
    encoder = request.getfixturevalue(name)
    before = encoder(groups, uneven_mask)[0]
    finest = groups[0]
    moved = torch.where(before.mask[:, :, None, None], 5.0, finest.neighborhoods)
    assert before.mask.any(1).all()
    changed = [Group(finest.centers, finest.index, finest.points, moved), *groups[1:]]
    after = encoder(changed, uneven_mask)[0]
    valid = before.packing.valid
    torch.testing.assert_close(after.tokens[valid], before.tokens[valid], rtol=0, atol=0)


def test_masked_tokens_are_merged_as_they_were_embedded(encoder, groups, uneven_mask):
    inputs = []
    with encoder.token_embed[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0])):
        level = encoder(groups, uneven_mask)[0]
    raw = encoder.token_embed[0](groups[0].neighborhoods)
    is_masked = take(level.mask.unsqueeze(-1), groups[1].index).squeeze(-1)  # (B, G_1, k)
    expected = take(raw, groups[1].index)
    assert is_masked.any()
    assert torch.equal(inputs[0][is_masked], expected[is_masked])
    assert (inputs[0][~is_masked] != expected[~is_masked]).any(-1).all()


def test_visible_tokens_are_merged_as_the_blocks_left_them(encoder, groups, uneven_mask):
    inputs, outputs = [], []
    with encoder.token_embed[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0])):
        with encoder.encoder_blocks[0].register_forward_hook(lambda module, args, output: outputs.append(output)):
            level = encoder(groups, uneven_mask)[0]
    placed = level.packing.unpack(outputs[0], torch.zeros(3, NUM_GROUPS[0], DIMS[0]))
    is_visible = ~take(level.mask.unsqueeze(-1), groups[1].index).squeeze(-1)
    assert torch.equal(inputs[0][is_visible], take(placed, groups[1].index)[is_visible])


def test_scattered_puts_visible_tokens_in_place_and_zeros_elsewhere(encoder, groups, uneven_mask):
    for level in encoder(groups, uneven_mask):
        scattered = level.scattered()
        assert torch.equal(scattered[~level.mask], level.tokens[level.packing.valid])
        assert not scattered[level.mask].any()


def test_batch_norm_sees_masked_tokens_too(groups, uneven_mask):
    torch.manual_seed(0)
    encoder = HierarchicalEncoder(DIMS, (1, 1, 1), num_heads=3).train()
    rows = []
    batch_norm = encoder.token_embed[0].first_conv[1]
    with batch_norm.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[2])):
        encoder(groups, uneven_mask)
    assert rows == [3 * NUM_GROUPS[0] * GROUP_SIZES[0]]


def covering_groups(groups: list[Group]) -> list[Group]:
    """Groups whose members cover all finer tokens, so that an empty mask hides nothing."""

    def regroup(group: Group, finer: Group) -> Group:
        batch, num_groups, size = group.index.shape
        index = torch.arange(num_groups * size).view(1, num_groups, size).expand(batch, -1, -1) % finer.centers.shape[1]
        members = take(finer.centers, index)
        return Group(group.centers, index, members, members - group.centers.unsqueeze(2))

    return [groups[0], regroup(groups[1], groups[0]), regroup(groups[2], groups[1])]


def test_an_empty_mask_that_hides_nothing_equals_the_unmasked_forward(encoder, groups):
    groups = covering_groups(groups)
    levels = encoder(groups, torch.zeros(3, 8, dtype=torch.bool))
    assert not any(level.mask.any() for level in levels)
    for level, tokens in zip(levels, encoder.forward_all(groups, (0, 0, 0)), strict=True):
        torch.testing.assert_close(level.tokens, tokens, rtol=1e-5, atol=1e-5)


def test_the_unmasked_forward_shows_tokens_in_no_group(encoder, groups):
    shapes = [tokens.shape for tokens in encoder.forward_all(groups, (0, 0, 0))]
    assert shapes == [(3, g, c) for g, c in zip(NUM_GROUPS, DIMS, strict=True)]


def test_local_attention_reaches_the_tokens_within_the_radius_only(encoder, groups):
    """At level 0 with one block, moving the members of far groups leaves a token as it is."""
    finest, radius = groups[0], 0.8
    far = (finest.centers - finest.centers[:, :1]).norm(dim=-1) >= radius  # (B, G) from token 0
    assert far.any(1).all()
    moved = torch.where(far[:, :, None, None], 5.0, finest.neighborhoods)
    changed = [Group(finest.centers, finest.index, finest.points, moved), *groups[1:]]
    for radii, is_same in (((radius, 0, 0), True), ((0, 0, 0), False)):
        before, after = (encoder.forward_all(g, radii)[0][:, 0] for g in (groups, changed))
        assert torch.allclose(before, after, rtol=1e-5, atol=1e-6) == is_same


def test_the_local_radius_of_each_level_is_its_own(encoder, groups):
    without = encoder.forward_all(groups, (0, 0, 0))
    at_level_1 = encoder.forward_all(groups, (0, 0.5, 0))
    assert torch.equal(without[0], at_level_1[0])
    assert not torch.allclose(without[1], at_level_1[1])


def test_local_attention_is_strictly_within_the_radius():
    centers = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [1.5, 0, 0]]])
    assert local_attention_mask(centers, 1.0).tolist() == [[[[1, 0, 0], [0, 1, 1], [0, 1, 1]]]]
    assert local_attention_mask(centers, 1.5).tolist() == [[[[1, 1, 0], [1, 1, 1], [0, 1, 1]]]]


def test_radius_zero_sets_no_limit():
    assert local_attention_mask(torch.zeros(1, 3, 3), 0) is None


def test_a_token_always_attends_to_itself():
    centers = 100 + torch.rand(1, 20, 3, generator=torch.Generator().manual_seed(0))
    assert local_attention_mask(centers, 1e-6)[0, 0].diagonal().all()


def test_norms_are_optional(groups):
    torch.manual_seed(0)
    bare = HierarchicalEncoder(DIMS, (1, 1, 1), num_heads=3, norms=False)
    assert not any(name.startswith("encoder_norms") for name in bare.state_dict())
    top = bare.forward_all(groups, (0, 0, 0))[-1]
    torch.manual_seed(0)
    normed = HierarchicalEncoder(DIMS, (1, 1, 1), num_heads=3)
    torch.testing.assert_close(normed.forward_all(groups, (0, 0, 0))[-1], normed.encoder_norms[2](top))


# Initialisation


def layers(module: nn.Module, *kinds: type[nn.Module]) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, kinds)]


def test_encoder_weights_are_truncated_normal():
    torch.manual_seed(0)
    encoder = HierarchicalEncoder((96, 192, 384), (1, 1, 1), num_heads=6)
    found = layers(encoder, nn.Linear, nn.Conv1d)
    assert found
    for layer in found:
        if layer.weight.numel() > 10_000:
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert layer.weight.mean().abs() < 1e-3


def test_encoder_biases_are_zero_and_norms_neutral(encoder):
    biases = [layer.bias for layer in layers(encoder, nn.Linear, nn.Conv1d, nn.LayerNorm) if layer.bias is not None]
    assert biases
    assert not any(bias.any() for bias in biases)
    assert all((norm.weight == 1).all() for norm in layers(encoder, nn.LayerNorm))


@pytest.fixture(scope="module")
def autoencoder() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder()


def test_decoder_blocks_are_xavier_uniform(autoencoder):
    for layer in layers(autoencoder.h_decoder, nn.Linear):
        out_dim, in_dim = layer.weight.shape
        bound = (6 / (in_dim + out_dim)) ** 0.5
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert layer.bias is None or not layer.bias.any()


def test_mask_token_is_truncated_normal(autoencoder):
    assert autoencoder.mask_token.shape == (1, 384)
    assert autoencoder.mask_token.std().item() == pytest.approx(0.02, rel=0.15)


# Settings


@pytest.mark.parametrize("name", ["num_groups", "group_sizes", "encoder_dims", "encoder_depths", "local_radius"])
def test_every_setting_holds_a_value_per_level(name):
    settings = {"num_groups": (8, 4, 2), "group_sizes": (4, 4, 4), "encoder_dims": (6, 6, 6)}
    settings |= {"encoder_depths": (1, 1, 1), "local_radius": (0, 0, 0), "drop_path_rate": 0.1}
    settings[name] = (1, 1)
    with pytest.raises(ValueError, match=rf"{name} must hold 3 values ≥ [01], fine to coarse, got \[1, 1\]"):
        check_encoder(**settings)


@pytest.mark.parametrize(
    ("num_groups", "group_sizes", "level"), [((8, 16, 4), (4, 4, 4), 1), ((16, 8, 4), (4, 4, 9), 2)]
)
def test_levels_must_fit_each_other(num_groups, group_sizes, level):
    with pytest.raises(ValueError, match=f"level {level} makes"):
        check_encoder(num_groups, group_sizes, (6, 6, 6), (1, 1, 1), (0, 0, 0), 0.1)


@pytest.mark.parametrize(("name", "value"), [("group_sizes", (4, 0, 4)), ("drop_path_rate", 1.0)])
def test_values_out_of_range_are_refused(name, value):
    settings = {"num_groups": (8, 4, 2), "group_sizes": (4, 4, 4), "encoder_dims": (6, 6, 6)}
    settings |= {"encoder_depths": (1, 1, 1), "local_radius": (0, 0, 0), "drop_path_rate": 0.1, name: value}
    with pytest.raises(ValueError, match=rf"^{name} must "):
        check_encoder(**settings)
