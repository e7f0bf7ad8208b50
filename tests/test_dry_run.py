"""`--dry_run`: a few updates, a table of what the run would take, and nothing left behind."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

from main import choose_runner
from tests.playground import CONFIGS, make_playground, run, write_config
from tests.test_distributed import forked, said_by
from tools.training import dry_run
from tools.training.dry_run import UPDATES
from utils.config import load_config
from utils.parser import parse_args

MODES = {
    "pre-training/i2p": (),
    "pre-training/m2ae": (),
    "fine-tuning/modelnet": ("--scratch_model",),
}


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with generated data sets and small configs."""
    configs = {name: {**CONFIGS[name], "max_epoch": 9, "svm": {"C": 0.01, "every": 4}} for name in MODES}
    return make_playground(tmp_path_factory.mktemp("playground"), configs, shapenet=6, modelnet=6)


def expected_of(config: str, *flags: str) -> dict:
    """What a dry run returns."""
    args = parse_args(["--config", f"cfgs/{config}.yaml", "--num_workers", "0", "--dry_run", *flags])
    resolved = load_config(args.config)
    return choose_runner(args, resolved)[1](resolved, args)


@pytest.mark.parametrize(("config", "mode"), MODES.items())
def test_a_dry_run_leaves_nothing(here, capsys, config, mode):
    before = sorted(here.rglob("*"))
    assert run(config, "--dry_run", *mode, "--save_every_steps", 1) == 0
    assert sorted(here.rglob("*")) == before
    shown, log = capsys.readouterr()
    for line in ("seconds per update", "seconds per epoch", "hours for 10 epochs and ", "peak memory, GB"):
        assert re.search(rf"^{re.escape(line)}.* \d+\.\d\d$", shown, re.MULTILINE), shown
    assert "seconds per update" not in log
    assert "results in" not in log


@pytest.mark.parametrize(("config", "mode"), MODES.items())
def test_what_it_expects_is_positive_and_finite(here, config, mode):
    expected = expected_of(config, *mode)
    assert all(math.isfinite(value) for value in expected.values())
    assert all(value > 0 for name, value in expected.items() if "waiting" not in name)
    assert 0 <= expected["waiting for data, %"] <= 100
    (hours,) = (value for name, value in expected.items() if name.startswith("hours for 10 epochs"))
    seconds = 10 * expected["seconds per epoch"] + 4 * expected["seconds per evaluation"]  # of epochs 0, 4, 8 and 9
    assert hours == pytest.approx(seconds / 3600)
    assert expected["seconds per epoch"] == pytest.approx(3 * expected["seconds per update"])  # 18 clouds, 6 a batch


def test_what_it_expects_follows_from_what_it_timed(monkeypatch):
    """Two updates of 40 s and six of 1 to 6 s, an evaluation of 50 s, under a clock that only they move."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(dry_run, "peak_memory", lambda device: 2.5e9)
    shown = []
    state = SimpleNamespace(progress=SimpleNamespace(waited=0.0), device=torch.device("cpu"))

    def train_batches(epoch, after_update, batches):
        assert (epoch, batches) == (0, 16)  # two batches an update
        for seconds in (40.0, 40.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0):
            clock.now += seconds
            after_update()
        state.progress.waited = 50.5

    def evaluate():
        clock.now += 50.0

    class Loader(list):
        def begin(self, epoch, seed):
            assert (epoch, seed, state.progress.waited) == (0, 0, 0.0)

    run = SimpleNamespace(mode="fine-tuning", show=lambda *texts: shown.append(texts))
    config = {"step_per_update": 2, "max_epoch": 10}
    expected = dry_run.measure_dry(run, config, state, Loader(range(30)), train_batches, evaluate, interval=4)
    assert expected == {
        "seconds per update": 3.5,  # without the first two
        "seconds per epoch": 52.5,
        "seconds per evaluation": 50.0,
        "hours for 11 epochs and 4 evaluations": pytest.approx((11 * 52.5 + 4 * 50) / 3600),  # epochs 0, 4, 8, 10
        "peak memory, GB": 2.5,
        "waiting for data, %": 50.0,
    }
    ((title, table),) = shown
    assert title == "dry run"
    assert table.splitlines()[0].startswith("expected of fine-tuning on cpu, from 8 updates")


def test_no_more_than_some_updates_are_made(here, monkeypatch):
    made = []
    monkeypatch.setattr("tools.training.precision.Precision.update", lambda self, optimizer: made.append(optimizer))
    write_config(here, "fine-tuning/long", {**CONFIGS["fine-tuning/modelnet"], "total_bs": 2})
    expected_of("fine-tuning/long", "--scratch_model")
    assert len(made) == UPDATES < 9


def test_of_two_processes_one_informs(here, tmp_path):
    flags = ("--launcher", "pytorch", "--scratch_model", "--dry_run")
    assert forked(tmp_path, run, "fine-tuning/modelnet", *flags) == [0, 0]
    assert said_by(tmp_path).count("seconds per update") == 1


def test_repetitions_are_expected_once(here):
    assert run("fine-tuning/modelnet", "--scratch_model", "--dry_run", "--seeds", 0, 1) == 0
    assert not (here / "experiments").exists()
