"""Configs: YAML files to one checked EasyDict.

Reading merges `_base_` files, fills defaults and refuses what no run would understand. The contents of `model` and of
the data set entries are the business of their builders, whose constructor signatures are the schema; which sections a
run needs is the business of its runner.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from .files import atomic_write
from .nearest import did_you_mean, did_you_mean_path

_REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class _Value:
    """A leaf of the schema: what it must be, in words and as a test."""

    expected: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class _Section:
    """A mapping of the schema; an open one admits keys that are checked elsewhere."""

    required: dict[str, "_Value | _Section"] = field(default_factory=dict)
    optional: dict[str, "_Value | _Section"] = field(default_factory=dict)
    open: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer_from(lowest: int) -> _Value:
    return _Value(f"an integer ≥ {lowest}", lambda value: type(value) is int and value >= lowest)


def _one_of(*names: str) -> _Value:
    return _Value(" or ".join(map(repr, names)), lambda value: value in names)


_POSITIVE = _Value("a number > 0", lambda value: _is_number(value) and value > 0)
_NOT_NEGATIVE = _Value("a number ≥ 0", lambda value: _is_number(value) and value >= 0)
_NAME = _Value("a name", lambda value: isinstance(value, str) and value != "")
_DATASET = _Section(required={"NAME": _NAME}, optional={"others": _Section(open=True)}, open=True)
_SHARE = _Value("a number in (0, 1]", lambda value: _is_number(value) and 0 < value <= 1)
_ANNEALED = _Section(required={"start": _NOT_NEGATIVE, "target": _NOT_NEGATIVE, "ntime": _integer_from(1)})
_AUGMENTATIONS = ("scale_and_translate", "scale_and_rotate", "scale_and_translate_small", "rotate", "none")

_SCHEMA = _Section(
    required={
        "dataset": _Section(optional=dict.fromkeys(("train", "test", "svm_train", "svm_test"), _DATASET)),
        "model": _Section(required={"NAME": _NAME}, open=True),
        "step_per_update": _integer_from(1),
        "grad_norm_clip": _Value("a number > 0 or null", lambda value: value is None or _POSITIVE.accepts(value)),
        "augmentation": _one_of(*_AUGMENTATIONS),
        "svm": _Section(required={"C": _POSITIVE, "every": _integer_from(1), "solver": _one_of("SVC", "LinearSVC")}),
    },
    optional={
        "optimizer": _Section(
            required={
                "type": _one_of("AdamW"),
                "kwargs": _Section(required={"lr": _POSITIVE, "weight_decay": _NOT_NEGATIVE}),
            }
        ),
        "scheduler": _Section(
            required={
                "type": _one_of("CosLR"),
                "kwargs": _Section(
                    required={"epochs": _integer_from(1), "initial_epochs": _integer_from(0)},
                    optional={"lr_min": _NOT_NEGATIVE},
                ),
            },
            optional={"every": _one_of("epoch", "update")},
        ),
        "bn_momentum": _Section(
            required={"start": _SHARE, "decay": _SHARE, "every": _integer_from(1), "lowest": _SHARE}
        ),
        "temp": _ANNEALED,
        "kldweight": _ANNEALED,
        "npoints": _integer_from(1),
        "total_bs": _integer_from(1),
        "max_epoch": _integer_from(0),
    },
)
PRE_TRAIN, FINE_TUNE = "pre_train", "fine_tune"  # sections of a config that serves both
_SPLITS = {"train": "train", "test": "test", "svm_train": "train", "svm_test": "test"}  # of `data`
_DEFAULTS: dict[str, Any] = {
    "step_per_update": 1,
    "grad_norm_clip": None,
    "augmentation": "scale_and_translate",
    "svm": {"C": 0.01, "every": 1, "solver": "SVC"},
}


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses repeated keys and keys that are not plain names."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            plain = key.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge") and not hasattr(EasyDict, key.value)
            if not plain or key.value in seen:
                problem = "is given twice" if plain else "is not a plain name"
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} {problem}", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """A safe dumper that knows EasyDict."""


_Dumper.add_representer(EasyDict, yaml.SafeDumper.represent_dict)
for _yaml_class in (_Loader, _Dumper):  # YAML 1.1 takes 1e-3, without a point, for text
    _yaml_class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def load_config(path: str | Path, section: str = PRE_TRAIN) -> EasyDict:
    """Read a config: `_base_` files merged, defaults filled, keys and types checked.

    A file may hold what pre-training and fine-tuning do not share in the sections `pre_train` and `fine_tune`; the rest
    is common to both. A data set entry `data` stands for the whole of `dataset`: `train` and `svm_train` are its
    training split, `test` and `svm_test` its test split.

    Args:
        path: a YAML file. An entry `_base_: FILE` at any depth takes in that file's keys, its own keys win; FILE is
            relative to the current folder or, if it is not there, to the folder of the file that names it or to the
            repository.
        section: which of the two to take, where the file has them.

    Returns:
        The resolved config, without `_base_`, sections and `data`.

    Raises:
        FileNotFoundError: if the file or a `_base_` of it does not exist.
        ValueError: if a file is no YAML mapping, or a key is unknown, missing or of another type; the message names
            the file, the key's path and the nearest valid name or the expected type.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no such config: {path}; {did_you_mean_path(path)}The shipped ones are under {_REPOSITORY.name}/cfgs/"
        )
    try:
        config = _resolve_bases(_read_yaml(path), "", path, (path.resolve(),))
        config = _merge(_DEFAULTS, _with_data(_of_section(config, section, str(path)), str(path)))
    except RecursionError:
        raise ValueError(f"{path} nests without end; does an alias (*name) stand inside its own anchor?") from None
    _check(config, _SCHEMA, "", str(path))
    return EasyDict(config)


def save_config(config: EasyDict, path: str | Path) -> None:
    """Write a config as YAML that `load_config` reads back equal; the file is whole or absent."""
    text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, default_flow_style=None)
    with atomic_write(path) as file:
        file.write(text.encode())


def check_keys(given: Iterable[str], valid: Iterable[str], where: str, source: str = "") -> None:
    """Refuse the first key that is not valid.

    Args:
        given: keys as the user wrote them.
        valid: keys that are known here.
        where: path of the mapping in the config, such as "dataset.train"; "" for the top.
        source: the file it comes from, if known.

    Raises:
        ValueError: naming the key's full path, the file, the nearest valid name and all valid ones.
    """
    names = list(valid)
    for key in given:
        if key not in names:
            hint = did_you_mean(key, names, cutoff=0.5, quoted=True)
            place = f" in {source}" if source else ""
            raise ValueError(f"unknown key '{_join(where, key)}'{place}; {hint}valid: {', '.join(names)}")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _merge(base: dict, own: dict) -> dict:
    """Merge two nested mappings into a new one; where both have a value, `own` wins."""
    both = {key for key in base.keys() & own.keys() if isinstance(base[key], dict) and isinstance(own[key], dict)}
    return {**base, **own, **{key: _merge(base[key], own[key]) for key in both}}


def _read_yaml(path: Path) -> dict:
    """Read one YAML file whose top is a mapping."""
    try:
        content = _Loader(path.read_bytes()).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{path} must hold a mapping of keys to values at the top, but holds {found}")
    return content


def _resolve_bases(value: Any, where: str, source: Path, open_files: tuple[Path, ...]) -> Any:
    """Replace every `_base_` in a value by the keys of the file that it names."""
    if not isinstance(value, dict):
        return value
    own = {
        key: _resolve_bases(entry, _join(where, key), source, open_files)
        for key, entry in value.items()
        if key != "_base_"
    }
    if "_base_" not in value:
        return own
    key, name = _join(where, "_base_"), value["_base_"]
    if not isinstance(name, str):
        raise ValueError(f"{key} = {name!r} in {source} must be the path of a YAML file")
    folders = (Path.cwd(), source.parent, _REPOSITORY)
    base = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if base is None:
        raise FileNotFoundError(f"{key} = {name!r} in {source}: no such file in {', '.join(map(str, folders))}")
    if base.resolve() in open_files:
        raise ValueError(f"{key} = {name!r} in {source} leads back to a file that is based on it; remove one _base_")
    return _merge(_resolve_bases(_read_yaml(base), where, base, (*open_files, base.resolve())), own)


def _of_section(config: dict, section: str, source: str) -> dict:
    """Merge the section asked for into what stands beside the sections."""
    shared = (*_SCHEMA.required, *_SCHEMA.optional, "data")
    check_keys(config, (*shared, PRE_TRAIN, FINE_TUNE), "", source)
    sections = {key: config[key] for key in (PRE_TRAIN, FINE_TUNE) if key in config}
    if not sections:
        return config
    if not isinstance(sections.get(section), dict):
        raise ValueError(f"{source} has no section '{section}', which this mode needs, but {', '.join(sections)}")
    check_keys(sections[section], shared, section, source)
    return _merge({key: value for key, value in config.items() if key not in sections}, sections[section])


def _with_data(config: dict, source: str) -> dict:
    """Write the data set entry `data` into every place of `dataset`."""
    if "data" not in config:
        return config
    _check(config["data"], _DATASET, "data", source)
    others = config["data"].get("others") or {}
    dataset = {name: {**config["data"], "others": {**others, "subset": split}} for name, split in _SPLITS.items()}
    return {**{key: value for key, value in config.items() if key != "data"}, "dataset": dataset}


def _check(value: Any, rule: _Value | _Section, where: str, source: str) -> None:
    """Check a value and all below it against the schema."""
    if isinstance(rule, _Value):
        if not rule.accepts(value):
            raise ValueError(f"{where} = {value!r} in {source} must be {rule.expected}")
        return
    if not isinstance(value, dict):
        raise ValueError(f"{where} = {value!r} in {source} must be a mapping of keys to values")
    known = {**rule.required, **rule.optional}
    if not rule.open:
        check_keys(value, known, where, source)
    for key in rule.required:
        if key not in value:
            raise ValueError(f"missing key '{_join(where, key)}' in {source}")
    for key in value.keys() & known.keys():
        _check(value[key], known[key], _join(where, key), source)
