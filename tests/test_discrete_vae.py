"""Point-BERT's discrete autoencoder: its parts against plain formulations, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from extensions.chamfer_dist import ChamferDistanceL1
from models import build_model
from models.dgcnn import EdgeConv
from models.discrete_vae import FoldingDecoder, divergence, gumbel, sample
from tests.golden.fixtures import clouds
from tools.evaluation.profiler import profile

SMALL = {
    "NAME": "DiscreteVAE",
    "num_group": 8,
    "group_size": 6,
    "num_tokens": 16,
    "encoder_dims": 12,
    "tokens_dims": 10,
    "decoder_dims": 8,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(SMALL).eval()


@pytest.fixture
def points():
    return clouds(2, 64, seed=1)


@pytest.mark.parametrize("equal", [False, True])
def test_an_edge_layer_is_the_literal_one(equal):
    """Also where tokens are equal, and the gradient of the maximum goes to the first of them."""
    torch.manual_seed(0)
    layer = EdgeConv(3, 8).double()
    sources = (torch.zeros if equal else torch.randn)(2, 5, 3).double().requires_grad_()
    queries, index = torch.randn(2, 7, 3).double(), torch.randint(5, (2, 7, 4))
    weight = torch.randn(2, 7, 8).double()

    def literal():
        rows = [[queries[b, q] for q in range(7) for _ in range(4)] for b in range(2)]
        of_query = torch.stack([torch.stack(row) for row in rows])
        of_source = torch.stack([sources[b, index[b].flatten()] for b in range(2)])
        edges = torch.cat([of_source - of_query, of_query], dim=-1).view(2, 7, 4, 6)
        return layer[2](layer[1](layer[0](edges.permute(0, 3, 1, 2)))).max(-1).values.transpose(1, 2)

    ours, expected = layer(sources, queries, index), literal()
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad((found * weight).sum(), sources)[0] for found in (ours, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0.01


def test_fine_points_are_folded_around_the_coarse_ones_in_the_order_of_the_corners():
    decoder = FoldingDecoder(4)
    with torch.no_grad():
        decoder.final_conv[0].weight.zero_()
        decoder.final_conv[0].bias.zero_()
        decoder.final_conv[0].weight[0, 4, 0], decoder.final_conv[0].weight[1, 5, 0] = 1.0, 1.0  # the corner alone
        for layer in (decoder.final_conv[3], decoder.final_conv[6]):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0, 0], layer.weight[1, 1, 0] = 1.0, 1.0
        coarse, fine = decoder.eval()(torch.randn(1, 1, 4))
    offsets = (fine - coarse.repeat_interleave(4, dim=2))[0, 0].view(8, 4, 3) * (1 + 1e-5)  # of two BatchNorms
    positive = 0.05 * torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])  # what ReLU leaves of the corners
    torch.testing.assert_close(offsets, positive.expand(8, 4, 3), rtol=0, atol=1e-6)


def test_gumbel_noise_makes_the_largest_a_draw_from_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0])
    noise = gumbel(logits.expand(60_000, 3), torch.Generator().manual_seed(0))
    drawn = (logits + noise).argmax(-1).bincount(minlength=3) / 60_000
    torch.testing.assert_close(drawn, F.softmax(logits, dim=0), rtol=0, atol=0.01)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert torch.equal(noise, gumbel(logits.expand(60_000, 3), torch.Generator().manual_seed(0)))


def test_a_hard_sample_is_one_word_with_the_gradient_of_the_soft_one():
    logits = torch.tensor([[[0.5, 2.0, 1.0]]], requires_grad=True)
    other = logits.detach().clone().requires_grad_()
    weight = torch.tensor([3.0, 5.0, 7.0])
    hard = sample(logits, 0.5, hard=True)
    assert hard.tolist() == [[[0.0, 1.0, 0.0]]]
    (hard * weight).sum().backward()
    (F.softmax(other / 0.5, dim=-1) * weight).sum().backward()
    torch.testing.assert_close(logits.grad, other.grad)


def test_the_divergence_is_that_of_the_uniform_from_the_mean():
    logits = torch.randn(3, 5, 4, dtype=torch.float64)
    used = F.softmax(logits, dim=-1).mean(1)
    expected = (0.25 * (math.log(0.25) - used.log())).sum(1).mean()
    torch.testing.assert_close(divergence(logits), expected)
    assert divergence(torch.zeros(2, 3, 4)).item() == pytest.approx(0, abs=1e-6)
    assert divergence(torch.tensor([[[0.0, -1e4]]])).isfinite()  # a word that no group could take


def test_the_loss_adds_both_distances_and_the_weighted_divergence(model, points):
    noise = torch.zeros(2, 8, 16)
    with torch.no_grad():
        found = model(points, 0.7, noise=noise, kl_weight=0.3)
        assert model(points, 0.7, noise=noise, kl_weight=0.0)["loss"] == found["recon"]
    true = model.group(points).neighborhoods.flatten(0, 1)
    recon = sum(ChamferDistanceL1()(found[name].flatten(0, 1), true) for name in ("coarse", "fine"))
    torch.testing.assert_close(found["recon"], recon)
    torch.testing.assert_close(found["loss"], recon + 0.3 * found["kl"])
    assert found["coarse"].shape == (2, 8, 8, 3)
    assert found["fine"].shape == (2, 8, 32, 3)


def test_noise_is_drawn_where_none_is_given(model, points):
    with torch.no_grad():
        torch.manual_seed(3)
        first, second = model(points)["recon"], model(points)["recon"]
        torch.manual_seed(3)
        again = model(points)["recon"]
        given = model(points, noise=gumbel(torch.empty(2, 8, 16), torch.Generator().manual_seed(5)))["recon"]
        drawn = model(points, generator=torch.Generator().manual_seed(5))["recon"]
    assert first == again != second
    assert given == drawn


def test_words_and_reconstructions_are_those_of_the_best_word(model, points):
    words = model.tokenize(points)
    group = model.group(points)
    with torch.no_grad():
        assert torch.equal(words, model.logits(group).argmax(-1))
        _, fine = model.decode(F.one_hot(words, 16).float(), group.centers)
    shown = model.reconstruct(points)
    torch.testing.assert_close(shown["predictions"], fine + group.centers.unsqueeze(2))
    torch.testing.assert_close(shown["neighborhoods"], group.points)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_group": 3}, "num_group must be at least 4"),
        ({"num_tokens": 18}, "num_tokens must be a multiple of 4, the groups of a norm, got 18"),
        ({"decoder_dims": 0}, "decoder_dims must be a multiple of 4"),
        ({"tokens_dims": 0}, "encoder_dims and tokens_dims must be at least 1, got 12 and 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_model(SMALL | changes)


def test_wrong_temperatures_and_noise_are_refused(model, points):
    with pytest.raises(ValueError, match="temperature must be more than 0, got 0"):
        model(points, temperature=0)
    with pytest.raises(ValueError, match=r"noise must be \(2, 8, 16\), got \(2, 8, 3\)"):
        model(points, noise=torch.zeros(2, 8, 3))


def test_multiply_adds_are_the_published_4_g_and_the_codebook_beside_them():
    stages = {stage.name: stage for stage in profile(build_model({"NAME": "DiscreteVAE"}), clouds(1, 1024, seed=0))}
    codebook = stages.pop("codebook")
    assert sum(stage.macs for stage in stages.values()) / 1e9 == pytest.approx(4.00, abs=0.005)
    assert codebook.macs == 64 * 8192 * 256
    assert codebook.parameters == 8192 * 256
