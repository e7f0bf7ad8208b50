"""Attention, blocks, positions and stochastic depth, against their explicit formulation."""

import math

import pytest
import torch
from torch import Tensor, nn

from models.transformer import Attention, Block, BlockStack, drop_path_rates, positional_embedding

DIM, HEADS = 12, 3


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def explicit_attention(attention: Attention, x: Tensor, allowed: Tensor) -> Tensor:
    """Softmax attention head by head and sample by sample; `allowed` (B, heads, L, L), True = may attend."""
    rows = attention.qkv.weight.view(3, HEADS, DIM // HEADS, DIM)  # queries, keys, values of each head
    samples = []
    for b in range(x.shape[0]):
        heads = []
        for h in range(HEADS):
            q, k, v = (x[b] @ rows[i, h].T for i in range(3))
            logits = (q @ k.T) / math.sqrt(DIM // HEADS)
            weights = logits.masked_fill(~allowed[b, h], -math.inf).exp()
            heads.append(weights / weights.sum(1, keepdim=True) @ v)
        samples.append(torch.cat(heads, dim=1) @ attention.proj.weight.T + attention.proj.bias)
    return torch.stack(samples)


MASKS = {
    "none": None,
    "padding": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()[:, None, None],
    "local": (torch.arange(5)[:, None] - torch.arange(5)).abs().le(1).expand(2, 1, 5, 5),
}


@pytest.mark.parametrize("name", MASKS)
def test_attention_equals_the_explicit_softmax(tokens, name):
    torch.manual_seed(0)
    attention, mask = Attention(DIM, HEADS).double(), MASKS[name]
    allowed = torch.ones(2, HEADS, 5, 5, dtype=torch.bool) if mask is None else mask.expand(2, HEADS, 5, 5)
    expected = explicit_attention(attention, tokens, allowed)
    torch.testing.assert_close(attention(tokens, mask), expected, rtol=1e-10, atol=1e-10)


def test_tokens_that_may_not_be_attended_to_have_no_influence(tokens):
    attention = Attention(DIM, HEADS).double()
    changed = tokens.clone()
    changed[1, 3:] = 1e3
    before, after = (attention(x, MASKS["padding"]) for x in (tokens, changed))
    torch.testing.assert_close(before[1, :3], after[1, :3], rtol=1e-12, atol=1e-12)


def test_queries_keys_and_values_have_no_bias():
    attention = Attention(DIM, HEADS)
    assert set(attention.state_dict()) == {"qkv.weight", "proj.weight", "proj.bias"}


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="12 channels do not divide into 5 heads"):
        Attention(12, 5)


def explicit_block(block: Block, x: Tensor) -> Tensor:
    def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        return centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    x = x + block.attn(norm(x, block.norm1))
    hidden = norm(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return x + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


def test_block_is_pre_norm_with_exact_gelu_and_eps_1e_5(tokens):
    torch.manual_seed(0)
    block = Block(DIM, HEADS).double()
    for norm in (block.norm1, block.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    small = 1e-2 * tokens  # so that eps is seen in the variance
    torch.testing.assert_close(block(small), explicit_block(block, small), rtol=1e-10, atol=1e-10)


def test_mlp_is_four_times_as_wide():
    assert Block(DIM, HEADS).mlp.fc1.out_features == 4 * DIM


def test_position_is_added_before_every_block(tokens):
    torch.manual_seed(0)
    stack = BlockStack(DIM, HEADS, [0.0, 0.0, 0.0]).double()
    position = tokens.flip(1)
    x = tokens
    for block in stack.blocks:
        x = block(x + position)
    torch.testing.assert_close(stack(tokens, position), x, rtol=0, atol=0)


def test_no_blocks_leave_the_tokens_alone(tokens):
    assert torch.equal(BlockStack(DIM, HEADS, [])(tokens, tokens), tokens)


def test_positional_embedding_is_linear_gelu_linear():
    embedding = positional_embedding(DIM).double()
    centers = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden = centers @ embedding[0].weight.T + embedding[0].bias
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    expected = hidden @ embedding[2].weight.T + embedding[2].bias
    assert embedding[0].out_features == DIM
    torch.testing.assert_close(embedding(centers), expected, rtol=1e-10, atol=1e-10)


def test_drop_path_rates_rise_linearly_over_all_blocks():
    rates = drop_path_rates(0.1, (5, 5, 5))
    assert [len(level) for level in rates] == [5, 5, 5]
    flat = [rate for level in rates for rate in level]
    assert flat == pytest.approx([0.1 * i / 14 for i in range(15)])


def test_drop_path_rates_of_a_decoder_and_of_one_block():
    assert drop_path_rates(0.1, (1, 1)) == [[0.0], [0.1]]
    assert drop_path_rates(0.1, (1,)) == [[0.0]]


def test_blocks_get_their_rates():
    stack = BlockStack(DIM, HEADS, [0.0, 0.25, 0.5])
    assert [block.drop_path.drop_prob for block in stack.blocks] == [0.0, 0.25, 0.5]


def test_drop_path_is_off_in_eval_mode(tokens):
    torch.manual_seed(0)
    dropping, plain = Block(DIM, HEADS, drop_path=0.9).double(), Block(DIM, HEADS).double()
    plain.load_state_dict(dropping.state_dict())
    assert torch.equal(dropping.eval()(tokens), plain(tokens))


def test_drop_path_drops_whole_samples_in_train_mode(tokens):
    torch.manual_seed(0)
    block = Block(DIM, HEADS, drop_path=0.5).double()
    output = block(tokens[:1].expand(64, -1, -1))
    dropped = (output == tokens[0]).flatten(1)
    assert (dropped.all(1) | ~dropped.any(1)).all()
    # Both branches of a sample are dropped with probability 1/4: 16 of 64 are expected.
    assert 4 <= dropped.all(1).sum() <= 32


@pytest.mark.parametrize("other", ["attn.proj", "mlp.fc2"])
def test_a_branch_that_is_kept_is_divided_by_its_probability(tokens, other):
    torch.manual_seed(0)
    block = Block(DIM, HEADS, drop_path=0.75).double()
    for parameter in block.get_submodule(other).parameters():
        nn.init.zeros_(parameter)  # leaves one of the two branches
    batch = tokens[:1].expand(64, -1, -1)
    branch, sampled = block.eval()(batch) - batch, block.train()(batch) - batch
    kept = sampled.flatten(1).any(1)
    assert 6 <= kept.sum() <= 28  # 16 are expected
    torch.testing.assert_close(sampled, 4 * branch * kept[:, None, None])
