"""Pre-training under settings of the 2D guidance, each measured once and read from then on."""

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from easydict import EasyDict

from tools.training.launch import run_or_read
from tools.training.modes import PRE_TRAINING
from utils.command import Parser
from utils.config import load_config, save_config
from utils.files import atomic_write, make_folder
from utils.tables import read_text

# What imports PyTorch, which takes seconds, is imported where it is used.

CONFIG = Path("cfgs/demo/ablation.yaml")
DATA = Path("data/ablation")
UNTRAINED = "untrained encoder"
SHAPES_OF_GRADIENTS = 32


class Setting(NamedTuple):
    """How to pre-train.

    Attributes:
        teacher: "trained", the one of the config, or "untrained", the same tower at random.
        losses, mask_temperature: arguments of `I2P_MAE`.
        weight_3d: the 3D loss's in the sum of both; the 2D loss has 1.
    """

    teacher: str
    losses: str
    mask_temperature: float = 1.0
    weight_3d: float = 1.0

    @property
    def name(self) -> str:
        """Of its config and its folder of runs."""
        weight = f"-weight-{self.weight_3d:g}" if self.weight_3d != 1 else ""
        return f"{self.teacher}-{self.losses}{weight}-temperature-{self.mask_temperature:g}"

    @property
    def words(self) -> tuple[str, str, str]:
        """Teacher, losses and mask, as the table says them."""
        weight = f", 3D × {self.weight_3d:g}" if self.weight_3d != 1 else ""
        mask = "random" if math.isinf(self.mask_temperature) else f"temperature {self.mask_temperature:g}"
        return ("none" if self == POINT_M2AE else self.teacher), self.losses + weight, mask

    def of(self, config: EasyDict) -> dict[str, Any]:
        """The config with this setting."""
        clip = dict(config.model.clip_config)
        if self.teacher == "untrained":
            clip["pretrained"] = "untrained"
        model = {"losses": self.losses, "mask_temperature": self.mask_temperature}
        return {
            **config,
            "model": {**config.model, **model, "loss_weights": [self.weight_3d, 1.0], "clip_config": clip},
        }


POINT_M2AE = Setting("untrained", "3d", math.inf)  # what its teacher says reaches neither mask nor loss
RELEASED = Setting("trained", "both")
BALANCED = Setting("trained", "both", weight_3d=0.003)  # that of the demo


class Figures(NamedTuple):
    """What a run comes to.

    Attributes:
        accuracy: of the linear SVM, in percent.
        visible_saliency: share of the saliency that visible tokens held in the last epoch.
        gradients: norms of the gradients of loss_3d and loss_2d, {"first": …, "last": …}.
    """

    accuracy: float
    visible_saliency: float | None = None
    gradients: dict[str, dict[str, float]] | None = None


def parse_study(parser: Parser, heading: str, argv: list[str] | None) -> Namespace:
    """Parse the command line of a study, which may write its figures under a heading of a document that has it."""
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help=f"put the figures under '## {heading}' of a document"
    )
    args = parser.parse_args(argv)
    if args.write:
        try:
            read_text(args.write, heading)  # fails now rather than after the runs
        except (ValueError, OSError) as error:
            parser.error(f"--write: {error}")
    return args


def measure(config: EasyDict, setting: Setting, seed: int, folder: Path) -> Figures:
    """Pre-train and probe with one setting and seed, or read what an earlier call found.

    Raises:
        ValueError: if the folder of the run holds one of another config.
        SystemExit: if the run fails, with its exit code.
    """
    from models import build_model
    from tools.evaluation.features import calibrated_svm_accuracy, without_teacher
    from utils.checkpoint import load_weights
    from utils.seed import seed_everything

    config = reloaded(setting, config, folder)
    file = figures_file(folder, setting.name, seed)
    if found := read_figures(file, config):
        return found
    run = file.parent
    run_or_read(run, ["--config", str(folder / f"{setting.name}.yaml"), "--exp_name", run.name], seed)
    seed_everything(seed)
    with_teacher = build_model(config.model)
    gradients = {"first": gradients_of(with_teacher, config)}
    load_weights(with_teacher, run / "ckpt-last.pth", strict=True)
    gradients["last"] = gradients_of(with_teacher, config)
    model = build_model(without_teacher(config.model))
    load_weights(model, run / "ckpt-last.pth", strict=True)
    history = json.loads((run / "results.json").read_text())[PRE_TRAINING]["history"]
    return keep(file, Figures(calibrated_svm_accuracy(model, config), history[-1]["visible_saliency"], gradients))


def measure_untrained(config: EasyDict, seed: int, folder: Path) -> Figures:
    """Probe an encoder as it is initialised, or read what an earlier call found."""
    from models import build_model
    from tools.evaluation.features import calibrated_svm_accuracy, without_teacher
    from utils.seed import seed_everything

    file = figures_file(folder, UNTRAINED, seed)
    if found := read_figures(file, config):
        return found
    make_folder(file.parent)
    save_config(config, file.with_name("config.yaml"))
    seed_everything(seed)
    return keep(file, Figures(calibrated_svm_accuracy(build_model(without_teacher(config.model)), config)))


def gradients_of(model: Any, config: EasyDict) -> dict[str, float]:
    """Norms of the losses' gradients on some shapes of the training split, always the same."""
    import torch

    from datasets import build_dataset
    from tools.evaluation.gradients import gradient_norms

    shapes = build_dataset(config.dataset.train)
    chosen = torch.linspace(0, len(shapes) - 1, min(SHAPES_OF_GRADIENTS, len(shapes))).long().tolist()
    return gradient_norms(model, torch.stack([shapes[i][0] for i in chosen]))


def reloaded(setting: Setting, config: EasyDict, folder: Path) -> EasyDict:
    """Write the config of a setting into the folder of all runs; returns it as it is read from there."""
    source = folder / f"{setting.name}.yaml"
    save_config(setting.of(config), source)
    return load_config(source)


def figures_file(folder: Path, name: str, seed: int) -> Path:
    """Where the figures of a run are kept: in its folder."""
    return folder / name / f"seed{seed}" / "figures.json"


def read_figures(file: Path, config: EasyDict) -> Figures | None:
    """Read the figures of a run, None if it has none; ValueError if the run is one of another config."""
    own = file.with_name("config.yaml")
    if own.exists() and load_config(own) != config:
        raise ValueError(f"{file.parent} holds a run of another config; move it away, or delete it, to run anew")
    return Figures(**json.loads(file.read_text())) if file.exists() else None


def keep(file: Path, figures: Figures) -> Figures:
    """Write the figures of a run, return them."""
    with atomic_write(file) as out:
        out.write((json.dumps(figures._asdict()) + "\n").encode())
    return figures
