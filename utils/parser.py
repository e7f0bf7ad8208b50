"""The command line."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from .command import MAX_SEED, Parser, add_seeds, integer_from, weights_file
from .usage import FLAGS, MODES, RUN, mode_called, refusal

VOTES = 49  # repetitions of which the published figure is the best
_INDENT = "  "


class _Help(argparse.Action):
    """Prints all modes and flags, or those of the mode that is named, and ends the command."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        print(parser.format_help() if values is None else _help_of(parser, values), end="")
        parser.exit()


def _overview() -> str:
    """All modes, each with its first example."""
    lines = [
        "Pre-train, evaluate and fine-tune I2P-MAE, Point-M2AE, Point-MAE, Point-BERT and ACT; match with Point-NN."
    ]
    lines += ["", "modes:"]
    for name, mode in MODES.items():
        lines += [f"{_INDENT}{name}: {mode.about}", f"{_INDENT * 2}{mode.examples[0]}"]
    return "\n".join(lines)


def _help_of(parser: argparse.ArgumentParser, name: str) -> str:
    """What a mode does, the flags that it takes, its examples, and what it leaves behind."""
    mode = MODES[name]
    formatter = argparse.HelpFormatter(prog=parser.prog)
    for group in parser._action_groups:
        formatter.start_section(group.title)
        uses = ((action, FLAGS.get(action.dest)) for action in group._group_actions)
        formatter.add_arguments([action for action, use in uses if use and name in use.modes])
        formatter.end_section()
    files = f"{', '.join(mode.leaves)} and a log in {RUN}" if mode.leaves else ""
    parts = [
        f"{name} ({f'--{mode.flag}' if mode.flag else 'no flag'}): {mode.about}",
        formatter.format_help().strip(),
        "\n".join(["examples:", *(f"{_INDENT}{example}" for example in mode.examples)]),
        "\n".join(["leaves:", *(f"{_INDENT}{line}" for line in (files, mode.note) if line)]),
    ]
    return "\n\n".join(parts) + "\n"


def _folder_name(text: str) -> str:
    """Argparse type: one plain folder name that stays inside the config's folder of runs."""
    if not re.fullmatch(r"\w[\w.+=-]*", text) or text == "TFBoard":
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a plain folder name; use letters, digits and . _ - + = (TFBoard is taken by TensorBoard)"
        )
    return text


def _build_parser() -> Parser:
    """Declare every flag, group by group, in the order of the help."""
    parser = Parser(
        prog="python main.py",
        usage="python main.py --config FILE [flag of a mode, or none to pre-train] [other flags]\n"
        "       python main.py --help MODE    the flags of one mode, more examples, and what it leaves behind",
        description=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument(
        "-h",
        "--help",
        action=_Help,
        nargs="?",
        type=mode_called,
        choices=MODES,
        default=argparse.SUPPRESS,
        metavar="MODE",
        help="all modes and flags, or the flags of one mode, its examples and what it leaves",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file, see cfgs/")
    parser.add_argument(
        "--exp_name",
        type=_folder_name,
        default="default",
        metavar="NAME",
        help="the run's folder under experiments/<config folder>/<config name>/ (default: %(default)s)",
    )
    for add in (
        _add_mode,
        _add_weights,
        _add_training,
        _add_few_shot,
        _add_speed,
        _add_processes,
        _add_testing,
        _add_other,
    ):
        add(parser)
    return parser


def _add_mode(parser: Parser) -> None:
    """What a command does."""
    mode = parser.add_argument_group("mode (at most one)").add_mutually_exclusive_group()
    mode.add_argument(
        "--test_svm", choices=["modelnet40", "scan", "folder"], help="linear SVM on frozen features; needs --ckpts"
    )
    mode.add_argument("--finetune_model", action="store_true", help="train a classifier or segmenter from --ckpts")
    mode.add_argument("--scratch_model", action="store_true", help="train one from random weights")
    mode.add_argument("--test", action="store_true", help="accuracy of the model in --ckpts")
    mode.add_argument(
        "--test_bank",
        action="store_true",
        help="match features with a memory bank of the training clouds; no training",
    )
    mode.add_argument("--profile", action="store_true", help="parameters and multiply-adds of the config's model")


def _add_weights(parser: Parser) -> None:
    """Where weights come from."""
    weights = parser.add_argument_group("weights")
    weights.add_argument("--ckpts", type=weights_file, metavar="FILE", help="weights to evaluate or to fine-tune")
    weights.add_argument(
        "--start_ckpts", type=weights_file, metavar="FILE", help="weights of the same model to start training from"
    )
    weights.add_argument("--resume", action="store_true", help="continue the run in the --exp_name folder")


def _add_training(parser: Parser) -> None:
    """How a model is trained."""
    training = parser.add_argument_group("training")
    training.add_argument(
        "--val_freq",
        type=integer_from(1),
        default=1,
        metavar="N",
        help="evaluate each N-th epoch (default: %(default)s)",
    )
    training.add_argument(
        "--select_on",
        choices=["test", "val"],
        default="test",
        help="what chooses ckpt-best of a classifier: the test split, as published (default), or a tenth of the "
        "training split that is held out; with --test_bank what chooses γ: the test split, as published, or "
        "leave-one-out on the bank (val, the default there)",
    )
    add_seeds(training, None, "repeat the run with each seed; prints mean ± std")
    training.add_argument(
        "--dry_run", action="store_true", help="measure a few steps, print the expected time and memory, and stop"
    )
    training.add_argument(
        "--save_every_steps",
        type=integer_from(1),
        metavar="N",
        help="also save ckpt-last each N-th update within an epoch",
    )
    training.add_argument(
        "--skip_nonfinite",
        type=integer_from(0),
        default=0,
        metavar="N",
        help="leave out up to N updates of an epoch whose loss or gradient is not finite (default: stop at the first)",
    )


def _add_few_shot(parser: Parser) -> None:
    """Which few-shot tasks."""
    few_shot = parser.add_argument_group("few-shot (what is not given: all)")
    few_shot.add_argument("--way", type=int, choices=[5, 10], help="classes")
    few_shot.add_argument("--shot", type=int, choices=[10, 20], help="training clouds per class")
    few_shot.add_argument("--fold", type=integer_from(0, 9), metavar="0…9", help="which of the ten draws")


def _add_speed(parser: Parser) -> None:
    """Precision, compilation, and how data are read."""
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--amp",
        choices=["none", "bf16", "fp16"],
        default="none",
        help="precision of the networks in training; losses and geometry stay in float32 (default: %(default)s)",
    )
    speed.add_argument("--compile", action="store_true", help="compile the transformer blocks (torch.compile)")
    speed.add_argument(
        "--resident_data", action="store_true", help="keep the whole pre-training set in the device's memory"
    )
    speed.add_argument(
        "--num_workers",
        type=integer_from(0),
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="processes that load data; 0: load in the main process (default: 4, or the number of CPU cores if fewer)",
    )


def _add_processes(parser: Parser) -> None:
    """Of torchrun."""
    processes = parser.add_argument_group("several processes")
    processes.add_argument(
        "--launcher", choices=["none", "pytorch"], default="none", help="pytorch: started by torchrun, a process a GPU"
    )
    processes.add_argument(
        "--local_rank", type=int, help="accepted from old launchers; torchrun's environment says the same"
    )
    processes.add_argument(
        "--sync_bn", action="store_true", help="BatchNorm statistics over the batches of all processes"
    )


def _add_testing(parser: Parser) -> None:
    """How a model is tested, and what of it is kept."""
    testing = parser.add_argument_group("testing")
    testing.add_argument("--vote", action="store_true", help="with --test: average over random subsets of each cloud")
    testing.add_argument(
        "--votes",
        type=integer_from(1),
        metavar="N",
        help=f"with --vote: how often to repeat the vote of ten passes (default: {VOTES}, as published)",
    )
    testing.add_argument(
        "--plug_in",
        type=Path,
        metavar="CONFIG",
        help="with --test: add what a memory bank says, encoded by the model of this config",
    )
    testing.add_argument(
        "--bank_ckpts", type=weights_file, metavar="FILE", help="with --plug_in: weights of that model, if it has any"
    )
    testing.add_argument(
        "--save_features", type=Path, metavar="FILE", help="with --test_svm: keep the features (.npz); reused if there"
    )
    testing.add_argument(
        "--save_bank", type=Path, metavar="FILE", help="with --test_bank: keep the bank (.npz); reused if there"
    )


def _add_other(parser: Parser) -> None:
    """What belongs to no group."""
    other = parser.add_argument_group("other")
    other.add_argument(
        "--skip_bad",
        type=integer_from(0),
        metavar="N",
        help="with data of your own: leave out up to N unreadable files, and name them (SKIP_BAD in the config)",
    )
    other.add_argument(
        "--wandb",
        nargs="?",
        const="",
        metavar="PROJECT",
        help="draw the curves of a training run in Weights & Biases too, which has to be installed; a resumed run goes "
        "on there as the same",
    )
    other.add_argument("--env", action="store_true", help="print versions, devices, kernels, data and weights found")
    other.add_argument(
        "--seed", type=integer_from(0, MAX_SEED), default=0, help="seed of every random draw (default: %(default)s)"
    )
    other.add_argument("--deterministic", action="store_true", help="bitwise repeatable, slower on a GPU")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line and refuse flags that contradict each other.

    Args:
        argv: the arguments without the program's name; None for those of this process.

    Returns:
        One attribute per flag; `config`, `ckpts` and `start_ckpts` are paths (the last two None if not given). `given`
        holds the names of the flags that are on the command line: what is not there, a resumed run keeps.

    Raises:
        SystemExit: on a wrong command line (status 2, the reason on stderr) and after --help (status 0).
    """
    parser = _build_parser()
    args = parser.parse_args(argv)
    without_defaults = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args))))
    args.given = frozenset(name for name, value in vars(without_defaults).items() if value is not None)
    if args.config is None and not args.env:
        parser.error("give a config: --config FILE, see cfgs/")
    if args.test_bank and "select_on" not in args.given:
        args.select_on = "val"
    _refuse_contradictions(parser, args)
    if args.vote and args.votes is None:
        args.votes = VOTES
    return args


def _refuse_contradictions(parser: Parser, args: argparse.Namespace) -> None:
    """End the command if flags contradict each other, or one of them would be ignored."""
    for flag in ("test", "test_svm", "finetune_model"):
        if getattr(args, flag) and args.ckpts is None and not (args.resume or args.start_ckpts):
            parser.error(f"--{flag} needs weights: add --ckpts FILE")
    if message := refusal(args):
        parser.error(message)
    if args.resume and args.start_ckpts is not None:
        parser.error("--resume continues from the run's own ckpt-last.pth and --start_ckpts from another: drop one")
    if args.ckpts is not None and args.start_ckpts is not None:
        parser.error("--ckpts gives the encoder to fine-tune and --start_ckpts the whole classifier: drop one")
    if args.votes and not args.vote:
        parser.error("--votes says how often to repeat --vote: add it")
    for flag, path in (("save_features", args.save_features), ("save_bank", args.save_bank)):
        if path and path.is_dir():
            name = flag.removeprefix("save_")
            parser.error(f"--{flag} {path} is a folder; name a file in it, such as {name}.npz")
    if args.plug_in and args.vote:
        parser.error("--plug_in and --vote are two ways to test: drop one")
    if args.bank_ckpts and not args.plug_in:
        parser.error("--bank_ckpts are weights of the model that --plug_in names: add it")
    if args.seeds and "seed" in args.given:
        parser.error("--seeds says every seed, and --seed one more: drop --seed")
    if args.wandb is not None and args.dry_run:
        parser.error("--wandb draws the curves of a training run, and --dry_run trains none: drop one")
    if args.sync_bn and args.launcher == "none":
        parser.error("--sync_bn is for several processes: start with torchrun and --launcher pytorch")
