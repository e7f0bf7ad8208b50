"""What a command says at its end: figures with what chose them, files, and commands that run as they stand."""

import re
import shlex
from pathlib import Path

import pytest

import main
from tests.playground import CLASSES, CONFIGS, ENCODER, REPOSITORY, make_playground, run, write_config
from tools import visualize
from tools.training.closing import found
from tools.training.next_steps import Done, after, free_name
from utils.config import FINE_TUNE, PRE_TRAIN, load_config
from utils.parser import parse_args

# ---- what comes next, of the shipped configs ----


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder with the shipped configs and weights, and no data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfgs").symlink_to(REPOSITORY / "cfgs")
    (tmp_path / "w.pth").touch()
    return tmp_path


def offered(mode: str, path: str, *flags: str, weights: str = "w.pth", section: str = PRE_TRAIN, **more) -> list[str]:
    """Arguments of the commands that are offered after a mode; each is checked."""
    args = parse_args(["--config", path, "--exp_name", "a", *flags])
    steps = after(mode, Done(Path(path), load_config(path, section), args, Path(weights), **more))
    for step in steps:
        check(step.command)
    return [step.command.removeprefix("python ") for step in steps]


def check(command: str) -> None:
    """Parse a command as the program does; its config and its weights are there."""
    python, *words = shlex.split(command)
    assert python == "python"
    if words[:2] == ["-m", "tools.visualize"]:
        args = visualize.parse_args(words[2:])
        load_config(args.config, args.section)
    else:
        assert words[0] == "main.py"
        args = parse_args(words[1:])
        config = load_config(args.config, FINE_TUNE if args.finetune_model or args.test else PRE_TRAIN)
        main.choose_runner(args, config)
    assert args.ckpts is None or args.ckpts.is_file()


CLASSIFIER = {"model": {"NAME": "I2P_MAE_ModelNet40"}, "dataset": {"train": {"NAME": "ModelNet"}}}
SVM = "main.py --config {} --test_svm {} --exp_name a --ckpts w.pth"
TUNE = "main.py --config {} --finetune_model --exp_name a --ckpts w.pth"
LOOK = "-m tools.visualize --config {} --ckpts w.pth -o pictures"


@pytest.mark.parametrize(
    ("path", "svm", "classifier", "seen"),
    [
        ("pre-training/i2p-mae", ("pre-training/i2p-mae", "modelnet40"), "fine-tuning/modelnet40", True),
        (
            "pre-training/point-m2ae",
            ("pre-training/point-m2ae", "modelnet40"),
            "fine-tuning/point-m2ae_modelnet40",
            True,
        ),
        ("point-mae/pre-train", ("point-mae/pre-train", "modelnet40"), "point-mae/modelnet40", True),
        ("point-bert/pre-train", ("point-bert/linear-svm_modelnet40", "modelnet40"), "point-bert/modelnet40", False),
        ("act/pre-train", ("act/pre-train", "modelnet40"), "act/modelnet40", False),
        ("own-data/i2p-mae", ("own-data/i2p-mae", "folder"), "own-data/i2p-mae", True),
        ("demo/pre-train", ("demo/pre-train", "scan"), "demo/fine-tune", True),
        ("demo/point-bert", ("demo/point-bert", "scan"), "demo/point-bert_fine-tune", False),
        ("demo/act", ("demo/act", "scan"), "demo/act_fine-tune", False),
        ("demo/point-mae", ("demo/point-mae", "scan"), None, True),  # no classifier is as small
    ],
)
def test_after_a_pre_training_come_the_svm_and_the_classifier_of_its_model(shipped, path, svm, classifier, seen):
    path, (of_svm, flag) = f"cfgs/{path}.yaml", svm
    commands = [SVM.format(f"cfgs/{of_svm}.yaml", flag)]
    commands += [TUNE.format(f"cfgs/{classifier}.yaml")] if classifier else []
    commands += [LOOK.format(path)] if seen else []
    assert offered("pre-training", path) == commands


def test_without_labels_nothing_that_needs_them_is_offered(shipped):
    path = "cfgs/own-data/i2p-mae.yaml"
    assert offered("pre-training", path, measured=False) == [LOOK.format(path)]


@pytest.mark.parametrize(
    ("mode", "path", "flags", "commands"),
    [
        (
            "linear SVM", "linear-svm/modelnet40", "--test_svm modelnet40",
            [TUNE.format("cfgs/fine-tuning/modelnet40.yaml")],
        ),
        (
            "memory bank", "linear-svm/point-m2ae_modelnet40", "--test_bank",
            [TUNE.format("cfgs/fine-tuning/point-m2ae_modelnet40.yaml")],
        ),
        (
            "fine-tuning", "fine-tuning/scan_pb", "--finetune_model",
            ["main.py --config cfgs/fine-tuning/scan_pb.yaml --test --exp_name a --ckpts w.pth",
             "main.py --config cfgs/fine-tuning/scan_pb.yaml --test --vote --exp_name a --ckpts w.pth"],
        ),
        (
            "training from scratch, 3 seeds", "fine-tuning/scan_pb", "--scratch_model",
            ["main.py --config cfgs/fine-tuning/scan_pb.yaml --test --exp_name a --ckpts w.pth",
             "main.py --config cfgs/fine-tuning/scan_pb.yaml --test --vote --exp_name a --ckpts w.pth"],
        ),
        (
            "test", "point-mae/scan_pb", "--test",
            ["main.py --config cfgs/point-mae/scan_pb.yaml --test --vote --exp_name a --ckpts w.pth",
             LOOK.format("cfgs/point-mae/scan_pb.yaml")],
        ),
        ("test", "point-mae/scan_pb", "--test --vote", [LOOK.format("cfgs/point-mae/scan_pb.yaml")]),
        (
            "part segmentation, fine-tuning", "act/part-segmentation", "--finetune_model",
            [LOOK.format("cfgs/act/part-segmentation.yaml")],
        ),
        ("part segmentation", "act/part-segmentation", "--test", [LOOK.format("cfgs/act/part-segmentation.yaml")]),
        (
            "room segmentation, fine-tuning", "act/s3dis", "--finetune_model",
            ["main.py --config cfgs/act/s3dis.yaml --test --exp_name a --ckpts w.pth"],
        ),
        ("room segmentation", "act/s3dis", "--test", []),
        (
            "autoencoding", "act/autoencoder", "",
            ["main.py --config cfgs/act/autoencoder.yaml --test --exp_name a --ckpts w.pth"],
        ),
        ("autoencoding, test", "act/autoencoder", "--test", []),
        ("few-shot fine-tuning", "few-shot/modelnet40", "--finetune_model", []),
    ],
)  # fmt: skip
def test_what_follows_a_mode(shipped, mode, path, flags, commands):
    weights = [] if mode in ("training from scratch, 3 seeds", "autoencoding") else ["--ckpts", "w.pth"]
    section = FINE_TUNE if "test" in flags or "tune" in flags else PRE_TRAIN
    flags = flags.split()
    assert offered(mode, f"cfgs/{path}.yaml", *flags, *weights, section=section) == commands


@pytest.mark.parametrize(
    ("autoencoder", "name", "pre_training"),
    [
        ("point-bert/dvae", "dvae", "point-bert/pre-train"),
        ("act/autoencoder", "autoencoder", "act/pre-train"),
        ("demo/dvae", "demo", "demo/point-bert"),
        ("demo/act-autoencoder", "demo", "demo/act"),
    ],
)
def test_an_autoencoder_that_a_config_names_is_pre_trained_with(shipped, autoencoder, name, pre_training):
    weights = shipped / "experiments" / autoencoder / name / "ckpt-best.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    command = f"main.py --config cfgs/{pre_training}.yaml --exp_name a"
    assert offered("autoencoding", f"cfgs/{autoencoder}.yaml", weights=str(weights)) == [command]


def test_a_config_whose_data_are_here_is_preferred(shipped):
    (shipped / "data/ScanObjectNN").mkdir(parents=True)
    _, classifier, _ = offered("pre-training", "cfgs/pre-training/i2p-mae.yaml")
    assert classifier == TUNE.format("cfgs/fine-tuning/scan_obj-bg.yaml")


def test_a_config_that_cannot_be_read_is_passed_over(shipped):
    (shipped / "cfgs").unlink()
    for name in ("fine-tuning/broken", "fine-tuning/other"):
        write_config(shipped, name, CLASSIFIER)
    path = shipped / "cfgs/fine-tuning/broken.yaml"
    path.write_text(path.read_text() + "what: is this\n")
    write_config(shipped, "pre-training/own", {"model": {"NAME": "I2P_MAE"}, "dataset": {}})
    classifier, _ = offered("pre-training", "cfgs/pre-training/own.yaml")
    assert classifier == TUNE.format("cfgs/fine-tuning/other.yaml")


def test_a_config_of_the_same_folder_is_preferred(shipped):
    (shipped / "cfgs").unlink()
    for name in ("a/any", "b/any", "c/any"):
        write_config(shipped, name, CLASSIFIER)
    write_config(shipped, "b/own", {"model": {"NAME": "I2P_MAE"}, "dataset": {}})
    assert offered("pre-training", "cfgs/b/own.yaml")[0] == TUNE.format("cfgs/b/any.yaml")


def test_the_name_of_a_run_that_is_there_is_not_offered(shipped):
    path = Path("cfgs/fine-tuning/modelnet40.yaml")
    assert free_name(path, "a") == "a"
    for name in ("a", "a-2"):
        folder = shipped / "experiments/fine-tuning/modelnet40" / name
        folder.mkdir(parents=True)
        (folder / "ckpt-last.pth").touch()
    assert free_name(path, "a") == "a-3"
    _, classifier, _ = offered("pre-training", "cfgs/pre-training/i2p-mae.yaml")
    assert " --exp_name a-3 " in classifier


def test_a_classifier_of_own_data_is_looked_at_in_its_section(shipped):
    path = "cfgs/own-data/i2p-mae.yaml"
    (command,) = offered("test", path, "--test", "--vote", "--ckpts", "w.pth", section=FINE_TUNE)
    assert command == f"-m tools.visualize --config {path} --section fine_tune --ckpts w.pth -o pictures"


# ---- figures ----


@pytest.mark.parametrize(
    ("results", "text"),
    [
        (
            {"protocol": "accuracy on X", "best_accuracy": 85.254, "best_epoch": 3, "best_chosen_on": "the same split",
             "final_accuracy": 84.0, "final_epoch": 5, "seconds": 12.5, "history": [{"loss": 1.0}]},
            "accuracy on X: best accuracy 85.25 % (epoch 3), final accuracy 84.00 % (epoch 5); best chosen on the same "
            "split",
        ),
        (
            {"protocol": "no labels", "final_loss": 0.012345, "final_epoch": 4, "seconds": 1.0, "history": []},
            "no labels: final loss 0.01235 (epoch 4)",
        ),
        (
            {"protocol": "X, 64 points", "checkpoint": "a", "accuracy": 0.0,
             "vote": {"repeats": 2, "best_accuracy": 50.0}},
            "X, 64 points: accuracy 0.00 %, vote best accuracy 50.00 %; weights chosen by chance",
        ),
        (
            {"protocol": "X", "seeds": [0, 1], "best_chosen_on": "test",
             "best_accuracy": {"values": [1.0, 3.0], "mean": 2.0, "std": 1.0, "best": 3.0}},
            "X: best accuracy 2.00 ± 1.00 %; best chosen on test; weights chosen by chance",
        ),
        (
            {"protocol": "X",
             "settings": {"5-way 10-shot": {"folds": [0], "final": {"accuracies": [9.0], "mean": 9.0, "std": 0.0}}}},
            "X: 5-way 10-shot final 9.00 ± 0.00; weights chosen by chance",
        ),
        (
            {"protocol": "bank", "accuracy": 71.0, "gamma": 100, "gamma_chosen_on": "all", "C": 0.01, "chosen_C": 0.5},
            "bank: accuracy 71.00 %; γ chosen on all; weights chosen by chance",
        ),
        (
            {"protocol": "plug-in", "accuracy": 71.0, "lambda": 0.5, "chosen_on": "a tenth", "class_IoU": {"a": 3.0}},
            "plug-in: accuracy 71.00 %; λ and γ chosen on a tenth; weights chosen by chance",
        ),
    ],
)  # fmt: skip
def test_figures_are_said_with_what_chose_them(results, text):
    assert found(results, "chance") == text


# ---- at the end of runs ----


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    configs = {
        "pre-training/small": CONFIGS["pre-training/m2ae"],
        "fine-tuning/small": {
            **CONFIGS["fine-tuning/modelnet"],
            "max_epoch": 0,
            "model": {"NAME": "Point_M2AE_ModelNet40", **ENCODER, "num_classes": len(CLASSES)},
        },
    }
    return make_playground(tmp_path_factory.mktemp("playground"), configs)


def end_of(text: str) -> tuple[str, str, list[str]]:
    """Of a log: what was found, where it is, and the commands that come next; each is checked."""
    (figures,), (place,) = re.findall(r"INFO found: (.*)\n", text), re.findall(r"INFO in (experiments.*)\n", text)
    commands = re.findall(r"INFO next, [\w -]+: (.*)\n", text)
    for command in commands:
        check(command)
    return figures, place, commands


def test_each_command_runs_and_says_the_next(playground, monkeypatch, capsys):
    monkeypatch.chdir(playground)

    def follow(command: str) -> tuple[str, str, list[str]]:
        capsys.readouterr()
        assert main.main([*shlex.split(command)[2:], "--num_workers", "0"]) == 0
        return end_of(capsys.readouterr().err)

    figures, place, (svm, tune, look) = follow("python main.py --config cfgs/pre-training/small.yaml --exp_name a")
    assert figures.startswith("linear SVM (C = 0.01) on ModelNet40_SVM, test split: best accuracy ")
    files = "ckpt-best.pth, ckpt-last.pth, metrics.jsonl, results.json, results.md; pictures: reconstructions.png"
    assert place == f"experiments/pre-training/small/a: {files}"
    weights = "experiments/pre-training/small/a/ckpt-best.pth"
    assert all(command.count(f"--ckpts {weights}") == 1 for command in (svm, tune, look))
    figures, place, (again,) = follow(svm)
    assert "nearest neighbor accuracy" in figures
    assert figures.endswith("; weights chosen by linear SVM (C = 0.01) on ModelNet40_SVM, test split")
    assert again == tune
    of_last = follow(svm.replace("ckpt-best", "ckpt-last"))[2]
    assert of_last == [tune.replace("ckpt-best", "ckpt-last")]
    _, place, (test, vote) = follow(tune)
    assert place.startswith("experiments/fine-tuning/small/a: ckpt-best.pth, ")
    assert follow(test)[2] == [vote, look_at("fine-tuning/small")]
    assert follow(f"{tune.partition(' --ckpts')[0]} --resume")[2] == [test, vote]  # it is finished


def look_at(name: str) -> str:
    return f"python {LOOK.format(f'cfgs/{name}.yaml').replace('w.pth', f'experiments/{name}/a/ckpt-best.pth')}"


def test_a_run_that_fails_or_only_measures_says_nothing(playground, monkeypatch, capsys):
    monkeypatch.chdir(playground)
    assert run("fine-tuning/small", "--scratch_model", "--dry_run") == 0
    assert run("fine-tuning/small", "--scratch_model", "--exp_name", "b", "--resume") == 1
    text = capsys.readouterr().err
    assert "found: " not in text
    assert "next, " not in text
