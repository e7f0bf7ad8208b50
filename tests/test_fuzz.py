"""Every reader on damaged and hostile files: a ValueError or an OSError comes out, or data, and it takes no memory.

Pickles, .npy headers and checkpoints have tests of their own in test_untrusted.py, test_checkpoint.py, test_faults.py.
"""

import contextlib
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.modelnet40 import ModelNet, ModelNet40_SVM
from datasets.modelnet40_fewshot import ModelNetFewShot
from datasets.pack import pack
from datasets.scanobjectnn import ScanObjectNN
from datasets.shapenet55 import ShapeNet
from datasets.shapenetpart import ShapeNetPart
from datasets.synthetic import (
    write_fewshot,
    write_modelnet,
    write_modelnet_svm,
    write_scanobjectnn,
    write_shapenet,
    write_shapenetpart,
)
from datasets.untrusted import read_h5, safe_join
from utils.checkpoint import read_checkpoint
from utils.config import load_config

CASES = 100  # per file
MEMORY = 2**29  # bytes beyond those in use; the files hold at most some 10 KB
SECONDS = 10
N = 8  # points per cloud


class Stuck(Exception):
    """A reader took longer than `SECONDS`."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Limit memory and time of the block."""

    def stuck(*_):
        raise Stuck

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    memory = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stuck)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, memory[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class Target:
    """A file to damage, and how to read all that depends on it."""

    file: Path
    read: Callable[[], object]


def items(dataset):
    return [dataset[i] for i in range(len(dataset))]


def shapenet(root):
    folder = root / "ShapeNet55-34"
    return ShapeNet(str(folder / "ShapeNet-55"), str(folder / "shapenet_pc"), N, "train", N)


def modelnet(root):
    return ModelNet(str(root / "ModelNet/modelnet40_normal_resampled"), N, 2, "train")


def few_shot(root):
    return ModelNetFewShot(str(root / "ModelNetFewshot"), N, 2, "train", way=2, shot=1)


def parts(root):
    return ShapeNetPart(str(root / "shapenetcore_partanno_segmentation_benchmark_v0_normal"), "train", N)


def svm(root):
    return ModelNet40_SVM(str(root / "modelnet40_ply_hdf5_2048"), "train", N)


def scan(root):
    return ScanObjectNN(str(root / "ScanObjectNN"), "obj-bg", "train", N)


def write_packed(root, **settings):
    folder = write_shapenet(root, **settings)
    pack(str(folder / "ShapeNet-55"), str(folder / "shapenet_pc"), N)
    shutil.rmtree(folder / "shapenet_pc")  # the pack is enough, and nothing else is left to read


def write_text(root, **settings):
    write_modelnet(root, **settings, text=True)


def write_tasks(root, classes, train, test, num_points):
    write_fewshot(root, classes=classes, test=test, num_points=num_points, ways=[2], shots=[train], folds=1)


def write_old_checkpoint(root, **_):
    state = {"base_model": {"a": torch.arange(6.0), "b": torch.ones(2)}, "epoch": 3, "metrics": {"accuracy": 1.5}}
    torch.save(state, root / "old.pth", _use_new_zipfile_serialization=False)


def write_config(root, **_):
    shutil.copy(Path(__file__).parent.parent / "cfgs/pre-training/i2p-mae.yaml", root / "a.yaml")


TARGETS = {  # name: (writer, pattern of the file to damage, reader)
    "ShapeNet list": (write_shapenet, "**/ShapeNet-55/train.txt", lambda root: items(shapenet(root))),
    "ShapeNet cloud": (write_shapenet, "**/*train*.npy", lambda root: items(shapenet(root))),
    "packed index": (write_packed, "**/index.json", lambda root: items(shapenet(root))),
    "packed clouds": (write_packed, "**/clouds-*.npy", lambda root: items(shapenet(root))),
    "ModelNet dat": (write_modelnet, "**/*train*.dat", lambda root: items(modelnet(root))),
    "ModelNet names": (write_text, "**/modelnet40_shape_names.txt", lambda root: items(modelnet(root))),
    "ModelNet list": (write_text, "**/modelnet40_train.txt", lambda root: items(modelnet(root))),
    "ModelNet cloud": (write_text, "**/mug_0001.txt", lambda root: items(modelnet(root))),
    "ModelNet40_SVM": (write_modelnet_svm, "**/ply_data_train*.h5", lambda root: items(svm(root))),
    "ScanObjectNN": (write_scanobjectnn, "**/main_split/training_objectdataset.h5", lambda root: items(scan(root))),
    "few-shot": (write_tasks, "**/0.pkl", lambda root: items(few_shot(root))),
    "ShapeNetPart categories": (write_shapenetpart, "**/synsetoffset2category.txt", lambda root: items(parts(root))),
    "ShapeNetPart list": (write_shapenetpart, "**/shuffled_train_file_list.json", lambda root: items(parts(root))),
    "ShapeNetPart cloud": (write_shapenetpart, "**/03*/train*.txt", lambda root: items(parts(root))),
    "old checkpoint": (write_old_checkpoint, "old.pth", lambda root: read_checkpoint(root / "old.pth")),
    "config": (write_config, "a.yaml", lambda root: load_config(root / "a.yaml")),
}


def make_target(name: str, root: Path) -> Target:
    """Write the valid file of a target into an empty folder, with all that it needs around it."""
    write, pattern, read = TARGETS[name]
    write(root, classes=["mug", "knife"], train=1, test=1, num_points=N)
    file = sorted(root.glob(pattern))[0]
    assert read(root)
    return Target(file, lambda: read(root))


@pytest.fixture(scope="module", params=TARGETS)
def target(request, tmp_path_factory):
    """A valid file of each kind."""
    return make_target(request.param, tmp_path_factory.mktemp("fuzz"))


# ---------------------------------------------------------------------------------------------------- damage

FRAGMENTS = [
    *(b"nan", b"-1", b"1e999", b"9" * 30, b"0x1", b"1_000", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\r\n", b" ", b","),
    *(b"../", b"/etc/passwd", b"..\\", b"[", b"{", b"null", b"true", b"[" * 5000, b"*a", b"&a ", b"!!python/object:"),
    *(b"\xff\xff\xff\x7f", b"\xff" * 8, b"\x00\x00\x00\x80", b"\x80\x04", b"c__builtin__\neval\n", b"R.", b"'" * 3),
]


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Bytes that have nothing to do with the file, or the file cut off or changed in one to four places."""
    kind = draw(st.sampled_from(["random", "cut", "change", "change", "change", "change"]))
    if kind == "random":
        return draw(st.binary(max_size=300))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content)))]
    place = st.integers(0, len(content))
    for _ in range(draw(st.integers(1, 4))):
        start, removed = draw(place), draw(st.sampled_from([0, 1, 1, 4, 60]))
        other = draw(place)
        new = draw(st.binary(max_size=4) | st.sampled_from(FRAGMENTS) | st.just(content[other : other + 40]))
        content = content[:start] + new + content[start + removed :]
    return content


@settings(max_examples=CASES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")  # NumPy's and PyTorch's about odd files
def test_a_damaged_file_is_read_or_refused(target, data):
    valid = target.file.read_bytes()
    target.file.write_bytes(data.draw(damaged(valid)))
    try:
        with watched(), contextlib.suppress(ValueError, OSError):
            target.read()
    finally:
        target.file.write_bytes(valid)


def test_h5_names_that_are_no_text_are_told(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"], file[b"\xff"] = [0.0], [0]
    with pytest.raises(ValueError, match=r"a\.h5: holds \[.*'data'.*\]; expected the arrays"):
        read_h5(tmp_path / "a.h5", "ROOT")


@settings(max_examples=300)
@given(
    name=st.text(max_size=12)
    | st.lists(st.sampled_from(["..", ".", "", "a", "C:", "\\", "~"]), max_size=5).map("/".join)
)
def test_no_name_of_a_list_leads_out_of_its_folder(name):
    folder = Path("/data/clouds")
    with contextlib.suppress(ValueError):
        assert Path(os.path.normpath(safe_join(folder, name))).is_relative_to(folder)


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_is_no_file_is_refused(target):
    valid = target.file.read_bytes()
    target.file.unlink()
    try:
        with pytest.raises((ValueError, OSError), match=r"\w"):
            target.read()
        target.file.mkdir()
        with pytest.raises((ValueError, OSError), match=r"\w"):
            target.read()
        target.file.rmdir()
    finally:
        target.file.write_bytes(valid)
