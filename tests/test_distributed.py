"""Two processes on one machine: they compute what one would, and leave what one would."""

import copy
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from argparse import Namespace
from functools import partial
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, TensorDataset

from main import EXIT_STOPPED
from models import build_model
from models.classifier import Classifier
from models.corruption import Corruption, Draws
from models.point_transformer import ACTClassifier
from tests.playground import CONFIGS, REPOSITORY, changed, make_playground, results_of, run, write_config
from tests.playground import results_of_folder as read_results
from tests.test_point_bert import MODEL as POINT_BERT
from tests.test_pretraining_models import SMALL, i2p_mae, point_m2ae
from tests.test_s3dis import Rooms, Says, room_of, uniform
from tools import runner_pretrain
from tools.evaluation import classification
from tools.evaluation.inference import evaluate
from tools.evaluation.rooms import measure_rooms
from tools.runner_pretrain import over_all_processes
from tools.training import run as training_run
from tools.training.builder import TrainingLoader, parallel
from tools.training.engine import train_one_epoch
from tools.training.trainer import Trainer
from utils import distributed
from utils.command import run_command
from utils.distributed import ENVIRONMENT, on_main, processes, rank, world_size

CPU = torch.device("cpu")
PRETRAINING, FINETUNING = "pre-training/i2p", "fine-tuning/modelnet"
PLAIN = Namespace(sync_bn=False, compile=False)

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without Gloo")


SERVER = multiprocessing.get_context("forkserver")  # forks processes that have imported PyTorch but not used it
SERVER.set_forkserver_preload([__name__])


def forked(folder: Path, function, *arguments) -> list:
    """Call a function in two processes, in the environment that torchrun makes; what they say is in `said_by`.

    Returns:
        What each returned, by rank.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)  # where the server finds what to import
        ensure_running()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [SERVER.Process(target=work, args=(rank, environment, folder, function, arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        worker.kill()
    failures = [path.read_text() for path in sorted(folder.glob("rank*.txt"))]
    assert not failures, "\n".join(failures)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def work(rank: int, environment: dict[str, str], folder: Path, function, arguments) -> None:
    """What a process does."""
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank), CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    with open(folder / f"said{rank}", "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        torch.save(function(*arguments), folder / f"rank{rank}.pt")
    except BaseException:
        (folder / f"rank{rank}.txt").write_text(traceback.format_exc())
        raise


def said_by(folder: Path) -> str:
    """What the last two processes said."""
    return "".join((folder / f"said{rank}").read_text() for rank in range(2))


def in_two_processes(folder: Path, function, *arguments) -> list:
    """Call a function in two processes that know each other; returns what each returned, by rank."""
    return forked(folder, joined, function, *arguments)


def joined(function, *arguments):
    with processes("pytorch"):
        return function(*arguments)


# ---- what is computed ----


def frozen(model: nn.Module) -> nn.Module:
    """Let no layer depend on the batch or on chance, so that only the sharing can make a difference."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            module.train = lambda mode=True: None
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.double()


def clouds(count: int) -> torch.Tensor:
    points = torch.randn(count, 64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return points / points.norm(dim=-1).amax(1)[:, None, None]


def coarse_masks(count: int) -> torch.Tensor:
    """(count, 8) bool, True = masked; the first clouds show one token, the last three."""
    mask = torch.ones(count, 8, dtype=torch.bool)
    for i in range(count):
        mask[i, : 1 if i < count // 2 else 3] = False
    return mask


def dealt(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The clouds of this process: half of them, those that show few tokens in one process, the others in the other."""
    return tuple(tensor.chunk(world_size())[rank()] for tensor in tensors)


def changes(network: nn.Module, batch: tuple[torch.Tensor, ...], splits: int, step) -> torch.Tensor:
    """What one update of plain gradient descent, over a batch in `splits` parts, changes in all parameters, (n,)."""
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    parts = list(zip(*(tensor.chunk(splits) for tensor in batch), strict=True))
    train_one_epoch(network, parts, step, optimizer, step_per_update=splits)
    return nn.utils.parameters_to_vector(network.parameters()).detach() - before


def pretrain(build, points, masks, splits=1, weigh=over_all_processes) -> torch.Tensor:
    model = frozen(build(drop_path_rate=0.0))
    network = parallel(model, PLAIN)
    return changes(network, dealt(points, masks), splits, lambda batch: weigh(network(*batch), model.num_groups[1]))


def classify(splits=1) -> torch.Tensor:
    torch.manual_seed(0)
    sizes = {key: value for key, value in SMALL.items() if not key.startswith("decoder")}
    model = frozen(Classifier(num_classes=2, pooling="sum", drop_path_rate=0.0, **sizes))
    network = parallel(model, PLAIN)
    batch = dealt(clouds(4), torch.tensor([0, 1, 1, 0]))
    return changes(network, batch, splits, lambda batch: {"loss": model.loss(network(batch[0]), batch[1])})


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative."""
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("build", [i2p_mae, point_m2ae])
def test_pretraining_in_two_processes_takes_the_step_of_one(build, tmp_path):
    expected = pretrain(build, clouds(4), coarse_masks(4))
    for share in in_two_processes(tmp_path, pretrain, build, clouds(4), coarse_masks(4)):
        assert distance(share, expected) < 1e-6


def draws_of(rows: slice) -> Draws:
    """Masks of some of four clouds, the more the later the cloud; nothing is mixed, or the batch would decide it."""
    counts = torch.tensor([1, 2, 5, 6])
    masks = [(torch.arange(8) + shift) % 8 < counts[rows].unsqueeze(1) for shift in range(3)]
    return Draws(*map(Corruption, masks), torch.ones(len(counts[rows])), torch.ones_like(masks[0]))


def pretrain_point_bert(updates: int = 1, **losses: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What updates change in the parameters, the queue, and where it goes on; a loader would deal the clouds so."""
    torch.manual_seed(0)
    config = {**POINT_BERT, "transformer_config": {**POINT_BERT["transformer_config"], "cutmix_loss": False, **losses}}
    model = frozen(build_model(config))
    rows = slice(rank(), None, world_size())
    model.draw = lambda *_: draws_of(rows)
    network = parallel(model, PLAIN)

    def step(batch):
        return over_all_processes(network(*batch), model.num_tokens)

    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    for _ in range(updates):
        changes(network, (clouds(4)[rows],), 1, step)
    return nn.utils.parameters_to_vector(model.parameters()).detach() - before, model.queue, model.queue_ptr


@pytest.mark.filterwarnings("ignore:model.dvae_config.ckpt is untrained")
@pytest.mark.parametrize("losses", [{"moco_loss": True}, {}], ids=["words and contrast", "words alone"])
def test_point_bert_in_two_processes_takes_the_steps_of_one_and_has_the_keys_of_both(losses, tmp_path):
    change, queue, pointer = pretrain_point_bert(2, **losses)
    assert pointer.tolist() == [8]
    for found in in_two_processes(tmp_path, partial(pretrain_point_bert, 2, **losses)):
        assert distance(found[0], change) < 1e-9
        torch.testing.assert_close(found[1], queue, rtol=0, atol=1e-9)
        assert found[2].tolist() == [8]


def point_bert_with_too_many_keys(points):
    with pytest.raises(ValueError, match=r"12 keys, is no multiple of the batch of all processes, 8 clouds"):
        build_model(POINT_BERT).double()(points[rank() :: 2])


def test_the_queue_has_to_hold_batches_of_all_processes(tmp_path):
    in_two_processes(tmp_path, point_bert_with_too_many_keys, clouds(8))


def unweighed(values, _):
    return values


def test_losses_that_are_not_weighed_over_the_processes_take_another_step(tmp_path):
    expected = pretrain(i2p_mae, clouds(4), coarse_masks(4))
    shares = in_two_processes(tmp_path, pretrain, i2p_mae, clouds(4), coarse_masks(4), 1, unweighed)
    assert distance(shares[0], expected) > 0.01


@pytest.mark.parametrize("splits", [1, 2])
def test_classification_in_two_processes_takes_the_step_of_one(splits, tmp_path):
    expected = classify()
    assert distance(classify(splits=4), expected) < 1e-12
    for share in in_two_processes(tmp_path, classify, splits):
        assert distance(share, expected) < 1e-12


def transfer() -> torch.Tensor:
    torch.manual_seed(0)
    model = ACTClassifier(2, 24, 24, "linear", depth=2, num_heads=3, drop_path_rate=0.0, num_group=8, group_size=4)
    network = parallel(frozen(model), PLAIN)
    batch = dealt(clouds(4), torch.tensor([0, 1, 1, 0]))
    return changes(network, batch, 1, lambda batch: {"loss": model.loss(network(batch[0]), batch[1])})


def test_a_frozen_body_stays_in_two_processes_while_its_head_takes_the_step_of_one(tmp_path):
    expected = transfer()
    assert expected.count_nonzero() == 24 + 24 + 48 * 2 + 2  # class token, its position, head
    for share in in_two_processes(tmp_path, transfer):
        assert distance(share, expected) < 1e-12


def measured_rooms() -> dict:
    rooms = Rooms(*(room_of(uniform(300, seed=seed), classes=seed) for seed in range(3)))
    return measure_rooms(Says(lambda call, points: (points[..., 2] > 1).long()), rooms, CPU, seed=0)


def test_rooms_are_shared_and_measured_as_in_one_process(tmp_path):
    expected = measured_rooms()
    assert 0 < expected["mIoU"] < 100
    assert in_two_processes(tmp_path, measured_rooms) == [expected, expected]


@pytest.mark.parametrize("build", [i2p_mae, point_m2ae])
def test_accumulated_pretraining_batches_equal_a_larger_one_where_the_token_counts_are_equal(build):
    points, masks = clouds(2).repeat(2, 1, 1), coarse_masks(2).repeat(2, 1)
    assert distance(pretrain(build, points, masks, splits=2), pretrain(build, points, masks)) < 1e-12


def test_nothing_masked_anywhere_gives_a_finite_loss(tmp_path):
    values = {"loss_3d": torch.tensor(0.0), "loss_2d": torch.tensor(3.0), "visible_tokens": torch.tensor(16.0)}
    for share in in_two_processes(tmp_path, over_all_processes, {**values, "loss": torch.tensor(3.0)}, 16):
        assert (share["loss"], share["loss_3d"]) == (3.0, 0.0)


class Sum(nn.Module):
    def forward(self, points):
        return points.sum(dim=(1, 2))


def dealt_loader(points, labels, batch_size=2):
    return DataLoader(TensorDataset(points, labels), batch_size, sampler=range(rank(), len(points), world_size()))


def evaluated(points):
    return evaluate(Sum(), dealt_loader(points, torch.arange(len(points))), CPU)


@pytest.mark.parametrize("count", [7, 1])
def test_evaluation_returns_every_cloud_once_and_in_order(count, tmp_path):
    points = torch.arange(count * 6, dtype=torch.float32).view(count, 2, 3)
    for outputs, labels in in_two_processes(tmp_path, evaluated, points):
        assert torch.equal(outputs, points.sum(dim=(1, 2)))
        assert labels.tolist() == list(range(count))


def training_share():
    loader = TrainingLoader(TensorDataset(torch.arange(22)), 4, num_workers=0)
    loader.begin(0, seed=1)
    return [batch.tolist() for (batch,) in loader]


def test_training_shares_are_disjoint_and_complete(tmp_path):
    shares = in_two_processes(tmp_path, training_share)
    assert [list(map(len, batches)) for batches in shares] == [[2] * 5, [2] * 5]
    assert len({cloud for batch in itertools.chain(*shares) for cloud in batch}) == 20


def statistics():
    model = nn.BatchNorm1d(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    points = torch.randn(4, 3, generator=torch.Generator().manual_seed(rank()))
    network = parallel(model, PLAIN)
    train_one_epoch(network, [(points,)], lambda batch: {"loss": network(batch[0]).square().mean()}, optimizer)
    return model.running_mean


def test_running_statistics_are_those_of_the_main_process(tmp_path):
    first, second = in_two_processes(tmp_path, statistics)
    assert first.any()
    assert torch.equal(first, second)


def refuse():
    raise ValueError("refused")


def refused_and_answered():
    with pytest.raises(ValueError, match="refused"):
        on_main(refuse)
    return on_main(rank)


def test_an_error_of_the_main_process_is_raised_in_all(tmp_path):
    assert in_two_processes(tmp_path, refused_and_answered) == [0, 0]


def votes(points, labels):
    model, loader = nn.Flatten(), classification.farthest_clouds(dealt_loader(points, labels), 1, CPU)
    ballots = evaluate(model, loader, CPU)
    return len(ballots[0]), ballots[1].tolist(), classification.vote(model, loader, 1, 0, CPU, repeats=3, votes=2)


def test_votes_count_every_cloud_once(tmp_path):
    labels = torch.arange(5) % 2
    first, second = in_two_processes(tmp_path, votes, clouds(5).float(), labels)
    assert first == second
    assert first[:2] == (5, labels.tolist())


# ---- whole runs ----


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with generated data sets and small configs."""
    configs = {name: CONFIGS[name] for name in (PRETRAINING, FINETUNING)}
    return make_playground(tmp_path_factory.mktemp("playground"), configs, modelnet=10)


def run_in_two(folder: Path, config: str, *flags: object) -> list[int]:
    """Run a command line in two processes; returns their exit codes."""
    return forked(folder, run, config, "--launcher", "pytorch", *flags)


@pytest.fixture(scope="module")
def trained(playground, tmp_path_factory):
    """Whole runs in two processes: the folder and the lines they said by config."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(playground)
        for name, mode in ((PRETRAINING, ()), (FINETUNING, ("--scratch_model",))):
            folder = tmp_path_factory.mktemp("two")
            assert run_in_two(folder, name, "--exp_name", "two", *mode) == [0, 0]
            found[name] = Path(playground, "experiments", name, "two"), said_by(folder).splitlines()
    return found


@pytest.mark.parametrize("config", [PRETRAINING, FINETUNING])
def test_only_the_main_process_writes_and_informs(trained, config):
    folder, lines = trained[config]
    assert {path.name for path in folder.iterdir() if path.suffix != ".log"} == {
        *("config.yaml", "ckpt-best.pth", "ckpt-last.pth", "ckpt-previous.pth"),
        *("metrics.jsonl", "results.json", "results.md", ".lock"),
        *(["reconstructions.png"] if config == PRETRAINING else []),
    }
    assert len(list(folder.glob("*.log"))) == 1
    messages = [line for line in lines if "INFO" in line]
    assert len(messages) > 4
    assert len(set(messages)) == len(messages)
    (results,) = json.loads((folder / "results.json").read_text()).values()
    assert (results["about"]["processes"], results["final_epoch"]) == (2, 1)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seen = [line["clouds_per_second"] * line["seconds"] for line in lines]
    assert seen == pytest.approx([12, 12] if config == PRETRAINING else [30, 30])  # of both processes


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(folder / f"ckpt-{name}.pth", weights_only=True)["base_model"]


def assert_same_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert not [name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)]


def final_weights():
    kept = []

    class Kept(Trainer):
        def fit(self):
            results = super().fit()
            kept.append(copy.deepcopy(self.state.model.state_dict()))
            return results

    runner_pretrain.Trainer = Kept
    assert run(PRETRAINING, "--launcher", "pytorch", "--exp_name", "again") == 0
    return kept[0]


def test_both_processes_end_with_the_saved_weights(trained, here, tmp_path):
    for ended in forked(tmp_path, final_weights):
        assert_same_weights(ended, weights(trained[PRETRAINING][0]))


def stopped(*command):
    update = Trainer._after_update

    def after_update(trainer):  # a signal reaches one process in epoch 1
        trainer.stop.requested = rank() == 1 and trainer.state.epoch == 1
        update(trainer)

    Trainer._after_update = after_update
    return run(*command)


@pytest.mark.parametrize(("config", "mode"), [(PRETRAINING, ()), (FINETUNING, ("--scratch_model",))])
def test_a_resumed_run_ends_as_one_that_never_stopped(trained, here, tmp_path, config, mode):
    folder, _ = trained[config]
    flags = ("--launcher", "pytorch", "--exp_name", "resumed", *mode)

    assert forked(tmp_path, stopped, config, *flags) == [EXIT_STOPPED, EXIT_STOPPED]
    assert forked(tmp_path, run, config, *flags, "--resume") == [0, 0]
    assert_same_weights(weights(folder.with_name("resumed")), weights(folder))
    (expected,), (results,) = (read_results(path).values() for path in (folder, folder.with_name("resumed")))
    assert results["history"] == [pytest.approx(epoch) for epoch in expected["history"]]
    assert results["final_accuracy"] == expected["final_accuracy"]


def resumed_slowly(*command):
    read = training_run.read_checkpoint

    def slow(path):
        try:
            return read(path)
        except ValueError:
            time.sleep(0.5 * rank())  # until the main process has put the file aside
            raise

    training_run.read_checkpoint = slow
    return run(*command)


def test_a_damaged_checkpoint_is_put_aside_once(trained, here, tmp_path):
    folder = trained[FINETUNING][0].with_name("damaged")
    shutil.copytree(trained[FINETUNING][0], folder)
    (folder / "ckpt-last.pth").write_bytes(b"damaged")
    command = (FINETUNING, "--launcher", "pytorch", "--scratch_model", "--exp_name", folder.name, "--resume")
    assert forked(tmp_path, resumed_slowly, *command) == [0, 0]
    assert (folder / "ckpt-last.damaged.pth").read_bytes() == b"damaged"
    assert_same_weights(weights(folder), weights(trained[FINETUNING][0]))


def test_a_run_of_two_continues_in_one(trained, here, capsys):
    shutil.copytree(trained[PRETRAINING][0], "experiments/pre-training/i2p/fewer")
    write_config(here, PRETRAINING, {**CONFIGS[PRETRAINING], "max_epoch": 2})
    assert run(PRETRAINING, "--exp_name", "fewer", "--resume") == 0
    write_config(here, PRETRAINING, CONFIGS[PRETRAINING])
    assert "the run had 2 processes and now has 1" in capsys.readouterr().err
    assert read_results(Path("experiments/pre-training/i2p/fewer"))["pre-training"]["final_epoch"] == 2


def test_the_measured_accuracy_is_that_of_the_saved_weights(trained, here):
    for config, mode, key in (
        (PRETRAINING, ("--test_svm", "modelnet40"), "linear SVM"),
        (FINETUNING, ("--test",), "test"),
    ):
        folder, _ = trained[config]
        assert run(config, *mode, "--ckpts", folder / "ckpt-last.pth", "--exp_name", "check") == 0
        (trained_results,) = read_results(folder).values()
        assert results_of(config, "check")[key]["accuracy"] == trained_results["final_accuracy"]


@pytest.mark.parametrize(
    ("config", "mode"),
    [(PRETRAINING, ("--test_svm", "modelnet40")), (PRETRAINING, ("--test_bank",)), (FINETUNING, ("--test",))],
)
def test_two_processes_measure_what_one_does(trained, here, tmp_path, config, mode):
    flags = (*mode, "--ckpts", trained[config][0] / "ckpt-last.pth", "--exp_name")
    one, shared = f"one{mode[0]}", f"shared{mode[0]}"
    assert run(config, *flags, one) == 0
    assert run_in_two(tmp_path, config, *flags, shared) == [0, 0]
    (expected,), (results,) = results_of(config, one).values(), results_of(config, shared).values()
    assert {**results, "about": 0} == {**expected, "about": 0}


# ---- what is refused ----


def test_processes_that_torchrun_did_not_start_are_refused(here, capsys, monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert run(PRETRAINING, "--launcher", "pytorch") == 1
    assert re.search(r"finds no RANK, .*torchrun --nproc_per_node=GPUS", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("total_bs", "flags", "message"),
    [
        (6, ["--sync_bn"], "--sync_bn needs GPUs: PyTorch has no synchronised BatchNorm for the CPU; drop --sync_bn"),
        (5, [], "a batch of 5 clouds (total_bs in the config) cannot be shared by 2 processes; choose a multiple"),
    ],
)
def test_what_two_processes_cannot_do_is_said(here, tmp_path, total_bs, flags, message):
    write_config(here, "pre-training/refused", changed(CONFIGS[PRETRAINING], "total_bs", total_bs))
    assert run_in_two(tmp_path, "pre-training/refused", "--exp_name", str(total_bs), *flags) == [1, 1]
    assert f"error: {message}" in said_by(tmp_path)
    assert not list(Path("experiments/pre-training/refused").glob("*/ckpt*"))


def fail(folder, message):
    """Fail in both processes; `message` may have a place for the rank."""

    def command():
        with processes("pytorch"):
            raise ValueError(message.format(rank()))

    code = run_command(command)
    while rank() == 0 and not (folder / "rank1.pt").exists():  # it keeps the count of the messages
        time.sleep(0.01)
    return code


def test_an_error_is_told_where_the_process_that_counts_is_gone(monkeypatch):
    def gone():
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr("torch.distributed.distributed_c10d._get_default_store", gone)
    assert distributed._told_first("no space left") is True


@pytest.mark.parametrize(
    ("message", "said"),
    [("all alike", ["error: all alike"]), ("rank {}", ["error: rank 0", "error: rank 1"])],
)
def test_an_error_is_told_by_one_of_the_processes_that_have_it(tmp_path, message, said):
    assert forked(tmp_path, fail, tmp_path, message) == [1, 1]
    lines = said_by(tmp_path).splitlines()
    assert sorted(line for line in lines if line.startswith("error")) == said


# ---- a process that dies ----

DIES = """
import os, signal, sys

sys.path.insert(0, {repository!r})
import main
from tools.training.trainer import Trainer
from utils.distributed import rank

after_update = Trainer._after_update

def die(trainer):
    after_update(trainer)
    if rank() == 1 and trainer.state.epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)

Trainer._after_update = die
sys.exit(main.main())
"""


def test_torchrun_ends_a_run_that_loses_a_process_and_it_resumes(trained, here, tmp_path, monkeypatch):
    script = tmp_path / "dies.py"
    script.write_text(DIES.format(repository=str(REPOSITORY)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = ["--launcher", "pytorch", "--config", f"cfgs/{FINETUNING}.yaml", "--scratch_model", "--num_workers", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, script, *command, "--exp_name", "died"],
        env=environment, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode != 0
    assert re.search(r"failed \(exitcode: -9\) local_rank: 1", done.stderr), done.stderr
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # as with --max_restarts=1, the same command line again
    assert run_in_two(tmp_path, FINETUNING, "--scratch_model", "--exp_name", "died") == [0, 0]
    folder, _ = trained[FINETUNING]
    assert_same_weights(weights(folder.with_name("died")), weights(folder))


@pytest.mark.parametrize("flags", [(), ("--seeds", 0, 1)])
def test_a_run_that_died_before_its_first_checkpoint_begins_anew(here, tmp_path, monkeypatch, flags):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run_in_two(tmp_path, FINETUNING, "--scratch_model", "--exp_name", f"anew{len(flags)}", *flags) == [0, 0]


def killed(*command):
    update = Trainer._after_update

    def after_update(trainer):
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        update(trainer)

    Trainer._after_update = after_update
    return run(*command)


def test_a_process_does_not_wait_for_one_that_died(here, tmp_path):
    command = (FINETUNING, "--launcher", "pytorch", "--exp_name", "survivor", "--scratch_model")
    with pytest.raises(AssertionError, match=r"RuntimeError: .*(closed|reset) by peer"):
        forked(tmp_path, killed, *command)
