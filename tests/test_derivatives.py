"""Every derivative of every differentiable operation, against that of its definition written out in plain PyTorch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from extensions.chamfer_dist import ChamferDistanceL1, ChamferDistanceL2, ChamferDistanceL2_split, chamfer
from extensions.pointnet2_ops.pointnet2_utils import (
    GroupAll,
    QueryAndGroup,
    gather_operation,
    grouping_operation,
    three_interpolate,
)

Function = Callable[[Tensor], Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y, FEATURES, WEIGHT = random(2, 4, 3), random(2, 5, 3, seed=1), random(2, 3, 5), random(2, 4, 3, seed=2)
IDX = torch.randint(5, (2, 4, 3), generator=torch.Generator().manual_seed(3))  # some twice


def squared(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    distance = (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1)
    return distance.amin(2), distance.amin(1)


def picked(features: Tensor, idx: Tensor) -> Tensor:
    return torch.stack([features[b][:, idx[b]] for b in range(len(idx))])


OPERATIONS: dict[str, tuple[Function, Function, Tensor]] = {  # ours, written out, where
    "chamfer": (
        lambda x: torch.cat(chamfer(x, Y)[:2], 1),
        lambda x: torch.cat(squared(x, Y), 1),
        X,
    ),
    "L2 in the second": (
        lambda y: ChamferDistanceL2()(X, y),
        lambda y: sum(distance.mean() for distance in squared(X, y)),
        Y,
    ),
    "split": (
        lambda x: torch.stack(ChamferDistanceL2_split()(x, Y)),
        lambda x: torch.stack([distance.mean() for distance in squared(x, Y)]),
        X,
    ),
    "L1": (
        lambda x: ChamferDistanceL1()(x, Y),
        lambda x: sum(distance.sqrt().mean() for distance in squared(x, Y)) / 2,
        X,
    ),
    "gather": (
        lambda f: gather_operation(f, IDX[..., 0]).cos(),
        lambda f: picked(f, IDX[..., 0]).cos(),
        FEATURES,
    ),
    "grouping": (lambda f: grouping_operation(f, IDX).cos(), lambda f: picked(f, IDX).cos(), FEATURES),
    "interpolation of features": (
        lambda f: three_interpolate(f, IDX, WEIGHT).cos(),
        lambda f: (picked(f, IDX) * WEIGHT.unsqueeze(1)).sum(-1).cos(),
        FEATURES,
    ),
    "interpolation by weights": (
        lambda w: three_interpolate(FEATURES, IDX, w).cos(),
        lambda w: (picked(FEATURES, IDX) * w.unsqueeze(1)).sum(-1).cos(),
        WEIGHT,
    ),
    "query and group": (
        lambda x: QueryAndGroup(100, 2)(x, x[:, 1:3], x.transpose(1, 2).cos()),
        lambda x: torch.cat(
            [
                x[:, None, :2].expand(-1, 2, -1, -1).permute(0, 3, 1, 2) - x[:, 1:3].transpose(1, 2).unsqueeze(-1),
                x[:, None, :2].expand(-1, 2, -1, -1).permute(0, 3, 1, 2).cos(),
            ],
            1,
        ),
        X,
    ),
    "group all": (
        lambda x: GroupAll()(x, None, x.transpose(1, 2).cos()),
        lambda x: torch.cat([x, x.cos()], 2).transpose(1, 2).unsqueeze(2),
        X,
    ),
}


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest) -> tuple[Function, Function, Tensor]:
    return OPERATIONS[request.param]


def tangent(function: Function, x: Tensor) -> Tensor:
    """Derivative in the direction of cos x, by dual numbers."""
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, x.detach().cos()))).tangent


def both_backward_passes(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    return gradient.detach(), second


def test_forward_mode(operation):
    ours, written_out, x = operation
    torch.testing.assert_close(tangent(ours, x), tangent(written_out, x))
    torch.testing.assert_close(tangent(ours, x.clone().requires_grad_()).detach(), tangent(written_out, x))


def test_a_second_backward_pass(operation):
    ours, written_out, x = operation
    torch.testing.assert_close(both_backward_passes(ours, x), both_backward_passes(written_out, x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.jacrev, torch.func.hessian])
def test_transforms(operation, transform):
    ours, written_out, x = operation
    torch.testing.assert_close(transform(ours)(x), transform(written_out)(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_gradient_of_each_of_many(operation):
    ours, _, x = operation
    each = torch.stack([x, x.cos()])
    gradient = torch.func.grad(lambda x: ours(x).square().sum())
    torch.testing.assert_close(torch.func.vmap(gradient)(each), torch.stack([gradient(x) for x in each]))


def test_transforms_within_a_compiled_function(operation):
    ours, written_out, x = operation
    for transform in (torch.func.jacfwd, torch.func.jacrev):
        compiled = torch.compile(transform(ours), backend="eager")
        torch.testing.assert_close(compiled(x), transform(written_out)(x))


def test_second_derivatives_by_differences_in_all_inputs():
    inputs = [tensor.clone().requires_grad_() for tensor in (FEATURES, WEIGHT)]
    assert torch.autograd.gradgradcheck(lambda f, w: three_interpolate(f, IDX, w), inputs)
    clouds = [cloud.clone().requires_grad_() for cloud in (X, Y)]
    assert torch.autograd.gradgradcheck(lambda x, y: chamfer(x, y)[:2], clouds)
