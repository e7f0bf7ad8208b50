"""Part segmentation through main.py, with small models on generated shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.cm import tab10
from matplotlib.colors import to_rgba
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datasets.published import CATEGORIES as PUBLISHED
from datasets.published import PARTS
from datasets.synthetic import write_shapenetpart
from datasets.transforms import AUGMENTATIONS
from tests.playground import CONFIGS, ENCODER, files_of, make_playground, refuse, results_of_folder, run, write_config
from tools import runner_part_segmentation
from tools.evaluation.figures import draw_parts
from tools.evaluation.segmentation import OwnPartSegmenter, measure

CATEGORIES = ["Knife", "Mug", "Table"]  # in the order of their labels
CONFIG = "part-segmentation/small"
SCORES = ("point_accuracy", "class_mIoU", "instance_mIoU")


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with the generated data sets and the small configs."""
    configs = {name: CONFIGS[name] for name in (CONFIG, "pre-training/m2ae")}
    folder = make_playground(tmp_path_factory.mktemp("playground"), configs)
    write_shapenetpart(folder / "data", classes=["mug", "knife", "table"], train=8, test=2, num_points=96)
    return folder


@pytest.fixture(scope="module")
def finetuned(playground):
    """The run folder of a segmenter fine-tuned from a pre-trained encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(playground)
        assert run("pre-training/m2ae", "--exp_name", "base") == 0
        pretrained = playground / "experiments/pre-training/m2ae/base/ckpt-last.pth"
        assert run(CONFIG, "--finetune_model", "--ckpts", pretrained, "--exp_name", "base") == 0
    return playground / "experiments" / CONFIG / "base"


def test_finetuning_takes_the_pretrained_encoder(finetuned):
    log = next(finetuned.glob("*.log")).read_text()
    loaded = next(line for line in log.splitlines() if "loaded" in line)
    kept = loaded.partition("kept as initialised: ")[2]
    assert "propagations" in kept
    assert "h_encoder" not in kept


def test_finetuning_reports_the_best_and_the_final_segmenter(finetuned):
    results = results_of_folder(finetuned)["part segmentation, fine-tuning"]
    assert results["protocol"] == "instance mIoU on ShapeNetPart, test split"
    assert "ShapeNetPart, test split" in results["best_chosen_on"]
    assert results["final_epoch"] == 1
    for name in ("best", "final"):
        scores = results[name]
        assert scores["instance_mIoU"] == results[f"{name}_accuracy"]
        assert list(scores["category_mIoU"]) == CATEGORIES
        assert all(0 <= scores[key] <= 100 for key in SCORES)
        assert scores["class_mIoU"] == pytest.approx(sum(scores["category_mIoU"].values()) / len(CATEGORIES))
    log = next(finetuned.glob("*.log")).read_text()
    assert "chosen on instance mIoU on ShapeNetPart, test split" in log
    assert "mIoU of Knife" in log
    assert (finetuned / "parts.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("checkpoint", "name", "chosen_by"),
    [
        ("best", "best", "instance mIoU on ShapeNetPart, test split"),
        ("last", "final", "nothing, the latest of its run"),
    ],
)
def test_testing_gives_the_figures_of_training(here, finetuned, capsys, checkpoint, name, chosen_by):
    flags = ("--test", "--ckpts", finetuned / f"ckpt-{checkpoint}.pth", "--exp_name", checkpoint)
    assert run(CONFIG, *flags) == 0
    folder = Path("experiments", CONFIG, checkpoint)
    measured = results_of_folder(folder)["part segmentation"]
    trained = results_of_folder(finetuned)["part segmentation, fine-tuning"][name]
    assert {key: measured[key] for key in trained} == trained
    assert measured["about"]["checkpoint_chosen_by"] == chosen_by
    shown = capsys.readouterr()
    assert f"ShapeNetPart, test split; weights chosen by: {chosen_by}" in shown.out
    assert "generated shapes stand in for ShapeNetPart (dataset: test)" in shown.err
    assert (folder / "parts.png").read_bytes().startswith(b"\x89PNG")


def test_training_from_scratch(here):
    assert run(CONFIG, "--scratch_model", "--exp_name", "scratch", "--val_freq", 2) == 0
    results = results_of_folder(Path("experiments", CONFIG, "scratch"))["part segmentation, training from scratch"]
    assert results["final"]["instance_mIoU"] == results["final_accuracy"]


def test_instance_miou_chooses_the_best(here, monkeypatch):
    scores = {"instance_mIoU": 60.0, "class_mIoU": 50.0, "point_accuracy": 40.0, "category_mIoU": {}}
    monkeypatch.setattr(runner_part_segmentation, "measure", lambda *_: scores)
    assert run(CONFIG, "--scratch_model", "--exp_name", "chosen") == 0
    best = torch.load(Path("experiments", CONFIG, "chosen/ckpt-best.pth"), weights_only=True)["best_metrics"]
    assert best == {"accuracy": 60.0, "epoch": 0}


class OfTheFirstPart(nn.Module):
    """Finds each part less probable than the one before."""

    def forward(self, points: Tensor, categories: Tensor) -> Tensor:
        return -torch.arange(50.0).expand(*points.shape[:2], -1)


def test_points_are_given_parts_of_their_own_category():
    parts = OwnPartSegmenter(OfTheFirstPart())(torch.zeros(2, 3, 3), torch.tensor([4, 15]))
    assert parts.tolist() == [[12, 12, 12], [47, 47, 47]]  # of a chair, of a table


def optimizer_steps(run_folder: Path) -> float:
    state = torch.load(run_folder / "ckpt-last.pth", weights_only=True)["optimizer"]["state"]
    return float(state[0]["step"])


def test_one_optimizer_step_a_batch(finetuned):
    assert optimizer_steps(finetuned) == 10  # two epochs with 30 // 6 batches


def test_selection_on_held_out_shapes(here):
    assert run(CONFIG, "--scratch_model", "--select_on", "val", "--exp_name", "selected") == 0
    folder = Path("experiments", CONFIG, "selected")
    results = results_of_folder(folder)["part segmentation, training from scratch"]
    assert "a held-out tenth of the training split" in results["best_chosen_on"]
    assert results["protocol"] == "instance mIoU on ShapeNetPart, test split"
    assert results["best_accuracy"] == results["best"]["instance_mIoU"]
    assert optimizer_steps(folder) == 8  # two epochs with 27 // 6 batches


def test_a_finished_run_stays_as_it_is(here, finetuned, capsys):
    before = files_of(finetuned)
    assert run(CONFIG, "--finetune_model", "--exp_name", "base", "--resume") == 0
    assert "base is finished: epoch 1 of 1 is done" in capsys.readouterr().err
    line = refuse(capsys, CONFIG, "--scratch_model", "--resume", exp_name="base")
    assert "mode part segmentation, fine-tuning → part segmentation, training from scratch; " in line
    assert files_of(finetuned) == before


def test_a_released_checkpoint_is_tested(here, finetuned, tmp_path):
    """Published files hold the weights under model_state_dict."""
    state = torch.load(finetuned / "ckpt-last.pth", weights_only=True)["base_model"]
    torch.save({"model_state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "seg.pth")
    assert run(CONFIG, "--test", "--ckpts", tmp_path / "seg.pth", "--exp_name", "released") == 0
    measured = results_of_folder(Path("experiments", CONFIG, "released"))["part segmentation"]
    assert measured["instance_mIoU"] == results_of_folder(finetuned)["part segmentation, fine-tuning"]["final_accuracy"]


def test_the_augmentation_of_the_protocol():
    """One factor a cloud, an offset for each axis."""
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1]]).double().expand(500, 2, 3)
    moved = AUGMENTATIONS["scale_and_translate_small"](corners, torch.Generator().manual_seed(0))
    shift, scale = moved[:, 0], moved[:, 1] - moved[:, 0]
    assert (shift.min(), shift.max()) == pytest.approx((-0.1, 0.1), abs=2e-3)
    assert (scale.min(), scale.max()) == pytest.approx((0.8, 1.25), abs=2e-3)
    torch.testing.assert_close(scale, scale[:, :1].expand(-1, 3))
    assert len(scale[:, 0].unique()) == 500
    assert len(shift.unique()) == 1500


def test_a_dry_run_leaves_nothing(here):
    assert run(CONFIG, "--scratch_model", "--dry_run", "--exp_name", "dry") == 0
    assert not Path("experiments", CONFIG, "dry").exists()


def test_a_picture_shows_the_prediction(tmp_path):
    true = torch.tensor([[16, 16, 17, 18]])
    points = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(0))
    pictures = []
    for predicted in (true, true, true.flip(1)):
        draw_parts(points, true, predicted, ["Earphone"], tmp_path / "parts.png")
        pictures.append((tmp_path / "parts.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


class OneOfEach(Dataset):
    """A shape of each of the 16 categories, its points of the category's first part."""

    labels = np.arange(16)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        return torch.eye(3), index, torch.full((3,), PARTS[PUBLISHED[index]][0])


def test_a_picture_names_the_parts_of_every_category(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr("tools.evaluation.figures.save_figure", lambda figure, path: drawn.append(figure))
    measure(OfTheFirstPart(), DataLoader(OneOfEach(), 16), torch.device("cpu"), tmp_path / "parts.png")
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes[::3]] == [f"{name}: true parts" for name in PUBLISHED]
    numbers = [[int(text.get_text()) for text in axis.get_legend().get_texts()] for axis in axes[::3]]
    assert numbers == [list(PARTS[name]) for name in PUBLISHED]
    assert [part for parts in numbers for part in parts] == list(range(50))
    for parts, axis in zip(numbers, axes[::3], strict=True):
        colours = [to_rgba(handle.get_color()) for handle in axis.get_legend().legend_handles]
        assert colours == [tab10(part % 10) for part in parts]
        assert np.allclose(axis.collections[0].get_facecolor()[0], colours[0])


# ---- what is refused ----


def test_voting_is_refused(here, capsys, finetuned):
    line = refuse(capsys, CONFIG, "--test", "--vote", "--ckpts", finetuned / "ckpt-last.pth")
    assert "--vote averages the predictions of a classifier" in line
    assert not Path("experiments", CONFIG, "refused").exists()


def test_a_batch_of_one_cloud_is_refused(here, capsys):
    write_config(here, "part-segmentation/single", {**CONFIGS[CONFIG], "total_bs": 1})
    line = refuse(capsys, "part-segmentation/single", "--scratch_model")
    assert "a batch of 1 clouds (total_bs in the config) gives a process 1" in line


@pytest.mark.parametrize(
    "model",
    [
        {"NAME": "Point_M2AE_SEG", **ENCODER, "num_parts": 49},
        {"NAME": "Point_M2AE_SEG", **ENCODER, "num_categories": 3},
        {"NAME": "Point_M2AE_ModelNet40", **ENCODER},
    ],
    ids=["parts", "categories", "classifier"],
)
def test_a_model_that_does_not_fit_the_parts_is_refused(here, capsys, model):
    write_config(here, "part-segmentation/unfit", {**CONFIGS[CONFIG], "model": model})
    line = refuse(capsys, "part-segmentation/unfit", "--scratch_model")
    assert f"model.NAME is {model['NAME']}, but part segmentation needs" in line
    assert "Point_M2AE_SEG" in line


def test_a_checkpoint_of_another_model_is_refused(here, capsys, finetuned):
    pretrained = here / "experiments/pre-training/m2ae/base/ckpt-last.pth"
    line = refuse(capsys, CONFIG, "--test", "--ckpts", pretrained)
    assert "give a checkpoint of a part segmenter with 50 parts" in line
