"""Runs that end too early, by SIGKILL, a signal to stop or an error, and continue as if they never had."""

import os
import pkgutil
import random
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest

from tests.soak import MODES, Tally, differences, fork, outcome, soak, train, wait, write_playground


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with generated data sets and small configs."""
    folder = tmp_path_factory.mktemp("playground")
    write_playground(folder)
    return folder


@pytest.fixture
def expected(playground):
    """mode → outcome of a run of that mode that nothing disturbed; each is run once."""

    def of_mode(mode):
        folder = run_folder(playground, mode, "whole")
        if not (folder / "results.json").exists():
            assert wait(fork(playground, train, mode, "whole")) == 0, output(playground)
        return outcome(folder)

    return of_mode


def run_folder(playground: Path, mode: str, exp_name: str) -> Path:
    return playground / "experiments" / MODES[mode].config / exp_name


def output(playground: Path) -> str:
    """What the processes have printed since the last call."""
    path = playground / "output.txt"
    text = path.read_text()
    path.write_text("")
    return text


# ---- what happens to a run ----


def before(place, name, number, action):
    """Call `action` before the call number `number`, from 1, of the function `name` of a class or a module."""
    owner = pkgutil.resolve_name(place)
    original = getattr(owner, name)
    calls = []

    def replaced(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            action()
        return original(*args, **kwargs)

    setattr(owner, name, replaced)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def raise_signals(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def signal_the_group(number):
    """As a terminal or a job scheduler does: this process and its workers."""
    os.killpg(os.getpid(), number)


def in_a_group_of_its_own(place, name, number, action):
    os.setsid()
    before(place, name, number, action)


def pause(path):
    """Say that this process is here, and stay."""
    Path(path).touch()
    time.sleep(60)


# ---- killed ----


UPDATE = ("tools.training.trainer:Trainer", "_after_update")  # done, not saved yet
EVALUATION = ("tools.training.trainer:Trainer", "_evaluate")
SAVING = ("tools.training.state", "save_checkpoint")
RENAME = ("os", "replace")
RESULTS = ("tools.training.run:Run", "finish")


@pytest.mark.parametrize(
    ("mode", "place", "number", "flags"),
    [
        ("pre-training", UPDATE, 2, "--save_every_steps 1"),
        ("pre-training", UPDATE, 6, "--save_every_steps 2 --num_workers 2"),
        ("pre-training", EVALUATION, 2, "--save_every_steps 1"),
        ("pre-training", SAVING, 5, "--save_every_steps 1"),  # the best is saved, the last is not
        ("pre-training", RESULTS, 1, ""),
        ("fine-tuning", UPDATE, 5, "--save_every_steps 1 --num_workers 2"),
        ("few-shot", RESULTS, 2, ""),
        ("few-shot", RENAME, 5, "--save_every_steps 1"),  # the checkpoint before is the only one
        ("pre-training", RENAME, 4, "--save_every_steps 1"),
        ("part segmentation", UPDATE, 4, "--save_every_steps 2 --num_workers 2"),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(playground, expected, mode, place, number, flags):
    name = "-".join([place[1], str(number), *flags.split()]).replace("--", "")
    killed = fork(playground, partial(train, mode, name, *flags.split(), prepare=partial(before, *place, number, die)))
    assert wait(killed) == -signal.SIGKILL
    assert wait(fork(playground, train, mode, name, *flags.split())) == 0, output(playground)
    assert differences(expected(mode), outcome(run_folder(playground, mode, name))) == []


@pytest.mark.slow
def test_a_run_killed_twenty_times_at_random_moments_ends_the_same(playground):
    (tally,) = soak(playground, kills=20, modes=("pre-training",), seed=random.randrange(2**32)).values()
    assert tally.kills >= 20
    assert tally.runs >= 1


def test_differences_are_found():
    tallies = Tally(), Tally(kills=1)
    assert differences({"a": [1, float("nan")]}, {"a": [1, float("nan")]}) == []
    assert differences({"a": [1, 2]}, {"a": [1, 3]}) == ["/a/1"]
    assert differences({"a": tallies[0]}, {"a": tallies[1]}) == ["/a"]
    assert differences({"a": 1, "b": 1}, {"a": 1}) == [" (keys)"]


# ---- asked to stop ----


@pytest.mark.parametrize(
    ("mode", "number", "flags"),
    [
        ("pre-training", signal.SIGTERM, "--num_workers 2"),
        ("fine-tuning", signal.SIGINT, "--num_workers 2"),
        ("few-shot", signal.SIGTERM, ""),
        ("part segmentation", signal.SIGINT, ""),
    ],
)
def test_a_signal_ends_the_run_after_the_update(playground, expected, mode, number, flags):
    name = f"signal-{number.name}"
    whole = expected(mode)
    output(playground)
    prepare = partial(in_a_group_of_its_own, *UPDATE, 2, partial(signal_the_group, number))
    stopped = fork(playground, partial(train, mode, name, *flags.split(), prepare=prepare))
    assert wait(stopped) == 75
    text = output(playground)
    assert text.splitlines()[-1] == "stopped in epoch 0 after batch 2; continue with --resume"
    assert "Traceback" not in text
    assert wait(fork(playground, train, mode, name, *flags.split())) == 0, output(playground)
    assert differences(whole, outcome(run_folder(playground, mode, name))) == []


def test_a_signal_during_the_evaluation_ends_the_run_after_it(playground, expected):
    prepare = partial(before, *EVALUATION, 1, partial(raise_signals, signal.SIGTERM))
    assert wait(fork(playground, partial(train, "pre-training", "in-evaluation", prepare=prepare))) == 75
    assert "stopped after epoch 0; continue with --resume" in output(playground)
    assert wait(fork(playground, train, "pre-training", "in-evaluation")) == 0, output(playground)
    run = run_folder(playground, "pre-training", "in-evaluation")
    assert differences(expected("pre-training"), outcome(run)) == []


def test_a_second_interrupt_ends_the_run_at_once_and_it_still_resumes(playground, expected):
    prepare = partial(before, *UPDATE, 5, partial(raise_signals, signal.SIGINT, signal.SIGINT))
    assert wait(fork(playground, partial(train, "pre-training", "twice", prepare=prepare))) == 130
    assert output(playground).splitlines()[-1] == "interrupted"
    assert wait(fork(playground, train, "pre-training", "twice")) == 0, output(playground)
    run = run_folder(playground, "pre-training", "twice")
    assert differences(expected("pre-training"), outcome(run)) == []


# ---- the folder is taken ----


def test_a_run_in_use_is_refused_and_resumes_at_once_after_a_kill(playground, expected):
    """With workers, which live on for some seconds and must not hold the folder."""
    mode, name, mark = "pre-training", "taken", playground / "paused"
    flags = ("--save_every_steps", "1", "--num_workers", "2")
    first = fork(
        playground, partial(train, mode, name, *flags, prepare=partial(before, *UPDATE, 2, partial(pause, mark)))
    )
    while not mark.exists():
        time.sleep(0.05)
    output(playground)
    assert wait(fork(playground, train, mode, name, *flags)) == 1
    (line,) = [line for line in output(playground).splitlines() if line.startswith("error: ")]
    assert f"is in use by process {first.pid} on {socket.gethostname()}" in line
    assert "--exp_name" in line
    first.kill()
    assert wait(first) == -signal.SIGKILL
    assert wait(fork(playground, train, mode, name, *flags)) == 0, output(playground)
    assert differences(expected(mode), outcome(run_folder(playground, mode, name))) == []


# ---- the checkpoint is damaged ----


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.fixture
def stopped(playground, request):
    """A run of two checkpoints that was killed; its folder."""
    name = request.node.name
    prepare = partial(before, *UPDATE, 3, die)
    process = fork(playground, partial(train, "pre-training", name, "--save_every_steps", "1", prepare=prepare))
    assert wait(process) == -signal.SIGKILL
    output(playground)
    return run_folder(playground, "pre-training", name)


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_continues(playground, expected, stopped):
    last = stopped / "ckpt-last.pth"
    flip(last, last.stat().st_size // 2)
    damaged = last.read_bytes()
    assert wait(fork(playground, train, "pre-training", stopped.name, "--save_every_steps", "1")) == 0
    text = output(playground)
    assert "ckpt-last.pth is not read: it is damaged" in text
    assert "falling back to" in text
    assert "resuming at epoch 0, batch 1" in text
    assert (stopped / "ckpt-last.damaged.pth").read_bytes() == damaged
    assert differences(expected("pre-training"), outcome(stopped)) == []


def test_two_damaged_checkpoints_are_an_error(playground, stopped):
    for name in ("ckpt-last.pth", "ckpt-previous.pth"):
        flip(stopped / name, 1000)
    assert wait(fork(playground, train, "pre-training", stopped.name)) == 1
    text = output(playground)
    assert "ckpt-previous.pth is not read: it is damaged" in text.splitlines()[-1]
    assert "Traceback" not in text
    assert (stopped / "ckpt-last.pth").exists()
