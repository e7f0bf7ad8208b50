"""The command line, seeds, logs and progress."""

import io
import logging
import os
import random
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import logger as logger_module
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.device import choose_device
from utils.logger import progress, setup_logger
from utils.parser import parse_args
from utils.seed import rng_state, seed_everything, set_rng_state

CONFIG = ["--config", "cfgs/x.yaml"]


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    return str(path)


# command line


def test_defaults() -> None:
    assert vars(parse_args(CONFIG)) == {
        "config": Path("cfgs/x.yaml"),
        "exp_name": "default",
        "test_svm": None,
        "finetune_model": False,
        "scratch_model": False,
        "test": False,
        "test_bank": False,
        "ckpts": None,
        "start_ckpts": None,
        "resume": False,
        "vote": False,
        "votes": None,
        "val_freq": 1,
        "seed": 0,
        "deterministic": False,
        "num_workers": min(4, os.cpu_count() or 1),
        "profile": False,
        "select_on": "test",
        "seeds": None,
        "dry_run": False,
        "save_every_steps": None,
        "skip_nonfinite": 0,
        "way": None,
        "shot": None,
        "fold": None,
        "amp": "none",
        "compile": False,
        "resident_data": False,
        "launcher": "none",
        "local_rank": None,
        "sync_bn": False,
        "save_features": None,
        "skip_bad": None,
        "save_bank": None,
        "plug_in": None,
        "bank_ckpts": None,
        "env": False,
        "wandb": None,
        "given": {"config"},
    }


def test_what_is_given_is_told_from_defaults() -> None:
    args = parse_args([*CONFIG, "--seed", "0", "--resume", "--skip_nonfinite", "0"])
    assert args.given == {"config", "seed", "resume", "skip_nonfinite"}
    assert (args.seed, args.amp) == (0, "none")


@pytest.mark.parametrize(
    "flags",
    [
        ["--test_svm", "scan", "--ckpts", "W"],
        ["--finetune_model", "--ckpts", "W"],
        ["--finetune_model", "--ckpts", "W", "--resume"],
        ["--scratch_model", "--start_ckpts", "W"],
        ["--scratch_model", "--resume"],
        ["--start_ckpts", "W"],
        ["--resume"],
        ["--test", "--ckpts", "W"],
        ["--test", "--vote", "--ckpts", "W"],
        ["--test_bank", "--ckpts", "W"],
        ["--test_bank", "--ckpts", "W", "--select_on", "val"],
        ["--test", "--ckpts", "W", "--plug_in", "cfgs/x.yaml", "--bank_ckpts", "W"],
    ],
    ids=" ".join,
)
def test_consistent_flags_are_accepted(flags: list[str], weights: str) -> None:
    args = parse_args([*CONFIG, *(weights if flag == "W" else flag for flag in flags)])
    assert {args.ckpts, args.start_ckpts} == {None, Path(weights)} or args.resume


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_each_precision_can_be_given(amp: str) -> None:
    assert parse_args([*CONFIG, "--amp", amp]).amp == amp


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--test"], "--test needs weights: add --ckpts"),
        (["--test_svm", "scan"], "--test_svm needs weights: add --ckpts"),
        (["--finetune_model"], "--finetune_model needs weights: add --ckpts"),
        (["--ckpts", "W"], "use --start_ckpts"),
        (["--scratch_model", "--ckpts", "W"], "use --finetune_model"),
        (["--resume", "--start_ckpts", "W"], "drop one"),
        (["--test", "--ckpts", "W", "--resume"], "an evaluation reads --ckpts only"),
        (["--test_bank", "--resume"], "an evaluation reads --ckpts only"),
        (["--test_bank", "--seeds", "0", "1"], "--seeds repeats a training run"),
        (["--test_bank", "--profile"], "not allowed with argument --test_bank"),
        (["--test_svm", "scan", "--ckpts", "W", "--start_ckpts", "W"], "an evaluation reads --ckpts only"),
        (["--test_svm", "scan", "--ckpts", "W", "--dry_run"], "--dry_run measures a few steps of a training run"),
        (["--profile", "--dry_run"], "--dry_run measures a few steps of a training run"),
        (["--test", "--ckpts", "W", "--select_on", "val"], "--select_on chooses a checkpoint in training"),
        (["--scratch_model", "--seeds", "0", "1", "--seed", "0"], "--seeds says every seed, and --seed one more"),
        (["--vote"], "add --test"),
        (["--vote", "--finetune_model", "--ckpts", "W"], "add --test"),
        (["--test", "--finetune_model", "--ckpts", "W"], "not allowed with argument --test"),
        (["--scratch_model", "--test_svm", "scan"], "not allowed with argument --scratch_model"),
        (["--test_svm", "shapenet", "--ckpts", "W"], "invalid choice: 'shapenet'"),
        (["--test", "--ckpts", "/nowhere/a.pth"], "no such file: /nowhere/a.pth"),
        (["--start_ckpts", "/nowhere/a.pth"], "no such file: /nowhere/a.pth; ckpts/README.md says where to get"),
        (["--test", "--ckpts", "/"], "/ is a folder; name a file in it"),
        (["--ckpt", "W"], "unknown flag --ckpt; did you mean --ckpts?; python main.py --help lists the flags"),
        (["--finetune_modle", "--ckpts", "W"], "unknown flag --finetune_modle; did you mean --finetune_model?"),
        (["--zzz"], "unknown flag --zzz; python main.py --help"),
        (["--test", "--ckpts", ""], "an empty path; name a file"),
        (["--test", "--ckpts", "W", "--votes", "3"], "--votes says how often to repeat --vote: add it"),
        (["--test_svm", "scan", "--ckpts", "W", "--save_features", "/tmp/"], "--save_features /tmp is a folder"),
        (["--test_bank", "--save_bank", "/tmp/"], "--save_bank /tmp is a folder; name a file in it, such as bank.npz"),
        (["--test", "--ckpts", "W", "--save_bank", "a"], "--save_bank keeps the bank of --test_bank: add it"),
        (["--test_bank", "--seeds", "0", "1"], "an evaluation takes one --seed"),
        (["--test_bank", "--test", "--ckpts", "W"], "not allowed with argument --test_bank"),
        (["--test_svm", "scan", "--ckpts", "W", "--select_on", "val"], "or γ of a memory bank: drop it"),
        (["--test_bank", "--plug_in", "cfgs/x.yaml"], "--plug_in adds a memory bank to a classifier that is tested"),
        (["--test", "--vote", "--ckpts", "W", "--plug_in", "a"], "--plug_in and --vote are two ways to test: drop one"),
        (["--test", "--ckpts", "W", "--bank_ckpts", "W"], "weights of the model that --plug_in names: add it"),
        (["--seeds", "1", "2", "1"], "--seeds: 1 2 1 repeats a seed; give each once"),
        (["--val_freq", "0"], "0 must be at least 1"),
        (["--select_on", "val"], "--select_on chooses a checkpoint in training a classifier"),
        (["--scratch_model", "--resident_data"], "--resident_data is for pre-training: drop it"),
        (["--fold", "0"], "--fold is one of the flags that choose few-shot tasks: drop it"),
        (["--test", "--ckpts", "W", "--val_freq", "2"], "--val_freq is for training: drop it"),
        (["--test_svm", "scan", "--ckpts", "W", "--amp", "bf16"], "--amp is for training: drop it"),
        (["--test_bank", "--compile"], "--compile is for training: drop it"),
        (["--test_svm", "scan", "--ckpts", "W", "--way", "5"], "--way is one of the flags that choose few-shot tasks"),
        (["--profile", "--exp_name", "a"], "--exp_name is for a run on data, which this is not: drop it"),
        (["--env"], "--config is not read by --env, which looks at this machine only: drop it"),
        (["--amp", "bf61"], "invalid choice: 'bf61'; did you mean bf16? choose from none, bf16, fp16;"),
        (["--test_svm", "modelnet"], "invalid choice: 'modelnet'; did you mean modelnet40? choose from modelnet40,"),
        (["--shot", "15"], "invalid choice: 15; choose from 10, 20;"),
        (["--help", "dry_rum"], "invalid choice: 'dry_rum'; did you mean dry-run? choose from pre-train, linear-svm,"),
        (["--num_workers", "-1"], "-1 must be at least 0"),
        (["--seed", "4294967296"], "4294967296 must be between 0 and 4294967295"),
        (["--seed", "x"], "invalid integer value: 'x'"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(
    flags: list[str], message: str, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args([*CONFIG, *(weights if flag == "W" else flag for flag in flags)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_votes_are_49_unless_the_command_line_says_otherwise(weights: str) -> None:
    test = [*CONFIG, "--test", "--vote", "--ckpts", weights]
    assert [parse_args(test).votes, parse_args([*test, "--votes", "3"]).votes] == [49, 3]


def test_a_bank_chooses_without_the_test_split_unless_the_command_line_says_otherwise() -> None:
    bank = [*CONFIG, "--test_bank"]
    assert [parse_args([*bank, *more]).select_on for more in ([], ["--select_on", "test"])] == ["val", "test"]
    assert parse_args(bank).given == {"config", "test_bank"}


def test_every_fold_and_either_split_can_be_chosen() -> None:
    assert [parse_args([*CONFIG, "--scratch_model", "--fold", str(fold)]).fold for fold in range(10)] == [*range(10)]
    splits = ["test", "val"]
    assert [parse_args([*CONFIG, "--scratch_model", "--select_on", split]).select_on for split in splits] == splits


def test_of_several_processes_the_first_says_what_is_wrong_with_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit, match="2"):
            parse_args(["--nothing"])
        said.append(capsys.readouterr().err)
    assert [len(text.splitlines()) for text in said] == [1, 0]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a", "a b", "-x", ".hidden", "TFBoard", "a\n", "a\\b"])
def test_exp_name_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args([*CONFIG, f"--exp_name={name}"])


def test_plain_exp_name_is_accepted() -> None:
    assert parse_args([*CONFIG, "--exp_name", "lr=1e-3_seed.2"]).exp_name == "lr=1e-3_seed.2"


def test_config_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args(["--resume"])
    assert "--config" in capsys.readouterr().err


# seeds


def draws() -> list[float]:
    return [random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item(), torch.randn(1).item()]  # noqa: NPY002


@pytest.fixture
def untouched_generators() -> Iterator[None]:
    state = rng_state()
    yield
    seed_everything(0)
    set_rng_state(state)


@pytest.mark.usefixtures("untouched_generators")
def test_a_seed_fixes_every_generator() -> None:
    seed_everything(7)
    first = draws()
    seed_everything(7)
    assert draws() == first
    seed_everything(8)
    assert not set(draws()) & set(first)


@pytest.mark.usefixtures("untouched_generators")
def test_each_process_draws_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for rank, seed in [(0, 7), (1, 7), (2, 7), (0, 8)]:
        monkeypatch.setattr("utils.seed.rank", lambda rank=rank: rank)
        seed_everything(seed)
        drawn += draws()
    assert len(set(drawn)) == 4 * len(draws())


@pytest.mark.usefixtures("untouched_generators")
def test_generators_continue_from_a_checkpoint(tmp_path: Path) -> None:
    seed_everything(7)
    draws()  # leaves a cached Gaussian behind
    save_checkpoint(tmp_path / "a.pth", {"rng": rng_state()})
    expected = draws()
    seed_everything(8)
    set_rng_state(read_checkpoint(tmp_path / "a.pth")["rng"])
    assert draws() == expected


@pytest.mark.usefixtures("untouched_generators")
def test_deterministic_is_switched_on_and_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seed_everything(0, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    seed_everything(0)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_a_tensor_can_live_on_the_chosen_device() -> None:
    device = choose_device()
    assert torch.ones(2, device=device).sum().item() == 2
    assert (device.type == "cpu") == (not torch.cuda.is_available())


# logs


@pytest.fixture
def own_handlers() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


@pytest.mark.usefixtures("own_handlers")
def test_file_gets_everything_and_stderr_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logger(tmp_path / "run.log")
    logging.getLogger("a.b").debug("detail")
    logging.getLogger("a.b").info("news")
    log = (tmp_path / "run.log").read_text()
    err = capsys.readouterr().err
    assert ("detail" in log, "news" in log) == (True, True)
    assert ("detail" in err, "news" in err) == (False, True)


@pytest.mark.usefixtures("own_handlers")
def test_second_setup_replaces_the_first_and_leaves_others_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(foreign)
    setup_logger(tmp_path / "first.log")
    setup_logger(tmp_path / "second.log")
    logging.getLogger("x").info("once")
    assert (tmp_path / "first.log").read_text() == ""
    assert (tmp_path / "second.log").read_text().count("once") == 1
    assert capsys.readouterr().err.count("once") == 1
    assert foreign.stream.getvalue() == "once\n"


@pytest.mark.usefixtures("own_handlers")
def test_log_file_that_cannot_be_opened_is_an_os_error(tmp_path: Path) -> None:
    before = logging.getLogger().handlers[:]
    with pytest.raises(OSError, match=r"cannot write .*absent/run\.log: No such file or directory"):
        setup_logger(tmp_path / "absent" / "run.log")
    assert logging.getLogger().handlers == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
@pytest.mark.usefixtures("own_handlers")
def test_a_full_disk_is_told_once_and_the_run_goes_on_without_its_log(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logger(Path("/dev/full"))
    for _ in range(3):
        logging.getLogger("x").info("news")
    setup_logger(None)  # closes the file
    lines = capsys.readouterr().err.splitlines()
    assert [("news" in line, "WARNING" in line) for line in lines].count((True, False)) == len(lines) - 1 == 3
    (line,) = (line for line in lines if "WARNING" in line)
    assert "cannot write /dev/full: No space left on device; make room" in line
    assert "the run goes on without its log" in line


@pytest.mark.usefixtures("own_handlers")
def test_a_warning_is_one_line_of_the_main_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(is_main: bool) -> list[str]:
        monkeypatch.setattr("utils.distributed.is_main", lambda: is_main)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            setup_logger(None)
            warnings.warn("it is\nlate", stacklevel=1)
        return [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]

    assert warn(True) == ["WARNING it is late"]
    assert warn(False) == []


@pytest.mark.usefixtures("own_handlers")
def test_libraries_that_draw_keep_their_details_to_themselves(tmp_path: Path) -> None:
    setup_logger(tmp_path / "run.log")
    for name in ("matplotlib.font_manager", "PIL.PngImagePlugin", "ours"):
        logging.getLogger(name).debug("detail of %s", name)
    assert re.findall("detail of .*", (tmp_path / "run.log").read_text()) == ["detail of ours"]


# progress


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves: seconds[0] is the time."""
    now = [0.0]
    monkeypatch.setattr(logger_module.time, "monotonic", lambda: now[0])
    return now


def lines_of_a_loop(
    count: int, step: float, seconds: list[float], caplog: pytest.LogCaptureFixture, early: bool = True
) -> list[str]:
    with caplog.at_level(logging.INFO, logger="utils.logger"):
        for _ in progress(range(count), "epoch 3", early=early):
            seconds[0] += step
    return caplog.messages


def test_slow_loop_soon_says_how_long_then_logs_tenths_with_elapsed_time_rate_and_time_left(
    seconds: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    lines = lines_of_a_loop(40, 20.0, seconds, caplog)
    assert lines[:3] == [
        "epoch 3: 1/40 (2 %), 20 s, 0.05/s, about 780 s left",
        "epoch 3: 2/40 (5 %), 40 s, 0.05/s, about 760 s left",
        "epoch 3: 4/40 (10 %), 80 s, 0.05/s, about 720 s left",
    ]
    assert [line.split()[2] for line in lines[3:]] == ["8/40", "12/40", "16/40", *(f"{n}/40" for n in range(20, 41, 4))]
    assert lines[-1] == "epoch 3: 40/40 (100 %), 800 s, 0.05/s, about 0 s left"


def test_a_loop_whose_length_is_known_logs_about_its_tenths_a_minute_apart(
    seconds: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    lines = lines_of_a_loop(100, 4.0, seconds, caplog, early=False)
    assert [line.split()[2] for line in lines] == [f"{n}/100" for n in range(15, 100, 15)]
    caplog.clear()
    assert lines_of_a_loop(100, 0.5, seconds, caplog, early=False) == []


def test_a_long_loop_soon_says_how_long(seconds: list[float], caplog: pytest.LogCaptureFixture) -> None:
    lines = lines_of_a_loop(490, 5.0, seconds, caplog)
    assert lines[0] == "epoch 3: 1/490 (0 %), 5 s, 0.20/s, about 2445 s left"
    assert [line.split()[2] for line in lines[:7]] == [f"{n}/490" for n in (1, 2, 4, 8, 16, 32, 49)]


def test_fast_loop_logs_nothing(seconds: list[float], caplog: pytest.LogCaptureFixture) -> None:
    assert lines_of_a_loop(1000, 0.001, seconds, caplog) == []


def test_lines_keep_their_distance(seconds: list[float], caplog: pytest.LogCaptureFixture) -> None:
    assert len(lines_of_a_loop(100, 0.125, seconds, caplog)) == 2  # 12.5 s, 5 s apart


def test_loop_of_unknown_length_logs_its_count(seconds: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="utils.logger"):
        for _ in progress(iter("abc"), "files"):
            seconds[0] += 60
    assert caplog.messages == ["files: 1, 60 s, 0.02/s", "files: 2, 120 s, 0.02/s", "files: 3, 180 s, 0.02/s"]


@pytest.mark.parametrize("terminal", [False, True])
def test_items_pass_unchanged_in_nested_loops(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    monkeypatch.setattr("sys.stderr", stream)
    pairs = [(a, b) for a in progress("abc", "outer") for b in progress(iter("de"), "inner", total=2)]
    assert pairs == [(a, b) for a in "abc" for b in "de"]
    assert ("outer" in stream.getvalue(), "inner" in stream.getvalue()) == (terminal, terminal)


@pytest.mark.usefixtures("own_handlers")
def test_log_line_stands_on_a_line_of_its_own_beside_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    setup_logger(None)
    for _ in progress(range(2), "bar"):
        logging.getLogger("x").info("news")
    lines = [part for part in re.split(r"[\r\n]", stream.getvalue()) if "news" in part]
    assert len(lines) == 2
    assert all(line.endswith("INFO news") and "bar" not in line for line in lines)
