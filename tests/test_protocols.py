"""What each mode feeds its model: how points are sampled and when they are augmented."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from datasets import build_dataset
from datasets.synthetic import write_shapenetpart
from datasets.transforms import AUGMENTATIONS
from extensions.pointnet2_ops.pointnet2_utils import furthest_point_sample
from models import build_model
from models.classifier import Classifier
from models.tokenizer import take
from tests.playground import CONFIGS, FINETUNE_DATA, make_playground, results_of, run
from tools.evaluation import classification
from tools.evaluation.classification import vote
from utils.parser import parse_args
from utils.seed import mixed_seed

NPOINTS, FARTHEST = 64, 77  # drawn, and the farthest points from which they are drawn, of 128
FINETUNING, PRETRAINING, SEGMENTING = "fine-tuning/modelnet", "pre-training/m2ae", "part-segmentation/small"
KINDS = {FINETUNING: "Classifier", PRETRAINING: "Point_M2AE", SEGMENTING: "PartSegmenter"}


def halve(points: Tensor, generator: torch.Generator) -> Tensor:
    """An augmentation that can be recognised, and undone without rounding."""
    return points / 2


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with the generated data sets and the small configs."""
    folder = make_playground(tmp_path_factory.mktemp("protocols"), CONFIGS, shapenet=2)
    write_shapenetpart(folder / "data", classes=["mug", "knife", "table"], train=4, test=1, num_points=96)
    return folder


@pytest.fixture
def feed(here, monkeypatch) -> Callable[..., tuple[list[Tensor], list[Tensor]]]:
    """Run a mode with `halve` for its augmentation; returns the points given to the model in training and otherwise."""
    for name in AUGMENTATIONS:
        monkeypatch.setitem(AUGMENTATIONS, name, halve)

    def run_and_record(config: str, *flags: object) -> tuple[list[Tensor], list[Tensor]]:
        inputs: dict[bool, list[Tensor]] = {True: [], False: []}

        def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if type(module).__name__ == KINDS[config]:
                inputs[module.training].append(arguments[0])

        hook = register_module_forward_pre_hook(record)
        try:
            assert run(config, *flags) == 0
        finally:
            hook.remove()
        return inputs[True], inputs[False]

    return run_and_record


def farthest(subset: str, num_points: int, epoch: int | None = None) -> Tensor:
    """The farthest points (n, num_points, 3) of the clouds of a split, as an epoch of training shuffles them."""
    dataset = build_dataset(FINETUNE_DATA[subset])
    clouds = [points for points, _ in dataset]
    if epoch is not None:
        orders = [torch.Generator().manual_seed(mixed_seed(0, epoch, index)) for index in range(len(clouds))]
        clouds = [
            cloud[torch.randperm(len(cloud), generator=order)] for cloud, order in zip(clouds, orders, strict=True)
        ]
    points = torch.stack(clouds)
    return take(points, furthest_point_sample(points, num_points))


def assert_drawn(batches: list[Tensor], candidates: Tensor) -> None:
    """Each batch of (n, NPOINTS, 3) clouds is a draw of positions of some of the (m, FARTHEST, 3) candidates."""
    drawn = []
    for clouds in batches:
        places = (clouds[:, None, :, None] == candidates[None, :, None]).all(-1)  # (n, m, NPOINTS, FARTHEST)
        places = places[places.any(-1).all(-1)]  # of the candidate of each cloud
        assert len(places) == len(clouds)
        assert (places.sum(1) <= 1).all()  # no point twice
        assert torch.equal(places, places[:1].expand_as(places))  # the same positions throughout the batch
        assert places[0, :, NPOINTS:].any()  # not the first ones
        drawn.append(places[0].any(0))
    assert len(torch.stack(drawn).unique(dim=0)) == len(batches)  # not those of another batch


def test_finetuning_shuffles_draws_from_the_farthest_points_and_augments(feed):
    training, (evaluation,) = feed(FINETUNING, "--scratch_model", "--dry_run")
    assert len(training) > 1
    assert_drawn([2 * clouds for clouds in training], farthest("train", FARTHEST, epoch=0))
    assert torch.equal(evaluation, farthest("test", NPOINTS))


def test_finetuning_minimises_the_loss_of_the_model(here, monkeypatch):
    monkeypatch.setattr(Classifier, "loss", lambda model, logits, labels: 7 + 0 * logits.sum())
    assert run(FINETUNING, "--scratch_model", "--exp_name", "sevens") == 0
    history = results_of(FINETUNING, "sevens")["training from scratch"]["history"]
    assert [epoch["loss"] for epoch in history] == [7, 7]


def test_voting_draws_from_the_farthest_points_and_augments(feed, tmp_path, monkeypatch):
    torch.save({"base_model": build_model(CONFIGS[FINETUNING]["model"]).state_dict()}, tmp_path / "classifier.pth")
    monkeypatch.setattr(classification, "scale_and_translate", halve)
    _, (plain, *ballots) = feed(FINETUNING, "--test", "--vote", "--votes", 2, "--ckpts", tmp_path / "classifier.pth")
    assert torch.equal(plain, farthest("test", NPOINTS))
    assert len(ballots) == 2 * 10  # ten in each repeat
    assert_drawn([2 * clouds for clouds in ballots], farthest("test", FARTHEST))


def test_a_vote_is_repeated_49_times(tmp_path):
    assert inspect.signature(vote).parameters["repeats"].default == 49
    (tmp_path / "classifier.pth").touch()
    flags = ["--config", "x.yaml", "--test", "--vote", "--ckpts", str(tmp_path / "classifier.pth")]
    assert parse_args(flags).votes == 49


class Ballots(nn.Module):
    """Two votes for the first class, one for the second that weighs more."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = iter([[2.0, 0.0], [2.0, 0.0], [0.0, 9.0]])

    def forward(self, points: Tensor) -> Tensor:
        return torch.tensor([next(self.rows)])


def test_a_vote_averages_logits_not_probabilities():
    loader = [(torch.zeros(1, 4, 3), torch.tensor([1]))]
    assert vote(Ballots(), loader, 2, seed=0, device=torch.device("cpu"), repeats=1, votes=3) == [100.0]


def test_pretraining_augments_clouds_of_the_unit_sphere(feed):
    training, _ = feed(PRETRAINING, "--dry_run")
    clouds = 2 * torch.cat(training)
    torch.testing.assert_close(clouds.norm(dim=-1).amax(1), torch.ones(len(clouds)))
    torch.testing.assert_close(clouds.mean(1), torch.zeros(len(clouds), 3))


def test_part_segmentation_augments_in_training_only(feed):
    training, evaluation = feed(SEGMENTING, "--scratch_model", "--dry_run")
    assert torch.cat(training).norm(dim=-1).max() <= 0.5
    assert torch.cat(evaluation).norm(dim=-1).max() > 0.9
