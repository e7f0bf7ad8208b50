"""Image towers of open_clip: its own vision transformers (CLIP, CLIPA, CoCa) and timm's (SigLIP, EVA, PE)."""

from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import _build_vision_tower
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from .clip import OWN, fill_tower, teacher_of_tower
from .interface import (
    IMAGENET,
    WHERE,
    Blueprint,
    Normalisation,
    Statistics,
    Teacher,
    check_grid,
    seeded,
    unknown,
    warn_untrained,
)
from .timm_models import TimmTeacher, no_transformer, probe
from .weights import check_fit, find_clip_weights, read_visual_weights


def open_clip_blueprint(
    name: str, pretrained: str | Path | None, image_size: int | None, normalisation: Normalisation | None
) -> Blueprint:
    """Plan an image tower of open_clip; arguments as those of `build_teacher`, the default normalisation `own`.

    Raises:
        ValueError: if open_clip has no such model, its image tower is no vision transformer, or no weights are named.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise unknown(name, open_clip.list_models(), "model of open_clip")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"{WHERE} lacks pretrained: give one of open_clip's tags for {name!r} ({', '.join(tags) or 'none'}), a "
            "PATH, or `untrained`"
        )
    weights = open_clip.get_pretrained_cfg(name, str(pretrained))  # {} where it is no tag
    if weights.get("quick_gelu"):  # open_clip only warns where a tag and the name of its model differ in this
        config["quick_gelu"] = True
    if not weights and tags:
        weights = open_clip.get_pretrained_cfg(name, tags[0])
    own = Statistics(tuple(weights["mean"]), tuple(weights["std"])) if weights else OWN
    statistics = IMAGENET if normalisation == "imagenet" else own
    with torch.device("meta"):
        plan = _teacher_of(name, _build_tower(name, config, image_size), statistics)
    if isinstance(plan, TimmTeacher):
        probe(name, plan)

    def build() -> Teacher:
        if str(pretrained) == "untrained":
            warn_untrained()
            with seeded():
                return _teacher_of(name, _build_tower(name, config, image_size), statistics)
        path = find_clip_weights(name, f"open_clip:{name}", pretrained)
        return _teacher_of(name, _filled_tower(name, config, image_size, path), statistics)

    return Blueprint(plan.feat_dim, build)


def _build_tower(name: str, config: dict[str, Any], image_size: int | None) -> nn.Module:
    """Build the image tower of a model of open_clip, and not its text tower, which may be a large language model."""
    vision = config["vision_cfg"]
    if isinstance(vision.get("layers"), list):  # a ResNet
        raise no_transformer(name)
    if image_size is not None and "timm_model_name" not in vision:
        check_grid(name, image_size, vision["patch_size"])
        vision = {**vision, "image_size": image_size}
    tower = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
    if image_size is not None and isinstance(tower, TimmModel):
        _resize(name, tower, image_size)
    return tower


def _filled_tower(name: str, config: dict[str, Any], image_size: int | None, path: Path) -> nn.Module:
    if "timm_model_name" not in config["vision_cfg"]:
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            tower = _build_tower(name, config, image_size)
        fill_tower(tower, path, resize=image_size is not None)
        return tower
    with seeded():  # not on the meta device: timm's towers have buffers that no file holds
        tower = _build_tower(name, config, None)
    weights = read_visual_weights(path)
    check_fit(tower.state_dict(), weights, path)
    tower.load_state_dict(weights)
    if image_size is not None:
        _resize(name, tower, image_size)
    return tower


def _resize(name: str, tower: TimmModel, image_size: int) -> None:
    """Interpolate the position embeddings of a tower of timm."""
    if not hasattr(tower.trunk, "set_input_size"):
        raise no_transformer(name)
    tower.trunk.set_input_size((image_size, image_size))


def _teacher_of(name: str, tower: nn.Module, statistics: Statistics) -> Teacher:
    if isinstance(tower, TimmModel):
        return TimmTeacher(name, tower.trunk, statistics)
    if isinstance(tower, VisionTransformer):
        return teacher_of_tower(tower, statistics)
    raise no_transformer(name)
