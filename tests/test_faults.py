"""Faults of disks, files and numbers: what is promised to survive them, and how they are told."""

import errno
import os
import re
import resource
import signal
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.soak import checkpoints, differences, fork, outcome, train, wait, write_playground
from tests.test_engine import Trained, config
from tests.test_resume import UPDATE, before, die
from tools.training.engine import EpochState, NonFinite, train_one_epoch
from tools.training.precision import Precision
from tools.training.run import Run
from utils import files
from utils.checkpoint import read_checkpoint, remove_unfinished, save_checkpoint
from utils.files import atomic_write, locked
from utils.seed import seed_everything

# ---------------------------------------------------------------------------------------------------- damaged bytes

STATE = {"base_model": {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.int64)}, "epoch": 3, "text": "abc"}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of a checkpoint."""
    path = tmp_path_factory.mktemp("content") / "a.pth"
    save_checkpoint(path, STATE)
    return path.read_bytes()


def is_intact_or_refused(path: Path) -> bool:
    """Whether a file reads as STATE; ValueError naming the file is the only other end."""
    try:
        found = read_checkpoint(path)
    except ValueError as error:
        refusal = str(error)
    else:
        assert differences(found, STATE) == []
        return True
    assert refusal.startswith(f"{path} is not read: it is damaged")
    return False


@pytest.mark.parametrize("bits", [0x10, 0xFF])
def test_a_changed_byte_anywhere_is_noticed_or_harmless(tmp_path, content, bits):
    path = tmp_path / "a.pth"
    noticed = 0
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ bits]) + content[position + 1 :])
        noticed += not is_intact_or_refused(path)
    assert noticed > len(content) / 4  # the others are dates, padding and the like


def test_every_shortened_file_is_refused(tmp_path, content):
    path = tmp_path / "a.pth"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert not is_intact_or_refused(path), size


@settings(max_examples=200)
@given(data=st.data())
def test_several_changes_at_once_are_noticed_or_harmless(content, tmp_path_factory, data):
    changed = bytearray(content)
    position = st.integers(0, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        start, source, size = data.draw(position), data.draw(position), data.draw(st.integers(1, 64))
        changed[start : start + size] = content[source : source + size]  # bytes that end up in the wrong place
    path = tmp_path_factory.getbasetemp() / "changed.pth"
    path.write_bytes(changed)
    is_intact_or_refused(path)


def test_a_tensor_of_a_large_file_is_checked(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"base_model": {"weight": torch.zeros(100_000)}})
    changed = bytearray(path.read_bytes())
    changed[200_000] = 1  # torch.load alone would hand it out
    path.write_bytes(changed)
    assert torch.load(path)["base_model"]["weight"].any()
    with pytest.raises(ValueError, match=r"a\.pth is not read: it is damaged"):
        read_checkpoint(path)


def test_a_compressed_archive_cannot_ask_for_more_memory_than_its_size(tmp_path):
    save_checkpoint(tmp_path / "a.pth", {"weight": torch.zeros(1_000_000)})
    with zipfile.ZipFile(tmp_path / "a.pth") as plain:
        with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as compressed:
            for name in plain.namelist():
                compressed.writestr(name, plain.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"bomb\.pth is not read"):
        read_checkpoint(tmp_path / "bomb.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_older_than_the_archives_are_read(tmp_path):
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert differences(read_checkpoint(tmp_path / "old.pth"), STATE) == []


# ---------------------------------------------------------------------------------------------------- a save cut short


def at_operation(number, action):
    """Call `action` before the file operation number `number`, from 1; returns the list of operations so far."""
    done = []

    def counted(name, original):
        def operation(*args, **kwargs):
            done.append(name)
            if len(done) == number:
                action()
            return original(*args, **kwargs)

        return operation

    os.fsync, os.replace = counted("fsync", os.fsync), counted("replace", os.replace)
    files.open = counted("open", open)
    return done


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def train_net(accuracies, number=0, action=die, resume=False):
    """Train the net of test_engine for two epochs; the file operation `number` of its saves fails."""
    Run.draw = lambda *_: None  # its curves are closed
    seed_everything(0)
    run = Trained(accuracies, config(max_epoch=1), resume=resume)
    done = at_operation(number, action)
    try:
        run.trainer.fit()
    except OSError as error:
        return error.errno
    Path("operations.txt").write_text(str(len(done)))
    return 0


ACCURACIES = [50.0, 70.0]
FOLDER = Path("experiments/some-mode/tiny/e")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Outcome and number of file operations of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert wait(fork(folder, train_net, ACCURACIES)) == 0, (folder / "output.txt").read_text()
    return outcome(folder / FOLDER), int((folder / "operations.txt").read_text())


@pytest.mark.slow
def test_killed_between_any_two_file_operations_a_run_resumes_to_the_same_bits(tmp_path, whole):
    expected, operations = whole
    assert operations >= 15
    for number in range(1, operations + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert wait(fork(folder, train_net, ACCURACIES, number, die)) == -signal.SIGKILL
        found = good_checkpoints(folder)
        left = ACCURACIES[max(found) + 1 :] if found else ACCURACIES
        assert wait(fork(folder, train_net, left, 0, die, bool(found))) == 0, (folder / "output.txt").read_text()
        assert differences(expected, outcome(folder / FOLDER)) == []
        assert not list((folder / FOLDER).glob(".*.tmp"))


def test_an_error_in_any_file_operation_leaves_a_good_checkpoint_and_no_temporary_file(tmp_path, whole):
    reached = []
    for number in range(1, whole[1] + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert wait(fork(folder, train_net, ACCURACIES, number, full)) == errno.ENOSPC
        assert not list((folder / FOLDER).glob(".*.tmp"))
        reached.append(max(good_checkpoints(folder), default=-1))
    assert reached == sorted(reached)  # no later error costs an epoch that an earlier one left
    assert (reached[0], reached[-1]) == (-1, 1)


def good_checkpoints(folder):
    """Epochs of the checkpoints to resume from; all that is there can be read."""
    return [read_checkpoint(path)["epoch"] for path in checkpoints(folder, ("ckpt-last.pth", "ckpt-previous.pth"))]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    kept = ["ckpt-last.pth", ".lock", ".results.json.7.tmp", "nonfinite-epoch0-batch0-rank0.pth"]
    stale = ".results.json.8.tmp"
    for name in [*kept, ".ckpt-last.pth.7.tmp", ".ckpt-best.pth.12345.tmp", stale]:
        (tmp_path / name).touch()
    os.utime(tmp_path / stale, (time.time() - 4000,) * 2)
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


# ---------------------------------------------------------------------------------------------------- full disk


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with generated data sets and small configs."""
    folder = tmp_path_factory.mktemp("playground")
    write_playground(folder)
    return folder


def limit_file_size(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("begun", [False, True], ids=["first checkpoint", "later checkpoint"])
def test_a_full_disk_ends_the_run_in_one_line_and_keeps_what_there_is(playground, begun):
    name = f"full-{begun}"
    run = playground / "experiments/pre-training/i2p" / name
    if begun:
        flags = ("--save_every_steps", "1")
        dies = partial(train, "pre-training", name, *flags, prepare=partial(die_at_update, 3))
        assert wait(fork(playground, dies)) == -signal.SIGKILL
    before = {path.name: path.read_bytes() for path in checkpoints(run)}
    assert len(before) == 2 * begun
    (playground / "output.txt").write_text("")
    assert wait(fork(playground, partial(train, "pre-training", name, prepare=partial(limit_file_size, 50_000)))) == 1
    text = (playground / "output.txt").read_text()
    assert re.fullmatch(r"error: cannot write .*\.pth: File too large; .*ulimit -f.*", text.splitlines()[-1])
    assert "Traceback" not in text
    assert {path.name: path.read_bytes() for path in checkpoints(run)} == before
    assert not list(run.glob(".*.tmp"))
    assert wait(fork(playground, train, "pre-training", name)) == 0


def die_at_update(number):
    before(*UPDATE, number, die)


@pytest.mark.parametrize("operation", ["write", "flush", "fsync"])
def test_an_error_of_the_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, operation):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"epoch": 1})
    if operation == "fsync":
        monkeypatch.setattr("os.fsync", lambda _: full())
    else:
        monkeypatch.setattr("utils.files.open", partial(open_faulty, operation), raising=False)
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(path, {"epoch": 2})
    assert read_checkpoint(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def open_faulty(operation, path, mode):
    """Open a file whose `operation` fails as on a full disk."""
    file = open(path, mode)  # noqa: SIM115 (closed in __exit__)

    class Faulty:
        def __getattr__(self, name):
            return (lambda *_: full()) if name == operation else getattr(file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            file.close()

    return Faulty()


# ---------------------------------------------------------------------------------------------------- the lock


def test_a_lock_falls_with_its_process_but_not_with_a_child_of_it(tmp_path):
    def child():
        with locked(tmp_path):
            if os.fork() == 0:
                os._exit(0)  # closes what it inherited
            os.wait()
            return wait_refused()

    def wait_refused():
        pid = os.fork()
        if pid == 0:
            try:
                with locked(tmp_path):
                    os._exit(0)
            except ValueError:
                os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert child() == 7
    assert wait_refused() == 0


# ---------------------------------------------------------------------------------------------------- not finite


def clouds(count):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 5, 3, generator=generator), torch.arange(count) % 2


class NotFinite:
    """Trains a small net on six batches; in those that `bad` names, `where` is not finite: input, loss or gradient."""

    def __init__(self, bad, where):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.bad, self.where, self.count, self.state = bad, where, 0, EpochState()
        self.seen = []  # parameters and buffers after each update

    def step(self, batch):
        points, labels = batch
        bad = self.count in self.bad
        self.count += 1
        if bad and self.where == "input":
            points = torch.full_like(points, float("nan"))
        loss = nn.functional.cross_entropy(self.model(points.mean(1)), labels)
        if bad and self.where == "loss":
            loss = loss * float("inf")
        if bad and self.where == "gradient":
            bias = self.model[2].bias
            loss = loss + (bias - bias.detach()).sqrt().sum()  # 0, and its gradient infinite
        return {"loss": loss}

    def remember(self):
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.seen.append((state, [dict(values) for values in self.optimizer.state_dict()["state"].values()]))

    def run(self, **options):
        points, labels = clouds(24)
        loader = list(zip(points.split(4), labels.split(4), strict=True))
        return train_one_epoch(
            self.model, loader, self.step, self.optimizer, state=self.state, after_update=self.remember, **options
        )


@pytest.mark.parametrize("where", ["input", "loss", "gradient"])
def test_an_update_left_out_changes_nothing(where):
    run = NotFinite({2, 3}, where)
    values = run.run(skip_nonfinite=2)
    assert run.state.skipped == 2
    assert run.state.seen == 16  # the four others
    assert torch.tensor(list(values.values())).isfinite().all()
    for number in (2, 3):
        assert differences(run.seen[1][0], run.seen[number][0]) == []
    assert differences(run.seen[1][0], run.seen[4][0]) != []
    assert all(tensor.isfinite().all() for tensor in run.model.state_dict().values())


@pytest.mark.parametrize("where", ["input", "loss", "gradient"])
def test_one_more_than_may_be_left_out_stops(where):
    run = NotFinite({1, 2, 4}, where)
    stage = "the gradient of 2.bias is" if where == "gradient" else "the loss is"
    with pytest.raises(NonFinite, match=stage) as stopped:
        run.run(skip_nonfinite=2)
    assert run.state.batches == 4
    assert len(stopped.value.batches) == 1
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_with_a_scaled_loss_the_next_update_follows():
    run = NotFinite({1, 2}, "loss")
    run.run(skip_nonfinite=2, precision=Precision("fp16", torch.device("cpu")))
    assert (run.state.skipped, run.state.batches) == (2, 6)
    assert differences(run.seen[0][0], run.seen[2][0]) == []
    assert all(tensor.isfinite().all() for tensor in run.model.state_dict().values())


def test_the_error_says_when_and_what_and_keeps_the_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tools.training.run.Run.draw", lambda *_: None)
    run = Trained([50.0], config())
    seen = []
    plain = run.step

    def step(points, labels, generator):
        seen.append((points.clone(), labels.clone()))
        values = plain(points, labels, generator)
        return {"loss": values["loss"] * (float("nan") if len(seen) == 7 else 1)}

    run.trainer.step = step
    pattern = r"the loss is not finite in epoch 1, after 2 batches; what went in is in (\S+\.pth); "
    with pytest.raises(ValueError, match=pattern) as stopped:
        run.trainer.fit()
    saved = read_checkpoint(re.search(pattern, str(stopped.value))[1])
    assert (saved["epoch"], saved["stage"]) == (1, "the loss")
    ((points, labels),) = saved["batches"]
    assert torch.equal(points, seen[6][0])
    assert torch.equal(labels, seen[6][1])


def test_an_epoch_of_which_every_update_is_left_out_still_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tools.training.run.Run.draw", lambda *_: None)
    run = Trained([50.0, 60.0], config(max_epoch=1), skip_nonfinite=4)
    run.scale = float("nan")
    results = run.trainer.fit()
    assert [epoch["evaluation"] for epoch in results["history"]] == [50.0, 60.0]
    assert all("loss" not in epoch for epoch in results["history"])


def test_a_file_is_whole_or_as_it_was(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="No space"), atomic_write(tmp_path / "a", tmp_path / "b") as file:
        file.write(full())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}
