"""What `--help` promises: its examples run, its flags are those that the parser takes, its files are left behind."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

import main
from datasets.synthetic import write_fewshot, write_s3dis, write_shapenetpart
from tests import test_few_shot, test_s3dis
from tests.playground import CONFIGS, FINETUNE_DATA, changed, make_playground, write_config
from tests.test_commands import touch
from utils import parser
from utils.command import Parser
from utils.parser import parse_args
from utils.usage import FLAGS, MODES, only_of

ROOT = Path(__file__).parents[1]
EXAMPLES = [(name, example) for name, mode in MODES.items() for example in mode.examples]
BASES = [name for name, mode in MODES.items() if not mode.of]


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as ended:
        main.main(["--help", *argv])
    assert ended.value.code == 0
    return capsys.readouterr().out


def flags_in(text):
    """The flags that a help text explains, without their dashes."""
    return set(re.findall(r"^  (?:-\w \[?\w*\]?, )?--(\w+)", text, re.MULTILINE))


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder in which every checkpoint of the examples is there."""
    for name in {path for _, example in EXAMPLES for path in re.findall(r"ckpts (\S+\.pth)", example)}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("mode", "example"), EXAMPLES)
def test_examples_parse_and_their_configs_are_shipped(weights, mode, example):
    before, _, flags = example.partition("main.py ")
    assert re.fullmatch(r"python |torchrun --nproc_per_node=4 ", before)
    args = parse_args(shlex.split(flags))
    assert args.env or (ROOT / args.config).is_file()
    assert args.given <= {flag for flag, use in FLAGS.items() if mode in use.modes}


def test_the_overview_has_every_mode_every_flag_and_an_example_of_each(capsys):
    text = help_of(capsys)
    for name, mode in MODES.items():
        assert f"\n  {name}: {mode.about}\n    {mode.examples[0]}\n" in text
    declared = {action.dest for action in parser._build_parser()._actions}
    assert flags_in(text) == declared
    assert declared == {"help", *FLAGS}


COMMON = {"config", "exp_name", "num_workers", "launcher", "local_rank", "skip_bad", "seed", "deterministic"}


@pytest.mark.parametrize(
    ("mode", "flags"),
    [
        ("test", COMMON | {"test", "ckpts"}),
        ("vote", COMMON | {"test", "ckpts", "vote", "votes"}),
        ("plug-in", COMMON | {"test", "ckpts", "plug_in", "bank_ckpts"}),
        ("linear-svm", COMMON | {"test_svm", "ckpts", "save_features"}),
        ("memory-bank", COMMON | {"test_bank", "ckpts", "save_bank", "select_on"}),
        ("profile", {"config", "seed", "profile"}),
        ("env", {"env"}),
        (
            "pre-train",
            COMMON
            | {"start_ckpts", "resume", "val_freq", "seeds", "dry_run", "save_every_steps", "skip_nonfinite"}
            | {"amp", "compile", "resident_data", "sync_bn", "wandb"},
        ),
    ],
)
def test_the_help_of_a_mode_shows_its_flags_only(capsys, mode, flags):
    assert flags_in(help_of(capsys, mode)) == flags


def test_a_mode_is_called_by_its_name_or_by_its_flag(capsys):
    assert help_of(capsys, "fine-tune") == help_of(capsys, "finetune_model")
    assert help_of(capsys, "fine-tune").startswith("fine-tune (--finetune_model): train a classifier from the weights")


VALUES = {
    "config": "a.yaml", "exp_name": "a", "num_workers": 0, "launcher": "pytorch", "local_rank": 0, "skip_bad": 1,
    "seed": 1, "start_ckpts": "ckpts/pre-train.pth", "val_freq": 2, "seeds": 1, "save_every_steps": 1,
    "skip_nonfinite": 1, "amp": "bf16", "select_on": "val", "votes": 2, "save_features": "a", "save_bank": "a",
    "plug_in": "a", "bank_ckpts": "ckpts/pre-train.pth", "ckpts": "ckpts/pre-train.pth", "way": 5, "shot": 10,
    "fold": 0,
}  # fmt: skip
CHOOSE = ("test_svm", "test_bank", "finetune_model", "scratch_model", "test", "profile")
WITH = {"votes": ["--vote"], "bank_ckpts": ["--plug_in", "a"], "sync_bn": ["--launcher", "pytorch"]}


@pytest.mark.parametrize("mode", BASES)
def test_the_parser_takes_what_the_help_of_a_mode_or_of_a_kind_of_it_shows(weights, capsys, mode):
    """Flags of a kind alone, such as `--fold`, are taken too: whether it is of that kind the config says."""
    start = shlex.split(MODES[mode].examples[0].partition("main.py ")[2])
    shown = {name: flags_in(help_of(capsys, name)) for name in MODES}
    of_modes = set().union(*(shown[base] for base in BASES))
    of_kinds = set().union(*(shown[name] for name, kind in MODES.items() if mode in kind.of)) - of_modes
    tried = [flag for flag in FLAGS if flag not in CHOOSE and f"--{flag}" not in start]
    for flag in tried:
        given = [f"--{flag}", *([str(VALUES[flag])] if flag in VALUES else []), *WITH.get(flag, [])]
        try:
            parse_args([*(word for word in start if flag != "start_ckpts" or "ckpts" not in word), *given])
            taken = True
        except SystemExit:
            taken = False
        assert taken == (flag in shown[mode] | of_kinds), (flag, capsys.readouterr().err)
    assert len(tried) > 20


def test_what_only_few_shot_takes():
    assert only_of("few-shot") == ["way", "shot", "fold"]


# ---- what is left behind ----

NN = {
    "dataset": {f"svm_{subset}": entry for subset, entry in FINETUNE_DATA.items()},
    "model": {"NAME": "Point_NN", "stages": 2, "dim": 12, "k": 8},
}
SMALL = {  # mode → config
    "pre-train": "pre-training/i2p",
    "linear-svm": "pre-training/i2p",
    "memory-bank": "pre-training/i2p",
    "few-shot": "few-shot/small",
    "part-segmentation": "part-segmentation/small",
    "room-segmentation": "act/rooms",
}
FLAGS_OF = {"few-shot": 2, "part-segmentation": 2, "room-segmentation": 1, "vote": 1, "memory-bank": 1}  # which example


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    folder = make_playground(tmp_path_factory.mktemp("playground"), CONFIGS, modelnet=8)
    write_shapenetpart(folder / "data", classes=["mug", "knife", "table"], train=3, test=1, num_points=96)
    write_s3dis(folder / "data", train=2, test=1, num_points=1500, side=1.0)
    write_fewshot(folder / "data", test=1, num_points=48, ways=[5], shots=[10], folds=1)
    write_config(folder, "few-shot/small", changed(test_few_shot.CONFIG, "model.num_classes", 5))
    write_config(folder, "act/rooms", {**test_s3dis.CONFIG, "max_epoch": 1, "total_bs": 2})
    write_config(folder, "point-nn/small", NN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for mode in ("pre-train", "from-scratch"):
            assert main.main(command(mode)) == 0
    return folder


def command(mode):
    """An example of a mode, on the small data: another config, and other weights."""
    example = MODES[mode].examples[FLAGS_OF.get(mode, 0)].partition("main.py ")[2]
    trained = SMALL["pre-train"] if mode in ("linear-svm", "memory-bank", "fine-tune") else "fine-tuning/modelnet"
    changes = {
        r"--config \S+": f"--config cfgs/{SMALL.get(mode, 'fine-tuning/modelnet')}.yaml",
        r"--ckpts \S+": f"--ckpts experiments/{trained}/of-{'pre-train' if 'pre' in trained else 'from-scratch'}"
        "/ckpt-last.pth",
        r"--plug_in \S+": "--plug_in cfgs/point-nn/small.yaml",
        r" --exp_name \S+": "",
    }
    for pattern, text in changes.items():
        example = re.sub(pattern, text, example)
    return [*example.split(), "--num_workers", "0", "--exp_name", f"of-{mode}"]


def left_by(folder):
    names = {path.name for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    assert [name for name in names if name.endswith(".log")]
    return {name for name in names if not name.endswith(".log")}


@pytest.mark.parametrize("mode", [mode for mode in MODES if MODES[mode].leaves])
def test_a_mode_leaves_what_its_help_says(here, capsys, mode):
    folder = Path("experiments", SMALL.get(mode, "fine-tuning/modelnet"), f"of-{mode}")
    if not folder.exists():
        assert main.main(command(mode)) == 0
    assert left_by(folder) == set(MODES[mode].leaves)
    said = help_of(capsys, mode).partition("leaves:\n")[2]
    assert f"{', '.join(MODES[mode].leaves)} and a log in experiments/" in said


# ---- the other commands ----

MODULES = sorted(
    re.sub(r"/__main__$", "", str(path.relative_to(ROOT).with_suffix(""))).replace("/", ".")
    for room in ("tools", "datasets")
    for path in (ROOT / room).rglob("*.py")
    if "= Parser(" in path.read_text()
)
THERE = {"tools.search": ["features.npz"]}  # beside the checkpoints


class Parsed(Exception):
    """A command line was read, and nothing was done yet."""


@pytest.mark.parametrize("module", MODULES)
def test_commands_end_their_help_with_examples_that_parse(weights, monkeypatch, capsys, module):
    touch("ckpts/demo-teacher.safetensors", "cfgs/demo/pre-train.yaml", *THERE.get(module, []))
    (Path.cwd() / "cfgs/pre-training").symlink_to(ROOT / "cfgs/pre-training")
    (Path.cwd() / "cfgs/dataset").symlink_to(ROOT / "cfgs/dataset")
    package = module if module != "datasets.synthetic" else f"{module}.__main__"
    command = importlib.import_module(package)
    with pytest.raises(SystemExit):
        command.main(["--help"])
    examples = capsys.readouterr().out.partition("\nexamples:\n")[2].splitlines()
    assert examples
    parse = Parser.parse_args

    def stop(*arguments):
        raise Parsed(parse(*arguments))

    for example in examples:
        assert example.startswith(f"  python -m {module}")
        argv = shlex.split(example)[3:]
        if hasattr(command, "parse_args"):
            command.parse_args(argv)
        with monkeypatch.context() as patch:
            patch.setattr(Parser, "parse_args", stop)
            with pytest.raises(Parsed):
                command.main(argv)
        assert all((ROOT / config).is_file() for config in re.findall(r"--config (\S+)", example))


def test_a_flag_that_is_missing_may_be_there_misspelt(capsys):
    from tools.features import parse_args

    for given, message in (
        ("--ckpt", "unknown flag --ckpt; did you mean --ckpts?; python -m tools.features --help lists the flags"),
        ("--zzz", "unknown flag --zzz; python -m tools.features --help lists the flags"),
        ("--seed", "the following arguments are required: --ckpts; python -m tools.features --help lists the flags"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parse_args(["a.ply", given, "1", "-o", "b.npz"])
        assert capsys.readouterr().err == f"error: {message}\n"


def test_weights_that_are_missing_are_told_with_the_nearest_before_pytorch_is_imported(weights, capsys):
    from tools import convert, export, features

    for command, flags in (
        (features, ["a.ply", "-o", "b.npz", "--ckpts"]),
        (export, ["a.onnx", "--ckpts"]),
        (convert, ["b.pth"]),
    ):
        argv = ["ckpts/pre-trian.pth", *flags] if command is convert else [*flags, "ckpts/pre-trian.pth"]
        with pytest.raises(SystemExit, match="2"):
            command.main(argv)
        (line,) = capsys.readouterr().err.splitlines()
        assert "no such file: ckpts/pre-trian.pth; did you mean ckpts/pre-train.pth? ckpts/README.md says" in line
