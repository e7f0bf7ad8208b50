"""A run computes where `choose_device` says, shown with a device that a machine without a GPU has too."""

from typing import Any

import pytest
import torch

from datasets.synthetic import write_shapenetpart
from tests.playground import CONFIGS, make_playground, run
from tools import runner_finetune, runner_part_segmentation, runner_pretrain

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
