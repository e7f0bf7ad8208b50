"""The loops, the builder, the trainer and the run folder, with tiny modules in place of the models."""

import itertools
import json
import math
import os
from argparse import Namespace
from datetime import datetime, timedelta

import pytest
import torch
from easydict import EasyDict
from torch import nn
from torch.utils.data import TensorDataset

import main
from datasets.draws import DrawnDataset
from tools.evaluation.classification import fps_points, sample_farthest, vote
from tools.evaluation.inference import calibrate_batchnorm, evaluate, extract_features
from tools.training.builder import TrainingLoader, build_optimizer, build_scheduler, check_config, training_loader
from tools.training.engine import train_one_epoch
from tools.training.run import open_run
from tools.training.trainer import Trainer, evaluation_interval
from utils.command import describe
from utils.parser import parse_args
from utils.tables import format_table

CPU = torch.device("cpu")


class Net(nn.Module):
    """Mean of the points, BatchNorm, dropout, two classes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(3, 2)

    def encode(self, points):
        return self.norm(points.mean(dim=1))

    def forward(self, points):
        return self.head(self.dropout(self.encode(points)))


def clouds(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    points = torch.randn(count, 5, 3, generator=generator) + labels[:, None, None]
    return points, labels


def batches(sizes):
    return list(zip(*(tensor.split(sizes) for tensor in clouds(sum(sizes))), strict=True))


# ---- loops ----


def train_linear(sizes, **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(batch):
        points, labels = batch
        return {"loss": nn.functional.cross_entropy(model(points.mean(dim=1)), labels)}

    train_one_epoch(model, batches(sizes), step, optimizer, **options)
    return model.weight.detach()


@pytest.mark.parametrize(
    ("small", "per_update", "large"),
    [
        ([4] * 6, 3, [12, 12]),
        ([4, 4, 2], 3, [10]),  # batches of different sizes
        ([4] * 5, 2, [8, 8, 4]),  # the last update is smaller
    ],
)
def test_accumulated_batches_equal_a_larger_batch(small, per_update, large):
    torch.testing.assert_close(train_linear(small, step_per_update=per_update), train_linear(large))


def test_gradient_norm_is_clipped_per_update():
    start = train_linear([8], grad_norm_clip=1e-9)  # does not move
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    train_one_epoch(
        model, batches([4, 4]), lambda b: {"loss": 1e3 * model(b[0]).mean()}, optimizer, grad_norm_clip=0.5,
        step_per_update=2,
    )  # fmt: skip
    assert (model.weight - before).norm().item() == pytest.approx(0.5, rel=1e-4)
    torch.manual_seed(0)
    torch.testing.assert_close(start, nn.Linear(3, 2).weight.detach())


def test_values_are_averaged_by_batch_size():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step(batch):
        return {"loss": model.weight.sum() * 0, "size": torch.tensor(len(batch[0]))}

    values = train_one_epoch(model, batches([6, 2]), step, optimizer)
    assert values == {"loss": 0.0, "size": pytest.approx((6 * 6 + 2 * 2) / 8)}


def test_an_empty_loader_is_refused():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no batch"):
        train_one_epoch(model, [], lambda batch: {}, optimizer)
    with pytest.raises(ValueError, match="no batch"):
        evaluate(model, [], CPU)


def test_evaluate_is_in_evaluation_mode_and_puts_the_mode_back():
    model = Net().train()
    model.norm.eval()
    statistics = model.norm.running_mean.clone()
    first, labels = evaluate(model, batches([3, 5]), CPU)
    second, _ = evaluate(model, batches([8]), CPU)
    torch.testing.assert_close(first, second)  # no dropout, no dependence on the batch, order kept
    assert labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert not first.requires_grad
    assert torch.equal(model.norm.running_mean, statistics)
    assert (model.training, model.dropout.training, model.norm.training) == (True, True, False)


def test_evaluate_prepares_the_points():
    model = Net()
    shifted, _ = evaluate(model, batches([8]), CPU, prepare=lambda points: points + 1)
    points, labels = clouds(8)
    expected, _ = evaluate(model, [(points + 1, labels)], CPU)
    assert torch.equal(shifted, expected)


def test_features_are_arrays_in_order():
    model = Net()
    features, labels = extract_features(model.encode, batches([3, 5]), CPU)
    assert (features.shape, features.dtype, labels.dtype) == ((8, 3), "float32", "int64")
    expected = model.eval().encode(clouds(8)[0]).detach()
    torch.testing.assert_close(torch.from_numpy(features), expected)


def test_calibration_averages_the_batches_and_keeps_all_else():
    model = Net().train()
    model(clouds(6)[0] + 9.0)  # statistics of other data, to be forgotten
    sizes = [4, 4, 4]
    calibrate_batchnorm(model, model.encode, batches(sizes), CPU)
    means = clouds(12)[0].mean(dim=1)
    torch.testing.assert_close(model.norm.running_mean, means.mean(dim=0))
    variances = torch.stack([part.var(dim=0) for part in means.split(4)])
    torch.testing.assert_close(model.norm.running_var, variances.mean(dim=0))
    assert model.norm.momentum == 0.1
    assert model.training
    assert model.norm.training


# ---- builder ----


def test_learning_rate_by_epoch():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = build_scheduler(optimizer, {"type": "CosLR", "kwargs": {"epochs": 400, "initial_epochs": 10}})
    rates = []
    for epoch in range(401):
        scheduler.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    cosine = [1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * epoch / 400)) / 2 for epoch in range(401)]
    warm_up = [1e-6 + (1e-3 - 1e-6) * epoch / 10 for epoch in range(10)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[1] == pytest.approx(1.009e-4)
    assert rates[10] == pytest.approx(9.984603e-4, rel=1e-6)  # the cosine at 10, not its start
    assert rates[300] == pytest.approx(1.473e-4, rel=1e-3)
    assert rates == pytest.approx(warm_up + cosine[10:])


def test_weight_decay_is_for_matrices_without_token_in_the_name():
    model = nn.ModuleDict(
        {
            "token_embed": nn.Linear(3, 4),
            "norm": nn.LayerNorm(4),
            "head": nn.Linear(4, 2),
            "frozen": nn.Linear(4, 2).requires_grad_(False),
        }
    )
    optimizer = build_optimizer(model, {"type": "AdamW", "kwargs": {"lr": 1e-3, "weight_decay": 0.05}})
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert names == {
        "token_embed.weight": 0.0,
        "token_embed.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "head.weight": 0.05,
        "head.bias": 0.0,
        "frozen.weight": None,
        "frozen.bias": None,
    }
    assert isinstance(optimizer, torch.optim.AdamW)


def test_missing_section_is_named_before_anything_runs():
    config = {"model": {"NAME": "I2P_MAE"}, "dataset": {}}
    with pytest.raises(ValueError, match=r"some\.yaml has no 'dataset\.train', which pre-training needs"):
        check_config(config, "some.yaml", "pre-training", ["model", "dataset.train"])


class Recorded(DrawnDataset):
    """Remembers what it was built with."""

    def __init__(self, n: int, seed: int = 0):
        super().__init__(seed)
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return torch.full((4, 3), float(index)), index % 2


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr("tools.training.builder.DATASETS", {"Recorded": Recorded})
    monkeypatch.setattr(
        "tools.training.builder.build_dataset", lambda config: Recorded(config["N"], config["others"].get("seed", 0))
    )


def loader_of(n, seed=0, **others):
    config = {"dataset": {"train": {"NAME": "Recorded", "N": n, "others": others}}, "total_bs": 4}
    return training_loader(config, arguments(seed=seed))


def order(loader):
    return [int(points[0, 0]) for batch, _ in loader for points in batch]


def test_loader_batches_and_seeds(recorded):
    assert len(loader_of(11)) == 2
    assert [len(points) for points, _ in loader_of(11, bs=5)] == [5, 5]
    assert [len(points) for points, _ in loader_of(3, bs=1)] == [1, 1, 1]
    assert loader_of(11, seed=3).dataset.seed == 3
    config = {"dataset": {"train": {"NAME": "Recorded", "N": 11, "others": {"seed": 7}}}, "total_bs": 4}
    assert training_loader(config, arguments(seed=3)).dataset.seed == 7


def test_an_epoch_has_an_order_of_its_own_and_continues_where_it_stopped(recorded):
    loader = loader_of(64)
    loader.begin(0, seed=1)
    first = order(loader)
    assert len(set(first)) == 64
    loader.begin(1, seed=2)
    assert order(loader) != first
    loader.begin(0, seed=1, start=5)
    assert len(loader) == 11
    assert order(loader) == first[20:]


def test_processes_share_the_batches_of_one(recorded, monkeypatch):
    loader = loader_of(64)
    loader.begin(0, seed=1)
    whole = order(loader)
    monkeypatch.setattr("tools.training.builder.world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr("tools.training.builder.rank", lambda rank=rank: rank)
        loader.begin(0, seed=1)
        shares.append(order(loader))
    assert [cloud for pair in zip(*shares, strict=True) for cloud in pair] == whole
    with pytest.raises(ValueError, match=r"a batch of 5 clouds .* cannot be shared by 2 processes"):
        loader_of(64, bs=5)


def test_training_set_smaller_than_a_batch_is_refused(recorded):
    with pytest.raises(ValueError, match=r"Recorded has 3 training clouds, fewer than one batch of 4; lower total_bs"):
        loader_of(3)


# ---- run folder ----


def arguments(**changes):
    values = vars(parse_args(["--config", "cfgs/some-mode/tiny.yaml", "--exp_name", "e", "--num_workers", "0"]))
    return Namespace(**{**values, **changes})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_folder_holds_what_it_should(here):
    with open_run(EasyDict(max_epoch=1), arguments(), "training", training=True) as run:
        run.draw({"train/loss": 1.0}, 0)
        run.finish({"protocol": "ours", "accuracy": 1.0})
    folder = here / "experiments/some-mode/tiny/e"
    assert (folder / "config.yaml").exists()
    assert len(list(folder.glob("*.log"))) == 1
    assert list((here / "experiments/some-mode/tiny/TFBoard/e").iterdir())
    with open_run(EasyDict(max_epoch=2), arguments(), "test", training=False) as run:
        run.finish({"protocol": "ours", "accuracy": 2.0})
    assert "max_epoch: 1" in (folder / "config.yaml").read_text()
    results = json.loads((folder / "results.json").read_text())
    assert {mode: values.pop("accuracy") for mode, values in results.items()} == {"training": 1.0, "test": 2.0}
    about = results["test"].pop("about")
    assert about["seed"] == 0
    assert abs(datetime.now() - datetime.strptime(about["began"], "%Y-%m-%d %H:%M:%S")) < timedelta(hours=1)
    assert len(about["config_sha256"]) == 64
    assert about["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "| accuracy | 2.00 |" in (folder / "results.md").read_text()
    assert not list(folder.glob("*.tmp"))


def test_curves_that_cannot_be_written_are_named(here, monkeypatch):
    with open_run(EasyDict(max_epoch=1), arguments(), "training", training=True) as run:
        monkeypatch.setattr(
            run.curves.writer, "add_scalar", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"x")
        )
        with pytest.raises(OSError, match=r"cannot write .*/tiny/TFBoard/e: No space left"):
            run.draw({"train/loss": 1.0}, 0)


def test_a_run_is_not_overwritten_by_mistake(here):
    folder = here / "experiments/some-mode/tiny/e"
    folder.mkdir(parents=True)
    (folder / "ckpt-last.pth").touch()
    with pytest.raises(ValueError, match=r"--resume.*--exp_name"):
        with open_run(EasyDict(), arguments(), "training", training=True):
            pass
    assert [path.name for path in folder.iterdir()] == ["ckpt-last.pth"]


def test_nothing_to_resume(here):
    with pytest.raises(FileNotFoundError, match=r"ckpt-last\.pth does not exist; start without --resume"):
        with open_run(EasyDict(), arguments(resume=True), "training", training=True):
            pass
    assert not (here / "experiments").exists()


def test_table():
    assert format_table([["ours", 91.234, 3], ["theirs, longer", 9.0, 12]], ["model", "%", "n"]) == (
        "model               %   n\n--------------  -----  --\nours            91.23   3\ntheirs, longer   9.00  12"
    )


# ---- trainer ----


def config(**changes):
    values = {
        "optimizer": {"type": "AdamW", "kwargs": {"lr": 0.05, "weight_decay": 0.05}},
        "scheduler": {"type": "CosLR", "kwargs": {"epochs": 10, "initial_epochs": 1}},
        "max_epoch": 3,
        "grad_norm_clip": None,
        "step_per_update": 1,
        "svm": {"C": 0.01, "every": 1},
    }
    return EasyDict({**values, **changes})


class Epochs(TensorDataset):
    """Draws by epoch, as ShapeNet does."""

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        points, label = super().__getitem__(index)
        return points + self.epoch, label


class Trained:
    """One training run of `Net`; `accuracies` are what its evaluations return, an exception is raised."""

    def __init__(self, accuracies, training_config=None, **changes):
        torch.manual_seed(0)
        self.model = Net()
        self.accuracies = iter(accuracies)
        self.scale = 1.0
        loader = TrainingLoader(Epochs(*clouds(16)), 4, num_workers=0)
        args, settings = arguments(**changes), training_config or config()
        with open_run(settings, args, "training", training=True) as run:
            self.run = run
            self.trainer = Trainer(settings, args, run, self.model, loader, self.step, self.evaluate, "accuracy, test")

    def step(self, points, labels, generator):
        points = points + torch.rand(points.shape, generator=generator)
        return {"loss": self.scale * nn.functional.cross_entropy(self.model(points), labels)}

    def evaluate(self):
        accuracy = next(self.accuracies)
        if isinstance(accuracy, BaseException):
            raise accuracy
        return accuracy


@pytest.fixture
def quiet(monkeypatch):
    """The trainer closes no curves of its own: its run is closed, so nothing may be drawn."""
    monkeypatch.setattr("tools.training.run.Run.draw", lambda *_: None)


def test_resumed_run_ends_as_one_that_never_stopped(here, quiet):
    whole = Trained([50.0, 70.0, 60.0, 65.0], exp_name="whole")
    expected = whole.trainer.fit()
    stopped = Trained([50.0, 70.0, KeyboardInterrupt()], exp_name="stopped")
    with pytest.raises(KeyboardInterrupt):
        stopped.trainer.fit()
    resumed = Trained([60.0, 65.0], exp_name="stopped", resume=True)
    torch.rand(7)  # the state of the generators comes from the checkpoint
    results = resumed.trainer.fit()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert {**results, "seconds": 0} == {**expected, "seconds": 0}
    assert (results["best_epoch"], results["best_accuracy"]) == (1, 70.0)
    assert (results["final_epoch"], results["final_accuracy"]) == (3, 65.0)


def test_an_epoch_runs_at_its_own_learning_rate(here, quiet):
    trainer = Trained([50.0, 50.0], config(max_epoch=1)).trainer
    trainer.fit()
    second = 1e-6 + (0.05 - 1e-6) * (1 + math.cos(math.pi / 10)) / 2  # the warm-up is over
    assert [epoch["lr"] for epoch in trainer.state.history] == pytest.approx([1e-6, second])


def rates_by_update(run):
    """Train; returns the learning rate of each batch."""
    rates, step = [], run.trainer.step

    def noted(*args, **kwargs):
        rates.append(run.trainer.state.optimizer.param_groups[0]["lr"])
        return step(*args, **kwargs)

    run.trainer.step = noted
    run.trainer.fit()
    return rates


def by_update(**changes):
    return config(scheduler={**config().scheduler, "every": "update"}, **changes)


def test_a_learning_rate_changes_with_every_update_where_the_config_says_so(here, quiet):
    rates = rates_by_update(Trained([50.0, 50.0], by_update(max_epoch=1)))
    warm_up = [1e-6 + (0.05 - 1e-6) * batch / 4 for batch in range(4)]  # epochs of 4 batches, the first is the warm-up
    cosine = [1e-6 + (0.05 - 1e-6) * (1 + math.cos(math.pi * (1 + batch / 4) / 10)) / 2 for batch in range(4)]
    assert rates == pytest.approx(warm_up + cosine)
    added_up = rates_by_update(Trained([50.0], by_update(max_epoch=0, step_per_update=2), exp_name="added-up"))
    assert added_up == pytest.approx([1e-6, 1e-6, *warm_up[2:3] * 2])


def test_a_run_that_is_resumed_within_an_epoch_goes_on_with_its_learning_rate(here, quiet):
    whole = Trained([50.0, 60.0], by_update(max_epoch=1), exp_name="whole")
    rates = rates_by_update(whole)
    stopped = Trained([50.0], by_update(max_epoch=1), save_every_steps=1)
    after_update, updates = stopped.trainer._after_update, itertools.count(1)

    def interrupt():
        after_update()
        if next(updates) == 6:  # in epoch 1
            raise KeyboardInterrupt

    stopped.trainer._after_update = interrupt
    with pytest.raises(KeyboardInterrupt):
        stopped.trainer.fit()
    resumed = Trained([60.0], by_update(max_epoch=1), resume=True)
    assert rates_by_update(resumed) == rates[6:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_the_config_clips_gradients(here, quiet):
    trainer = Trained([50.0], config(max_epoch=0, grad_norm_clip=1e-3)).trainer
    trainer.fit()
    means = [state["exp_avg"].flatten() for state in trainer.state.optimizer.state.values()]
    assert 0 < torch.cat(means).norm() <= 1e-3


def test_the_config_adds_batches_up(here, quiet):
    trainer = Trained([50.0], config(max_epoch=0, step_per_update=2)).trainer
    trainer.fit()
    assert {float(state["step"]) for state in trainer.state.optimizer.state.values()} == {2}  # 4 batches


def test_checkpoints_hold_the_best_and_the_last(here, quiet):
    run = Trained([50.0, 70.0, 70.0, 65.0])
    run.trainer.fit()
    best = torch.load(run.run.best_checkpoint, weights_only=True)
    last = torch.load(run.run.last_checkpoint, weights_only=True)
    assert (best["epoch"], best["metrics"]) == (1, {"accuracy": 70.0, "epoch": 1})
    assert (last["epoch"], last["metrics"]["accuracy"], last["best_metrics"]["epoch"]) == (3, 65.0, 1)
    assert last["config"]["optimizer"]["kwargs"]["lr"] == 0.05
    assert set(last) >= {"base_model", "optimizer", "scheduler", "rng"}


def test_resuming_a_finished_run_returns_its_results(here, quiet):
    expected = Trained([50.0, 70.0, 60.0, 65.0]).trainer.fit()
    again = Trained([], resume=True).trainer.fit()
    assert {**again, "seconds": 0} == {**expected, "seconds": 0}


def test_the_last_epoch_is_always_evaluated(here, quiet):
    results = Trained([10.0, 20.0, 30.0], val_freq=2).trainer.fit()  # epochs 0, 2 and 3
    assert (results["final_epoch"], results["final_accuracy"]) == (3, 30.0)


def test_start_checkpoint_gives_the_weights_and_nothing_else(here, quiet):
    start = {name: tensor + 1 for name, tensor in Net().state_dict().items()}
    torch.save({"base_model": start, "epoch": 7}, here / "start.pth")
    run = Trained([50.0], config(max_epoch=0), start_ckpts=here / "start.pth")  # epoch 0 has a learning rate of 1e-6
    results = run.trainer.fit()
    assert results["final_epoch"] == 0
    torch.testing.assert_close(run.model.head.weight.detach(), start["head.weight"], atol=1e-4, rtol=0)


def test_evaluation_interval():
    assert evaluation_interval({"svm": {"every": 5}}, arguments(val_freq=1)) == 5
    assert evaluation_interval({"svm": {"every": 5}}, arguments(val_freq=2)) == 2


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(here, quiet):
    run = Trained([50.0, 60.0])
    first_evaluation = run.trainer.evaluate

    def evaluate():
        run.scale = math.inf
        return first_evaluation()

    run.trainer.evaluate = evaluate
    with pytest.raises(
        ValueError, match=r"the loss is not finite in epoch 1, after 0 batches; .*lower optimizer\.kwargs\.lr"
    ):
        run.trainer.fit()
    state = torch.load(run.run.last_checkpoint, weights_only=True)
    assert state["epoch"] == 0
    assert all(tensor.isfinite().all() for tensor in state["base_model"].values())


def test_a_released_checkpoint_cannot_be_resumed(here, quiet):
    folder = here / "experiments/some-mode/tiny/e"
    folder.mkdir(parents=True)
    torch.save({"base_model": Net().state_dict(), "epoch": 3}, folder / "ckpt-last.pth")
    with pytest.raises(ValueError, match=r"cannot be resumed: it has no optimizer, .*--start_ckpts"):
        Trained([], resume=True).trainer.fit()


# ---- sampling and voting ----


def test_points_before_the_random_subset():
    assert [fps_points(n) for n in (1024, 2048, 4096, 8192, 64)] == [1200, 2400, 4800, 8192, 77]


def test_farthest_points_keep_their_other_channels():
    points = torch.tensor([[[1.0, 0, 0, 7], [1.1, 0, 0, 8], [-1.0, 0, 0, 9]]])
    assert sample_farthest(points, 2)[0, :, 3].tolist() == [7.0, 9.0]
    with pytest.raises(ValueError, match="have 3 points, fewer than the 4"):
        sample_farthest(points, 4)


def test_progress_of_a_vote_counts_single_passes(monkeypatch):
    done = []

    def progress(passes, description):
        for number in passes:
            yield number
            done.append((number, description))

    monkeypatch.setattr("tools.evaluation.classification.progress", progress)
    vote(Net(), batches([8]), 3, seed=1, device=CPU, repeats=3, votes=2)
    assert done == [(number, "passes of 3 votes") for number in range(6)]


def test_votes_are_repeatable_and_average_over_draws():
    torch.manual_seed(0)
    model = Net()
    loader = batches([20, 20])
    first = vote(model, loader, 3, seed=1, device=CPU, repeats=3, votes=2)
    assert first == vote(model, loader, 3, seed=1, device=CPU, repeats=3, votes=2)
    assert len(first) == 3
    assert all(0 <= accuracy <= 100 for accuracy in first)
    assert len(set(vote(model, loader, 3, seed=1, device=CPU, repeats=8, votes=1))) > 1


# ---- main ----


def test_error_of_a_worker_is_told_without_its_traceback():
    error = ValueError(
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1\nValueError: a.npy: row 3 is not finite\n'
    )
    assert describe(error) == "a.npy: row 3 is not finite"
    assert describe(ValueError("one\n  two")) == "one two"


def test_unexpected_errors_keep_their_traceback(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("main.load_config", broken)
    with pytest.raises(ZeroDivisionError):
        main.main(["--config", "x.yaml"])


def test_interrupt_is_plain(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("main.load_config", interrupted)
    assert main.main(["--config", "x.yaml"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
