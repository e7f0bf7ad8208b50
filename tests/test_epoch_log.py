"""What a run says of its epochs: a line of the log, one of metrics.jsonl, points of curves, bars; and at its end."""

import json
import logging
import os
import pty
import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from tests import soak, test_engine
from tests.playground import CONFIGS, refuse, results_of_folder, run, write_config
from tests.soak import Mode, write_playground
from tests.test_engine import Trained, config
from tools.training import epochs
from tools.training.engine import EpochState
from tools.training.epochs import EpochReport, duration
from tools.training.report import ACCURACY
from utils.logger import progress

FINETUNING = "fine-tuning/modelnet"
PRETRAINING = "pre-training/m2ae"
MODES = {**soak.MODES, "pre-training": Mode(PRETRAINING)}  # without a 2D teacher: quicker
SHORT = {**CONFIGS[FINETUNING], "max_epoch": 0}


def lines_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- one line, of a run whose clock the test moves ----


class Clock:
    """Seconds that reading a cloud, training on a batch and evaluating take."""

    def __init__(self, monkeypatch, reading, training, evaluating):
        self.now, self.training, self.evaluating = 0.0, training, evaluating
        for module in ("engine", "epochs"):
            monkeypatch.setattr(f"tools.training.{module}.time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(epochs, "peak_memory", lambda device: 1.5e9)
        read, train, evaluate = test_engine.Epochs.__getitem__, Trained.step, Trained.evaluate
        monkeypatch.setattr(test_engine.Epochs, "__getitem__", self.after(read, reading))
        monkeypatch.setattr(Trained, "step", self.after(train, training))
        monkeypatch.setattr(Trained, "evaluate", self.after(evaluate, evaluating))

    def after(self, function, seconds):
        def slow(*args, **kwargs):
            self.now += seconds
            return function(*args, **kwargs)

        return slow


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tools.training.epochs"]


def test_an_epoch_is_one_line_with_the_time_left_of_the_whole_run(here, monkeypatch, caplog):
    """16 clouds in 4 batches, evaluated after the epochs 0, 2 and 3."""
    Clock(monkeypatch, reading=0.5, training=2.0, evaluating=3.0)
    run = Trained([50.0, 40.0, 60.0], val_freq=2)
    with caplog.at_level(logging.INFO):
        run.trainer.fit()
    losses = [f"{epoch['loss']:.5g}" for epoch in run.trainer.state.history]
    rates = [f"{epoch['lr']:.4g}" for epoch in run.trainer.state.history]
    common = "1 clouds/s | peak memory 1.50 GB (process) | 16.0 s, 50 % of it waiting for data"
    assert told(caplog) == [
        f"epoch 0/3 | training: loss {losses[0]} | accuracy, test: 50.00 %, best 50.00 % at epoch 0 | lr {rates[0]} | "
        f"{common}, evaluation 3.0 s | 54 s left",
        f"epoch 1/3 | training: loss {losses[1]} | lr {rates[1]} | {common} | 38 s left",
        f"epoch 2/3 | training: loss {losses[2]} | accuracy, test: 40.00 %, best 50.00 % at epoch 0 | lr {rates[2]} | "
        f"{common}, evaluation 3.0 s | 19 s left",
        f"epoch 3/3 | training: loss {losses[3]} | accuracy, test: 60.00 %, best 60.00 % at epoch 3 | lr {rates[3]} | "
        f"{common}, evaluation 3.0 s | 0 s left",
    ]


def test_after_a_resume_speed_and_time_left_are_those_of_this_process(here, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        Clock(patch, reading=0.5, training=2.0, evaluating=3.0)
        first = Trained([50.0], save_every_steps=1)
        batches = iter(range(6))
        first.trainer.step = lambda *args, step=first.trainer.step, **kw: (next(batches), step(*args, **kw))[1]
        with pytest.raises(StopIteration):  # after two of the four batches of the epoch 1
            first.trainer.fit()
    Clock(monkeypatch, reading=0.25, training=1.0, evaluating=5.0)
    with caplog.at_level(logging.INFO):
        Trained([60.0, 70.0, 80.0], resume=True).trainer.fit()
    _, of_epoch_1, *_ = told(caplog)
    assert "| 2 clouds/s |" in of_epoch_1
    assert "| 4.0 s, 50 % of it waiting for data, evaluation 5.0 s | 26 s left" in of_epoch_1


def test_on_a_gpu_the_memory_is_its_own_and_runs_to_come_count(monkeypatch, tmp_path):
    monkeypatch.setattr(epochs, "peak_memory", lambda device: 2e9)
    state = SimpleNamespace(history=[], progress=EpochState(), best_metrics={}, device=torch.device("cuda"))
    run = SimpleNamespace(folder=tmp_path, following=2, draw=lambda values, epoch: None)
    report = EpochReport(run, state, 1, {1}, ACCURACY, "protocol")
    report.batches.add(30.0, 10)
    report.evaluations.add(5.0)
    state.progress.batches, state.progress.skipped = 10, 2
    assert report.left(1) == 2 * (2 * 30 + 5)
    assert report.left(0) == 30 + 5 + 2 * (2 * 30 + 5)
    state.history.append({"epoch": 0, "loss": 0.25, "lr": 0.1})
    report.tell()
    ((line),) = report.lines
    assert (line["memory_gb"], line["memory_of"]) == (2.0, "GPU")
    text = report._line(state.history[0], line)
    assert "| training: loss 0.25, 2 updates left out |" in text
    assert "peak memory 2.00 GB (GPU)" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.6, "1 s"), (59.4, "59 s"), (59.6, "1 min"), (125, "2 min 5 s"), (3599.7, "1 h"),
        (12_029, "3 h 20 min"), (86_399, "1 d"), (188_000, "2 d 4 h"),
    ],
)  # fmt: skip
def test_a_time_is_said_in_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


# ---- metrics.jsonl ----


def test_an_epoch_that_is_repeated_leaves_the_later_line(here, monkeypatch):
    monkeypatch.setattr(epochs, "peak_memory", lambda device: 1e9)
    first = Trained([50.0, 70.0])
    first.trainer._save = lambda improved, save=first.trainer._save: first.trainer.state.epoch < 2 and save(improved)
    with pytest.raises(StopIteration):  # the epochs 0 and 1 are told, the second is not saved, the third fails
        first.trainer.fit()
    assert [line["epoch"] for line in lines_in(first.run.folder)] == [0, 1]
    monkeypatch.setattr(epochs, "peak_memory", lambda device: 2e9)
    again = Trained([70.0, 60.0, 65.0], resume=True)
    again.trainer.fit()
    lines = lines_in(again.run.folder)
    assert [(line["epoch"], line["memory_gb"]) for line in lines] == [(0, 1.0), (1, 2.0), (2, 2.0), (3, 2.0)]
    assert [(line["best"], line["best_epoch"]) for line in lines] == [(50.0, 0), (70.0, 1), (70.0, 1), (70.0, 1)]


def test_it_holds_the_history_of_the_results_and_what_no_resumed_run_has_again(here):
    run = Trained([50.0, 60.0], config(max_epoch=2), val_freq=2)
    history = run.trainer.fit()["history"]
    lines = lines_in(run.run.folder)
    assert [{key: line[key] for key in epoch} for line, epoch in zip(lines, history, strict=True)] == history
    costs = {"clouds_per_second", "memory_gb", "memory_of", "seconds", "waiting_seconds"}
    evaluated = {"best", "best_epoch", "evaluation_seconds"}
    extra = [set(line) - set(epoch) for line, epoch in zip(lines, history, strict=True)]
    assert extra == [costs | evaluated, costs, costs | evaluated]
    assert all(line["clouds_per_second"] == pytest.approx(16 / line["seconds"]) for line in lines)


def test_a_line_that_cannot_be_written_leaves_those_before_it_whole(here, monkeypatch):
    run, dumps = Trained([50.0, 60.0]), json.dumps

    def fail(line):
        if line["epoch"] == 1:
            raise OSError(28, "No space left on device")
        return dumps(line)

    monkeypatch.setattr(epochs.json, "dumps", fail)
    with pytest.raises(OSError, match=r"cannot write .*e/metrics\.jsonl: No space left on device; make room"):
        run.trainer.fit()
    assert [line["epoch"] for line in lines_in(run.run.folder)] == [0]
    assert torch.load(run.run.last_checkpoint, weights_only=True)["epoch"] == 0


@pytest.fixture
def stopped(here):
    """A run that has ended after the epoch 1 of 3; its folder."""
    run = Trained([50.0, 70.0])
    with pytest.raises(StopIteration):
        run.trainer.fit()
    return run.run.folder


@pytest.mark.parametrize("text", ['{"epoch": 0, "lo', "{}\n", "[1]\n"])
def test_a_damaged_file_is_told_before_anything_is_trained(stopped, text):
    (stopped / "metrics.jsonl").write_text(text)
    run = Trained([60.0], resume=True)
    run.trainer.step = None
    with pytest.raises(ValueError, match=r"e/metrics\.jsonl is damaged \(.*move it away and start the same command"):
        run.trainer.fit()


def test_a_run_that_has_no_file_yet_gets_one_with_what_its_checkpoint_knows(stopped):
    (stopped / "metrics.jsonl").unlink()
    Trained([60.0, 65.0], resume=True).trainer.fit()
    lines = lines_in(stopped)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert ["seconds" in line for line in lines] == [False, False, True, True]
    assert [line["evaluation"] for line in lines] == [50.0, 70.0, 60.0, 65.0]


# ---- whole runs ----


@pytest.fixture(scope="module")
def following():
    """How many runs each run knew to follow it, by the folder of its config."""
    return []


@pytest.fixture(scope="module")
def playground(tmp_path_factory, following):
    """A folder in which each mode has run."""
    folder = tmp_path_factory.mktemp("playground")
    write_playground(folder)

    def watched(self, run, *args, init=EpochReport.__init__):
        following.append((run.folder.parts[1], run.following))
        init(self, run, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(EpochReport, "__init__", watched)
        write_config(folder, PRETRAINING, {**CONFIGS[PRETRAINING], "max_epoch": 1})
        for mode in MODES.values():
            assert run(mode.config, *mode.flags, "--exp_name", "base") == 0
        write_config(folder, "fine-tuning/short", SHORT)
        assert run("fine-tuning/short", "--scratch_model", "--seeds", 3, 1, "--exp_name", "base") == 0
    return folder


@pytest.fixture
def ran(playground, monkeypatch):
    monkeypatch.chdir(playground)
    return Path("experiments")


def log_of(folder: Path) -> list[str]:
    """Messages of the first log in a folder."""
    lines = sorted(folder.glob("*.log"))[0].read_text().splitlines()
    return [line.partition(": ")[2] for line in lines if re.match(r"\d{4}-\d\d-\d\d", line)]


@pytest.mark.parametrize("mode", MODES)
def test_every_training_tells_an_epoch_in_one_line_and_draws_no_bar_into_its_log(ran, mode):
    folders = sorted(path.parent for path in (ran / MODES[mode].config / "base").rglob("metrics.jsonl"))
    assert len(folders) == (2 if mode == "few-shot" else 1)
    for folder in folders:
        (results,) = results_of_folder(folder).values()
        history, log = results["history"], log_of(folder)
        lines = [line for line in log if line.startswith("epoch ")]
        last = len(history) - 1
        assert [line.split(" | ")[0] for line in lines] == [f"epoch {number}/{last}" for number in range(last + 1)]
        for line in lines:
            for part in (r"training: loss \d", r"(accuracy|SVM .*|mIoU) on .* split: \d+\.\d\d %, best \d", r"lr \d"):
                assert re.search(rf"\| {part}|\| \w+ {part}", line), (part, line)
            assert re.search(r"clouds/s \| peak memory \d\.\d\d GB \(process\) \| .* evaluation .* s left$", line)
        assert [line["loss"] for line in lines_in(folder)] == [epoch["loss"] for epoch in history]
        assert not [line for line in log if "it/s" in line or "\r" in line]


def test_folds_and_seeds_that_follow_count_in_the_time_left(ran, following):
    assert [count for place, count in following if place == "few-shot"] == [1, 0]
    assert [count for place, count in following if place == "fine-tuning"] == [0, 1, 0]  # one run, and two seeds
    assert [count for place, count in following if place == "pre-training"] == [0]


def events_in(folder: Path) -> list[Event]:
    """Records of TensorBoard's file: length (8 bytes), checksum (4), event, checksum (4)."""
    (path,) = folder.glob("events*")
    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return found


def test_tensorboard_has_curves_config_environment_and_the_reconstructions(ran):
    values = [
        (event.step, value)
        for event in events_in(ran / "pre-training/m2ae/TFBoard/base")
        for value in event.summary.value
    ]
    scalars = {(value.tag, step): value.simple_value for step, value in values if value.HasField("simple_value")}
    lines = lines_in(ran / PRETRAINING / "base")
    for line in lines:
        for tag, key in (("train/loss_3d", "loss_3d"), ("train/lr", "lr"), ("evaluation/accuracy", "evaluation")):
            assert scalars[tag, line["epoch"]] == pytest.approx(line[key])
        assert scalars["run/clouds_per_second", line["epoch"]] == pytest.approx(line["clouds_per_second"])
    assert not [tag for tag, _ in scalars if "epoch" in tag or "memory_of" in tag]
    texts = {
        value.tag: value.tensor.string_val[0].decode() for _, value in values if value.tag.endswith("/text_summary")
    }
    assert "    max_epoch: 1\n" in texts["config/text_summary"]
    assert re.search(rf"    torch +{re.escape(torch.__version__.partition('+')[0])}", texts["environment/text_summary"])
    ((step, image),) = [(step, value) for step, value in values if value.HasField("image")]
    assert (step, image.tag) == (1, "reconstructions")
    assert image.image.encoded_image_string.startswith(b"\x89PNG")
    assert min(image.image.height, image.image.width) > 100


# ---- bars ----


def shown_on_a_terminal(monkeypatch, columns: int) -> str:
    """What the loop "bar" writes to a terminal that says that it is so wide."""
    import fcntl
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", columns // 4, columns, 0, 0))
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        assert list(progress("ab", "bar")) == ["a", "b"]
        print("end", file=stream, flush=True)  # or there might be nothing to read
        shown = os.read(ours, 10_000).decode()
    os.close(ours)
    return shown


@pytest.mark.parametrize("columns", [0, 60, 120])
def test_a_terminal_shows_a_bar_even_if_it_does_not_say_how_wide_it_is(monkeypatch, columns):
    shown = shown_on_a_terminal(monkeypatch, columns)
    _, first, *_ = shown.split("\r")
    assert first.startswith("bar:   0%|")
    assert len(first) == pytest.approx(columns or 80, abs=1)


def test_the_first_epoch_has_a_bar_too_and_the_log_file_has_none(ran, monkeypatch):
    class Terminal:
        text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

        def isatty(self):
            return True

        def fileno(self):
            raise OSError

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(FINETUNING, "--scratch_model", "--exp_name", "terminal") == 0
    for number in (0, 1):
        assert re.search(rf"\repoch {number}: +\d+%\|", terminal.text)
        assert re.search(rf"\n?[\d:]+ INFO epoch {number}/1 \| .* left\n", terminal.text)
    text = sorted((ran / FINETUNING / "terminal").glob("*.log"))[0].read_text()
    assert "%|" not in text
    assert len(re.findall("epoch ", text.replace("at epoch", "").replace("(epoch", ""))) == 2


def test_only_the_first_epoch_soon_says_how_long_it_takes(here, monkeypatch):
    asked = []

    def watched(loader, text, total, early):
        asked.append((text, early))
        return loader

    monkeypatch.setattr("tools.training.trainer.progress", watched)
    Trained([50.0, 60.0], config(max_epoch=1)).trainer.fit()
    assert asked == [("epoch 0", True), ("epoch 1", False)]


# ---- Weights & Biases, with a module in its place ----


class Library:
    """What is used of `wandb`."""

    class Error(Exception):
        pass

    def __init__(self, refusal=""):
        self.begun, self.refusal = [], refusal

    def init(self, **settings):
        if self.refusal:
            raise self.Error(self.refusal)
        self.begun.append(SimpleNamespace(settings=settings, logged=[], finished=[]))
        run = self.begun[-1]
        run.log = lambda values, step: run.logged.append((step, values))
        run.finish = lambda exit_code: run.finished.append(exit_code)
        return run

    @staticmethod
    def Image(path):
        return f"image {Path(path).name}"


@pytest.fixture
def library(monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, "wandb", library)
    return library


def test_a_run_is_drawn_there_and_goes_on_as_the_same(ran, library):
    name = "pre-training/tracked"
    write_config(Path(), name, CONFIGS[PRETRAINING])
    assert run(name, "--wandb", "shapes", "--exp_name", "a") == 0
    write_config(Path(), name, {**CONFIGS[PRETRAINING], "max_epoch": 1})
    assert run(name, "--resume", "--exp_name", "a") == 0
    first, second = library.begun
    kept = json.loads((ran / name / "a/wandb.json").read_text())
    assert kept["project"] == "shapes"
    assert re.fullmatch(r"[0-9a-f]{8}", kept["id"])
    for begun in library.begun:
        settings = dict(begun.settings)
        resolved = settings.pop("config")
        assert resolved["optimizer"]["kwargs"]["lr"] == 1e-3
        assert resolved["about"]["data"]["train"]["clouds"] == 12
        assert settings == {
            "project": "shapes", "id": kept["id"], "name": "pre-training/tracked/a", "resume": "allow",
            "dir": "experiments/pre-training/tracked/a",
        }  # fmt: skip
        assert begun.finished == [0]
    lines = lines_in(ran / name / "a")
    for number, begun in enumerate(library.begun):
        (step, values), (picture_step, picture) = begun.logged
        assert (step, picture_step) == (number, number)
        assert values["train/loss"] == lines[number]["loss"]
        assert values["evaluation/accuracy"] == lines[number]["evaluation"]
        assert picture == {"reconstructions": "image reconstructions.png"}
    assert second.logged[0][1]["train/loss"] != first.logged[0][1]["train/loss"]


def test_another_project_on_resume_is_refused(ran, library, capsys):
    write_config(Path(), "fine-tuning/tracked", SHORT)
    assert run("fine-tuning/tracked", "--scratch_model", "--wandb", "--exp_name", "a") == 0
    assert library.begun[0].settings["project"] == "i2p-mae"
    flags = ("--scratch_model", "--resume", "--wandb", "other")
    line = refuse(capsys, "fine-tuning/tracked", *flags, exp_name="a")
    assert "fine-tuning/tracked/a is in the project i2p-mae of Weights & Biases; give --wandb without a name" in line
    assert len(library.begun) == 1


def test_a_run_that_fails_is_said_to_have_failed(ran, library, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no")

    monkeypatch.setattr("tools.training.trainer.train_one_epoch", fail)
    assert run(FINETUNING, "--scratch_model", "--wandb", "--exp_name", "failing") == 1
    assert library.begun[0].finished == [1]


def test_the_first_of_several_processes_draws(ran, library, monkeypatch):
    for module in ("run", "epochs", "closing"):
        monkeypatch.setattr(f"tools.training.{module}.is_main", lambda: False)
    write_config(Path(), "fine-tuning/second", SHORT)
    assert run("fine-tuning/second", "--scratch_model", "--wandb") == 0
    assert library.begun == []
    assert not (ran / "fine-tuning/second/default/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            None,
            "--wandb needs Weights & Biases, which is not installed: `pip install -r requirements-wandb.txt`, or drop",
        ),
        (SimpleNamespace(), "which is not installed"),  # a folder `wandb`, which Python takes for a package
        (
            Library("No API key."),
            "cannot be used: No API key; log in with `wandb login`, set WANDB_MODE=offline, or drop",
        ),
    ],
)
def test_what_keeps_it_from_drawing_is_told_before_the_run_begins(ran, monkeypatch, capsys, module, message):
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("tools.training.trainer.train_one_epoch", None)
    assert message in refuse(capsys, FINETUNING, "--scratch_model", "--wandb")
    assert not (ran / FINETUNING / "refused").exists()
    requirements = Path(test_engine.__file__).parents[1] / "requirements-wandb.txt"
    assert requirements.read_text().splitlines()[-1].startswith("wandb")


def test_a_missing_library_is_told_before_the_run_is_in_its_log(ran, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(FINETUNING, "--scratch_model", "--wandb", "--exp_name", "missing") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_library_that_cannot_be_imported_is_not_called_missing(ran, monkeypatch, capsys, tmp_path):
    (tmp_path / "wandb.py").write_text("import nothing_of_this_name")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    line = refuse(capsys, FINETUNING, "--scratch_model", "--wandb")
    assert "Weights & Biases, which cannot be imported (No module named 'nothing_of_this_name'): `pip" in line


def test_a_resumed_run_that_was_drawn_there_says_what_it_needs(ran, library, monkeypatch, capsys):
    write_config(Path(), "fine-tuning/gone", SHORT)
    assert run("fine-tuning/gone", "--scratch_model", "--wandb", "--exp_name", "a") == 0
    monkeypatch.setitem(sys.modules, "wandb", None)
    write_config(Path(), "fine-tuning/gone", CONFIGS[FINETUNING])
    line = refuse(capsys, "fine-tuning/gone", "--scratch_model", "--resume", exp_name="a")
    assert "which wandb.json makes go on over there, needs Weights & Biases" in line
    assert "or remove experiments/fine-tuning/gone/a/wandb.json" in line


@pytest.mark.parametrize(
    "flags", [("--test", "--ckpts", "start.pth"), ("--profile",), ("--scratch_model", "--dry_run")]
)
def test_it_is_refused_where_nothing_is_trained(ran, capsys, flags):
    with pytest.raises(SystemExit):
        run(FINETUNING, *flags, "--wandb")
    assert "--wandb draws the curves of a training run" in capsys.readouterr().err
