"""The benchmark of a training step: the baseline computes the same, and what is written holds what was measured."""

import itertools
import json
import math
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_train_step, train_step
from benchmarks.bench_train_step import Turn, Turns
from benchmarks.machine import memory_on_cpu, memory_on_gpu
from benchmarks.released import (
    DenseProjection,
    LoopPacking,
    ReleasedI2P_MAE,
    ReleasedPoint_MAE,
    released,
    scale_and_translate_by_cloud,
)
from benchmarks.train_step import STAGES, Product, Replay, Size, StageClock, Training, products_of
from datasets.synthetic.layouts import write_shapenet
from models.i2p_mae import I2P_MAE
from models.point_mae import Point_MAE
from models.tokenizer import TokenEmbed
from models.transformer import Attention

SMALL: dict[str, Any] = {
    "num_groups": (32, 16, 8),
    "group_sizes": (8, 4, 4),
    "encoder_dims": (24, 48, 96),
    "encoder_depths": (1, 2, 1),
    "decoder_dims": (96, 48),
    "num_heads": 3,
    "drop_path_rate": 0.0,
}
TOWER = {"embed_dim": 16, "image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "heads": 2}
MASK = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 0, 1, 1, 0, 1]]).bool()
ROOT = Path(__file__).parent.parent
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        id="gpu",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="measuring a GPU needs one"),
    ),
]


@pytest.fixture
def model() -> I2P_MAE:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="untrained"):
        return I2P_MAE(clip_config={"visual_encoder": TOWER, "feat_dim": 16, "pretrained": "untrained"}, **SMALL)


@pytest.fixture(scope="module")
def points() -> Tensor:
    points = torch.randn(3, 64, 3, generator=torch.Generator().manual_seed(0))
    return points / points.norm(dim=-1).amax(1)[:, None, None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapenet(tmp_path_factory.mktemp("data"), classes=["mug", "chair"], train=2, test=1)


# The literal formulation


def losses_and_gradients(model: I2P_MAE, points: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    losses = model(points, MASK)
    losses["loss"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: losses[name].detach() for name in ("loss", "loss_3d", "loss_2d")}, gradients


def test_the_literal_formulation_computes_the_same(model, points):
    losses, gradients = losses_and_gradients(model, points)
    literal_losses, literal_gradients = losses_and_gradients(released(model), points)
    torch.testing.assert_close(literal_losses, losses, rtol=1e-5, atol=0)
    norm, literal_norm = (torch.stack([g.norm() for g in of.values()]).norm() for of in (gradients, literal_gradients))
    torch.testing.assert_close(literal_norm, norm, rtol=1e-3, atol=0)


def test_in_double_precision_each_gradient_is_the_same(model, points):
    model = model.double()
    _, gradients = losses_and_gradients(model, points.double())
    _, literal_gradients = losses_and_gradients(released(model), points.double())
    torch.testing.assert_close(literal_gradients, gradients, rtol=1e-5, atol=1e-7)


def test_the_mask_is_drawn_from_the_same_saliency(model, points):
    saliency, literal = (of.look(points).saliency_at(of.group(points)[-1].centers) for of in (model, released(model)))
    torch.testing.assert_close(literal, saliency, rtol=1e-4, atol=1e-6)


def test_the_literal_teacher_sees_all_views_as_one_batch(model, points):
    twin, seen = released(model), []
    twin.teacher.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape)))
    twin(points, MASK)
    assert seen == [(9, 3, 32, 32)]


def test_literal_features_are_looked_up_at_the_neighbours_of_all_tokens(model, points, monkeypatch):
    seen = []
    look_up = DenseProjection.look_up

    def noting(self: DenseProjection, maps: Tensor, at: Tensor) -> Tensor:
        seen.append((maps.shape[1], tuple(at.shape)))
        return look_up(self, maps, at)

    monkeypatch.setattr(DenseProjection, "look_up", noting)
    twin = released(model)
    twin(points, MASK)
    assert seen == [(1, (3, 8, 3)), (16, (3, 16 * 4, 3))]  # saliency at the coarse centres, features at level 1


def test_of_the_enlarged_maps_one_views_alone_are_alive(model, points, monkeypatch):
    storages, alive = [], []
    interpolate = F.interpolate

    def noting(*args: Any, **settings: Any) -> Tensor:
        alive.append(sum(storage() is not None for storage in storages))
        enlarged = interpolate(*args, **settings)
        storages.append(weakref.ref(enlarged.untyped_storage()))  # views keep it, too
        return enlarged

    twin = released(model)
    views = twin.look(points)
    monkeypatch.setattr(F, "interpolate", noting)
    views.features_at(points)
    assert alive == [0, 0, 0]
    assert not any(storage() for storage in storages)


def test_the_literal_teacher_computes_in_the_precision_of_its_weights(model):
    teacher = released(model).teacher
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact, rounded = teacher(images), teacher.bfloat16()(images)
    for one, other in zip(exact, rounded, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert 0 < (one - other).abs().max() < 0.05 * one.abs().max()


def test_weights_are_copied_and_every_part_is_literal(model):
    twin = released(model)
    assert isinstance(twin, ReleasedI2P_MAE)
    assert not any(type(module) in (Attention, TokenEmbed) for module in twin.modules())
    assert twin.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        twin.mask_token.add_(1)
    assert not torch.equal(twin.mask_token, model.mask_token)
    assert type(model.h_encoder.token_embed[0]) is TokenEmbed


def test_loop_packing_moves_visible_tokens_to_the_front_and_back():
    packing = LoopPacking(MASK)
    x = torch.arange(24.0).view(3, 8, 1)
    packed = packing.pack(x)
    assert packed.squeeze(-1).tolist() == [[2, 6, 0, 0], [15, 0, 0, 0], [16, 17, 19, 22]]
    assert torch.equal(packing.unpack(-packed, x), torch.where(MASK.unsqueeze(-1), x, -x))
    assert (packing.attention_mask[:, 0] == 0).equal(packing.valid.unsqueeze(1).expand(-1, 4, -1))


def test_augmentation_by_cloud_scales_and_shifts_each_axis():
    points = torch.tensor([[0.0, 0, 0], [1, 1, 1]]).expand(50, 2, 3)
    moved = scale_and_translate_by_cloud(points, np.random.default_rng(0))
    offset, factor = moved[:, 0], moved[:, 1] - moved[:, 0]
    assert offset.abs().max() <= 0.2
    assert factor.min() >= 2 / 3 - 1e-6
    assert factor.max() <= 3 / 2 + 1e-6
    assert len(offset.unique()) == len(factor.unique()) == 150


def test_point_mae_in_its_literal_formulation_computes_the_same(points):
    """In double precision each gradient is the same, and as many tokens are masked."""
    torch.manual_seed(0)
    small = {"trans_dim": 24, "encoder_dims": 24, "depth": 2, "num_heads": 3, "decoder_depth": 1}
    settings = {"decoder_num_heads": 3, "drop_path_rate": 0.0, **small}
    model = Point_MAE(settings, num_group=8, group_size=6).double()
    masked = torch.tensor([[1, 2, 4, 5], [0, 1, 6, 7], [3, 4, 5, 6]])
    mask = torch.zeros(3, 8, dtype=torch.bool).scatter(1, masked, True)
    twin = released(model)
    assert isinstance(twin, ReleasedPoint_MAE)
    assert not any(type(module) in (Attention, TokenEmbed) for module in twin.modules())
    for one in (model, twin):
        one(points.double(), mask)["loss"].backward()
    gradients, literal = ({name: p.grad for name, p in one.named_parameters()} for one in (model, twin))
    torch.testing.assert_close(literal, gradients, rtol=1e-9, atol=1e-12)
    drawn = twin.split(twin.group(points), None, None)
    assert drawn.sum(1).tolist() == [4, 4, 4]
    assert not torch.equal(drawn[0], drawn[1]) or not torch.equal(drawn[1], drawn[2])


# The floor


def hooked_flop(model: I2P_MAE, points: Tensor) -> tuple[list[Product], int]:
    """The recorded products, and the operations of all layers counted from what goes in and out of them."""
    flop = 0

    def count(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal flop
        if type(module) is TokenEmbed:  # the pooled half of its mixing layer is taken once a group
            mix = module.second_conv[0]
            rows = math.prod(args[0].shape[:3]) + math.prod(args[0].shape[:2])
            flop += 2 * rows * (mix.in_channels // 2) * mix.out_channels
        elif isinstance(module, nn.Linear):
            flop += 2 * output.numel() * module.in_features
        elif isinstance(module, nn.Conv1d):
            flop += 2 * output.numel() * module.in_channels

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    products = products_of(model, points)
    for hook in hooks:
        hook.remove()
    return products, flop


@pytest.mark.parametrize("formulation", ["ours", "released"])
def test_the_products_cover_all_layers_of_the_student(formulation, model, points):
    products, flop = hooked_flop(model if formulation == "ours" else released(model), points)
    assert sum(2 * math.prod(product) for product in products) == flop > 0


def test_a_replay_takes_each_product_and_the_two_of_its_gradients():
    products = [(1, 4, 5, 6), (3, 2, 7, 2), (1, 4, 5, 6)]
    with FlopCounterMode(display=False) as counter:
        Replay(products, "cpu", torch.float32).run()
    assert counter.get_total_flops() == 3 * sum(2 * math.prod(product) for product in products)


# Stages


def test_the_time_of_an_inner_stage_is_not_the_outer_ones(monkeypatch):
    ticks = itertools.accumulate(itertools.count())  # 0, 1, 3, 6, 10, 15
    monkeypatch.setattr(train_step.time, "perf_counter", lambda: next(ticks))
    clock = StageClock(lambda: None)
    with clock.stage("project"), clock.stage("teacher"):  # opened at 0 and 1, closed at 3 and 6
        pass
    assert {name: seconds for name, seconds in clock.seconds.items() if seconds} == {"project": 4, "teacher": 2}


@pytest.mark.parametrize("formulation", ["ours", "released"])
def test_every_stage_of_a_step_is_seen_and_the_model_is_left_as_it_was(formulation, data):
    training = Training(Size(bench_train_step.QUICK_CONFIG, data, "cpu", 2, 256), formulation)
    before = training.model.mask_token.clone()
    seconds = training.stage_seconds()
    assert list(seconds) == list(STAGES)
    assert min(seconds.values()) > 0
    assert "group" not in vars(training.model)
    assert "forward" not in vars(training.model.teacher)
    assert not torch.equal(training.model.mask_token, before)  # it was a whole step


POINT_MAE_STAGES = (
    *("data", "group", "mask", "encode", "decode", "loss 3d"),
    *("backward", "optimizer", "other"),
)


@pytest.mark.parametrize("formulation", ["ours", "released"])
def test_every_stage_of_a_step_of_point_mae_is_seen(formulation, data):
    size = Size(bench_train_step.METHODS["point-mae"].quick_config, data, "cpu", 2, 256)
    seconds = Training(size, formulation).stage_seconds()
    assert tuple(stage for stage, taken in seconds.items() if taken) == POINT_MAE_STAGES


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux")
def test_memory_on_a_cpu_is_what_a_call_holds_at_most():
    assert 60 < memory_on_cpu(lambda: torch.ones(16 << 20).sum()) < 100  # 64 MiB


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measuring a GPU needs one")
def test_memory_on_a_gpu_is_what_a_call_holds_at_most():
    kept = torch.ones(16 << 20, device="cuda")
    assert 64 <= memory_on_gpu(lambda: torch.ones_like(kept)) < 80


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux")
def test_memory_of_a_step_is_measured_in_a_process(data):
    size = Size(bench_train_step.QUICK_CONFIG, data, "cpu", 2, 256)
    assert bench_train_step.memory_in_a_process(size, "ours", "none") > 1


def test_where_the_system_tells_no_memory_there_is_no_figure(monkeypatch, data, capsys):
    monkeypatch.setattr(sys, "platform", "darwin")
    size = Size(bench_train_step.QUICK_CONFIG, data, "cpu", 2, 256)
    assert bench_train_step.memory_in_a_process(size, "ours", "none") is None
    assert "memory is not measured: darwin" in capsys.readouterr().out


# Results


def test_ratios_are_medians_of_each_turn():
    ours, other = ("ours", "none"), ("released", "none")
    stages = {name: dict.fromkeys(STAGES, 0.1) for name in (ours, other)}
    turns = [
        Turn({ours: 2.0, other: 5.0}, stages, teacher=1.0, products={"none": 0.5}),
        Turn({ours: 4.0, other: 14.0}, stages, teacher=2.0, products={"none": 0.5}),
        Turn({ours: 3.0, other: 9.0}, stages, teacher=1.0, products={"none": 0.5}),
    ]
    row = bench_train_step.summarise(Size(Path(), Path(), "cpu", 1, 1), other, turns, 7.0, None)
    assert (row.step_ms, row.teacher_ms, row.beyond_teacher_ms) == (9000, 1000, 8000)
    assert (row.step_per_teacher, row.beyond_per_ours, row.beyond_per_products) == (7, 4, 16)
    assert (row.runs, row.memory_mib, row.stages_ms["data"]) == (3, None, 100)


@pytest.mark.parametrize("device", DEVICES)
def test_results_are_written(device, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_train_step, "turn_limits", lambda args: Turns(0.0, 2, 2))
    monkeypatch.setattr(bench_train_step, "memory_in_a_process", lambda *args: 1.0)  # has a test of its own
    arguments = ["--device", device, "--quick", "--batch", "2", "--points", "256", "--amp", "none", "bf16"]
    bench_train_step.main([*arguments, "--out", str(tmp_path), "--note", "a test"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["note"] == "a test"
    assert results["command"].endswith("--note 'a test'")
    assert results["machine"]["threads"] == torch.get_num_threads()
    rows = results["rows"]
    assert [(row["formulation"], row["amp"]) for row in rows] == [
        ("ours", "none"),
        ("ours", "bf16"),
        ("released", "none"),
    ]
    for row in rows:
        assert list(row["stages_ms"]) == list(STAGES)
        figures = [*row["stages_ms"].values(), *(value for value in row.values() if isinstance(value, float))]
        assert all(math.isfinite(figure) and figure > 0 for figure in figures)
        if device == "cpu":
            assert row["step_ms"] >= max(row["stages_ms"].values())
    assert rows[0]["beyond_per_ours"] == 1
    assert rows[0]["products_gflop"] == rows[2]["products_gflop"]
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in STAGES)


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ([], ""),
        (["--amp", "none", "bf16"], ""),
        (["--batch", "4"], "partial/"),
        (["--points", "1024"], "partial/"),
        (["--formulation", "ours"], "partial/"),
        (["--amp", "bf16"], "partial/"),
        (["--quick", "--batch", "4"], "quick/"),
    ],
)
def test_a_partial_run_leaves_the_tracked_results_alone(flags, folder, monkeypatch, tmp_path, capsys):
    row = bench_train_step.Row(1, 1, "ours", "none", 1, 1.0, dict.fromkeys(STAGES, 1.0), *[1.0] * 6, None, None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_train_step, "write_shapenet", lambda folder, **sizes: folder)
    monkeypatch.setattr(bench_train_step, "measure", lambda *args: [row])
    bench_train_step.main(["--device", "cpu", *flags])
    where = f"benchmarks/results/{folder}train_step-cpu"
    assert sorted(str(path) for path in Path().rglob("*.*")) == [f"{where}/results.json", f"{where}/stages.png"]
    assert f"results in {where}\n" in capsys.readouterr().out


def test_results_of_point_mae_are_written_without_a_teacher(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_train_step, "turn_limits", lambda args: Turns(0.0, 1, 1))
    monkeypatch.setattr(bench_train_step, "memory_in_a_process", lambda *args: 1.0)
    flags = ["--method", "point-mae", "--device", "cpu", "--quick", "--batch", "2", "--points", "256"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfgs").symlink_to(ROOT / "cfgs")
    bench_train_step.main(flags)
    folder = Path("benchmarks/results/quick/train_step-point-mae-cpu")
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert [row["formulation"] for row in rows] == ["ours", "released"]
    for row in rows:
        assert (row["teacher_ms"], row["step_per_teacher"]) == (0, None)
        assert row["beyond_teacher_ms"] == row["step_ms"] > row["products_ms"] > 0
    assert (folder / "stages.png").exists()
    assert "teacher alone" not in capsys.readouterr().out


def test_sizes_are_the_default_ones_or_every_pair_of_what_is_given():
    def sizes(*arguments: str) -> list[tuple[int, int]]:
        return bench_train_step.sizes_of(bench_train_step.parse_args(["--device", "cpu", *arguments]))

    assert sizes() == bench_train_step.SIZES["cpu"]
    assert sizes("--quick") == bench_train_step.SIZES["quick"]
    assert sizes("--batch", "1", "2", "--points", "64", "128") == [(1, 64), (1, 128), (2, 64), (2, 128)]
    assert sizes("--batch", "3") == [(3, 2048)]
    assert sizes("--points", "64") == [(8, 64)]
    assert sizes("--method", "point-mae") == [(1, 1024), (4, 1024), (8, 1024)]
    assert sizes("--method", "point-mae", "--batch", "3") == [(3, 1024)]


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--points", "0"], ["--points", "9000"]])
def test_sizes_that_no_cloud_has_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        bench_train_step.parse_args(arguments)
    assert arguments[0] in capsys.readouterr().err
