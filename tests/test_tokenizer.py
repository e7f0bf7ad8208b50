"""Grouping level by level, and the token embedding against its literal formulation."""

import pytest
import torch
from torch import Tensor, nn

from models.tokenizer import ColumnConv, PointwiseConv, TokenEmbed, group_levels, take

NUM_GROUPS, GROUP_SIZES = (16, 8, 4), (5, 4, 3)


@pytest.fixture
def points() -> Tensor:
    return torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))


class LiteralTokenEmbed(nn.Module):
    """The mini-PointNet as the paper draws it: convolutions over (B·G, C, k), the concatenation made."""

    def __init__(self, in_dim: int, hidden_dims: tuple[int, int], wide: int, dim: int):
        super().__init__()
        first, second = hidden_dims
        self.first_conv = nn.Sequential(
            nn.Conv1d(in_dim, first, 1), nn.BatchNorm1d(first), nn.ReLU(), nn.Conv1d(first, second, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(2 * second, wide, 1), nn.BatchNorm1d(wide), nn.ReLU(), nn.Conv1d(wide, dim, 1)
        )

    def forward(self, members: Tensor) -> Tensor:
        batch, groups, size, _ = members.shape
        x = self.first_conv(members.flatten(0, 1).transpose(1, 2))  # (B·G, second, k)
        pooled = x.max(2, keepdim=True).values.expand(-1, -1, size)
        x = self.second_conv(torch.cat([pooled, x], dim=1))  # (B·G, dim, k)
        return x.max(2).values.view(batch, groups, -1)


def randomized(module: nn.Module) -> nn.Module:
    """Every parameter and running statistic random, so that none is at a neutral value."""
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            random = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(random - 0.5 if tensor.dim() > 1 else random + 0.1)  # a variance must be positive
    return module


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    ("in_dim", "hidden_dims", "wide", "dim"),
    [(3, (128, 256), 512, 96), (6, (6, 6), 10, 10)],
    ids=["level 0", "merging"],
)
def test_token_embed_equals_the_literal_formulation(mode, in_dim, hidden_dims, wide, dim):
    ours = randomized(TokenEmbed(in_dim, (*hidden_dims, wide), dim).double()).train(mode == "train")
    literal = LiteralTokenEmbed(in_dim, hidden_dims, wide, dim).double().train(mode == "train")
    literal.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(2)
    members = torch.randn(2, 3, 4, in_dim, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 3, dim, generator=generator, dtype=torch.float64)
    inputs = [members.clone().requires_grad_(), members.clone().requires_grad_()]
    tokens = [module(x) for module, x in zip((ours, literal), inputs, strict=True)]
    for output in tokens:
        (output * weights).sum().backward()

    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(tokens[0], tokens[1], **close)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, **close)
    for name, parameter in literal.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, **close)
    for name, buffer in literal.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, **close)


def test_column_conv_is_a_convolution():
    conv = ColumnConv(4, 6)
    columns = torch.randn(1, 4, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(conv(columns), nn.functional.conv1d(columns, conv.weight, conv.bias))


def test_pointwise_conv_is_a_convolution_over_the_last_dimension():
    conv = PointwiseConv(4, 6)
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    as_convolution = nn.functional.conv1d(x.flatten(0, 1).transpose(1, 2), conv.weight, conv.bias)
    torch.testing.assert_close(conv(x).flatten(0, 1), as_convolution.transpose(1, 2))


def test_groups_have_a_row_per_centre_and_a_column_per_member(points):
    for group, groups, size in zip(group_levels(points, NUM_GROUPS, GROUP_SIZES), NUM_GROUPS, GROUP_SIZES, strict=True):
        assert group.centers.shape == (2, groups, 3)
        assert group.index.shape == (2, groups, size)
        assert group.points.shape == group.neighborhoods.shape == (2, groups, size, 3)


def test_level_0_groups_the_points_and_level_i_the_centres_below(points):
    levels = group_levels(points, NUM_GROUPS, GROUP_SIZES)
    for group, source in zip(levels, [points, levels[0].centers, levels[1].centers], strict=True):
        assert torch.equal(group.points, take(source, group.index))


def test_neighborhoods_are_the_points_relative_to_their_centre(points):
    for group in group_levels(points, NUM_GROUPS, GROUP_SIZES):
        assert torch.equal(group.neighborhoods, group.points - group.centers[:, :, None])


def test_the_first_member_is_the_centre_itself(points):
    for group in group_levels(points, NUM_GROUPS, GROUP_SIZES):
        assert torch.equal(group.points[:, :, 0], group.centers)


def test_members_are_the_nearest_in_order(points):
    group = group_levels(points, NUM_GROUPS, GROUP_SIZES)[0]
    distance = torch.cdist(group.centers.double(), points.double()).sort(-1).values[..., : GROUP_SIZES[0]]
    torch.testing.assert_close(group.neighborhoods.double().norm(dim=-1), distance, rtol=1e-5, atol=1e-6)


def test_each_cloud_of_a_batch_is_grouped_alone(points):
    together = group_levels(points, NUM_GROUPS, GROUP_SIZES)
    alone = group_levels(points[1:], NUM_GROUPS, GROUP_SIZES)
    for both, single in zip(together, alone, strict=True):
        assert torch.equal(both.index[1:], single.index)


def test_fewer_points_than_a_group_needs_are_refused(points):
    with pytest.raises(ValueError, match="5 neighbours asked of clouds with 4 points"):
        group_levels(points[:, :4], NUM_GROUPS, GROUP_SIZES)


def test_take_gathers_rows_of_each_sample():
    x = torch.arange(12.0).view(2, 3, 2)
    index = torch.tensor([[[0, 2], [1, 1]], [[2, 0], [0, 0]]])
    expected = torch.stack([x[0, index[0]], x[1, index[1]]])
    assert torch.equal(take(x, index), expected)
