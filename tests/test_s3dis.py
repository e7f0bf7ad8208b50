"""S3DIS: blocks to learn from, whole rooms to test on, and the figures of both."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datasets import build_dataset
from datasets.s3dis import S3DIS, Room, blocks_of
from datasets.synthetic import write_s3dis
from datasets.transforms import scale_and_translate_small
from tests.playground import TRAINING, changed, refuse, results_of, run, write_config
from tools import runner_room_segmentation
from tools.evaluation.metrics import class_scores, confusion
from tools.evaluation.rooms import measure_rooms
from tools.training import provenance

CPU = torch.device("cpu")


def room_of(points: np.ndarray, classes: np.ndarray | int = 0) -> Room:
    points = np.asarray(points, dtype=np.float32)
    return Room(Path("room.npy"), points, np.broadcast_to(classes, len(points)).astype(np.uint8))


def uniform(number: int, side: float = 0.9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, [side, side, 2], (number, 3))


def save(folder: Path, name: str, points: np.ndarray, classes: np.ndarray | int = 0) -> Path:
    rows = np.zeros((len(points), 7))
    rows[:, :3], rows[:, 6] = points, classes
    np.save(folder / f"{name}.npy", rows)
    return folder


# what is learnt from


def test_area_5_tests_and_the_others_train(tmp_path):
    for area in (1, 5, 6):
        save(tmp_path, f"Area_{area}_office_1", uniform(1100 + area))
    names = {subset: [room.path.stem for room in S3DIS(tmp_path, subset, 64).rooms] for subset in ("train", "test")}
    assert names == {"train": ["Area_1_office_1", "Area_6_office_1"], "test": ["Area_5_office_1"]}


def test_a_room_gives_as_many_blocks_as_npoints_goes_into_its_points(tmp_path):
    save(tmp_path, "Area_1_a_1", uniform(1100))
    save(tmp_path, "Area_2_a_1", uniform(2900))
    dataset = S3DIS(tmp_path, "train", 500)
    assert dataset.labels.tolist() == [0, 0] + [1] * 6  # 2.2 and 5.8 of them
    assert len(dataset) == 8
    assert len(S3DIS(tmp_path, "train", 9000)) == 2  # each gives one at least


def test_a_block_is_a_square_metre_around_a_point_with_heights_as_they_are(tmp_path):
    points = uniform(40_000, side=4)
    points[:, 2] = np.random.default_rng(1).permutation(40_000) / 20_000  # no height twice
    dataset = S3DIS(save(tmp_path, "Area_1_a_1", points, classes=np.arange(40_000) % 13), "train", 256)
    heights = {float(z): index for index, z in enumerate(points[:, 2].astype(np.float32))}
    for index in range(20):
        block, classes = dataset[index]
        assert block.shape == (256, 3)
        rows = [heights[float(z)] for z in block[:, 2]]
        assert len(set(rows)) == 256
        assert classes.tolist() == [row % 13 for row in rows]
        centers = points[rows, :2] - block[:, :2].numpy()
        np.testing.assert_allclose(centers, centers[:1].repeat(256, 0), atol=1e-5)
        assert np.abs(points[:, :2] - centers[0]).sum(1).min() < 1e-5  # that of a point
        assert block[:, :2].abs().max() <= 0.5 + 1e-6
    assert block[:, :2].abs().max() > 0.4


def test_blocks_are_drawn_by_seed_epoch_and_index_alone(tmp_path):
    save(tmp_path, "Area_1_a_1", uniform(3000))
    first, same, other = (S3DIS(tmp_path, "train", 64, seed) for seed in (0, 0, 1))
    before = first[3][0]
    assert torch.equal(before, same[3][0])
    assert not torch.equal(before, other[3][0])
    assert not torch.equal(before, first[4][0])
    first.set_epoch(1)
    assert not torch.equal(before, first[3][0])


def test_only_blocks_of_more_than_1024_points_are_taken(tmp_path):
    dense, thin = uniform(1025), uniform(1024) + np.array([50, 0, 0])
    dataset = S3DIS(save(tmp_path, "Area_1_a_1", np.concatenate([dense, thin]), [0] * 1025 + [1] * 1024), "train", 8)
    assert {int(dataset[index][1].unique()) for index in range(60)} == {0}
    thinner = S3DIS(save(tmp_path, "Area_1_a_1", thin), "train", 8)
    with pytest.raises(ValueError, match=r"a_1\.npy: none of 1000 blocks of 1 m × 1 m holds more than 1024 points"):
        thinner[0]


def test_a_block_with_too_few_points_gives_some_again(tmp_path):
    points, _ = S3DIS(save(tmp_path, "Area_1_a_1", uniform(1100)), "train", 2048)[0]
    assert points.shape == (2048, 3)
    assert len(points.unique(dim=0)) > 800


def test_the_rarer_a_class_the_more_it_weighs(tmp_path):
    classes = [0] * 800 + [1] * 100 + [12] * 200
    weights = S3DIS(save(tmp_path, "Area_1_a_1", uniform(1100), classes), "train", 64).class_weights()
    expected = torch.zeros(13)
    expected[0], expected[1], expected[12] = 1.0, 2.0, 4 ** (1 / 3)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 6)), r"shape \(5, 6\); expected \(points, 7\)"),
        (np.zeros(7), r"shape \(7,\); expected"),
        (np.full((5, 7), 13.0), r"class 13\.0 in row 0; expected an integer below 13"),
        (np.full((5, 7), 0.5), r"class 0\.5 in row 0"),
        (np.full((5, 7), np.nan), "row 0 .* is not finite"),
        (np.zeros((5, 7), int), "holds int64; expected floats"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, array, message):
    np.save(tmp_path / "Area_1_a_1.npy", array)
    with pytest.raises(ValueError, match=rf"Area_1_a_1\.npy: {message}"):
        S3DIS(tmp_path, "train", 64)


def test_a_folder_without_rooms_is_told_with_the_way_out(tmp_path):
    save(tmp_path, "Area_5_a_1", uniform(10))
    with pytest.raises(FileNotFoundError, match=r"no room of an area other than 5.*datasets\.check S3DIS"):
        S3DIS(tmp_path, "train", 64)
    (tmp_path / "Area_5_a_1.npy").rename(tmp_path / "Area_1_a_1.npy")
    with pytest.raises(FileNotFoundError, match="no room of area 5"):
        S3DIS(tmp_path, "test", 64)


# whole rooms


def test_blocks_cover_a_room_at_strides_of_half_a_metre():
    room = room_of(uniform(3000, side=3))
    blocks = list(blocks_of(room, 50, torch.Generator().manual_seed(0)))
    assert len(blocks) == 25  # from 0, .5, 1, 1.5 and nearly 2, along each side
    seen = torch.cat([block.index.flatten() for block in blocks])
    assert set(seen.tolist()) == set(range(3000))
    low, high = room.points.min(0), room.points.max(0)
    for number, block in enumerate(blocks):
        assert block.points.shape == (*block.index.shape, 3)
        centers = torch.from_numpy(room.points)[block.index] - block.points
        assert centers[..., 2].abs().max() == 0
        torch.testing.assert_close(centers, centers[:1, :1].expand_as(centers))
        x, y = (min(low[axis] + i * 0.5 + 1, high[axis]) - 0.5 for axis, i in enumerate(divmod(number, 5)))
        torch.testing.assert_close(centers[0, 0, :2], torch.tensor([x, y]), atol=1e-5, rtol=0)
        inside = (np.abs(room.points[:, :2] - [x, y]) <= 0.5009).all(1)
        assert set(np.flatnonzero(inside)) <= set(block.index.flatten().tolist())
        assert block.index.unique().numel() > block.index.numel() - 50  # what is filled up is less than a cloud


@pytest.mark.parametrize(("points", "clouds"), [(30, 1), (64, 1), (65, 2)])
def test_a_room_narrower_than_a_block_is_one_block(points, clouds):
    (block,) = blocks_of(room_of(uniform(points)), 64, torch.Generator().manual_seed(0))
    assert block.index.shape == (clouds, 64)
    assert block.index.flatten().tolist() != sorted(block.index.flatten().tolist())


class Says(nn.Module):
    """Gives every point the class that a function makes of the number of the call and the points."""

    def __init__(self, classes: object) -> None:
        super().__init__()
        self.classes, self.calls = classes, 0

    def forward(self, points: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.one_hot(self.classes(self.calls, points), 13).float()


class Rooms:
    def __init__(self, *rooms: Room, npoints: int = 64) -> None:
        self.rooms, self.npoints = rooms, npoints


def test_every_point_has_the_class_that_most_blocks_gave_it():
    dataset = Rooms(room_of(uniform(30), classes=7), npoints=30)
    model = Says(lambda call, points: torch.full(points.shape[:2], 3 if call == 1 else 7)).train()
    assert measure_rooms(model, dataset, CPU, seed=0, votes=3)["mIoU"] == 100.0
    assert model.calls == 3
    assert model.training
    model = Says(lambda call, points: torch.full(points.shape[:2], 3 if call < 3 else 7))
    assert measure_rooms(model, dataset, CPU, seed=0, votes=3)["point_accuracy"] == 0.0


def test_what_is_said_of_a_point_in_a_block_counts_for_that_point():
    """Classes that height alone tells, with a floor of which a quarter is another class."""
    points = uniform(4000, side=2)
    classes = np.where(points[:, 2] > 1, 0, 1)
    low = np.flatnonzero(points[:, 2] < 1)
    classes[low[: len(low) // 4]] = 12
    model = Says(lambda call, points: (points[..., 2] < 1).long())
    scores = measure_rooms(model, Rooms(room_of(points, classes)), CPU, seed=0)
    share = 100 * (1 - (len(low) // 4) / len(low))
    assert scores["class_IoU"] == pytest.approx({"ceiling": 100.0, "floor": share, "clutter": 0.0})
    assert scores["mIoU"] == pytest.approx((100 + share) / 3)
    assert scores["mean_class_accuracy"] == pytest.approx(200 / 3)


def test_class_scores_by_hand():
    counts = confusion(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 1]), 4)
    assert counts.tolist() == [[1, 0, 0, 0], [1, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    scores = class_scores(counts)
    assert scores["ious"] == [50.0, 50.0, 0.0, None]  # of the last there is nothing, of the third a prediction
    assert scores["mIoU"] == pytest.approx(100 / 3)
    assert scores["mean_class_accuracy"] == pytest.approx(75.0)
    assert scores["point_accuracy"] == pytest.approx(60.0)


# main.py

ROOMS = {
    split: {
        "NAME": "S3DIS",
        "ROOT": "data/stanford_indoor3d",
        "others": {"subset": split, "npoints": 1024, **({"bs": 2} if split == "test" else {})},
    }
    for split in ("train", "test")
}
TRANSFORMER = {"trans_dim": 24, "encoder_dims": 24, "depth": 3, "num_heads": 3, "num_group": 12, "group_size": 8}
CONFIG = {
    **TRAINING,
    "max_epoch": 0,
    "grad_norm_clip": 10,
    "augmentation": "scale_and_translate_small",
    "dataset": ROOMS,
    "model": {"NAME": "ACT_SEG", "num_parts": 13, "num_categories": 0, "point_dims": [16, 12], **TRANSFORMER},
}


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    configs = {
        "act/rooms": CONFIG,
        "act/parts": changed(CONFIG, "model.num_categories", 16),
        "act/few": changed(CONFIG, "model.num_parts", 12),
    }
    for name, config in configs.items():
        write_config(folder, name, config)
    write_s3dis(folder / "data", train=2, test=1, num_points=5000, side=1.2)
    return folder


@pytest.fixture
def here(playground, monkeypatch):
    monkeypatch.chdir(playground)
    return playground


def test_a_segmenter_of_rooms_is_trained_and_tests_as_it_trained(here, capsys):
    assert run("act/rooms", "--scratch_model", "--exp_name", "rooms") == 0
    results = results_of("act/rooms", "rooms")["room segmentation, training from scratch"]
    assert results["protocol"] == "mIoU of whole rooms, 3 passes, on S3DIS, test split"
    assert results["best_chosen_on"].startswith("mIoU of blocks on S3DIS, test split, ")
    assert results["final"]["mIoU"] == results["final_accuracy"]
    assert set(results["final"]["class_IoU"]) >= {"ceiling", "floor", "wall"}
    log = capsys.readouterr().err
    assert "generated shapes stand in for S3DIS (dataset: train, test)" in log
    assert re.search(r"epoch 0/0 \| training: loss .* mIoU of blocks on S3DIS, test split: .* \| 0 s left\n", log)
    checkpoint = here / "experiments/act/rooms/rooms/ckpt-last.pth"
    assert run("act/rooms", "--test", "--ckpts", checkpoint, "--exp_name", "test") == 0
    measured = results_of("act/rooms", "test")["room segmentation"]
    assert {key: measured[key] for key in results["final"]} == results["final"]
    assert "IoU of ceiling" in capsys.readouterr().out


def test_a_step_augments_the_blocks_and_weighs_their_classes(here, monkeypatch):
    caught = {}

    class Caught(Exception):
        pass

    class Trainer:
        def __init__(self, config, args, run, network, loader, step, **_: object) -> None:
            caught.update(network=network.eval(), loader=loader, step=step)

        def fit(self) -> None:
            raise Caught

    monkeypatch.setattr(runner_room_segmentation, "Trainer", Trainer)
    with pytest.raises(Caught):
        run("act/rooms", "--scratch_model", "--exp_name", "caught")
    network, loader = caught["network"], caught["loader"]
    loader.begin(0, 0)
    points, classes = next(iter(loader))
    values = caught["step"](points, classes, generator=torch.Generator().manual_seed(3))
    log_probs = network(scale_and_translate_small(points, torch.Generator().manual_seed(3)))
    torch.testing.assert_close(values["loss"], network.loss(log_probs, classes, loader.dataset.class_weights()))


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        ("act/parts", ("--scratch_model",), "needs a segmenter with num_parts 13 and num_categories 0"),
        ("act/few", ("--scratch_model",), "needs a segmenter with num_parts 13 and num_categories 0"),
        ("act/rooms", ("--scratch_model", "--select_on", "val"), "blocks of one room overlap: drop it"),
    ],
)
def test_what_makes_no_sense_for_rooms_is_refused(here, capsys, config, flags, message):
    assert message in refuse(capsys, config, *flags)


def test_of_the_published_data_it_is_rooms_that_are_counted(here, tmp_path, caplog):
    shutil.copytree("data/stanford_indoor3d", tmp_path / "stanford_indoor3d", ignore=lambda *_: ["SYNTHETIC.json"])
    entry = {"NAME": "S3DIS", "ROOT": str(tmp_path / "stanford_indoor3d"), "others": {"subset": "train", "npoints": 64}}
    provenance.warn({"dataset": {"train": entry}}, train=build_dataset(entry))
    assert "(2 train clouds; S3DIS, area 5 for the test has 204 train)" in caplog.text


def test_votes_of_classifiers_are_refused(here, capsys, tmp_path):
    torch.save({"base_model": {"a": torch.zeros(1)}}, tmp_path / "a.pth")
    message = refuse(capsys, "act/rooms", "--test", "--vote", "--ckpts", tmp_path / "a.pth")
    assert "a room is tested by a vote of 3 passes anyway" in message
