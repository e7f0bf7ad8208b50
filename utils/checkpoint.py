"""Checkpoints: read without trust, load without silence, write whole."""

import codecs
import contextlib
import functools
import json
import pickle
import re
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from .files import atomic_write
from .nearest import did_you_mean_path

_CONTAINERS = ("base_model", "model_state_dict", "state_dict", "model")
SAFETENSORS = ".safetensors"
_KEYS_SHOWN = 3
_CHOSEN_BY_UNKNOWN = "unknown, the file does not say"  # of released ones: accuracy on the test split
_STALE_SECONDS = 3600  # what took so long to write is not being written any more
_DOS_FOLDER = 0x10  # attribute of a zip record; torch.load takes such a one for empty and hands out memory as it is


@dataclass(frozen=True)
class LoadingRules:
    """What a model says of the checkpoints that fill it, as its attribute `loading`; prefixes are of tensors' names.

    Attributes:
        new: prefixes of the model's tensors that a file may lack or have in another shape: a new head.
        leftover: prefix → what it is, for tensors of a file that the model may leave aside.
        teacher: the same for those that it leaves aside even where file and model must agree.
        renamed: prefix in the file → prefix in the model.
        start_from: what else may fill a model with a new head, in words.
        kind: state dict → what it belongs to, in words, for the message of a refusal.
    """

    new: tuple[str, ...] = ()
    leftover: Mapping[str, str] = field(default_factory=dict)
    teacher: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    start_from: str = ""
    kind: Callable[[Mapping[str, Tensor]], str] = lambda state: "a model of other tensors"


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a model and of a checkpoint; the fields hold names of tensors.

    Attributes:
        path: the file.
        loaded: taken from the file.
        missing: of the model, not in the file.
        unexpected: in the file, of no use for the model and not known to be harmless.
        mismatched: in both, of different shapes.
        ignored: in the file, of no use for the model and known to be harmless (decoder, heads, teacher).
        chosen_by: the figure that chose these weights among those of their run, and the split it was measured on.
        rules: of the model.
    """

    path: Path
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    ignored: tuple[str, ...]
    chosen_by: str
    rules: LoadingRules

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        text = f"loaded {len(self.loaded)} of the model's {total} tensors from {self.path}"
        if self.missing:
            text += f"; not in the file, kept as initialised: {_count(_first_part(key) for key in self.missing)}"
        if self.mismatched:
            text += f"; of another shape, kept as initialised: {_count(_first_part(key) for key in self.mismatched)}"
        if self.ignored:
            text += f"; not needed from the file: {_count(_group(key, self.rules.leftover) for key in self.ignored)}"
        return f"{text}; chosen by: {self.chosen_by}"


def load_weights(model: nn.Module, path: str | Path, strict: bool = False) -> LoadReport:
    """Fill a model from a checkpoint, ours or a released one; `module.` in front of names is dropped.

    Args:
        model: the model to fill; its device and dtype stay. Its attribute `loading` are the rules, see `LoadingRules`;
            a model without has a file with exactly its tensors.
        path: the checkpoint.
        strict: every tensor of the model must be in the file, and the file may hold nothing more than a teacher.
            Otherwise a new head may be missing or of another shape and then keeps its initialisation, and what the
            rules name may be left over.

    Returns:
        What was loaded and what was not.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a checkpoint or does not fit; the model is then unchanged.
    """
    return fill_model(model, read_checkpoint(path), Path(path), strict)


def fill_model(model: nn.Module, content: Mapping[str, Any], path: Path, strict: bool = False) -> LoadReport:
    """`load_weights` of what `read_checkpoint` returned; `path` is for messages."""
    rules = getattr(model, "loading", LoadingRules())
    found = _named_as_here(model_tensors(content, path), rules.renamed)
    wanted = model.state_dict()
    harmless = rules.teacher if strict else rules.leftover
    extra = [key for key in found if key not in wanted]
    ignored = [key for key in extra if key.startswith(tuple(harmless))]
    shared = [key for key in wanted if key in found]
    report = LoadReport(
        path=path,
        loaded=tuple(key for key in shared if found[key].shape == wanted[key].shape),
        missing=tuple(key for key in wanted if key not in found),
        unexpected=tuple(key for key in extra if key not in ignored),
        mismatched=tuple(key for key in shared if found[key].shape != wanted[key].shape),
        ignored=tuple(ignored),
        chosen_by=str(content.get("chosen_by", _CHOSEN_BY_UNKNOWN)),
        rules=rules,
    )
    replaceable = () if strict else rules.new
    lacking = [key for key in report.missing + report.mismatched if not key.startswith(replaceable)]
    if lacking or report.unexpected or not report.loaded:
        raise ValueError(_misfit(report, found, wanted, replaceable))
    model.load_state_dict({key: found[key] for key in report.loaded}, strict=False)
    return report


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, admitting tensors and plain values and nothing that could run code.

    Every record is checked against its checksum, so that what is returned is what was saved. Files older than
    PyTorch 1.6, and .safetensors, have no checksums.

    Args:
        path: a file written by `torch.save`, or a .safetensors file.

    Returns:
        The saved dictionary; NumPy numbers, as released files have among their metrics, are admitted. Of a .safetensors
        file its tensors under `base_model`, and its metadata, of which what is JSON is decoded.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a checkpoint, is damaged, or holds anything else than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a checkpoint; name a file in it, such as ckpt-best.pth")
    if not path.is_file():
        raise FileNotFoundError(
            f"no such checkpoint: {path}; {did_you_mean_path(path)}ckpts/README.md says where to get the released ones"
        )
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page that a browser saved, not a checkpoint; download the file itself")
    admit_numpy_numbers()
    try:
        if path.suffix == SAFETENSORS:
            return _read_safetensors(path)
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} is not read: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(content).__name__}, not a dictionary")
    return content


def admit_numpy_numbers() -> None:
    """Let `torch.load(weights_only=True)` read NumPy numbers, which released files have among their metrics."""
    torch.serialization.add_safe_globals(_numpy_number_globals())


def save_checkpoint(path: str | Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint that `read_checkpoint` can read; it replaces an older one only once it is whole.

    Args:
        path: the file to write, in an existing folder.
        state: tensors and plain values (no EasyDict, no NumPy).
        previous: where the older file goes, None = nowhere.

    Raises:
        OSError: if the file cannot be written; the older one then stays.
        ValueError: if `state` holds what could not be read back; the older one then stays.
    """
    with atomic_write(path, previous) as file:
        try:
            torch.save(state, file)
            file.flush()
            torch.load(file.name, map_location="cpu", weights_only=True, mmap=True)  # reads structure, not tensors
        except RuntimeError as error:  # what PyTorch makes of a full disk; the error of the disk came before it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise OSError(f"cannot write {path}: {error}") from error
        except (pickle.PickleError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is not written: its content could not be read back: {error}") from error


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed writers left.

    Those of checkpoints and metrics.jsonl, which only a training writes; of other files those of an hour ago or more,
    since an evaluation may be writing its results there now.
    """
    for temporary in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # its writer has just put it in place
            if (
                any(kind in temporary.name for kind in (".pth.", ".jsonl."))
                or time.time() - temporary.stat().st_mtime > _STALE_SECONDS
            ):
                temporary.unlink()


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata = file.metadata() or {}
    return {**{key: _decoded(text) for key, text in metadata.items()}, "base_model": tensors}


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _check_archive(path: Path) -> None:
    """Compare every record of a zip archive with its CRC-32, which torch.load does not; other formats have none."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # as torch.load tells them apart
            return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise zipfile.BadZipFile("the records are larger than the file; torch.save does not compress")
        if any(record.external_attr & _DOS_FOLDER for record in records):
            raise zipfile.BadZipFile("a folder among the records")
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


@functools.cache
def _numpy_number_globals() -> list[Any]:
    """What a pickled NumPy number is made of: released files keep their metrics as such.

    The function that rebuilds one is listed under the names that NumPy 1 and 2 give it.
    """
    rebuild = np.float64(0).__reduce__()[0]
    aliases = []
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        alias: Any = functools.partial(rebuild)
        alias.__module__, alias.__name__, alias.__qualname__ = module, "scalar", "scalar"
        aliases.append(alias)
    return [*aliases, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")), codecs.encode]


def model_tensors(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Find the model's tensors in a checkpoint, under their names without `module.`; ValueError if it has none."""
    state = next((checkpoint[key] for key in _CONTAINERS if isinstance(checkpoint.get(key), dict)), checkpoint)
    tensors = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{path} holds no model: no tensors at its top or under {', '.join(_CONTAINERS)}; "
            f"its keys are {_some(map(str, checkpoint))}"
        )
    return tensors


def _misfit(
    report: LoadReport, found: dict[str, Tensor], wanted: dict[str, Tensor], replaceable: tuple[str, ...]
) -> str:
    """Say why a checkpoint does not fit a model, what it seems to be and what to do."""
    shapes = (f"{key} {list(found[key].shape)} for {list(wanted[key].shape)}" for key in report.mismatched)
    lines = [
        f"{report.path} does not fit the model and nothing was loaded",
        f"{len(report.loaded)} of the model's {len(wanted)} tensors are in it",
    ]
    for what, keys in (("missing", report.missing), ("unexpected", report.unexpected)):
        if keys:
            lines.append(f"{len(keys)} {what}: {_some(keys)}")
    if report.mismatched:
        lines.append(f"{len(report.mismatched)} of another shape: {_some(shapes)}")
    wish = report.rules.kind(wanted)
    if replaceable:
        wish += f" or {report.rules.start_from}"
    lines.append(f"the file seems to hold {report.rules.kind(found)}")
    lines.append(f"give a checkpoint of {wish}, or the config with which this file was made")
    return "; ".join(lines)


def _reason(error: Exception) -> str:
    """Say in a line why torch.load gave up."""
    forbidden = re.search(r"GLOBAL (\w[\w.]*\.\w+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and forbidden:
        return f"it holds a Python object ({forbidden[1]}), which could run code; keep tensors and plain values only"
    return f"it is damaged, cut off or no checkpoint at all ({type(error).__name__}); download or write it again"


def _first_part(key: str) -> str:
    return key.split(".")[0]


def _group(key: str, groups: Mapping[str, str]) -> str:
    return next(name for prefix, name in groups.items() if key.startswith(prefix))


def renamed(key: str, prefixes: Mapping[str, str]) -> str:
    """The name in the model of a tensor of a file: of `prefixes`, in the file → in the model, the first that fits."""
    old = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
    return prefixes[old] + key.removeprefix(old) if old else key


def _named_as_here(tensors: dict[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Give tensors the model's names; one that the rules rename goes before another that has its new name already."""
    names = {key: renamed(key, prefixes) for key in tensors}
    return {names[key]: tensors[key] for key in sorted(tensors, key=lambda key: names[key] != key)}


def _count(groups: Iterable[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in Counter(groups).items())


def _some(keys: Iterable[str]) -> str:
    shown = list(keys)
    return ", ".join(shown[:_KEYS_SHOWN]) + (", …" if len(shown) > _KEYS_SHOWN else "")
