"""The config of a checkpoint: given, said by the file, or the released one whose model has the same tensors."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.frozen import UNTRAINED
from models.kinds import kind_of
from utils.checkpoint import LoadingRules, model_tensors, renamed
from utils.config import load_config

CONFIGS = Path(__file__).resolve().parent.parent / "cfgs"
RELEASED = ("pre-training/*", "fine-tuning/*", "part-segmentation/*", "point-mae/[!fl]*")  # others have their models
OF_TEACHER = ("rec_head_2d.", "clip_model.")  # the head is as wide as the features of the teacher
WITHOUT_TEACHER = {"visual_encoder": None, "feat_dim": 1}
WAY_OUT = "give a checkpoint of I2P-MAE, Point-M2AE or Point-MAE: a pre-training model, a classifier or a segmenter"


def model_config(
    content: Mapping[str, Any], path: Path, given: str | Path | Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Find the `model` section that a checkpoint belongs to, without its teacher.

    Args:
        content: of the checkpoint.
        path: its file, for messages.
        given: a YAML file or a mapping that the caller says it is; None = look for it.

    Raises:
        ValueError: if the file does not say it and not exactly one released model fits, or what is given is none.
    """
    if isinstance(given, str | Path):
        given = load_config(given)
    said = given if given is not None else content.get("config")
    if said is None:
        return _the_one(released_configs(model_tensors(content, path)), content, path)
    section = said.get("model", said) if isinstance(said, Mapping) else said
    if not isinstance(section, Mapping) or not isinstance(section.get("NAME"), str):
        where = "config" if given is not None else f"the config in {path}"
        raise ValueError(f"{where} has no model.NAME; give config= a YAML file, or a mapping with a section `model`")
    return without_weights(section)


def without_weights(section: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a model section, into plain dictionaries, so that building it needs no 2D teacher and no other file."""
    copy = {key: dict(value) if isinstance(value, Mapping) else value for key, value in section.items()}
    if "clip_config" in copy:
        copy["clip_config"] = WITHOUT_TEACHER
    if "dvae_config" in copy:
        copy["dvae_config"]["ckpt"] = UNTRAINED
    if "visual_embed_pretrained" in copy:
        copy["visual_embed_pretrained"] = UNTRAINED
    return copy


def released_configs(tensors: Mapping[str, Tensor]) -> dict[Path, dict[str, Any]]:
    """The released models that have exactly these tensors, by the first shipped config of each.

    Of the 2D head any width will do.
    """
    return {path: model for path, model, shapes in _released() if _shapes(tensors, model) == shapes}


def fits(model_config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a model has exactly these tensors, but for those of a teacher."""
    return _shapes(tensors, model_config) == _shapes_of_model(model_config)


@functools.cache
def _released() -> list[tuple[Path, dict[str, Any], dict[str, torch.Size]]]:
    """The first shipped config of each released model, its `model` section, and the shapes of its tensors."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in (path for pattern in RELEASED for path in sorted(CONFIGS.glob(f"{pattern}.yaml"))):
        model = load_config(path).model
        found.setdefault(repr(sorted(model.items())), (path, model))
    return [(path, model, _shapes_of_model(model)) for path, model in found.values()]


def _shapes_of_model(model_config: Mapping[str, Any]) -> dict[str, torch.Size]:
    from models import build_model  # not at the top: models imports this file

    with torch.device("meta"):
        return _shapes(build_model(without_weights(model_config)).state_dict(), model_config)


def _shapes(tensors: Mapping[str, Tensor], model_config: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Shapes by the names that they have in a model, without those that depend on its teacher."""
    from models import MODELS  # not at the top: models imports this file

    model = MODELS[model_config["NAME"]]
    rules = getattr(getattr(model, "func", model), "loading", LoadingRules())  # some are partials of a class
    names = {key: renamed(key, rules.renamed) for key in tensors}
    return {name: tensors[key].shape for key, name in names.items() if not name.startswith(OF_TEACHER)}


def _the_one(found: Mapping[Path, dict[str, Any]], content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The only released model that fits."""
    if len(found) == 1:
        (model,) = found.values()
        return without_weights(model)
    what = f"{path} holds {kind_of(model_tensors(content, path))} and does not say its config"
    if not found:
        raise ValueError(f"{what}, and no released model has these tensors: give config=, or {WAY_OUT}")
    names = ", ".join(str(file.relative_to(CONFIGS.parent)) for file in found)
    raise ValueError(f"{what}, which the tensors leave open: give config=, one of {names}")
