"""How commands begin and end: quickly where nothing is computed, in one line where something is wrong."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import main
from tests.playground import CONFIGS, make_playground, refuse, run, write_config
from utils.command import run_command
from utils.config import load_config
from utils.files import atomic_write, make_folder, unwritable
from utils.parser import parse_args

ROOT = Path(__file__).parents[1]

BEGIN = """
import runpy, sys

sys.path.insert(0, {root!r})
sys.argv = {argv!r}
try:
    runpy.{how}(sys.argv[0], run_name="__main__")
finally:
    print("PyTorch is imported:", "torch" in sys.modules)
"""


def command(*argv: str) -> list[str]:
    """A command that says at its end whether it has imported PyTorch."""
    how = "run_path" if argv[0].endswith(".py") else "run_module"
    argv = (str(ROOT / argv[0]), *argv[1:]) if how == "run_path" else argv
    return [sys.executable, "-c", BEGIN.format(root=str(ROOT), argv=list(argv), how=how)]


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("main.py", "--help"), 0),
        (("main.py", "--finetune_modle"), 2),
        (("main.py", "--config", "cfgs/nothing.yaml"), 1),
        (("main.py",), 2),
        (("tools.demo", "--help"), 0),
        (("tools.demo", "--seed", "1"), 2),
        (("tools.ablation", "--help"), 0),
        (("tools.train_teacher", "--epochs", "0"), 2),
        (("tools.reproduce", "--help"), 0),
        (("tools.reproduce", "--only"), 2),
        (("tools.features", "a.ply", "--ckpts", "a.pth", "-o", "a.txt"), 2),
        (("tools.saliency", "--config", "a.yaml", "-o", "a.jpg"), 2),
        (("tools.search", "--help"), 0),
        (("tools.inspect", "--help"), 0),
        (("tools.convert", "a.pth", "a.txt"), 2),
        (("tools.export", "--ckpts", "a.pth", "a.txt"), 2),
        (("datasets.synthetic", "--help"), 0),
        (("datasets.pack", "--help"), 0),
        (("datasets.pack_parts", "--help"), 0),
        (("datasets.few_shot_splits", "--folds", "ten"), 2),
        (("datasets.check", "--help"), 0),
        (("datasets.check", "ShapeNut"), 2),
        (("datasets.download", "--help"), 0),
        (("datasets.lists", "--help"), 0),
        (("datasets.process_modelnet", "--points", "none"), 2),
    ],
)
def test_what_computes_nothing_imports_no_pytorch(tmp_path, argv, code):
    done = subprocess.run(command(*argv), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "PyTorch is imported: False"
    assert len(done.stderr.splitlines()) == (code != 0 and len(argv) > 1)


@pytest.mark.parametrize(
    "name", ["synthetic", "pack", "few_shot_splits", "check", "download ShapeNet", "lists", "process_modelnet"]
)
def test_commands_of_data_sets_tell_a_wrong_flag_in_one_line(name):
    done = subprocess.run(
        [sys.executable, "-m", *f"datasets.{name}".split(), "--zzz"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    expected = f"error: unknown flag --zzz; python -m datasets.{name.split()[0]} --help lists the flags"
    assert done.stderr.splitlines() == [expected]


# ---- how they end ----

UNREAD = """
import sys, time

sys.path.insert(0, {root!r})
from utils.command import run_command

def speak():
    sys.stdin.read()  # until nobody reads
    print("a line" * {times})

sys.exit(run_command(speak))
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("times", [1, 100_000])
def test_a_command_that_nobody_reads_ends_silently(unbuffered, times):
    process = subprocess.Popen(
        [sys.executable, "-c", UNREAD.format(root=str(ROOT), times=times)],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_output_that_cannot_be_written_is_an_error():
    script = "import sys; from utils.command import run_command; sys.exit(run_command(lambda: print('a line')))"
    with open("/dev/full", "w") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": ""}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error: cannot write the output: No space left on device")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_threads_spin_briefly_unless_told_otherwise(monkeypatch, given, spins):
    others = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    monkeypatch.setattr(os, "environ", others | given)
    seen = []
    run_command(lambda: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    assert seen == [spins]


def test_exit_codes(capsys):
    def fail():
        raise ValueError("why")

    assert run_command(lambda: None) == 0
    assert run_command(lambda: 75) == 75
    assert run_command(fail) == 1
    assert capsys.readouterr().err == "error: why\n"


# ---- nothing asked for ----


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


@pytest.mark.parametrize(
    ("there", "said", "unsaid"),
    [
        (
            [],
            ["data in data/: none", "make demo", "data/README.md", "datasets.check", "datasets.synthetic --root data"],
            ["pre-train:"],
        ),
        (
            ["data/README.md", "data/ShapeNet55-34/x", "data/ScanObjectNN/x"],
            [
                "data/: data/ScanObjectNN, data/ShapeNet55-34",
                "pre-train, once `python -m datasets.download ModelNet40_SVM` has brought",
                "cfgs/pre-training/i2p-mae.yaml --exp_name",
                "without training: python main.py --config cfgs/point-nn/scan_pb.yaml --test_bank --exp_name bank",
                "ckpts/README",
            ],
            ["make demo", "--finetune_model"],
        ),
        (
            ["data/ShapeNet55-34/x", "data/modelnet40_ply_hdf5_2048/x"],
            ["pre-train: python main.py --config cfgs/pre-training/i2p-mae.yaml --exp_name pre-train"],
            ["datasets.download", "without training"],
        ),
        (["data/ScanObjectNN/x"], ["ckpts/README.md"], ["pre-train:"]),
        (
            ["data/ModelNet/modelnet40_normal_resampled/x", "ckpts/modelnet40.pth", "ckpts/pre-train.pth"],
            [
                "ckpts/modelnet40.pth, ckpts/pre-train.pth",
                "cfgs/fine-tuning/modelnet40.yaml --finetune_model --exp_name finetune --ckpts ckpts/pre-train.pth",
                "cfgs/fine-tuning/modelnet40.yaml --test --exp_name test --ckpts ckpts/modelnet40.pth",
            ],
            ["make demo", "pre-train:", "get weights", "without training"],
        ),
        (
            ["data/ScanObjectNN/x", "ckpts/modelnet40.pth", "ckpts/point-mae_pre-train.pth"],
            ["cfgs/point-mae/scan_pb.yaml --finetune_model --exp_name finetune --ckpts ckpts/point-mae_pre-train.pth"],
            ["--test "],  # its data are not there
        ),
        (
            ["data/ScanObjectNN/x", "ckpts/point-m2ae_pre-train.pth", "ckpts/point-m2ae_scan_pb.pth"],
            [
                "cfgs/fine-tuning/point-m2ae_scan_pb.yaml --finetune_model --exp_name finetune --ckpts ckpts/point-m2",
                "cfgs/fine-tuning/point-m2ae_scan_pb.yaml --test --exp_name test --ckpts ckpts/point-m2ae_scan_pb.pth",
            ],
            [],
        ),
        (["ckpts/pre-train.pth"], ["data/README.md"], ["--finetune_model", "make demo"]),
        (
            ["data/synthetic/ShapeNet55-34/x", "data/synthetic/ScanObjectNN/x"],
            ["small, on generated shapes: python main.py --config cfgs/demo/pre-train.yaml --exp_name demo"],
            ["make demo", "README.md", "cfgs/pre-training"],
        ),
        (
            [
                *("data/synthetic/ShapeNet55-34/x", "data/synthetic/ScanObjectNN/x"),
                *(f"experiments/demo/pre-train/{name}/ckpt-last.pth" for name in "abcd"),
                "experiments/demo/fine-tune/d/ckpt-best.pth",
            ],
            [
                "runs in experiments/: experiments/demo/fine-tune/d, ",
                "and 2 more",
                "cfgs/demo/fine-tune.yaml --finetune_model --exp_name finetune --ckpts experiments/demo/pre-train/d/",
                "cfgs/demo/fine-tune.yaml --test --exp_name test --ckpts experiments/demo/fine-tune/d/ckpt-best.pth",
                "--config cfgs/demo/pre-train.yaml --ckpts experiments/demo/pre-train/d/ckpt-last.pth -o pictures",
            ],
            ["small, on generated", "cfgs/fine-tuning"],
        ),
        (
            ["data/synthetic/meshes/x", "experiments/demo/own-data/a/ckpt-last.pth"],
            ["cfgs/demo/own-data.yaml --finetune_model --exp_name finetune --ckpts experiments/demo/own-data"],
            ["make demo", "--test "],
        ),
        (["data/synthetic/ScanObjectNN/x"], ["see it work, in minutes: make demo"], ["cfgs/", "README.md"]),
        (
            ["data/my_shapes/a/1.ply"],
            [
                "docs/OWN_DATA.md): python main.py --config cfgs/own-data/i2p-mae.yaml --exp_name pre-train",
                "ckpts/README",
            ],
            ["make demo", "write data"],
        ),
        (
            ["data/cars/a/1.ply"],
            ["write data/cars into ROOT of cfgs/own-data/i2p-mae.yaml, then python main.py --config cfgs/own-data/i2p"],
            ["features"],
        ),
        (
            ["data/cars/a/1.ply", "ckpts/pre-train.pth"],
            ["python -m tools.features --ckpts ckpts/pre-train.pth data/cars -o features.npz"],
            ["cfgs/own-data", "--finetune_model"],
        ),
        (
            ["data/my_shapes/a/1.ply", "experiments/own-data/i2p-mae/a/ckpt-last.pth"],
            ["cfgs/own-data/i2p-mae.yaml --finetune_model --exp_name finetune --ckpts experiments/own-data/i2p-mae/"],
            ["--test "],
        ),
    ],
)
def test_without_a_command_line_it_says_what_can_be_done(empty, capsys, there, said, unsaid):
    touch(*there)
    assert main.main([]) == 2
    text = capsys.readouterr().out
    assert [part for part in said if part not in text] == []
    assert [part for part in unsaid if part in text] == []
    assert len(text.splitlines()) <= 7
    (empty / "cfgs").symlink_to(ROOT / "cfgs")
    commands = re.findall(r"python (main\.py|-m tools\.\w+) (--c.+)$", text, re.MULTILINE)
    assert len(commands) == len(re.findall(r"--config|-m tools\.features", text))
    for command, flags in commands:
        assert re.findall(r"--config (\S+)", flags) or "--ckpts" in flags
        assert all(Path(path).is_file() for path in re.findall(r"--(?:config|ckpts) (\S+)", flags))
        if command == "main.py":
            args = parse_args(flags.split())
            assert load_config(args.config).model


def test_of_your_own_data_a_classifier_is_told_from_an_encoder(empty, capsys):
    run = Path("experiments/own-data/i2p-mae/a")
    touch("data/my_shapes/a/1.ply", run / "ckpt-best.pth", run / "ckpt-last.pth")
    (run / "config.yaml").write_text("dataset: {}\nmodel: {NAME: Any, num_classes: 4}\n")
    main.main([])
    text = capsys.readouterr().out
    assert (
        f"python main.py --config cfgs/own-data/i2p-mae.yaml --test --exp_name test --ckpts {run}/ckpt-best.pth" in text
    )
    assert "--finetune_model" not in text


@pytest.mark.parametrize(
    ("tokenizer", "data", "config"),
    [
        ("point-bert/dvae/dvae", "ShapeNet55-34", "cfgs/point-bert/pre-train.yaml --exp_name pre-train"),
        ("act/autoencoder/autoencoder", "ShapeNet55-34", "cfgs/act/pre-train.yaml --exp_name pre-train"),
        ("demo/dvae/demo", "synthetic/ShapeNet55-34", "cfgs/demo/point-bert.yaml --exp_name demo"),
        ("demo/act-autoencoder/demo", "synthetic/ShapeNet55-34", "cfgs/demo/act.yaml --exp_name demo"),
    ],
)
def test_a_tokenizer_is_what_a_pre_training_starts_with(empty, capsys, tokenizer, data, config):
    """And nothing is fine-tuned from it."""
    (empty / "cfgs").symlink_to(ROOT / "cfgs")
    touch(f"data/{data}/x", "data/ScanObjectNN/x", f"experiments/{tokenizer}/ckpt-best.pth")
    main.main([])
    text = capsys.readouterr().out
    assert f"with the tokenizer that is there: python main.py --config {config}\n" in text
    assert "--finetune_model" not in text
    touch(f"experiments/{config.split()[0][5:-5]}/a/ckpt-last.pth")
    main.main([])
    assert "tokenizer that is there" not in capsys.readouterr().out


# ---- disks ----


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with the generated data sets and the small configs."""
    return make_playground(tmp_path_factory.mktemp("playground"), CONFIGS)


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "No space left on device; make room, or put a symbolic link to a folder of another disk"),
        (errno.EDQUOT, "make room"),
        (errno.EACCES, "Permission denied; this is not writable: change its permissions"),
        (errno.EROFS, "Read-only file system; this is not writable"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_an_error_of_the_disk_names_the_file_and_the_way_out(tmp_path, monkeypatch, number, way_out):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "results.json"
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=f"cannot write {path}: .*{way_out}") as caught:
        with atomic_write(path) as file:
            file.write(b"x")
    assert caught.value.errno == number
    assert str(unwritable(path, caught.value)).endswith(caught.value.strerror.partition(": ")[2])


def test_an_error_about_another_file_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        with atomic_write(tmp_path / "a"):
            (tmp_path / "nothing").read_text()
    assert caught.value.filename == str(tmp_path / "nothing")


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "a").touch()
    for path in (tmp_path / "a", tmp_path / "a/b/c"):
        with pytest.raises(OSError, match=r"cannot write .*/a.*; a file stands where a folder has to be: move it away"):
            make_folder(path)


TRAIN, TEST = ("--scratch_model",), ("--test", "--ckpts", "w.pth")


@pytest.mark.parametrize("flags", [TRAIN, TEST], ids=["training", "test"])
def test_an_experiments_folder_that_is_not_writable_is_told(here, capsys, monkeypatch, flags):
    def refused(path, *_):  # as where the nearest folder that exists is not writable
        number = errno.EACCES if Path(path).parent.exists() else errno.ENOENT
        raise OSError(number, os.strerror(number), str(path))

    touch("w.pth")
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refused)  # root may write anywhere
        line = refuse(capsys, "fine-tuning/modelnet", *flags, exp_name="unwritable")
    assert "error: cannot write experiments/fine-tuning/modelnet/unwritable: Permission denied; this is not" in line


@pytest.mark.parametrize("flags", [TRAIN, TEST], ids=["training", "test"])
def test_a_disk_that_is_full_at_the_start_is_told(here, capsys, monkeypatch, flags):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    touch("w.pth")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        line = refuse(capsys, "fine-tuning/modelnet", *flags, exp_name="full")
    assert "cannot write experiments/fine-tuning/modelnet/full/config.yaml: No space left on device; make room" in line


# ---- what was interrupted ----


def continuing(capsys):
    capsys.readouterr()
    main.main([])
    return re.findall(r"^continue what was interrupted: python main\.py (.+)$", capsys.readouterr().out, re.MULTILINE)


def test_a_run_that_was_interrupted_is_continued_by_the_command_that_is_printed(here, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("tools.training.trainer.any_process", lambda *_: True)
        assert run("fine-tuning/modelnet", "--scratch_model", "--exp_name", "halted") == 75
    folder = Path("experiments/fine-tuning/modelnet/halted")
    (command,) = continuing(capsys)
    assert command == "--config cfgs/fine-tuning/modelnet.yaml --scratch_model --exp_name halted --resume"
    script = (
        f"import time; from utils.files import locked; from pathlib import Path\nwith locked(Path({str(folder)!r})):"
    )
    held = subprocess.Popen(
        [sys.executable, "-c", f"{script}\n print('held', flush=True); time.sleep(60)"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
    )  # fmt: skip
    held.stdout.readline()
    assert continuing(capsys) == []  # it runs
    held.kill()
    held.wait()
    assert continuing(capsys) == [command]
    assert run("fine-tuning/modelnet", "--test", "--ckpts", folder / "ckpt-last.pth", "--exp_name", "halted") == 0
    assert continuing(capsys) == [command]  # a test in the same folder is another thing
    assert main.main([*command.split(), "--num_workers", "0"]) == 0
    assert continuing(capsys) == []


def test_a_fold_is_continued_with_what_chose_it(here, capsys):
    folder = Path("experiments/few-shot/a/b/5way_10shot/fold0")
    touch(folder / "ckpt-last.pth")
    said = "arguments: {'config': PosixPath('cfgs/fine-tuning/modelnet.yaml'), 'exp_name': 'b', 'test_svm': None, "
    said += "'finetune_model': True, 'scratch_model': False, 'test': False, 'test_bank': False, 'way': 5, 'fold': None}"
    (folder / "1.log").write_text(f"noise\n{said}\n")
    expected = "--config cfgs/fine-tuning/modelnet.yaml --finetune_model --way 5 --exp_name b --resume"
    assert continuing(capsys) == [expected]
    (folder / "1.log").write_text(said.replace("modelnet.yaml", "gone.yaml"))
    assert continuing(capsys) == []


# ---- what a start that failed leaves ----


def test_a_start_that_fails_leaves_nothing(here, capsys):
    data = {**CONFIGS["fine-tuning/modelnet"]["dataset"]["train"], "DATA_PATH": "data/nowhere"}
    write_config(here, "missing/data", {**CONFIGS["fine-tuning/modelnet"], "dataset": {"train": data, "test": data}})
    before = sorted(here.rglob("*"))
    assert "data/nowhere does not exist" in refuse(capsys, "missing/data", *TRAIN)
    touch("w.pth")
    assert "data/nowhere does not exist" in refuse(capsys, "missing/data", *TEST)
    Path("w.pth").unlink()
    assert [path for path in here.rglob("*") if path not in before and "experiments/missing" in str(path)] == []


def test_a_start_that_fails_leaves_what_was_there(here, capsys):
    kept = Path("experiments/fine-tuning/modelnet/kept")
    touch(kept / "notes.txt", "w.pth")
    assert run("fine-tuning/modelnet", "--test", "--ckpts", "w.pth", "--exp_name", "kept") == 1
    assert (kept / "notes.txt").exists()
    (log,) = kept.glob("*.log")
    assert "Traceback" in log.read_text()  # the log has what the terminal does not show


def test_more_workers_than_the_machine_can_use_are_not_started(here, monkeypatch, caplog):
    from argparse import Namespace

    from tools.training.builder import limit_workers

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for given, used in ((100_000, 8), (9, 8), (8, 8), (0, 0)):
        args = Namespace(num_workers=given)
        with caplog.at_level("INFO"):
            caplog.clear()
            limit_workers(args)
        assert args.num_workers == used
        assert len(caplog.messages) == (given != used)
