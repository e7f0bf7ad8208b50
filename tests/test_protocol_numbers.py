"""The figures that a protocol reports, computed a second way, and the seeds behind them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from easydict import EasyDict
from matplotlib import pyplot as plt
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datasets import build_dataset
from datasets.synthetic import write_scanobjectnn, write_shapenetpart
from models import build_model
from models.classifier import Classifier
from models.part_segmenter import PartSegmenter
from tests.playground import CLASSES, CONFIGS, SCAN_DATA, changed, make_playground, results_of, run
from tests.test_datasets import write_h5
from tests.test_engine import arguments, config
from tools import runner_few_shot, runner_part_segmentation, runner_test
from tools.evaluation import classification, figures, segmentation
from tools.evaluation.classification import vote
from tools.evaluation.features import calibrated_svm_accuracy
from tools.evaluation.probes import Features, probe
from tools.evaluation.svm import standardise
from tools.training import repeat
from tools.training.builder import EVALUATION_BATCH_SIZE, TrainingLoader, build_optimizer
from tools.training.run import Run, open_run
from tools.training.trainer import Trainer

CPU = torch.device("cpu")
FINETUNING, SEGMENTING, PROBING = "fine-tuning/modelnet", "part-segmentation/small", "linear-svm/scan"


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with the generated data sets and the small configs."""
    folder = make_playground(tmp_path_factory.mktemp("numbers"), CONFIGS)
    write_scanobjectnn(folder / "data", classes=CLASSES, train=4, test=3, num_points=128)
    write_shapenetpart(folder / "data", classes=["mug", "knife", "table"], train=8, test=2, num_points=96)
    return folder


# ---- seeds ----


class Numbered(Dataset):
    """Eight clouds that hold their numbers."""

    labels = np.zeros(8, dtype=np.int64)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((2, 3), float(index)), 0


def trainer_of(monkeypatch, folder: Path, seed: int = 0, rank: int = 0, **changes) -> Trainer:
    """A trainer of two epochs; it has `clouds`, the numbers as they came, and `draws`, the first of each batch."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tools.training.trainer.rank", lambda: rank)
    monkeypatch.setattr("tools.training.run.Run.draw", lambda *_: None)
    model, clouds, draws = nn.Linear(3, 1), [], []

    def step(points: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        clouds.extend(points[:, 0, 0].int().tolist())
        draws.append(torch.rand((), generator=generator).item())
        return {"loss": model(points).mean()}

    settings = config(max_epoch=1)
    with open_run(settings, args := arguments(seed=seed, **changes), "training", training=True) as opened:
        loader = TrainingLoader(Numbered(), 2, num_workers=0)
        trainer = Trainer(settings, args, opened, model, loader, step, lambda: 50.0, "accuracy")
    trainer.clouds, trainer.draws = clouds, draws
    return trainer


def orders_and_draws(monkeypatch, folder: Path, seed: int, rank: int = 0) -> tuple[list[tuple[int, ...]], list[float]]:
    """The order of each epoch, and the draws of all batches."""
    trainer = trainer_of(monkeypatch, folder, seed, rank)
    trainer.fit()
    return [tuple(trainer.clouds[:8]), tuple(trainer.clouds[8:])], trainer.draws


def test_orders_and_augmentations_depend_on_seed_and_epoch(monkeypatch, tmp_path):
    runs = [orders_and_draws(monkeypatch, tmp_path / str(seed), seed) for seed in range(3)]
    orders = [order for found, _ in runs for order in found]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len(set(orders)) == 3 * 2
    assert len({draw for _, found in runs for draw in found}) == 3 * 2 * 4
    assert orders_and_draws(monkeypatch, tmp_path / "again", 2) == runs[2]


def test_processes_share_the_order_and_augment_each_in_its_own_way(monkeypatch, tmp_path):
    runs = [orders_and_draws(monkeypatch, tmp_path / str(rank), 5, rank) for rank in range(2)]
    assert runs[0][0] == runs[1][0]
    assert not set(runs[0][1]) & set(runs[1][1])


def test_order_and_augmentation_are_drawn_apart(monkeypatch, tmp_path):
    trainer = trainer_of(monkeypatch, tmp_path)
    trainer.fit()
    assert trainer.state.augmentation.initial_seed() != trainer.loader.batch_sampler.generator.initial_seed()


def test_the_scale_of_a_loss_survives_a_resume(monkeypatch, tmp_path):
    begun = trainer_of(monkeypatch, tmp_path, amp="fp16")
    begun.state.precision.load_state_dict({**begun.state.precision.state_dict(), "scale": 512.0})
    begun.fit()
    resumed = trainer_of(monkeypatch, tmp_path, amp="fp16", resume=True)
    resumed.fit()
    assert resumed.state.precision.state_dict() == begun.state.precision.state_dict()
    assert resumed.state.precision.state_dict()["scale"] == 512.0


def test_the_optimizer_has_the_released_settings():
    optimizer = build_optimizer(nn.Linear(3, 1), {"type": "AdamW", "kwargs": {"lr": 0.5, "weight_decay": 0.25}})
    assert {(group["lr"], group["betas"], group["eps"]) for group in optimizer.param_groups} == {
        (0.5, (0.9, 0.999), 1e-8)
    }


class Uniform(nn.Module):
    """Logits that show which points came in."""

    def forward(self, points: Tensor) -> Tensor:
        return points.flatten(1)[:, :2]


def test_votes_depend_on_seed_and_process(monkeypatch):
    """The points are drawn, scaled and shifted at random: what comes in shows the generator."""
    seen = []
    monkeypatch.setattr(classification, "overall_accuracy", lambda logits, labels: seen.append(logits[0, 0].item()))
    loader = [(torch.rand(1, 8, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0]))]
    for seed, rank in [(0, 0), (1, 0), (5, 0), (0, 7)]:
        monkeypatch.setattr(classification, "rank", lambda rank=rank: rank)
        vote(Uniform(), loader, 4, seed, CPU, repeats=2, votes=2)
    assert len(set(seen)) == 4 * 2


@pytest.mark.parametrize("seed", [0, 3])
def test_every_fold_has_the_seed_of_the_command(monkeypatch, tmp_path, seed):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner_few_shot, "require_fold", lambda *_: None)
    monkeypatch.setattr(runner_few_shot, "report", lambda *_, **__: {})
    trained = []

    def run_fold(config: EasyDict, args: SimpleNamespace, part: str) -> None:
        trained.append((part, args.seed, args.resume))

    settings = EasyDict({"max_epoch": 0, "dataset": {"train": {"DATA_PATH": "data", "N_POINTS": 8}, "test": {}}})
    runner_few_shot.run(settings, arguments(seed=seed, way=5, shot=10, scratch_model=True), run_fold)
    assert trained == [(f"5way_10shot/fold{fold}", seed, False) for fold in range(10)]


# ---- sums over repetitions ----


def test_the_deviation_over_seeds_divides_by_their_number(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    accuracies = {4: 10.0, 2: 60.0, 9: 20.0}
    runner = SimpleNamespace(
        MODE="training",
        mode_of=lambda args: "training",
        run=lambda config, args: {
            "protocol": "accuracy",
            "best_chosen_on": "the same split",
            "best_accuracy": accuracies[args.seed],
            "final_accuracy": accuracies[args.seed] / 2,
        },
    )
    results = repeat.run(runner, config(), arguments(seeds=list(accuracies)))
    deviation = (1400 / 3) ** 0.5
    expected = {"values": [10.0, 60.0, 20.0], "mean": 30.0, "std": pytest.approx(deviation), "best": 60.0}
    assert results["best_accuracy"] == expected
    assert results["final_accuracy"]["std"] == pytest.approx(deviation / 2)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("best_accuracy"))
    assert row.split()[1:] == ["30.00", "21.60", "60.00"]


class Ballots(nn.Module):
    """Two weak votes for class 0, one strong vote for class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = iter([[3.0, 0.0], [3.0, 0.0], [0.0, 4.0]])

    def forward(self, points: Tensor) -> Tensor:
        return torch.tensor([next(self.rows)])


def test_a_vote_is_the_mean_of_the_logits_not_the_largest():
    loader = [(torch.zeros(1, 4, 3), torch.tensor([0]))]
    assert vote(Ballots(), loader, 2, seed=0, device=CPU, repeats=1, votes=3) == [100.0]


def test_a_test_reports_each_figure_by_its_name(playground, monkeypatch, tmp_path, capsys):
    """Of six clouds the classifier finds 3 of 4 of class 0, none of 1 of class 1, and 1 of 1 of class 2."""
    monkeypatch.chdir(playground)
    found = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 2, 2, 2]), 3).float()
    monkeypatch.setattr(runner_test, "evaluate", lambda *_: (found, torch.tensor([0, 0, 0, 0, 1, 2])))
    monkeypatch.setattr(runner_test, "farthest_clouds", lambda *_: None)
    monkeypatch.setattr(runner_test, "vote", lambda *_: [10.0, 60.0, 20.0])
    torch.save({"base_model": build_model(CONFIGS[FINETUNING]["model"]).state_dict()}, tmp_path / "classifier.pth")
    flags = ("--test", "--vote", "--ckpts", tmp_path / "classifier.pth", "--exp_name", "figures")
    assert run(FINETUNING, *flags) == 0
    results = results_of(FINETUNING, "figures")["test"]
    assert results["accuracy"] == pytest.approx(100 * 4 / 6)
    assert results["mean_class_accuracy"] == pytest.approx(100 * (3 / 4 + 0 + 1) / 3)
    assert results["vote"]["mean_accuracy"] == 30.0
    assert results["vote"]["std_accuracy"] == pytest.approx((1400 / 3) ** 0.5)
    assert results["vote"]["best_accuracy"] == 60.0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [float(words[-1]) for words in shown if words[:2] in (["overall", "accuracy"], ["mean", "class"])] == [
        66.67,
        58.33,
    ]
    assert [float(words[-1]) for words in shown if words[:1] == ["vote:"]] == [30.0, 21.6, 60.0]


# ---- linear SVM ----


def test_features_are_standardised_by_those_of_the_training_clouds():
    train, test = standardise(np.array([[0.0, 7], [2, 7]]), np.array([[10.0, 7], [1, 9]]))
    assert train.tolist() == [[-1, 0], [1, 0]]
    assert test.tolist() == [[9, 0], [0, 2]]


def test_the_probe_chooses_on_the_training_clouds():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    train, test = (rng.normal(size=(90, 4)) + spread * np.eye(3, 4)[labels] for spread in (1.0, 3.0))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = {
        k: cross_val_score(KNeighborsClassifier(k, metric="cosine"), train, labels, cv=folds).mean()
        for k in (1, 3, 5, 10, 20, 50)
    }
    results = probe(Features(train, labels, test, labels), C=1.0)
    assert results["chosen_k_cross_validated_accuracy"] == pytest.approx(100 * max(scores.values()))
    assert results["chosen_k"] == max(scores, key=scores.get)


def test_the_svm_learns_from_the_training_clouds_and_is_measured_on_the_test_clouds(playground, monkeypatch, tmp_path):
    monkeypatch.chdir(playground)
    settings, path = CONFIGS[PROBING], tmp_path / "encoder.pth"
    torch.manual_seed(0)
    model = build_model(settings["model"]).eval()
    torch.save({"base_model": model.state_dict()}, path)
    assert run(PROBING, "--test_svm", "scan", "--ckpts", path, "--exp_name", "again") == 0
    sets = [build_dataset(settings["dataset"][name]) for name in ("svm_train", "svm_test")]
    assert [len(clouds) for clouds in sets] == [12, 9]
    with torch.no_grad():
        (train, test) = (model.encode(torch.stack([points for points, _ in clouds])).double() for clouds in sets)
    expected = SVC(kernel="linear", C=0.5).fit(train, sets[0].labels).score(test, sets[1].labels)
    results = results_of(PROBING, "again")["linear SVM"]
    assert results["accuracy"] == pytest.approx(100 * expected)
    assert {name: data["clouds"] for name, data in results["about"]["data"].items()} == {"svm_train": 12, "svm_test": 9}


class Moments(nn.Module):
    """An encoder of few operations, whose BatchNorm is far from the data."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(9)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.weight)

    def encode(self, points: Tensor) -> Tensor:
        covariance = points.transpose(1, 2) @ points / points.shape[1]
        return torch.tanh(self.norm(covariance.flatten(1)))


def probe_by_hand(model: nn.Module, train: Dataset, test: Dataset) -> float:
    """`calibrated_svm_accuracy`: statistics, standardisation and C come from the training clouds alone."""
    clouds = [torch.stack([points for points, _ in part]) for part in (train, test)]
    model.norm.momentum = None  # plain averages
    model.norm.reset_running_stats()
    with torch.no_grad():
        for batch in clouds[0].split(EVALUATION_BATCH_SIZE):
            model.train().encode(batch)
        features = [model.eval().encode(part).double().numpy() for part in clouds]
    features = [(part - features[0].mean(0)) / features[0].std(0) for part in features]
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    candidates = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
    svms = [SVC(kernel="linear", C=C) for C in candidates]
    chosen = int(np.argmax([cross_val_score(svm, features[0], train.labels, cv=folds).mean() for svm in svms]))
    return 100 * svms[chosen].fit(features[0], train.labels).score(features[1], test.labels)


def test_the_probe_of_the_demo_chooses_nothing_on_the_test_clouds(tmp_path):
    """Classes differ in their extents; the test clouds are stretched."""
    rng, extents = np.random.default_rng(0), np.array([[1, 1, 1], [1, 1.2, 1], [1.2, 1, 1], [1, 1, 1.2]])
    for part, count, stretched in (("training", 80, 1), ("test", 60, 1.1)):
        labels = np.arange(count) % 4
        spread = rng.uniform(0.8, 1.2, (count, 1, 3)) * extents[labels][:, None]
        data = (stretched * spread * rng.normal(size=(count, 64, 3))).astype(np.float32)
        write_h5(tmp_path / f"main_split/{part}_objectdataset.h5", data, labels)
    entries = {
        f"svm_{subset}": changed(SCAN_DATA[f"svm_{subset}"], "ROOT", str(tmp_path)) for subset in ("train", "test")
    }
    for entry in entries.values():
        del entry["others"]["npoints"]
    torch.manual_seed(0)
    model = Moments()
    measured = calibrated_svm_accuracy(model, {"dataset": entries})
    expected = probe_by_hand(model, *(build_dataset(entries[name]) for name in ("svm_train", "svm_test")))
    assert measured == pytest.approx(expected)


# ---- accuracies of training, and parts ----


@pytest.mark.parametrize(("name", "kind"), [(FINETUNING, Classifier), (SEGMENTING, PartSegmenter)])
def test_the_logged_training_accuracy_is_the_share_of_hits(playground, monkeypatch, name, kind):
    monkeypatch.chdir(playground)
    hits, logged, loss = [], [], kind.loss

    def recorded(model: nn.Module, scores: Tensor, labels: Tensor) -> Tensor:
        found = [max(range(len(row)), key=row.__getitem__) for row in scores.flatten(0, -2).tolist()]
        hits.append(100 * np.mean([f == true for f, true in zip(found, labels.flatten().tolist(), strict=True)]))
        return loss(model, scores, labels)

    monkeypatch.setattr(kind, "loss", recorded)
    monkeypatch.setattr(Run, "draw", lambda self, values, epoch: logged.append(values.get("train/accuracy")))
    assert run(name, "--scratch_model", "--exp_name", "hits") == 0
    logged = [value for value in logged if value is not None]
    assert len(logged) == 2
    assert 0 < max(logged) <= 100
    assert logged == pytest.approx([np.mean(part) for part in np.split(np.array(hits), 2)], rel=1e-4)
    (found,) = results_of(name, "hits").values()
    assert [epoch["accuracy"] for epoch in found["history"]] == logged
    assert found["history"][-1]["evaluation"] == found["final_accuracy"]


class AllTheSame(nn.Module):
    """Gives every point the first part of a knife, a mug or a table."""

    def forward(self, points: Tensor, categories: Tensor) -> Tensor:
        return -torch.arange(50.0).expand(*points.shape[:2], -1)


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[np.ndarray, object]]:
    """The points and colours that a picture is drawn of, in order."""
    found = []
    monkeypatch.setattr(figures, "_scatter", lambda axis, points, color: found.append((points.numpy(), color)))
    return found


def test_the_picture_of_a_segmenter_shows_truth_then_prediction(playground, monkeypatch, tmp_path, drawn):
    monkeypatch.chdir(playground)
    dataset = build_dataset(CONFIGS[SEGMENTING]["dataset"]["test"])
    picture = tmp_path / "parts.png"
    segmentation.measure(AllTheSame(), DataLoader(dataset, 2), CPU, picture)
    assert len(drawn) == 3 * 3  # a shape of each category
    first = [dataset.labels.tolist().index(category) for category in sorted(set(dataset.labels))]
    for shape, (true, predicted, wrong) in zip(first, zip(*[iter(drawn)] * 3, strict=True), strict=True):
        points, category, parts = dataset[shape]
        lowest = {7: 22, 11: 36, 15: 47}[category]  # of a knife, a mug, a table
        for place, part in enumerate(parts.tolist()):
            assert tuple(true[1][place]) == plt.cm.tab10(part % 10)
            assert tuple(predicted[1][place]) == plt.cm.tab10(lowest % 10)
            assert wrong[1][place] == ("lightgray" if part == lowest else "tab:red")
        assert all(np.array_equal(panel[0], points.numpy()) for panel in (true, predicted, wrong))


class Reconstructing(nn.Module):
    """Two of three tokens are masked; true points are 1, 2 and 3, predicted ones 10, 20 and 30."""

    def reconstruct(self, points: Tensor) -> dict[str, Tensor]:
        tokens = torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1).expand(1, 3, 4, 3)
        visible = torch.tensor([[False, True, False]])
        return {"visible": visible, "neighborhoods": tokens, "predictions": 10 * tokens}


def test_the_picture_of_a_reconstruction_shows_predictions_where_masked(tmp_path, drawn):
    figures.draw_reconstructions(Reconstructing(), torch.full((1, 5, 3), 7.0), tmp_path / "picture.png")
    assert [(set(points.flatten().tolist()), color) for points, color in drawn] == [
        ({7.0}, "tab:blue"),
        ({2.0}, "tab:blue"),
        ({1.0, 3.0}, "tab:gray"),
        ({2.0}, "tab:blue"),
        ({10.0, 30.0}, "tab:orange"),
    ]


def test_the_table_of_a_segmenter_names_its_figures():
    scores = {"instance_mIoU": 60.0, "class_mIoU": 50.0, "point_accuracy": 40.0, "category_mIoU": {"Mug": 30.0}}
    lines = segmentation.score_table("title", {"%": scores}).splitlines()
    assert [line.rsplit(maxsplit=1) for line in lines[2:]] == [
        ["instance mIoU", "60.00"],
        ["class mIoU", "50.00"],
        ["point accuracy", "40.00"],
        ["mIoU of Mug", "30.00"],
    ]


def test_the_best_and_the_final_segmenter_are_chosen_and_reported_by_instance_miou(playground, monkeypatch):
    monkeypatch.chdir(playground)
    given = iter([50.0, 40.0, 41.0, 51.0])  # after each epoch; of the final and of the best weights

    def measured(*_: object) -> dict[str, object]:
        miou = next(given)
        return {"instance_mIoU": miou, "class_mIoU": 100 - miou, "point_accuracy": 0.0, "category_mIoU": {}}

    monkeypatch.setattr(runner_part_segmentation, "measure", measured)
    assert run(SEGMENTING, "--scratch_model", "--exp_name", "chosen") == 0
    (results,) = results_of(SEGMENTING, "chosen").values()
    assert (results["best_epoch"], results["best_accuracy"], results["final_accuracy"]) == (0, 51.0, 41.0)
    assert (results["best"]["instance_mIoU"], results["final"]["instance_mIoU"]) == (51.0, 41.0)
