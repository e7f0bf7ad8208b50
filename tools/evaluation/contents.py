"""What a file of this project is, in words: checkpoints, features, memory banks; and which commands take it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import MODELS, build_model
from models.kinds import kind_of
from models.released import CONFIGS, fits, released_configs
from tools.evaluation.feature_files import PARQUET, read_features
from tools.evaluation.kept import read_arrays
from tools.training.modes import EXPERIMENTS, FINE_TUNING, FROM_SCRATCH, PART_SEGMENTATION, PRE_TRAINING
from tools.training.record import plain
from utils.checkpoint import LoadingRules, model_tensors, read_checkpoint, renamed
from utils.config import load_config
from utils.files import sha256_of
from utils.tables import format_table

TO_RESUME = ("optimizer", "scheduler", "scaler", "progress", "rng", "history")
TASKS = {  # what a pre-trained encoder is for: folder or file of configs → flags
    "linear-svm/*": "--test_bank --exp_name bank",
    "point-mae/linear-svm*": "--test_bank --exp_name bank",
    "fine-tuning/*": "--finetune_model --exp_name finetune",
    "few-shot/*": "--finetune_model --exp_name few-shot",
    "part-segmentation/*": "--finetune_model --exp_name segment",
    "point-mae/[!l]*": "--finetune_model --exp_name finetune",
}
SVM_FLAGS = {"ModelNet40_SVM": "modelnet40", "ScanObjectNN": "scan"}
MODE_FLAGS = {PRE_TRAINING: "", FINE_TUNING: " --finetune_model", FROM_SCRATCH: " --scratch_model"}
KEEPS = {  # arrays of an .npz → what it is, and the command that takes it
    ("features", "labels", "class_names"): (
        "a memory bank",
        "python main.py --config CONFIG --test_bank --save_bank {}",
    ),
    ("train_features", "test_features"): (
        "features of both splits of a linear SVM",
        "python main.py --config CONFIG --test_svm DATA --ckpts CKPTS --save_features {}",
    ),
}
NESTED = ("h_encoder", "MAE_encoder", "clip_model")  # modules that are listed by their own modules


def describe(path: Path, every_tensor: bool = False) -> Iterator[str]:
    """Say line by line what a file is.

    Args:
        path: a checkpoint (.pth, .safetensors), or what a command kept (.npz, .parquet).
        every_tensor: list tensors one by one, not by module.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is nothing of this project, or damaged.
    """
    kept = path.suffix in (".npz", PARQUET)
    lines = list(_of_arrays(path) if kept and path.is_file() else _of_checkpoint(path, every_tensor))
    size = path.stat().st_size
    yield f"file     {path}, {size / 2**20:.1f} MiB, SHA-256 {sha256_of(path)}"
    yield from lines


# ---------------------------------------------------------------------------------------------------- checkpoints


def _of_checkpoint(path: Path, every_tensor: bool) -> Iterator[str]:
    content = read_checkpoint(path)
    tensors = model_tensors(content, path)
    kind = kind_of(tensors)
    configs = released_configs(tensors)
    yield f"kind     {kind}"
    yield f"config   {_config_line(content, configs)}"
    yield f"epoch    {content.get('epoch', 'not said')}"
    yield f"metrics  {_values(content.get('metrics'))}; best {_values(content.get('best_metrics'))}"
    yield f"chosen   {content.get('chosen_by', 'not said; of released files by accuracy on the test split')}"
    if run := content.get("run"):
        yield f"run      {_values({key: value for key, value in run.items() if key != 'data'})}"
    if beside := [key for key in TO_RESUME if content.get(key)]:
        yield f"beside   what serves to resume: {', '.join(beside)}"
    total = sum(tensor.numel() for tensor in tensors.values())
    yield f"tensors  {len(tensors)}, {total:,} numbers"
    yield from (f"  {line}" for line in _table(tensors, every_tensor).splitlines())
    yield "commands"
    yield from (f"  {command}" for command in commands(path, content, tensors, configs))


def _config_line(content: Mapping[str, Any], configs: Mapping[Path, Any]) -> str:
    said = content.get("config")
    if isinstance(said, Mapping) and isinstance(model := said.get("model"), Mapping):
        same = [_name(path) for path, released in configs.items() if plain(released) == plain(dict(model))]
        return f"in the file: {_values(model)}" + (f"; the model of {same[0]}" if same else "")
    if not configs:
        return "not said, and no released model has these tensors"
    names = " or ".join(map(_name, configs))
    return f"not said; the tensors are those of {names}"


def _values(values: Any) -> str:
    if not isinstance(values, Mapping):
        return "not said" if values is None else str(values)
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "none"


def _table(tensors: Mapping[str, Tensor], every: bool) -> str:
    if every:
        rows = [[key, "×".join(map(str, t.shape)) or "1", str(t.dtype)[6:]] for key, t in tensors.items()]
        return format_table(rows, ["tensor", "shape", "type"])
    sums: dict[str, list[int]] = {}
    for key, tensor in tensors.items():
        parts = key.split(".")
        row = sums.setdefault(".".join(parts[: 2 if parts[0] in NESTED else 1]), [0, 0])
        row[0] += 1
        row[1] += tensor.numel()
    return format_table([[module, *row] for module, row in sums.items()], ["module", "tensors", "numbers"])


# ---------------------------------------------------------------------------------------------------- commands


def commands(
    path: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor], configs: Mapping[Path, Any]
) -> Iterator[str]:
    """The commands that take a checkpoint, each with a config that its tensors fit.

    Args:
        path: the file.
        content: of it.
        tensors: of its model.
        configs: the released models that have the same tensors.
    """
    if resume := _resume(path, content):
        yield resume
    model = _model_of(content, configs)
    if model is not None and hasattr(MODELS[model["NAME"]], "encode"):
        yield from _downstream(path, tensors, model["NAME"] == "Point_M2AE")
    elif model is not None or configs:
        yield from _tests(path, content, tensors)
    if model is None and not configs:
        return
    if not hasattr(_class(model or next(iter(configs.values()))), "encode_groups"):
        return
    config = "" if model is not None else f" --config {_name(next(iter(configs)))}"
    also = f"   (or another of {', '.join(map(_name, configs))}: the one it was made with)" if config else ""
    yield f"python -m tools.features --ckpts {path}{config} INPUT -o features.npz{also}"
    yield f"python -m tools.export --ckpts {path}{config} encoder.onnx{also}"
    yield f"python -m tools.convert {path}{config} weights.safetensors{also}"


def _model_of(content: Mapping[str, Any], configs: Mapping[Path, dict[str, Any]]) -> dict[str, Any] | None:
    """The model section, if the file says it or leaves but one."""
    said = content.get("config")
    if isinstance(said, Mapping) and isinstance(model := said.get("model"), Mapping) and model.get("NAME") in MODELS:
        return dict(model)
    return next(iter(configs.values())) if len(configs) == 1 else None


def _resume(path: Path, content: Mapping[str, Any]) -> str:
    """The command that continues the run whose latest checkpoint this is, if its folder says which."""
    places, mode = path.resolve().parts, (content.get("run") or {}).get("mode")
    if path.name != "ckpt-last.pth" or "optimizer" not in content or EXPERIMENTS.name not in places[:-4]:
        return ""
    folder, name, exp_name = places[-4:-1]
    config = Path("cfgs") / folder / f"{name}.yaml"
    flags = MODE_FLAGS | {PART_SEGMENTATION: MODE_FLAGS[FINE_TUNING]}
    if mode not in flags or not (CONFIGS.parent / config).is_file():
        return ""
    return f"python main.py --config {config}{flags[mode]} --exp_name {exp_name} --resume"


def _downstream(path: Path, tensors: Mapping[str, Tensor], of_m2ae: bool) -> Iterator[str]:
    """What a pre-trained encoder is for, by the shipped configs that take it; those of Point-M2AE are named so."""
    for pattern, flags in TASKS.items():
        for file in sorted(CONFIGS.glob(f"{pattern}.yaml")):
            config = load_config(file)
            of_pre_training = "scheduler" in config and hasattr(_class(config.model), "encode")
            of_another = file.stem.startswith("point-m2ae") != of_m2ae
            if of_pre_training or of_another or not takes(config.model, tensors):
                continue
            if "svm_test" in config.dataset:
                svm = SVM_FLAGS[config.dataset.svm_test.NAME]
                yield f"python main.py --config {_name(file)} --test_svm {svm} --exp_name test_svm --ckpts {path}"
            yield f"python main.py --config {_name(file)} {flags} --ckpts {path}"


def _tests(path: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Testing a fine-tuned model: with the config of its run, or with each shipped one that has its tensors."""
    own = path.with_name("config.yaml")
    if "config" in content and own.is_file():
        yield f"python main.py --config {own} --test --exp_name test --ckpts {path}"
        return
    said = (content.get("config") or {}).get("model")
    for pattern in ("fine-tuning/*", "part-segmentation/*", "point-mae/*", "point-bert/*"):
        for file in sorted(CONFIGS.glob(f"{pattern}.yaml")):
            config = load_config(file)
            same = plain(said) == plain(config.model) if said else fits(config.model, tensors)
            if same and "test" in config.dataset:
                yield f"python main.py --config {_name(file)} --test --exp_name test --ckpts {path}"


def takes(model_config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a model can start from these tensors: it finds all of its own among them but those of a new head."""
    with torch.device("meta"):
        model = build_model(model_config)
    rules = getattr(model, "loading", LoadingRules())
    found = {renamed(key, rules.renamed): tensor.shape for key, tensor in tensors.items()}
    state = {key: tensor.shape for key, tensor in model.state_dict().items() if not key.startswith(rules.new)}
    return bool(state) and all(found.get(key) == shape for key, shape in state.items())


def _class(model_config: Mapping[str, Any]) -> Any:
    model = MODELS[model_config["NAME"]]
    return getattr(model, "func", model)  # some are partials of a class


def _name(path: Path) -> str:
    return str(path.relative_to(CONFIGS.parent))


# ---------------------------------------------------------------------------------------------------- kept arrays


def _of_arrays(path: Path) -> Iterator[str]:
    for names, (what, command) in KEEPS.items():
        try:
            arrays, origin = read_arrays(path, names, what, "")
        except ValueError:
            continue
        yield f"kind     {what}"
        shapes = (f"{name} {'×'.join(map(str, array.shape))}" for name, array in zip(names, arrays, strict=True))
        yield f"arrays   {', '.join(shapes)}"
        yield f"origin   {_values(origin)}"
        yield "commands"
        yield f"  {command.format(path)}"
        return
    found = read_features(path)
    classes = sorted(set(found.labels) - {""})
    yield f"kind     features of {len(found.paths)} files, {found.features.shape[1]} channels"
    yield f"classes  {', '.join(classes) or 'none'}"
    yield f"origin   {_values(found.origin)}"
    yield "commands"
    yield f"  python -m tools.search {path} QUERY -o found.png"
