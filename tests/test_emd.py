"""Earth mover's distance: by hand, golden numbers, conservation of mass, and the kernels against the reference.

The float64 reference is the definition of right. In float32 about 1e-7 is left of a mass that should be used up, and
later rounds match this remainder: the cost then agrees to about 1e-5, the matching to about 1e-4.
"""

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import extensions.emd
from extensions.emd import KERNELS, earth_mover_distance, emd, emd_gradient, exact_earth_mover_distance, reference
from tests.emulation import BACKENDS, kernel_names, use_backend
from tests.golden import fixtures
from tests.golden_numbers import load

COST, MATCHING = 2e-5, 5e-4  # relative tolerances of float32
CASES = load("emd")["cases"]
SIZES = [(1, 1, 1), (2, 1, 5), (2, 5, 1), (1, 31, 33), (3, 32, 8), (1, 256, 64), (1, 257, 300), (2, 600, 40)]
ids = [f"{n}-{m}" for n, m in ((case["n"], case["m"]) for case in CASES)]


def pair(batch: int, n: int, m: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random points in the unit ball, denser towards its centre."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(batch, n + m, 3, generator=generator)
    points = points / points.norm(dim=-1, keepdim=True) * torch.rand(batch, n + m, 1, generator=generator)
    xyz1, xyz2 = points.to(dtype).split([n, m], dim=1)
    return xyz1.contiguous(), xyz2.contiguous()


def golden_pair(case: dict) -> tuple[Tensor, Tensor]:
    return fixtures.clouds(2, case["n"], seed=41), fixtures.clouds(2, case["m"], seed=43)


def on_a_line(*x: float) -> Tensor:
    """One cloud (1, n, 3) of points on the x axis."""
    return torch.tensor([[[value, 0.0, 0.0] for value in x]], dtype=torch.float64)


def matching(xyz1: Tensor, xyz2: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """The whole matching (B, n, m) in float64 on the CPU."""
    xyz1, xyz2, r, t = (tensor.double().cpu() for tensor in (xyz1, xyz2, r, t))
    squared = (xyz1.unsqueeze(2) - xyz2.unsqueeze(1)).square().sum(-1)
    rates = [-(4**7), -(4**6), -(4**5), -(4**4), -(4**3), -(4**2), -4, -1, -0.25, 0]
    return sum((rate * squared).exp() * r[:, j, :, None] * t[:, j, None] for j, rate in enumerate(rates))


def cost_and_gradients(xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cost (B,) and its sum's gradients, through the operator, in float64 on the CPU."""
    xyz1, xyz2 = xyz1.detach().clone().requires_grad_(), xyz2.detach().clone().requires_grad_()
    cost, _, _ = emd(xyz1, xyz2)
    return tuple(x.detach().double().cpu() for x in (cost, *torch.autograd.grad(cost.sum(), (xyz1, xyz2))))


def assert_near(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    """The norm of the difference is small against that of what is expected."""
    ours, expected = ours.double().cpu(), expected.double().cpu()
    assert ours.shape == expected.shape
    assert (ours - expected).norm() <= tolerance * expected.norm()


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the operators run kernels now: on the CPU by emulation, or on a GPU. Fresh memory is filled with NaN."""
    device = use_backend(request.param, extensions.emd, monkeypatch)
    torch.use_deterministic_algorithms(True)
    yield device
    torch.use_deterministic_algorithms(False)


# By hand and by golden numbers


def test_each_point_goes_to_its_partner():
    # 0 → 1 (1), 10 → 12 (4), 20 → 20 (0), the others being too far away; per point: 5 / 3
    distance = earth_mover_distance()(on_a_line(0, 10, 20), on_a_line(20, 1, 12))
    assert distance.item() == pytest.approx(5 / 3, rel=1e-6)


def test_a_point_of_the_smaller_cloud_takes_several():
    assert earth_mover_distance()(on_a_line(1, 3), on_a_line(0)).item() == pytest.approx((1 + 9) / 2, rel=1e-6)
    assert earth_mover_distance()(on_a_line(0), on_a_line(1, 3)).item() == pytest.approx(1 + 9, rel=1e-6)


def test_what_does_not_divide_stays():
    # n = 3 and m = 2: every point has mass 1, so one of X keeps most of its own
    _, r, t = emd(on_a_line(0, 10, 20), on_a_line(0, 10))
    rows = matching(on_a_line(0, 10, 20), on_a_line(0, 10), r, t).sum(2)
    torch.testing.assert_close(rows, torch.tensor([[1.0, 1, 0]], dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_mean_is_over_the_batch():
    x, y = pair(3, 20, 30, dtype=torch.float64)
    alone = [earth_mover_distance()(x[b : b + 1], y[b : b + 1]) for b in range(3)]
    torch.testing.assert_close(earth_mover_distance()(x, y), torch.stack(alone).mean())


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_golden_numbers(case):
    xyz1, xyz2 = (points.double() for points in golden_pair(case))
    cost, r, t = emd(xyz1, xyz2)
    assert cost.tolist() == pytest.approx(case["cost"], rel=1e-9)
    assert earth_mover_distance()(xyz1, xyz2).item() == pytest.approx(case["module"], rel=1e-9)
    norms = emd_gradient(xyz1, xyz2, r, t, torch.ones_like(cost)).flatten(1).norm(dim=1)
    assert norms.tolist() == pytest.approx(case["grad_cost_wrt_xyz1_norm"], rel=1e-9)
    for rows, extremes in zip(matching(xyz1, xyz2, r, t).sum(2), case["match_row_sum_min_max"], strict=True):
        assert [rows.min().item(), rows.max().item()] == pytest.approx(extremes, rel=1e-12)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_golden_numbers_in_float32(case):
    cost, grad, _ = cost_and_gradients(*golden_pair(case))
    assert cost.tolist() == pytest.approx(case["cost"], rel=COST)
    assert grad.flatten(1).norm(dim=1).tolist() == pytest.approx(case["grad_cost_wrt_xyz1_norm"], rel=MATCHING)


# Properties


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 12), m=st.integers(1, 12))
def test_no_mass_appears_and_the_cost_is_that_of_the_matching(seed, n, m):
    xyz1, xyz2 = pair(2, n, m, seed, torch.float64)
    cost, r, t = emd(xyz1, xyz2)
    match = matching(xyz1, xyz2, r, t)
    assert (match >= 0).all()
    assert (match.sum(2) <= max(1, m // n) * (1 + 1e-9)).all()
    assert (match.sum(1) <= max(1, n // m) * (1 + 1e-9)).all()
    squared = (xyz1.unsqueeze(2) - xyz2.unsqueeze(1)).square().sum(-1)
    torch.testing.assert_close(cost, (match * squared).sum((1, 2)))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 12), m=st.integers(1, 12))
def test_the_order_of_points_does_not_matter(seed, n, m):
    xyz1, xyz2 = pair(1, n, m, seed, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [points[:, torch.randperm(points.shape[1], generator=generator)] for points in (xyz1, xyz2)]
    torch.testing.assert_close(emd(*shuffled)[0], emd(xyz1, xyz2)[0])


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_transpose_takes_the_coordinates_as_rows(seed):
    xyz1, xyz2 = pair(2, 5, 3, seed)  # (B, 3, 3) is told apart by the argument alone
    expected = earth_mover_distance()(xyz1, xyz2)
    assert earth_mover_distance()(xyz1.transpose(1, 2), xyz2.transpose(1, 2), transpose=True) == expected
    assert earth_mover_distance()(xyz1, xyz2, False) == expected


def test_coincident_clouds_cost_nothing():
    xyz = torch.ones(1, 7, 3)
    cost, *gradients = cost_and_gradients(xyz, xyz)
    assert cost.tolist() == [0]
    assert not any(gradient.any() for gradient in gradients)


# The exact distance


def test_exact_distance_by_hand():
    # 0 → 1, 1 → 2 costs 1 + 1; 0 → 2, 1 → 1 would cost 4 + 0
    assert exact_earth_mover_distance(on_a_line(0, 1), on_a_line(2, 1)).tolist() == [1]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6))
def test_exact_distance_is_the_least_over_all_assignments(seed, n):
    xyz1, xyz2 = pair(2, n, n, seed)
    for x, y, exact in zip(xyz1.double(), xyz2.double(), exact_earth_mover_distance(xyz1, xyz2), strict=True):
        costs = [(x - y[list(order)]).square().sum().item() / n for order in itertools.permutations(range(n))]
        assert exact.item() == pytest.approx(min(costs), rel=1e-12)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40))
def test_the_approximation_is_no_less_than_the_exact_distance(seed, n):
    xyz1, xyz2 = pair(2, n, n, seed, torch.float64)
    assert (emd(xyz1, xyz2)[0] / n >= exact_earth_mover_distance(xyz1, xyz2) * (1 - 1e-6)).all()


@pytest.mark.parametrize(
    ("n", "exponent", "ratio"),  # radii are uniform numbers to this power: in the ball, on the sphere
    [(64, 1 / 3, 2.0), (64, 0, 2.1), (256, 1 / 3, 2.6), (256, 0, 3.3)],
)
def test_the_approximation_is_as_far_from_the_optimum_as_its_docstring_says(n, exponent, ratio):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 20, n, 3, generator=generator, dtype=torch.float64)
    points = points / points.norm(dim=-1, keepdim=True) * torch.rand(2, 20, n, 1, generator=generator) ** exponent
    ratios = emd(*points)[0] / n / exact_earth_mover_distance(*points)
    assert ratios.mean().item() == pytest.approx(ratio, rel=0.06)


def test_the_approximation_is_near_the_optimum_between_a_cloud_and_itself_slightly_moved():
    xyz, noise = pair(4, 64, 64, dtype=torch.float64)
    moved = xyz + 0.01 * noise
    torch.testing.assert_close(emd(xyz, moved)[0] / 64, exact_earth_mover_distance(xyz, moved), rtol=0.05, atol=0)


def test_exact_distance_keeps_the_device_and_takes_what_has_gradients():
    xyz1, xyz2 = pair(2, 4, 4)
    distance = exact_earth_mover_distance(xyz1.half().requires_grad_(), xyz2)
    assert (distance.dtype, distance.device, distance.requires_grad) == (torch.float64, xyz1.device, False)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(1, 4, 3), torch.zeros(1, 5, 3), "clouds of one size, got 4 and 5 points"),
        (torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), r"xyz1 must be \(B, n, 3\)"),
        (torch.zeros(1, 4, 3), torch.full((1, 4, 3), torch.nan), "finite coordinates, xyz2 has others"),
        (torch.full((1, 4, 3), torch.inf), torch.zeros(1, 4, 3), "finite coordinates, xyz1 has others"),
    ],
)
def test_exact_distance_refuses(x, y, message):
    with pytest.raises(ValueError, match=message):
        exact_earth_mover_distance(x, y)


# Gradients and operators


def test_gradients_hold_the_matching_constant():
    xyz1, xyz2 = pair(2, 6, 4, dtype=torch.float64)
    with torch.no_grad():
        _, r, t = emd(xyz1, xyz2)
        match = matching(xyz1, xyz2, r, t)
    xyz1.requires_grad_(), xyz2.requires_grad_()
    cost = (match * (xyz1.unsqueeze(2) - xyz2.unsqueeze(1)).square().sum(-1)).sum((1, 2))
    expected = torch.autograd.grad(cost.mean() / 6, (xyz1, xyz2))
    torch.testing.assert_close(torch.autograd.grad(earth_mover_distance()(xyz1, xyz2), (xyz1, xyz2)), expected)


def test_gradient_against_differences_of_the_cost_of_a_fixed_matching():
    xyz1, xyz2 = pair(2, 3, 4, dtype=torch.float64)
    _, r, t = emd(xyz1, xyz2)
    match = matching(xyz1, xyz2, r, t)

    class FixedMatching(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return (match * (x.unsqueeze(2) - xyz2.unsqueeze(1)).square().sum(-1)).sum((1, 2))

        @staticmethod
        def backward(ctx, grad_cost):
            return emd_gradient(xyz1, xyz2, r, t, grad_cost)

    assert torch.autograd.gradcheck(FixedMatching.apply, (xyz1.clone().requires_grad_(),))


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_cloud_alone_gets_its_gradient(wanted):
    clouds = pair(1, 5, 8, dtype=torch.float64)
    both = cost_and_gradients(*clouds)[1:]
    clouds[wanted].requires_grad_()
    emd(*clouds)[0].sum().backward()
    assert clouds[1 - wanted].grad is None
    assert torch.equal(clouds[wanted].grad, both[wanted])


def test_derivatives_beyond_the_backward_pass_hold_the_matching_constant(device):
    xyz1, xyz2 = (points.to(device) for points in pair(2, 6, 40))
    with torch.no_grad():
        _, r, t = emd(xyz1, xyz2)
    match = matching(xyz1, xyz2, r, t)

    def written_out(x: Tensor, y: Tensor) -> Tensor:
        return (match * (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1)).sum((1, 2)).mean() / 6

    def derivatives(distance, x: Tensor, y: Tensor) -> list[Tensor]:
        leaves = (x.clone().requires_grad_(), y.clone().requires_grad_())
        gradients = torch.autograd.grad(distance(*leaves), leaves, create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), leaves)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, x.cos())
            tangent = torch.autograd.forward_ad.unpack_dual(distance(dual, y)).tangent
        transformed = torch.func.grad(distance, (0, 1))(x, y)
        hessian = torch.func.hessian(distance)(x, y)
        return [*gradients, *second, tangent, *transformed, hessian]

    expected = derivatives(written_out, xyz1.double().cpu(), xyz2.double().cpu())
    for value, correct in zip(derivatives(earth_mover_distance(), xyz1, xyz2), expected, strict=True):
        assert_near(value.detach(), correct.detach(), MATCHING)


def test_operators_keep_their_contracts():
    xyz1, xyz2 = pair(2, 5, 3)
    _, r, t = emd(xyz1, xyz2)
    torch.library.opcheck(emd_gradient, (xyz1, xyz2, r, t, torch.ones(2)))
    torch.library.opcheck(extensions.emd._emd, (xyz1, xyz2))
    torch.library.opcheck(extensions.emd._emd, (xyz1.requires_grad_(), xyz2.requires_grad_()))


def test_under_compile():
    xyz1, xyz2 = pair(1, 6, 9)
    compiled = torch.compile(earth_mover_distance(), backend="aot_eager", fullgraph=True)
    results = []
    for module in (compiled, earth_mover_distance()):
        x = xyz1.clone().requires_grad_()
        distance = module(x, xyz2)
        distance.backward()
        results.append((distance.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("max_pairs", [1, 100, 1000])
def test_chunks_do_not_change_the_result(monkeypatch, max_pairs):
    clouds = pair(2, 21, 17, dtype=torch.float64)
    expected = cost_and_gradients(*clouds)
    monkeypatch.setattr(reference, "MAX_PAIRS", max_pairs)
    torch.testing.assert_close(cost_and_gradients(*clouds), expected)


# Kernels


@pytest.mark.parametrize(("batch", "n", "m"), SIZES)
def test_kernels_agree_with_the_reference(device, batch, n, m):
    xyz1, xyz2 = pair(batch, n, m)
    cost, r, t = emd(xyz1.to(device), xyz2.to(device))
    expected, expected_r, expected_t = reference.transport(xyz1.double(), xyz2.double())
    assert_near(cost, expected, COST)
    assert_near(r[:, 0], expected_r[:, 0], 1e-6)  # nothing is used up yet
    assert_near(t[:, 0], expected_t[:, 0], 1e-6)
    match = matching(xyz1, xyz2, expected_r, expected_t)
    assert_near(matching(xyz1, xyz2, r, t), match, MATCHING)


@pytest.mark.parametrize(("batch", "n", "m"), SIZES)
def test_gradient_kernel_agrees_with_the_reference(device, batch, n, m):
    xyz1, xyz2 = pair(batch, n, m)
    _, r, t = reference.transport(xyz1, xyz2)
    grad_cost = torch.linspace(-1, 2, batch)
    grad = emd_gradient(*(tensor.to(device) for tensor in (xyz1, xyz2, r, t, grad_cost)))
    double = [tensor.double() for tensor in (xyz1, xyz2, r, t, grad_cost)]
    assert_near(grad, reference.gradient(*double), 5e-6)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_golden_numbers_of_the_kernels(device, case):
    xyz1, xyz2 = golden_pair(case)
    cost, grad1, grad2 = cost_and_gradients(xyz1.to(device), xyz2.to(device))
    assert cost.tolist() == pytest.approx(case["cost"], rel=COST)
    _, expected1, expected2 = cost_and_gradients(xyz1.double(), xyz2.double())
    assert_near(grad1, expected1, MATCHING)
    assert_near(grad2, expected2, MATCHING)


def test_kernels_on_duplicates_and_points_at_the_origin(device):
    xyz1 = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [0.5, 0, 0], [0.5, 0, 0]]])
    xyz2 = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [0, 0, 0], [0.5, 0, 0.25]]])
    ours = cost_and_gradients(xyz1.to(device), xyz2.to(device))
    for value, expected in zip(ours, cost_and_gradients(xyz1.double(), xyz2.double()), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_clouds_far_apart_are_matched_in_the_last_round(device):
    # 30² · ¼ is beyond what float32's exponential can hold, so that only λ = 0 sees the other cloud: half to each point
    xyz1, xyz2 = on_a_line(0, 1).float(), on_a_line(30, 31).float()
    cost, grad1, grad2 = cost_and_gradients(xyz1.to(device), xyz2.to(device))
    assert cost.tolist() == pytest.approx([(30**2 + 31**2 + 29**2 + 30**2) / 2])
    assert grad1[0, :, 0].tolist() == pytest.approx([-61, -59])
    assert grad2[0, :, 0].tolist() == pytest.approx([59, 61])


def test_kernels_give_the_same_bits_again(device):
    clouds = [points.to(device) for points in pair(2, 70, 300)]
    first, second = cost_and_gradients(*clouds), cost_and_gradients(*clouds)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_kernels_pass_nan_on_in_its_own_cloud(device):
    xyz1, xyz2 = pair(2, 40, 50)
    xyz1[1, 7, 1] = torch.nan
    cost, grad1, _ = cost_and_gradients(xyz1.to(device), xyz2.to(device))
    assert cost.isnan().tolist() == [False, True]
    assert grad1.isnan().any(-1).any(-1).tolist() == [False, True]


def test_kernels_take_what_is_not_contiguous(device):
    xyz1, xyz2 = (points.to(device) for points in pair(2, 40, 30))
    expected = cost_and_gradients(xyz1, xyz2)
    strided = [points.transpose(1, 2).contiguous().transpose(1, 2) for points in (xyz1, xyz2)]
    assert not strided[0].is_contiguous()
    for value, same in zip(cost_and_gradients(*strided), expected, strict=True):
        assert torch.equal(value, same)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(device, dtype):
    xyz1, xyz2 = (points.to(device, dtype) for points in pair(1, 20, 30))
    expected = earth_mover_distance()(xyz1.float(), xyz2.float())
    with torch.autocast(device, torch.bfloat16):
        distance = earth_mover_distance()(xyz1.requires_grad_(), xyz2)
    assert distance.dtype == torch.float32
    assert torch.equal(distance, expected)
    distance.backward()
    assert xyz1.grad.dtype == dtype
    assert xyz1.grad.isfinite().all()


def test_float64_is_not_rounded_to_what_kernels_take(device):
    xyz1, xyz2 = pair(1, 20, 30, dtype=torch.float64)
    distance = earth_mover_distance()(xyz1.to(device), xyz2.to(device))
    assert distance.item() == pytest.approx(reference.transport(xyz1, xyz2)[0].item() / 20, rel=1e-12)


def test_an_empty_batch_costs_nothing(device):
    clouds = [torch.empty(0, n, 3, device=device) for n in (4, 5)]
    cost, grad1, grad2 = cost_and_gradients(*clouds)
    assert [tuple(x.shape) for x in (cost, grad1, grad2)] == [(0,), (0, 4, 3), (0, 5, 3)]


def test_every_kernel_runs(device):
    if device == "cuda":
        pytest.skip("the emulation counts the kernels, a GPU does not")
    cost_and_gradients(*pair(1, 3, 2))
    assert extensions.emd.KERNELS.launched == set(kernel_names(KERNELS.source))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU for a second stream")
def test_on_a_gpu_kernels_run_on_the_current_stream():
    clouds = [points.cuda() for points in pair(2, 500, 700)]
    expected = cost_and_gradients(*clouds)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        ours = cost_and_gradients(*clouds)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


# Errors


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((1, 4, 2), (1, 4, 3), r"xyz1 must be \(B, n, 3\).*\(1, 4, 2\)"),
        ((1, 4, 3), (4, 3), r"xyz2 must be .*\(4, 3\)"),
        ((1, 0, 3), (1, 4, 3), r"at least one point, got \(1, 0, 3\)"),
        ((0, 4, 3), (0, 4, 3), r"no mean over an empty batch: xyz1 is \(0, 4, 3\)"),
        ((2, 4, 3), (1, 4, 3), "same batch size, got 2 and 1"),
    ],
)
def test_shapes_are_checked(x, y, message):
    with pytest.raises(ValueError, match=message):
        earth_mover_distance()(torch.zeros(x), torch.zeros(y))


def test_devices_are_checked():
    with pytest.raises(ValueError, match="on one device, got cpu and meta"):
        earth_mover_distance()(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, device="meta"))


def test_transposed_shapes_are_checked():
    with pytest.raises(ValueError, match=r"xyz2 must be \(B, 3, n\) where transpose is True, got \(1, 4, 3\)"):
        earth_mover_distance()(torch.zeros(1, 3, 4), torch.zeros(1, 4, 3), transpose=True)


@pytest.mark.parametrize(("clouds", "options"), [(2, {"transpose": False}), (2, {}), (0, {"transpose": False})])
def test_the_module_is_not_the_function_of_its_name(clouds, options):
    with pytest.raises(TypeError, match=r"earth_mover_distance\(\)\(xyz1, xyz2, transpose=False\)"):
        earth_mover_distance(*[torch.zeros(1, 4, 3)] * clouds, **options)


def test_clouds_of_two_types_are_compared_in_the_more_precise_one():
    x, y = pair(2, 9, 7)
    expected = earth_mover_distance()(x.double(), y.double())
    assert torch.equal(earth_mover_distance()(x, y.double()), expected)
    assert torch.equal(earth_mover_distance()(x.double(), y), expected)
