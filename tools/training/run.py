"""What a run leaves behind: its folder, its log, its curves, its results."""

import hashlib
import json
import logging
import platform
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.utils.data import Dataset

from datasets import fingerprint
from tools.training.closing import close_with
from tools.training.curves import Curves, pictures_in
from tools.training.environment import sections, tables
from tools.training.modes import EXPERIMENTS
from tools.training.record import changed_parts, continue_as, plain, record_of, same_data, unsaid
from tools.training.tracking import tracker_of
from utils.checkpoint import LoadReport, read_checkpoint, remove_unfinished
from utils.config import save_config
from utils.device import choose_device, device_name
from utils.distributed import is_main, on_main, restarted, world_size
from utils.files import atomic_write, locked, make_folder, sha256_of
from utils.logger import setup_logger
from utils.tables import markdown_table

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "timm", "open_clip_torch", "numpy", "scikit-learn")


class Run:
    """The folder of one experiment, open for the time of a `with` block.

    Of several processes only the main one writes curves and results.

    Args:
        folder: experiments/<config folder>/<config name>/<exp_name>.
        mode: name of what runs; results.json has one entry per mode.
        about: what the results file says of every run: seed, versions, device and so on.
        log: the log file, None if there is none.

    Attributes:
        config_file, last_checkpoint, previous_checkpoint, best_checkpoint: files in the folder.
        results_file: results.json, with an entry per mode.
        begun: the checkpoint that a resumed run continues from, and its content.
        recorded: what that says the run is; {} of a run that begins.
        finished: results of a resumed run that has nothing left to do, {} of any other.
        results: what was finished, or is; {} before.
        curves: of a training run, in the main process, while it is open.
        one_of_many: whether the command was asked for what several runs come to, not for what this one does.
        following: runs like this one that the command does after it.
    """

    def __init__(self, folder: Path, mode: str, about: dict[str, Any], log: Path | None = None) -> None:
        self.folder, self.mode, self.about, self.log = folder, mode, about, log
        self.one_of_many, self.following = False, 0
        self.config_file = folder / "config.yaml"
        self.last_checkpoint = folder / "ckpt-last.pth"
        self.previous_checkpoint = folder / "ckpt-previous.pth"
        self.best_checkpoint = folder / "ckpt-best.pth"
        self.results_file = folder / "results.json"
        self.begun: tuple[Path, dict[str, Any]] | None = None
        self.recorded: dict[str, Any] = {}
        self.finished: dict[str, Any] = {}
        self.results: dict[str, Any] = {}
        self.curves: Curves | None = None

    @property
    def resumable(self) -> list[Path]:
        """The checkpoints to resume from; a run killed between the two renames of a save has only the previous one."""
        return [path for path in (self.last_checkpoint, self.previous_checkpoint) if path.exists()]

    @property
    def record(self) -> dict[str, Any]:
        """What the run is, for its checkpoints."""
        return record_of(self.mode, self.about)

    def latest(self) -> tuple[Path, dict[str, Any]]:
        """Read ckpt-last, or the one before it if ckpt-last is damaged or was never completed."""
        try:
            return self.last_checkpoint, read_checkpoint(self.last_checkpoint)
        except (ValueError, FileNotFoundError) as error:
            if not self.previous_checkpoint.exists():
                raise
            logger.warning("%s; falling back to %s", error, self.previous_checkpoint)
            return self.previous_checkpoint, read_checkpoint(self.previous_checkpoint)

    def resume(self, config: dict[str, Any], args: Namespace) -> None:
        """Read what there is, hold the command line to it (both `about` and `args`), and see whether it is finished.

        Raises:
            ValueError: if the run began otherwise, or no checkpoint of it can be read.
        """
        self.begun = path, content = self.latest()
        self.recorded = content.get("run", {})
        if missing := unsaid(self.recorded):
            logger.warning(
                "%s is of an older version and does not say its %s: whether this command line has the same is not "
                "checked; compare it with the log of the run",
                *(path, ", ".join(missing)),
            )
        continue_as(self.folder, self.recorded, self.mode, self.about, args)
        if changed := changed_parts(content.get("config", config), config):
            logger.warning("since the run began these parts of the config changed: %s", ", ".join(changed))
        results = read_results(self.results_file).get(self.mode, {})
        trained, max_epoch = content.get("epoch", -1), config["max_epoch"]
        if trained >= max_epoch and results and results.get("history") == content.get("history"):
            self.finished = self.results = {key: value for key, value in results.items() if key != "about"}
            logger.info(
                "%s is finished: epoch %d of %d is done, and everything in it stays as it is; "
                "raise max_epoch in the config to train longer",
                *(self.folder, trained, max_epoch),
            )

    def close(self) -> None:
        """Finish the curves."""
        if self.curves:
            self.curves.close(done=bool(self.results))
        self.curves = None

    def note_data(self, **datasets: Dataset) -> None:
        """Put the fingerprints of the data sets beside the results; ValueError if a resumed run had others."""
        self.about["data"] = {name: fingerprint(dataset) for name, dataset in datasets.items()}
        same_data(self.folder, self.recorded.get("data", {}), self.about["data"])

    def note_weights(self, report: LoadReport) -> None:
        """Log what a checkpoint gave, and put what chose it beside the results."""
        logger.info("%s", report)
        self.about["checkpoint_chosen_by"] = report.chosen_by

    def tested(self, protocol: str) -> str:
        """Say beside a protocol what had chosen the weights that were noted."""
        return f"{protocol}; weights chosen by: {self.about['checkpoint_chosen_by']}"

    def draw(self, values: Mapping[str, float], epoch: int) -> None:
        """Add a point to each curve."""
        if self.curves:
            self.curves.draw(values, epoch)

    def show(self, title: str, table: str) -> None:
        """Print what the command was asked for on stdout, and log it; of one of many runs, log it only."""
        if self.one_of_many:
            logger.info("%s\n%s", title, table)
            return
        logger.debug("%s\n%s", title, table)
        if is_main():
            with suppress(OSError):  # the results are still to be written; the end of the command says it again
                print(f"{title}\n{table}", flush=True)

    def finish(self, results: dict[str, Any], markdown: str = "", trained: bool = True) -> dict[str, Any]:
        """Write the results of this mode into results.json and results.md beside those of other modes, return them.

        Args:
            results: plain values.
            markdown: what results.md shows of this mode; "" for all of its single values.
            trained: False for a summary of runs that were finished before: where it says nothing new, the files stay.
        """
        self.results = results
        for picture in pictures_in(self.folder) if self.curves else ():
            self.curves.picture(picture, results.get("final_epoch", 0))
        if is_main():
            path = self.results_file
            all_results = read_results(path)
            before = {key: value for key, value in all_results.get(self.mode, {}).items() if key != "about"}
            if not trained and before == json.loads(json.dumps(results)):
                logger.info("%s is finished: %s stays as it is", self.folder, path)
                return results
            all_results[self.mode] = {**results, "about": self.about}
            with atomic_write(path.with_suffix(".md")) as file:
                shown = {mode: _values(values) for mode, values in all_results.items()}
                shown |= {self.mode: markdown} if markdown else {}
                file.write("\n\n".join(f"# {mode}\n\n{text}" for mode, text in shown.items()).encode() + b"\n")
            with atomic_write(path) as file:  # last: a run that has it is finished
                file.write((json.dumps(all_results, indent=2) + "\n").encode())
            if self.log and self.one_of_many:  # of others the end of the command says it
                logger.info("results in %s", path)
        return results


def begin_curves(run: Run, config: dict[str, Any]) -> None:
    """Keep beside the curves what the run is, by now in full: its config, and what was found on this machine."""

    def begin() -> None:
        texts = {"config": run.config_file.read_text(encoding="utf-8"), "environment": tables(sections())}
        name = str(run.folder.relative_to(EXPERIMENTS))
        run.curves.begin(name, {**plain(config), "about": run.about}, texts)

    on_main(lambda: begin() if run.curves else None)


def read_results(path: Path) -> dict[str, Any]:
    """Read a results.json, mode → results; empty if there is none, ValueError if it is damaged."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); move it away and start the same command again") from error


@contextmanager
def open_run(config: dict[str, Any], args: Namespace, mode: str, *, training: bool, part: str = "") -> Iterator[Run]:
    """Make or enter the run's folder and start its log, for the time of the block.

    Args:
        config: resolved config, written into the folder as config.yaml; where a run is resumed, by the trainer.
        args: command line; `config`, `exp_name`, `resume`, `dry_run` and what describes the run are read. A dry run has
            a folder that vanishes. Of a run that is resumed, what the command line does not say is put in, see
            `continue_as`.
        mode: name of what runs.
        training: whether it writes checkpoints. A mode that does not may use any folder and keeps its config.yaml.
        part: folder within the run's folder, for a run that is made of several.

    Raises:
        ValueError: if a training run finds the checkpoints of another and `--resume` is not given, or it resumes one
            that began otherwise, or another process trains in this folder.
        FileNotFoundError: if there is nothing to resume.
    """
    if args.dry_run:
        setup_logger(None)  # once more: by now it is known which process informs
        with TemporaryDirectory() as folder:
            yield Run(Path(folder), mode, {})
        return
    source = Path(args.config).resolve()
    parent = EXPERIMENTS / source.parent.name / source.stem
    name = Path(args.exp_name, part)
    folder = parent / name
    run = Run(folder, mode, {})
    if training and restarted():  # whatever the command line says: continue what is there
        args.resume = bool(run.resumable)
    curves = parent / "TFBoard" / name if training else None
    made = [path for place in (folder, curves or folder) for path in (place, *place.parents) if not path.exists()]
    on_main(lambda: _check_start(run, training, args))
    log = folder / f"{datetime.now():%Y%m%d_%H%M%S}.log" if is_main() else None
    with locked(folder) if training and is_main() else nullcontext(), _without_trace_if_failed(made, log):
        if training and is_main():
            remove_unfinished(folder)
        setup_logger(log)
        if is_main() and ((training and not args.resume) or not run.config_file.exists()):
            save_config(config, run.config_file)
        logger.info("%s in %s", mode, folder)
        logger.debug("arguments: %s", vars(args))
        run = Run(folder, mode, describe(config, args), log)
        run.one_of_many = bool(part) or getattr(args, "one_of_many", False)  # of folds, or of seeds
        run.following = getattr(args, "following", 0)
        if training and args.resume:
            run.resume(config, args)
        if curves and not run.finished:
            run.curves = Curves(curves, tracker_of(folder, args)) if is_main() else None
        try:
            yield run
        finally:
            run.close()
        close_with(run, config, args)


@contextmanager
def _without_trace_if_failed(made: list[Path], log: Path | None) -> Iterator[None]:
    """Remove what a start has made, if it fails before it makes anything of value.

    Args:
        made: folders that were not there before.
        log: the log file; None in a process that does not write.
    """
    try:
        yield
    except (ValueError, OSError):
        for folder in sorted(set(made), key=lambda path: len(path.parts), reverse=True) if log else []:
            worthless = {log, folder / ".lock", folder / "config.yaml", *folder.glob("events*")}
            if folder.is_dir() and worthless.issuperset(files := list(folder.iterdir())):
                for file in files:
                    file.unlink()
                folder.rmdir()
        raise


def _check_start(run: Run, training: bool, args: Namespace) -> None:
    """Make the folder; refuse to train over another run, to resume what is not there, to track without the library."""
    found = run.resumable
    if training and found and not args.resume:
        raise ValueError(
            f"{run.folder} already holds a run ({found[0].name}); add --resume to continue it, "
            "or choose another --exp_name"
        )
    if training and args.resume and not found:
        raise FileNotFoundError(f"nothing to resume: {run.last_checkpoint} does not exist; start without --resume")
    if training:
        tracker_of(run.folder, args)
    make_folder(run.folder)


def describe(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """What a figure needs beside it to be understood later: config, checkpoint, seed, versions, device."""
    device = choose_device()
    checkpoint = args.ckpts or args.start_ckpts
    evaluates = args.test or args.test_svm or args.test_bank
    return {
        "config": str(args.config),
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "checkpoint": str(checkpoint) if checkpoint else None,
        "checkpoint_sha256": sha256_of(checkpoint) if checkpoint else None,
        **({"seeds": args.seeds} if args.seeds else {"seed": args.seed}),
        "precision": args.amp,
        **({} if evaluates else {"select_on": args.select_on}),
        "processes": world_size(),
        "device": device_name(device),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "began": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
    }


def _values(results: dict[str, Any]) -> str:
    """The values among the results of a mode, also of several seeds, and what stands beside them: a Markdown table."""
    shown = {name: _spread(value) if _is_spread(value) else value for name, value in results.items()}
    plain = {name: value for name, value in shown.items() if not isinstance(value, dict | list)}
    rows = [[name, f"{value:.2f}" if isinstance(value, float) else str(value)] for name, value in plain.items()]
    return markdown_table([*rows, *([name, str(value)] for name, value in results["about"].items())], ["", ""])


def _is_spread(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {"values", "mean", "std"}


def _spread(figure: dict[str, Any]) -> str:
    """Mean, standard deviation and every value."""
    return f"{figure['mean']:.2f} ± {figure['std']:.2f} ({', '.join(f'{value:.2f}' for value in figure['values'])})"
