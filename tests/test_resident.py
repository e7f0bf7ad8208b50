"""Batches made on the device: every cloud once, by seed and epoch, as the reader would make them."""

import json
import math
from itertools import chain

import numpy as np
import pytest
import torch

from benchmarks import bench_data
from datasets import resident
from datasets.pack import pack
from datasets.resident import ResidentLoader
from datasets.shapenet55 import ShapeNet
from utils.device import free_memory

CPU = torch.device("cpu")
N, N_POINTS = 23, 32


@pytest.fixture
def folders(tmp_path):
    """As many clouds as taxonomies, so that a label names a cloud."""
    lists, clouds = tmp_path / "ShapeNet-55", tmp_path / "shapenet_pc"
    lists.mkdir()
    clouds.mkdir()
    names = [f"{i:08d}-m.npy" for i in range(N)]
    for subset in ("train", "test"):
        (lists / f"{subset}.txt").write_text("\n".join(names))
    rng = np.random.default_rng(0)
    for name in names:
        np.save(clouds / name, rng.normal(size=(N_POINTS, 3)).astype(np.float32) * 3 + 1)
    return str(lists), str(clouds)


@pytest.fixture
def dataset(folders):
    return ShapeNet(*folders, N_POINTS, "train", 8)


def labels_of(loader):
    return torch.cat([labels for _, labels in loader]).tolist()


def points_of(loader):
    return torch.cat([points for points, _ in loader])


def test_batches_are_full_and_as_many_as_announced(dataset):
    loader = ResidentLoader(dataset, 4, CPU)
    batches = list(loader)
    assert len(batches) == len(loader) == 5
    for points, labels in batches:
        assert (points.shape, points.dtype) == ((4, 8, 3), torch.float32)
        assert (labels.shape, labels.dtype) == ((4,), torch.int64)


def test_an_epoch_continues_where_it_stopped(dataset):
    loader = ResidentLoader(dataset, 4, CPU)
    loader.begin(0, seed=1)
    whole = list(loader)
    loader.begin(0, seed=1, start=2)
    left = list(loader)
    assert len(left) == len(loader) == 3
    for (points, labels), (expected, true) in zip(left, whole[2:], strict=True):
        assert torch.equal(points, expected)
        assert torch.equal(labels, true)


def test_every_epoch_is_a_permutation(dataset):
    loader = ResidentLoader(dataset, 1, CPU)
    first, second = labels_of(loader), labels_of(loader)
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second


def test_the_generator_decides_the_order(dataset):
    loader, twin = ResidentLoader(dataset, 4, CPU), ResidentLoader(dataset, 4, CPU)
    loader.generator.manual_seed(7)
    twin.generator.manual_seed(7)
    order = labels_of(loader)
    assert labels_of(twin) == order
    twin.generator.manual_seed(8)
    assert labels_of(twin) != order


@pytest.fixture
def as_stored(monkeypatch):
    """Leave points where they are, so that they can be found in their cloud."""
    monkeypatch.setattr(resident, "normalize_unit_sphere", lambda points: points)


@pytest.mark.usefixtures("as_stored")
def test_points_are_different_ones_of_the_labelled_cloud(dataset):
    for points, labels in ResidentLoader(dataset, 4, CPU):
        for cloud, label in zip(points.tolist(), labels.tolist(), strict=True):
            drawn = set(map(tuple, cloud))
            assert len(drawn) == 8
            assert drawn <= set(map(tuple, dataset.cloud(label).tolist()))


@pytest.mark.usefixtures("as_stored")
def test_every_point_is_drawn_equally_often(dataset):
    loader, epochs = ResidentLoader(dataset, N, CPU), 400
    counts = torch.zeros(N, N_POINTS)
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        ((points, labels),) = loader
        clouds = loader.clouds[labels]  # (N, 32, 3)
        counts[labels] += (clouds.unsqueeze(2) == points.unsqueeze(1)).all(dim=-1).any(dim=2).float()
    share = 8 / N_POINTS
    deviation = math.sqrt(epochs * share * (1 - share))
    assert counts.sum() == epochs * N * 8
    assert (counts - epochs * share).abs().max() < 5 * deviation


def test_all_points_of_a_cloud_are_those_of_the_reader(folders):
    dataset = ShapeNet(*folders, N_POINTS, "train", N_POINTS)
    for points, labels in ResidentLoader(dataset, 4, CPU):
        for cloud, label in zip(points, labels.tolist(), strict=True):
            expected = dataset[label][0]
            torch.testing.assert_close(cloud[cloud[:, 0].argsort()], expected[expected[:, 0].argsort()])


def test_clouds_are_on_the_unit_sphere(dataset):
    points = points_of(ResidentLoader(dataset, 4, CPU))
    torch.testing.assert_close(points.norm(dim=-1).amax(dim=1), torch.ones(len(points)))
    torch.testing.assert_close(points.mean(dim=1), torch.zeros(len(points), 3))


def test_draws_follow_from_seed_and_epoch(dataset, folders):
    def draw(dataset, epoch):
        dataset.set_epoch(epoch)
        loader = ResidentLoader(dataset, 4, CPU)
        loader.generator.manual_seed(0)  # the same order
        return points_of(loader)

    first = draw(dataset, 0)
    assert not torch.equal(draw(dataset, 1), first)
    assert torch.equal(draw(dataset, 0), first)
    assert not torch.equal(draw(ShapeNet(*folders, N_POINTS, "train", 8, seed=1), 0), first)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (2, 3), (3, 2), (4, 5), (23, 1)])
def test_ranks_share_an_epoch(dataset, world_size, batch_size):
    shares = []
    for rank in range(world_size):
        loader = ResidentLoader(dataset, batch_size, CPU, rank, world_size)
        loader.generator.manual_seed(5)
        shares.append(labels_of(loader))
        assert len(shares[-1]) == len(loader) * batch_size
    assert {len(share) for share in shares} == {N // world_size // batch_size * batch_size}
    together = list(chain(*shares))
    assert len(set(together)) == len(together)


def test_every_batch_of_every_rank_draws_by_a_seed_of_its_own(dataset, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        resident, "random_subset", lambda points, _, draws: seeds.append(draws.initial_seed()) or points
    )
    for rank in (0, 1):
        list(ResidentLoader(dataset, 4, CPU, rank, 2))
    assert len(set(seeds)) == len(seeds) > 2


def test_a_pack_gives_the_same_batches(dataset, folders):
    expected = points_of(ResidentLoader(dataset, 4, CPU))
    pack(*folders, N_POINTS)
    packed = ShapeNet(*folders, N_POINTS, "train", 8)
    assert packed.packed is not None
    assert torch.equal(points_of(ResidentLoader(packed, 4, CPU)), expected)


def test_loading_in_several_chunks_keeps_the_order(dataset, monkeypatch):
    monkeypatch.setattr(resident, "CHUNK", 5)
    clouds = ResidentLoader(dataset, 4, CPU).clouds
    assert np.array_equal(clouds, np.stack([dataset.cloud(i) for i in range(N)]))


def test_a_full_device_is_noticed_before_reading(dataset, monkeypatch):
    needed = N * N_POINTS * 12
    monkeypatch.setattr(resident, "free_memory", lambda device: needed - 1)
    monkeypatch.setattr(dataset, "cloud", lambda index: pytest.fail("a cloud was read"))
    message = f"keeping 23 clouds on cpu takes {needed:,} bytes, but {needed - 1:,} are free; drop --resident_data"
    with pytest.raises(ValueError, match=message):
        ResidentLoader(dataset, 4, CPU)


def test_free_memory_is_that_of_the_machine():
    assert 2**20 < free_memory(CPU) < 2**50


def test_too_few_clouds_for_a_batch_are_refused(dataset):
    with pytest.raises(ValueError, match="23 training clouds are fewer than one batch of 12 for each of 2 processes"):
        ResidentLoader(dataset, 12, CPU, 0, 2)


def test_the_benchmark_compares_the_three_sources(tmp_path):
    bench_data.main(["--device", "cpu", "--clouds", "8", "--batch", "4", "--epochs", "1", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["source"] for row in rows] == ["files", "pack", "resident"]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["clouds_per_s"] / rows[0]["clouds_per_s"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_made_there(dataset):
    device = torch.device("cuda")
    assert free_memory(device) > 0
    loader, twin = ResidentLoader(dataset, 4, device), ResidentLoader(dataset, 4, device)
    points, labels = points_of(loader), labels_of(twin)
    assert points.is_cuda
    loader.generator.manual_seed(dataset.seed)
    assert torch.equal(points_of(loader), points)
    assert len(set(labels)) == 20
