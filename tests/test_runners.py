"""What runners hand to what they run: the device that is chosen, and points drawn as released."""

from typing import Any

import pytest
import torch

from datasets.synthetic import write_shapenetpart
from datasets.transforms import random_subset
from models import build_model
from tests.playground import CONFIGS, make_playground, run
from tools import runner_finetune, runner_part_segmentation, runner_pretrain, runner_test_svm
from tools.evaluation.features import without_teacher

META = torch.device("meta")  # tensors there have a shape and no values


class Caught(Exception):
    """What was looked for is there."""


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    folder = make_playground(tmp_path_factory.mktemp("playground"), CONFIGS)
    write_shapenetpart(folder / "data", classes=["chair", "lamp"], train=6, test=2, num_points=64)
    return folder


@pytest.fixture
def here(playground, monkeypatch):
    monkeypatch.chdir(playground)
    return playground


@pytest.mark.parametrize(
    ("runner", "config", "flags", "evaluator"),
    [
        (runner_pretrain, "pre-training/i2p", (), "svm_features"),
        (runner_finetune, "fine-tuning/modelnet", ("--scratch_model",), "evaluate"),
        (runner_part_segmentation, "part-segmentation/small", ("--scratch_model",), "measure"),
    ],
)
@pytest.mark.filterwarnings("ignore:the 2D teacher is untrained")
def test_training_and_its_evaluation_are_on_the_chosen_device(here, monkeypatch, runner, config, flags, evaluator):
    places = {}

    class Trainer:
        def __init__(self, config, args, run, network, loader, step, evaluate, *_: Any, **__: Any) -> None:
            places["network"] = {parameter.device for parameter in network.parameters()}
            self.evaluate = evaluate

        def fit(self) -> None:
            self.evaluate()

    def evaluate(model: Any, loader: Any, device: torch.device, *_: Any, **__: Any) -> None:
        places["evaluation"] = device
        raise Caught

    monkeypatch.setattr(runner, "choose_device", lambda: META)
    monkeypatch.setattr(runner, "Trainer", Trainer)
    monkeypatch.setattr(runner, evaluator, evaluate)
    with pytest.raises(Caught):
        run(config, *flags, "--exp_name", "device")
    assert places == {"network": {META}, "evaluation": META}


def test_features_of_an_svm_are_made_on_the_chosen_device(here, monkeypatch, tmp_path):
    model = build_model(without_teacher(CONFIGS["pre-training/i2p"]["model"]))
    torch.save({"base_model": model.state_dict()}, tmp_path / "weights.pth")
    places = []

    def features(model: Any, loaders: Any, device: torch.device) -> None:
        places.extend([device, {parameter.device for parameter in model.parameters()}])
        raise Caught

    monkeypatch.setattr(runner_test_svm, "choose_device", lambda: META)
    monkeypatch.setattr(runner_test_svm, "svm_features", features)
    with pytest.raises(Caught):
        run("pre-training/i2p", "--test_svm", "modelnet40", "--ckpts", tmp_path / "weights.pth", "--exp_name", "svm")
    assert places == [META, {META}]


def test_clouds_of_a_training_batch_share_the_places_of_the_points_that_are_drawn(here, monkeypatch):
    """As released: of the farthest points, each cloud keeps those of the same places."""
    kept = []

    def recorded(points: torch.Tensor, num_points: int, generator: torch.Generator, shared: bool = False) -> Any:
        places = torch.arange(float(points.shape[1])).view(1, -1, 1).expand(len(points), -1, 3)
        state = generator.get_state()
        kept.append(random_subset(places, num_points, generator, shared)[..., 0])
        generator.set_state(state)
        return random_subset(points, num_points, generator, shared)

    monkeypatch.setattr(runner_finetune, "random_subset", recorded)
    assert run("fine-tuning/modelnet", "--scratch_model", "--exp_name", "places") == 0
    assert all((places == places[0]).all() for places in kept)
    assert len({tuple(places[0].tolist()) for places in kept}) == len(kept) > 1  # and others in every batch
