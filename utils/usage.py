"""The modes of main.py and the flags that each of them takes: what the parser refuses by, and what `--help` shows."""

from argparse import Namespace
from dataclasses import dataclass

RUN = "experiments/<config folder>/<config name>/<exp_name>/"
_RESULTS = ("config.yaml", "results.json", "results.md")
_TRAINED = ("ckpt-best.pth", "ckpt-last.pth", "ckpt-previous.pth", "metrics.jsonl", *_RESULTS)
_PRE_TRAIN = "python main.py --config cfgs/pre-training/i2p-mae.yaml --exp_name pre-train"


@dataclass(frozen=True)
class Mode:
    """What one mode is, in words and in commands.

    Attributes:
        about: what it does.
        examples: commands that run as they are, once their data and weights are there.
        leaves: files in the folder of a run, beside its log.
        note: what else there is to know of what it leaves.
        flag: what chooses it; "" for none.
        of: the modes of which it is a kind; () for one that a flag of its own chooses.
    """

    about: str
    examples: tuple[str, ...]
    leaves: tuple[str, ...] = ()
    note: str = ""
    flag: str = ""
    of: tuple[str, ...] = ()


MODES = {
    "pre-train": Mode(
        "learn an encoder from shapes without labels",
        (
            _PRE_TRAIN,
            f"{_PRE_TRAIN} --resume",
            "torchrun --nproc_per_node=4 main.py --launcher pytorch --config cfgs/pre-training/i2p-mae.yaml "
            "--exp_name pre-train",
            "python main.py --config cfgs/demo/pre-train.yaml --exp_name demo",
        ),
        (*_TRAINED, "reconstructions.png"),
        "ckpt-best.pth is of the epoch with the best linear SVM; the picture is of models that predict points. The "
        "last example is small: `make demo` makes its data",
    ),
    "linear-svm": Mode(
        "linear SVM on the features of a frozen encoder",
        (
            "python main.py --config cfgs/linear-svm/modelnet40.yaml --test_svm modelnet40 --exp_name test_svm "
            "--ckpts ckpts/pre-train.pth",
            "python main.py --config cfgs/demo/linear-svm.yaml --test_svm scan --exp_name demo "
            "--ckpts experiments/demo/pre-train/demo/ckpt-last.pth",
        ),
        _RESULTS,
        "with --save_features FILE the features too",
        flag="test_svm",
    ),
    "memory-bank": Mode(
        "match features with those of the training clouds; nothing is trained",
        (
            "python main.py --config cfgs/point-nn/modelnet40.yaml --test_bank --exp_name bank",
            "python main.py --config cfgs/linear-svm/modelnet40.yaml --test_bank --exp_name bank "
            "--ckpts ckpts/pre-train.pth",
            "python main.py --config cfgs/demo/point-nn.yaml --test_bank --exp_name demo",
        ),
        _RESULTS,
        "with --save_bank FILE the bank too",
        flag="test_bank",
    ),
    "fine-tune": Mode(
        "train a classifier from the weights of an encoder",
        (
            "python main.py --config cfgs/fine-tuning/scan_pb.yaml --finetune_model --exp_name finetune "
            "--ckpts ckpts/pre-train.pth",
            "python main.py --config cfgs/demo/fine-tune.yaml --finetune_model --exp_name demo "
            "--ckpts experiments/demo/pre-train/demo/ckpt-last.pth",
        ),
        _TRAINED,
        "ckpt-best.pth is of the epoch that --select_on chose; with --seeds a folder more for each seed",
        flag="finetune_model",
    ),
    "from-scratch": Mode(
        "train a classifier from random weights",
        (
            "python main.py --config cfgs/fine-tuning/scan_pb.yaml --scratch_model --exp_name scratch",
            "python main.py --config cfgs/demo/fine-tune.yaml --scratch_model --exp_name scratch",
        ),
        _TRAINED,
        "as of fine-tune",
        flag="scratch_model",
    ),
    "test": Mode(
        "accuracy of a classifier",
        (
            "python main.py --config cfgs/fine-tuning/modelnet40.yaml --test --exp_name test "
            "--ckpts ckpts/modelnet40.pth",
            "python main.py --config cfgs/demo/fine-tune.yaml --test --exp_name test "
            "--ckpts experiments/demo/fine-tune/demo/ckpt-last.pth",
        ),
        _RESULTS,
        flag="test",
    ),
    "vote": Mode(
        "accuracy over votes of passes with random subsets of each cloud",
        (
            "python main.py --config cfgs/fine-tuning/modelnet40.yaml --test --vote --exp_name test "
            "--ckpts ckpts/modelnet40.pth",
            "python main.py --config cfgs/demo/fine-tune.yaml --test --vote --votes 1 --exp_name test "
            "--ckpts experiments/demo/fine-tune/demo/ckpt-last.pth",
        ),
        _RESULTS,
        flag="test --vote",
        of=("test",),
    ),
    "plug-in": Mode(
        "a classifier, a memory bank beside it, and the sum of both",
        (
            "python main.py --config cfgs/fine-tuning/scan_pb.yaml --test --plug_in cfgs/point-nn/scan_pb.yaml "
            "--exp_name test --ckpts ckpts/scan_pb.pth",
        ),
        _RESULTS,
        flag="test --plug_in CONFIG",
        of=("test",),
    ),
    "few-shot": Mode(
        "a classifier or a bank for each fold, and their mean, by a config of few-shot data",
        (
            "python main.py --config cfgs/few-shot/modelnet40.yaml --finetune_model --exp_name few-shot "
            "--ckpts ckpts/pre-train.pth",
            "python main.py --config cfgs/point-nn/few-shot.yaml --test_bank --exp_name bank",
            "python main.py --config cfgs/demo/few-shot.yaml --scratch_model --way 5 --shot 10 --fold 0",
        ),
        _RESULTS,
        "a folder <way>way_<shot>shot/fold<fold>/ for each fold, with what fine-tune leaves",
        flag="finetune_model, --scratch_model, --test or --test_bank",
        of=("fine-tune", "from-scratch", "test", "memory-bank"),
    ),
    "part-segmentation": Mode(
        "parts of shapes, by a config of ShapeNetPart",
        (
            "python main.py --config cfgs/part-segmentation/i2p-mae.yaml --finetune_model --exp_name segment "
            "--ckpts ckpts/pre-train.pth",
            "python main.py --config cfgs/part-segmentation/i2p-mae.yaml --test --exp_name test "
            "--ckpts ckpts/part-segmentation.pth",
            "python main.py --config cfgs/demo/part-segmentation.yaml --scratch_model --exp_name demo",
        ),
        (*_TRAINED, "parts.png"),
        "--test and --test_bank leave no checkpoint",
        flag="finetune_model, --scratch_model, --test or --test_bank",
        of=("fine-tune", "from-scratch", "test", "memory-bank"),
    ),
    "room-segmentation": Mode(
        "what the points of rooms belong to, by a config of S3DIS",
        (
            "python main.py --config cfgs/act/s3dis.yaml --finetune_model --exp_name segment "
            "--ckpts ckpts/act_pre-train.pth",
            "python main.py --config cfgs/demo/rooms.yaml --scratch_model --exp_name demo",
        ),
        _TRAINED,
        "--test leaves no checkpoint",
        flag="finetune_model, --scratch_model or --test",
        of=("fine-tune", "from-scratch", "test"),
    ),
    "profile": Mode(
        "count the parameters and multiply-adds of a config's model",
        ("python main.py --config cfgs/fine-tuning/scan_pb.yaml --profile",),
        note="nothing",
        flag="profile",
    ),
    "dry-run": Mode(
        "measure a few steps of a training, and say how long it would take",
        (
            f"{_PRE_TRAIN} --dry_run",
            "python main.py --config cfgs/demo/fine-tune.yaml --scratch_model --dry_run",
        ),
        note="nothing",
        flag="dry_run",
        of=("pre-train", "fine-tune", "from-scratch"),
    ),
    "env": Mode(
        "versions, devices, kernels, data and weights found",
        ("python main.py --env",),
        note="nothing",
        flag="env",
    ),
}


@dataclass(frozen=True)
class Use:
    """Which modes take a flag, and the way out where another is given it."""

    modes: tuple[str, ...]
    way_out: str

    @property
    def bases(self) -> tuple[str, ...]:
        """The modes with flags of their own that take it; of one for kinds of them only, all that it is a kind of."""
        own = tuple(mode for mode in self.modes if not MODES[mode].of)
        return own or tuple(base for mode in self.modes for base in MODES[mode].of)


_SEGMENT = ("part-segmentation", "room-segmentation")
_TASKS = ("few-shot", *_SEGMENT)
_TRAIN = ("pre-train", "fine-tune", "from-scratch", *_TASKS, "dry-run")
_ALL = tuple(mode for mode in MODES if mode not in ("profile", "env"))
_RUNS = "is for a run on data, which this is not: drop it"
_TRAINS = "is for training: drop it"
_WEIGHTS = "is for training; an evaluation reads --ckpts only: drop it"
_TASK_ONLY = "is one of the flags that choose few-shot tasks: drop it, or choose a mode and a config that has some"
_OTHER = "is another mode: drop it"

FLAGS = {  # in the order in which they are refused
    "env": Use(("env",), _OTHER),
    "profile": Use(("profile",), _OTHER),
    "test_svm": Use(("linear-svm",), _OTHER),
    "test_bank": Use(("memory-bank", "few-shot", "part-segmentation"), _OTHER),
    "finetune_model": Use(("fine-tune", *_TASKS, "dry-run"), _OTHER),
    "scratch_model": Use(("from-scratch", *_TASKS, "dry-run"), _OTHER),
    "test": Use(("test", "vote", "plug-in", *_TASKS), _OTHER),
    "config": Use((*_ALL, "profile"), "is not read by --env, which looks at this machine only: drop it"),
    "ckpts": Use(
        ("linear-svm", "memory-bank", "fine-tune", "test", "vote", "plug-in", *_TASKS, "dry-run"),
        "is read with --test, --test_svm, --test_bank and --finetune_model only; drop it, or use --finetune_model to "
        "train a classifier from its encoder, or use --start_ckpts to start training from given weights",
    ),
    "resume": Use(_TRAIN, _WEIGHTS),
    "start_ckpts": Use(_TRAIN, _WEIGHTS),
    "vote": Use(("vote",), "is a way to test: add --test"),
    "votes": Use(("vote",), "says how often to repeat --vote: add it"),
    "save_features": Use(("linear-svm",), "keeps the features of --test_svm: add it"),
    "save_bank": Use(("memory-bank", "part-segmentation"), "keeps the bank of --test_bank: add it"),
    "plug_in": Use(("plug-in",), "adds a memory bank to a classifier that is tested: add --test"),
    "bank_ckpts": Use(("plug-in",), "are weights of the model that --plug_in names: add it"),
    "seeds": Use(
        tuple(mode for mode in _TRAIN if mode != "few-shot"),
        "repeats a training run; an evaluation takes one --seed",
    ),
    "dry_run": Use(_TRAIN, "measures a few steps of a training run: drop it, or the mode"),
    "select_on": Use(
        ("fine-tune", "from-scratch", "few-shot", "part-segmentation", "memory-bank", "dry-run"),
        "chooses a checkpoint in training a classifier, or γ of a memory bank: drop it",
    ),
    "way": Use(("few-shot",), _TASK_ONLY),
    "shot": Use(("few-shot",), _TASK_ONLY),
    "fold": Use(("few-shot",), _TASK_ONLY),
    "val_freq": Use(_TRAIN, _TRAINS),
    "save_every_steps": Use(_TRAIN, _TRAINS),
    "skip_nonfinite": Use(_TRAIN, _TRAINS),
    "wandb": Use(tuple(mode for mode in _TRAIN if mode != "dry-run"), "draws the curves of a training run: drop it"),
    "amp": Use(_TRAIN, _TRAINS),
    "compile": Use(_TRAIN, _TRAINS),
    "sync_bn": Use(_TRAIN, _TRAINS),
    "resident_data": Use(("pre-train", "dry-run"), "is for pre-training: drop it"),
    "exp_name": Use(_ALL, _RUNS),
    "num_workers": Use(_ALL, _RUNS),
    "skip_bad": Use(_ALL, _RUNS),
    "deterministic": Use(_ALL, _RUNS),
    "launcher": Use(_ALL, _RUNS),
    "local_rank": Use(_ALL, _RUNS),
    "seed": Use((*_ALL, "profile"), _RUNS),
}


def mode_called(text: str) -> str:
    """Name of the mode that is called by its name, or by its flag; other texts as they are."""
    by_flag = {mode.flag: name for name, mode in MODES.items()}
    return by_flag.get(text.lstrip("-"), text)


def base_of(args: Namespace) -> str:
    """Name of the mode that the flags of a command line choose."""
    chosen = (name for name, mode in MODES.items() if not mode.of and mode.flag and getattr(args, mode.flag))
    return "env" if args.env else next(chosen, "pre-train")


def refusal(args: Namespace) -> str | None:
    """Say of the first flag that the mode of a command line does not take what to do instead; None if it takes all."""
    base = base_of(args)
    refused = (flag for flag, use in FLAGS.items() if flag in args.given and base not in use.bases)
    return next((f"--{flag} {FLAGS[flag].way_out}" for flag in refused), None)


def only_of(mode: str) -> list[str]:
    """Names of the flags that no other mode takes."""
    return [flag for flag, use in FLAGS.items() if use.modes == (mode,)]
