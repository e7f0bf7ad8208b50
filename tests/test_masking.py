"""Drawing the coarse mask, carrying it down, and packing what is visible."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from models.masking import Packing, draw_mask, propagate_mask

seeds = st.integers(0, 2**32 - 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_mask(seed: int, batch: int, groups: int) -> Tensor:
    """(B, G) bool with at least one visible token in each sample."""
    generator = seeded(seed)
    mask = torch.rand(batch, groups, generator=generator) < 0.7
    return mask.scatter(1, torch.randint(groups, (batch, 1), generator=generator), False)


# Drawing


@settings(deadline=None, max_examples=40)
@given(seed=seeds, groups=st.integers(2, 64), data=st.data())
def test_exactly_num_visible_tokens_are_visible(seed, groups, data):
    num_visible = data.draw(st.integers(1, groups - 1))
    logits = 5 * torch.randn(3, groups, generator=seeded(seed))
    mask = draw_mask(logits, num_visible, seeded(seed))
    assert mask.dtype == torch.bool
    assert (~mask).sum(1).tolist() == [num_visible] * 3


def test_the_same_seed_draws_the_same_mask_and_another_another():
    logits = torch.zeros(4, 64)
    assert torch.equal(draw_mask(logits, 13, seeded(1)), draw_mask(logits, 13, seeded(1)))
    assert not torch.equal(draw_mask(logits, 13, seeded(1)), draw_mask(logits, 13, seeded(2)))


def test_a_generator_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    draw_mask(torch.zeros(1, 8), 2, seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_the_global_one_is_used():
    torch.manual_seed(3)
    first = draw_mask(torch.zeros(2, 64), 13)
    torch.manual_seed(3)
    assert torch.equal(draw_mask(torch.zeros(2, 64), 13), first)


def test_samples_are_drawn_independently():
    masks = draw_mask(torch.zeros(50, 64), 13, seeded())
    assert len({tuple(row) for row in masks.tolist()}) == 50


def assert_frequencies(counts: Tensor, probabilities: Tensor) -> None:
    """Each count lies within five standard deviations of what its probability predicts."""
    total = 20_000
    deviation = (total * probabilities * (1 - probabilities)).sqrt()
    assert ((counts - total * probabilities).abs() < 5 * deviation).all()


def test_the_first_draw_follows_the_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    counts = (~draw_mask(logits.expand(20_000, -1), 1, seeded())).sum(0)
    assert_frequencies(counts, logits.softmax(0))


def test_the_second_draw_follows_the_softmax_of_those_left():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    counts = (~draw_mask(logits.expand(20_000, -1), 2, seeded())).sum(0)
    p = logits.softmax(0)
    second = torch.stack([sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)])
    assert_frequencies(counts, p + second)


def test_equal_logits_give_a_uniform_mask():
    counts = (~draw_mask(torch.full((20_000, 10), 0.3), 3, seeded())).sum(0)
    assert_frequencies(counts, torch.full((10,), 0.3))


def test_huge_logits_pick_the_top_ones():
    logits = torch.randperm(64, generator=seeded()).float()
    mask = draw_mask(1e6 * logits.expand(20, -1), 13, seeded())
    assert torch.equal(mask, (logits < 64 - 13).expand(20, -1))


def test_probabilities_that_underflow_still_fill_the_mask():
    # Softmax is exactly (1, 0, 0, 0) here; the rest is drawn by what the logits say among themselves.
    logits = torch.tensor([0.0, -1e4, -2e4, -3e4]).expand(20, -1)
    assert (~draw_mask(logits, 3, seeded())).long().tolist() == [[1, 1, 1, 0]] * 20


# Propagation


@settings(deadline=None, max_examples=40)
@given(seed=seeds)
def test_propagation_against_a_loop(seed):
    generator, batch, sizes = seeded(seed), 2, (12, 7, 5)
    indices = [
        torch.randint(finer, (batch, groups, 3), generator=generator)
        for finer, groups in zip((40, *sizes), sizes, strict=False)
    ]
    coarse = random_mask(seed, batch, sizes[-1])
    masks = propagate_mask(coarse, indices)
    assert torch.equal(masks[2], coarse)
    for level in (1, 0):
        expected = torch.ones(batch, sizes[level], dtype=torch.bool)
        for b in range(batch):
            for group in range(sizes[level + 1]):
                if not masks[level + 1][b, group]:
                    for member in indices[level + 1][b, group]:
                        expected[b, member] = False
        assert torch.equal(masks[level], expected)


def test_masked_groups_do_not_unmask_token_0():
    # Marking the members of masked groups as flat index 0, as the released code does, would show token 0 of sample 0.
    index = torch.tensor([[[0, 1], [2, 3]], [[0, 1], [2, 3]]])
    coarse = torch.tensor([[True, False], [False, True]])
    fine, _ = propagate_mask(coarse, [torch.zeros(2, 4, 1, dtype=torch.int64), index])
    assert fine.tolist() == [[True, True, False, False], [False, False, True, True]]


def test_a_token_is_visible_if_one_of_its_groups_is():
    index = torch.tensor([[[0, 1], [1, 2]]])
    fine, _ = propagate_mask(torch.tensor([[True, False]]), [torch.zeros(1, 3, 1, dtype=torch.int64), index])
    assert fine.tolist() == [[True, False, False]]


def test_a_token_in_no_group_stays_hidden_under_an_empty_mask():
    index = torch.tensor([[[0, 1], [1, 0]]])
    fine, _ = propagate_mask(torch.tensor([[False, False]]), [torch.zeros(1, 3, 1, dtype=torch.int64), index])
    assert fine.tolist() == [[False, False, True]]


# Packing


@st.composite
def masks(draw) -> Tensor:
    """(B, G) bool, any with at least one visible token in a sample."""
    mask = torch.from_numpy(draw(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9))))
    mask[:, draw(st.integers(0, mask.shape[1] - 1))] = False
    return mask


@settings(deadline=None)
@given(mask=masks())
def test_packing_keeps_the_visible_tokens_in_order(mask):
    (packing,) = Packing.of_levels([mask])
    for positions, valid, hidden in zip(packing.index, packing.valid, mask, strict=True):
        assert positions[valid].tolist() == (~hidden).nonzero().flatten().tolist()
        assert not valid[valid.sum() :].any()
    assert packing.index.shape == packing.valid.shape == (len(mask), (~mask).sum(1).max())


@settings(deadline=None)
@given(mask=masks())
def test_unpack_writes_over_the_visible_positions_only(mask):
    (packing,) = Packing.of_levels([mask])
    x = torch.randn(*mask.shape, 2, generator=seeded())
    onto = x.clone()
    unpacked = packing.unpack(packing.pack(x) + 10, onto)
    assert torch.equal(unpacked[mask], x[mask])
    assert torch.equal(unpacked[~mask], x[~mask] + 10)
    assert torch.equal(onto, x)


@settings(deadline=None)
@given(mask=masks())
def test_the_gradient_of_a_round_trip_reaches_visible_tokens_only(mask):
    (packing,) = Packing.of_levels([mask])
    x = torch.randn(*mask.shape, 2, generator=seeded()).requires_grad_()
    packing.unpack(packing.pack(x), torch.zeros_like(x)).sum().backward()
    assert torch.equal(x.grad, (~mask).float().unsqueeze(-1).expand_as(x))


def test_attention_mask_shuts_out_the_padding():
    (packing,) = Packing.of_levels([torch.tensor([[True, False, False], [False, True, True]])])
    assert packing.attention_mask.tolist() == [[[[True, True]]], [[[True, False]]]]


def test_nothing_is_padded_where_the_samples_are_even():
    (packing,) = Packing.of_levels([torch.tensor([[True, False, False], [False, True, False]])])
    assert packing.attention_mask is None
    assert packing.valid.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_unpack_takes_the_type_of_what_was_computed(dtype):
    (packing,) = Packing.of_levels([torch.tensor([[True, False, False]])])
    assert packing.unpack(torch.zeros(1, 2, 4, dtype=dtype), torch.zeros(1, 3, 4)).dtype == dtype
