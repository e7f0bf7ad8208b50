"""Point-BERT: what a step does beside the golden figures, its switches, its tokenizer, what it refuses."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import build_model
from models.corruption import Corruption, Draws
from models.discrete_vae import DiscreteVAE
from models.masking import draw_block_masks, draw_masks_of_one_ratio
from models.point_bert import Point_BERT
from tests.golden.fixtures import clouds
from tests.test_discrete_vae import SMALL
from utils.checkpoint import load_weights

DVAE = {key: value for key, value in SMALL.items() if key != "NAME"}
TRANSFORMER = {"trans_dim": 24, "depth": 2, "num_heads": 3, "cls_dim": 16, "drop_path_rate": 0.0}
MODEL = {
    "NAME": "Point_BERT",
    "K": 12,
    "m": 0.9,
    "transformer_config": TRANSFORMER,
    "dvae_config": {**DVAE, "ckpt": "untrained"},
}

pytestmark = pytest.mark.filterwarnings("ignore:model.dvae_config.ckpt is untrained")


def small(**transformer) -> Point_BERT:
    torch.manual_seed(0)
    return build_model({**MODEL, "transformer_config": {**TRANSFORMER, **transformer}})


@pytest.fixture
def points() -> Tensor:
    return clouds(4, 64, seed=1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- masks, mixtures, swaps ----


def test_every_cloud_is_masked_around_one_token_in_a_share_of_its_own():
    centers = torch.rand(400, 20, 3, generator=generator())
    masks = draw_block_masks(centers, (0.25, 0.45), generator())
    counts = masks.sum(1)
    assert sorted(set(counts.tolist())) == [5, 6, 7, 8]  # int(20 · ratio), 9 alone at .45
    assert counts.float().mean() == pytest.approx(6.5, abs=0.25)
    distance = torch.cdist(centers, centers)
    within = distance.masked_fill(~masks.unsqueeze(1), 0).amax(2)  # from each token to the farthest that is masked
    outside = distance.masked_fill(masks.unsqueeze(1), torch.inf).amin(2)
    around = (within < outside) & masks  # tokens around which the mask can have been drawn
    assert around.any(1).all()
    assert around.float().mean(0).amin() > 0  # each can be


def test_masks_of_one_ratio_have_the_same_probability_for_all_tokens_of_a_batch():
    shares = [draw_masks_of_one_ratio((50, 64), (0.25, 0.45), torch.device("cpu"), generator(i)) for i in range(40)]
    ratios = torch.stack([mask.float().mean() for mask in shares])
    assert ratios.min() > 0.22
    assert ratios.max() < 0.48
    assert ratios.std() > 0.03
    assert ratios.mean() == pytest.approx(0.35, abs=0.04)
    assert (shares[0].float().mean(1) - ratios[0]).abs().max() > 0.05  # not a count


def test_draws_are_of_their_own_passes_and_places(points):
    model = small()
    centers = model.group(points).centers
    draws = model.draw(centers, generator=generator())
    masks = [draws.query.masked, draws.mixture.masked, draws.key.masked]
    assert not torch.equal(masks[0], masks[2])
    mixed = draws.mix(centers)
    distance = torch.cdist(mixed, mixed)
    for row, mask in zip(distance, masks[1], strict=True):  # the mask of the mixture is a block among its own centres
        assert any(row[seed][mask].max() <= row[seed][~mask].min() for seed in torch.nonzero(mask).flatten())
    assert [draw.swapped for draw in (draws.query, draws.mixture, draws.key)] == [None] * 3
    again = model.draw(centers, generator=generator())
    assert torch.equal(draws.own, again.own)
    assert torch.equal(draws.key.masked, again.key.masked)


def test_a_mixture_keeps_groups_with_the_probability_of_its_cloud():
    centers = torch.rand(300, 64, 3, generator=generator())
    draws = small().draw(centers, generator=generator())
    kept = draws.own.float().mean(1)
    assert (kept - draws.ratio).abs().max() < 0.25
    assert (kept - draws.ratio).abs().mean() < 0.07
    assert draws.ratio.min() < 0.02
    assert draws.ratio.max() > 0.98


def test_a_mixture_takes_what_it_does_not_keep_from_the_batch_in_reverse():
    own = torch.tensor([[True, False], [False, False], [True, True]])
    x = torch.tensor([[0, 1], [10, 11], [20, 21]])
    mask = Corruption(own)
    draws = Draws(mask, mask, mask, torch.rand(3), own)
    assert draws.mix(x).tolist() == [[0, 21], [10, 11], [20, 21]]
    assert draws.mix(x.view(3, 2, 1, 1)).shape == (3, 2, 1, 1)


def test_swapped_tokens_come_from_the_batch_without_a_gradient_and_are_predicted():
    masked = torch.tensor([[True, False, False], [False, False, True]])
    swapped = torch.tensor([[False, True, False], [False, True, False]])
    sources = torch.tensor([[1, 5, 2], [0, 3, 4]])
    corruption = Corruption(masked, swapped, sources)
    tokens = torch.arange(6.0).view(2, 3, 1).requires_grad_()
    found = corruption.apply(tokens, torch.tensor([[[-1.0]]]))
    assert found.flatten().tolist() == [-1, 5, 2, 3, 3, -1]
    found.sum().backward()
    assert tokens.grad.flatten().tolist() == [0, 0, 1, 1, 0, 0]
    assert corruption.predicted.tolist() == [[True, True, False], [False, True, True]]


def test_the_probability_of_a_swap_is_of_tokens_that_are_not_masked():
    centers = torch.rand(200, 64, 3, generator=generator())
    query = small(replace_pob=0.2).draw(centers, generator=generator()).query
    assert not (query.swapped & query.masked).any()
    assert query.swapped[~query.masked].float().mean() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(query.sources.flatten().sort().values, torch.arange(200 * 64))


def test_masked_groups_leave_no_trace_but_their_place(points):
    model = small().eval()
    group = model.group(points)
    mask = model.draw(group.centers, generator=generator()).query.masked
    other = torch.where(mask[..., None, None], torch.randn_like(group.neighborhoods), group.neighborhoods)
    with torch.no_grad():
        seen, expected = (model.transformer_q(n, group.centers, Corruption(mask)) for n in (other, group.neighborhoods))
        moved, _ = model.transformer_q(group.neighborhoods, group.centers + mask.unsqueeze(-1), Corruption(mask))
    torch.testing.assert_close(seen, expected)
    assert (moved - expected[0]).abs().max() > 1e-4


# ---- the losses ----


def test_losses_that_do_not_act_are_absent_and_train_nothing(points):
    heads = {"lm_head": {"dvae_loss"}, "cls_head": {"moco_loss", "cutmix_loss"}}
    for acting in ({"dvae_loss"}, {"moco_loss"}, {"cutmix_loss"}, {"dvae_loss", "moco_loss", "cutmix_loss"}):
        switches = {name: name in acting for name in ("dvae_loss", "moco_loss", "cutmix_loss")}
        model = small(**switches)
        found = model(points, generator=generator())
        assert set(found) == {"loss", "visible_tokens"} | acting
        assert found["loss"].item() == pytest.approx(sum(found[name].item() for name in acting))
        found["loss"].backward()
        for head, used in heads.items():
            gradients = [p.grad for p in model.transformer_q.get_submodule(head).parameters()]
            assert all((gradient is not None) == bool(used & acting) for gradient in gradients), (head, acting)


def test_words_of_masked_groups_of_the_whole_batch_count_alike(points):
    model = small(cutmix_loss=False).eval()
    group, count = model.group(points), torch.tensor([1, 2, 5, 3])
    masked = torch.arange(8) < count.unsqueeze(1)
    tokens, words = torch.randn(4, 8, 24), model.dvae.words(group)
    logits = F.linear(tokens, model.transformer_q.lm_head.weight, model.transformer_q.lm_head.bias)
    error = -logits.log_softmax(-1).gather(-1, words.unsqueeze(-1)).squeeze(-1)
    assert model.word_loss(tokens, words, Corruption(masked)).item() == pytest.approx(error[masked].mean().item())
    everywhere = small(return_all_tokens=True).word_loss(tokens, words, Corruption(masked))
    assert everywhere.item() == pytest.approx(error.mean().item())


def test_a_given_mask_is_that_of_the_query_pass(points):
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, :3] = True
    model = small().eval()
    assert torch.equal(model.draw(model.group(points).centers, mask).query.masked, mask)
    assert model(points, mask)["visible_tokens"] == 5
    with pytest.raises(ValueError, match=r"mask must be bool \(4, 8\)"):
        model(points, mask[:2])


def test_mixed_clouds_are_told_apart_by_the_share_of_each():
    model = small()
    keys = F.normalize(torch.randn(3, 16), dim=1)
    ratio = torch.tensor([0.2, 0.7, 0.9])
    mixture = torch.randn(3, 16)
    unit = mixture / mixture.norm(dim=1, keepdim=True)
    similar = torch.cat([unit @ keys.T, unit @ model.queue], dim=1) / 0.07
    error = -similar.log_softmax(1)
    expected = sum(ratio[b] * error[b, b] + (1 - ratio[b]) * error[b, 2 - b] for b in range(3)) / 3
    torch.testing.assert_close(model.cutmix_loss(mixture, keys, ratio), expected)
    own = torch.cat([(unit * keys).sum(1, keepdim=True), unit @ model.queue], dim=1) / 0.07
    torch.testing.assert_close(model.moco_loss(mixture, keys), -own.log_softmax(1)[:, 0].mean())


def test_contrasts_are_not_rounded_under_autocast(points):
    model = small(moco_loss=True, dvae_loss=False)
    keys, mixture = F.normalize(torch.randn(3, 16), dim=1), torch.randn(3, 16)
    expected = model.moco_loss(mixture, keys), model.cutmix_loss(mixture, keys, torch.rand(3))
    with torch.autocast("cpu", torch.bfloat16):
        found = model.moco_loss(mixture, keys), model.cutmix_loss(mixture, keys, torch.rand(3))
        model.train()(points)["loss"].backward()
    assert found[0] == expected[0]
    assert found[1].dtype == torch.float32


# ---- the momentum encoder and the queue ----


def test_the_momentum_encoder_starts_as_a_copy_and_follows_before_its_pass(points):
    model = small().train()
    parts = model.transformer_q, model.transformer_k
    assert all(torch.equal(q, k) for q, k in zip(*(part.parameters() for part in parts), strict=True))
    with torch.no_grad():
        for parameter in model.transformer_q.parameters():
            parameter.add_(1.0)
    q, k = ({name: p.clone() for name, p in part.named_parameters()} for part in parts)
    buffers = dict(model.transformer_q.named_buffers())
    group = model.group(points)
    draws = model.draw(group.centers, generator=generator())
    model.learn(group, draws)
    for name, parameter in model.transformer_k.named_parameters():
        torch.testing.assert_close(parameter, 0.9 * k[name] + 0.1 * q[name])
        assert not parameter.requires_grad
    with torch.no_grad():
        key, _ = model.transformer_k(group.neighborhoods, group.centers, draws.key)
    torch.testing.assert_close(model.queue[:, :4].t(), F.normalize(key, dim=1))  # so the pass came after the move
    statistic = "encoder.first_conv.1.running_mean"
    assert not torch.equal(model.transformer_k.get_buffer(statistic), buffers[statistic])  # each has its own


def test_new_keys_take_the_places_of_the_oldest(points):
    model = small().eval()
    before = model.queue.clone()
    torch.testing.assert_close(before.norm(dim=0), torch.ones(12))
    for step in range(1, 4):
        model(points, generator=generator(step))
        assert model.queue_ptr.item() == 4 * step % 12
        assert (model.queue != before).any(0).tolist() == [True] * 4 * step + [False] * (12 - 4 * step)
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(12))
    last = model.queue[:, 4:].clone()
    model(points, generator=generator(4))
    assert torch.equal(model.queue[:, 4:], last)
    assert not model.queue.requires_grad


def test_a_queue_that_the_batch_does_not_divide_is_refused(points):
    with pytest.raises(ValueError, match=r"model\.K, 12 keys, is no multiple of .*, 8 clouds .*set K to 8, say"):
        small()(points.repeat(2, 1, 1))


# ---- the start ----


def test_the_encoder_starts_from_the_tokenizers_and_trains_on(tmp_path):
    tokenizer = build_model(SMALL)
    torch.save({"base_model": {f"module.{k}": v for k, v in tokenizer.state_dict().items()}}, tmp_path / "dvae.pth")
    model = build_model({**MODEL, "dvae_config": {**DVAE, "ckpt": str(tmp_path / "dvae.pth")}})
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(model.dvae.state_dict()[name], tensor)
    for name, parameter in tokenizer.encoder.named_parameters():
        for encoder in (model.transformer_q.encoder, model.transformer_k.encoder):
            assert torch.equal(encoder.get_parameter(name), parameter)
        assert model.transformer_q.encoder.get_parameter(name).requires_grad
    assert not any(parameter.requires_grad for parameter in model.dvae.parameters())


def test_initialisation():
    torch.manual_seed(0)
    model = build_model({**MODEL, "transformer_config": {**TRANSFORMER, "trans_dim": 96}}).transformer_q
    drawn = [model.reduce_dim, model.pos_embed[2], model.lm_head, model.cls_head[0], model.blocks.blocks[1].attn.qkv]
    for layer in drawn:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert layer.bias is None or not layer.bias.any()
    for token in (model.cls_token, model.cls_pos, model.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_the_statistics_of_the_frozen_tokenizer(statistics, points):
    """As released words depend on the batch and the running statistics drift; or neither."""
    model = build_model({**MODEL, "dvae_config": {**DVAE, "ckpt": "untrained", "statistics": statistics}}).train()
    tokenizer = DiscreteVAE(**DVAE).eval()
    tokenizer.load_state_dict(model.dvae.state_dict())
    before = {name: buffer.clone() for name, buffer in model.dvae.named_buffers()}
    words = model.dvae.words(model.group(points))
    assert torch.equal(words, tokenizer.train(statistics == "batch").tokenize(points))
    alone = model.dvae.words(model.group(points[:1]))[0]
    assert torch.equal(alone, words[0]) == (statistics == "running")
    moved = [name for name, buffer in model.dvae.named_buffers() if not torch.equal(buffer, before[name])]
    layers = [f"encoder.{conv}_conv.1.{name}" for conv in ("first", "second") for name in ("mean", "var", "batches")]
    drifting = {name.replace("mean", "running_mean").replace("var", "running_var") for name in layers}
    drifting = {name.replace(".batches", ".num_batches_tracked") for name in drifting}
    assert set(moved) == (drifting if statistics == "batch" else set())
    model.eval()
    assert torch.equal(model.dvae.words(model.group(points[:1]))[0], model.dvae.words(model.group(points))[0])


def test_a_checkpoint_is_filled_strictly(tmp_path):
    model = small()
    torch.save({"base_model": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "pre-train.pth")
    other = build_model(MODEL)
    report = load_weights(other, tmp_path / "pre-train.pth", strict=True)
    assert not report.missing + report.unexpected
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())


# ---- what is refused ----


def dvae(**settings) -> dict:
    return {**MODEL, "dvae_config": {**DVAE, **settings}}


def transformer(**settings) -> dict:
    return {**MODEL, "transformer_config": {**TRANSFORMER, **settings}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            dvae(),
            r"model\.dvae_config\.ckpt is not given.* 16 words of 10 channels, 8 groups of 6 points",
        ),
        (dvae(), r"python main\.py --config cfgs/point-bert/dvae\.yaml.* `untrained` gives random weights"),
        (dvae(ckpt="untrained", num_group=1), r"num_group must be at least 4"),
        (transformer(mask_ratio=[0.5, 0.2]), r"mask_ratio must be \[least, largest\], got \[0\.5, 0\.2\]"),
        (transformer(mask_ratio=[0.1, 0.2]), r"mask_ratio 0\.1 masks none or all of 8 tokens"),
        (transformer(mask_ratio=[0.3, 1]), r"mask_ratio 1 masks none or all of 8 tokens"),
        (transformer(replace_pob=1.0), r"replace_pob must be in \[0, 1\), got 1\.0"),
        (transformer(cls_dim=0), r"cls_dim must be at least 1"),
        (transformer(dvae_loss=False, cutmix_loss=False), r"are all false: nothing is left to learn"),
        ({**MODEL, "m": 1.5}, r"m must be in \[0, 1\]"),
        ({**MODEL, "T": 0.0}, r"T more than 0"),
        ({**MODEL, "K": 0}, r"K at least 1"),
    ],
)
def test_values_out_of_range_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_model(config)


def test_a_tokenizer_that_is_not_there_or_another_one_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ckpt is 'none\.pth', and there is no such file\. .*dvae\.yaml"):
        build_model(dvae(ckpt="none.pth"))
    torch.save({"base_model": build_model({**SMALL, "num_tokens": 32}).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"model\.dvae_config\.ckpt: .*other\.pth does not fit.*16 words.*dvae\.yaml"):
        build_model(dvae(ckpt=str(Path(tmp_path, "other.pth"))))


def test_an_untrained_tokenizer_says_so_where_its_words_are_used(points, recwarn):
    model = small()
    model.encode(points)
    assert not recwarn.list
    model(points)
    model(points)
    (warning,) = recwarn.list
    assert "model.dvae_config.ckpt is untrained: unless a checkpoint of the whole model" in str(warning.message)
