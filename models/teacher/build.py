"""Teachers by the names that configs give them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .clip import clip_blueprint
from .interface import WHERE, Blueprint, Normalisation, Teacher
from .open_clip_towers import open_clip_blueprint
from .timm_models import timm_blueprint


def build_teacher(
    visual_encoder: str | Mapping[str, int] | None,
    feat_dim: int | None = None,
    pretrained: str | Path | None = None,
    image_size: int | None = None,
    normalisation: Normalisation | None = None,
) -> Teacher | None:
    """Build a 2D model and give it its weights; docs/TEACHERS.md has the families.

    Args:
        visual_encoder: `clip:NAME` or NAME, of `CLIP_TOWERS`; the sizes of such a tower as in `TowerSizes`;
            `open_clip:NAME`; `timm:NAME`, with or without a tag; None for no teacher.
        feat_dim: channels of the features that the caller expects; None = those that the model makes.
        pretrained: a tag of the library, whose weights are downloaded once, a path, or `untrained`. By default CLIP's
            `openai`, and with timm `default`, the weights that timm has for the name. A path leads to the weights as
            OpenAI's .pt, as .safetensors, as a state dict of PyTorch, or, for CLIP, to a released pre-training
            checkpoint, whose clip_model.visual.* tensors are then used. `untrained` draws the same random weights each
            time and leaves the global random state as it was.
        image_size: pixels per side of the images; None = the model's own. Position embeddings are interpolated.
        normalisation: of the images with ImageNet's statistics or the model's own; by default `imagenet` for CLIP, as
            released, and `own` for others.

    Returns:
        The frozen teacher, float32, on the CPU; None if none is asked for.

    Raises:
        ValueError: if the model is unknown or its sizes are wrong, if it does not make `feat_dim` channels, or if the
            weights do not fit it.
        FileNotFoundError: if there are no such weights or they could not be downloaded.
    """
    if visual_encoder is None:
        return None
    blueprint = _blueprint(visual_encoder, pretrained, image_size, normalisation)
    if feat_dim not in (None, blueprint.feat_dim):
        raise ValueError(
            f"{WHERE}.feat_dim is {feat_dim}, but the image tower {visual_encoder!r} makes "
            f"{blueprint.feat_dim} channels: write feat_dim: {blueprint.feat_dim}, or leave it out"
        )
    return blueprint.build()


def feature_width(clip_config: Mapping[str, Any]) -> int:
    """Channels of the features of a teacher, found without its weights.

    Args:
        clip_config: arguments of `build_teacher`.

    Raises:
        ValueError: if neither `feat_dim` nor a model says it.
    """
    settings = dict(clip_config)
    feat_dim = settings.pop("feat_dim", None)
    if feat_dim is not None:
        return feat_dim
    if settings["visual_encoder"] is None:
        raise ValueError(f"{WHERE} lacks feat_dim: without a visual_encoder nothing else says the width of the 2D head")
    return _blueprint(**settings).feat_dim


def _blueprint(
    visual_encoder: str | Mapping[str, int],
    pretrained: str | Path | None = None,
    image_size: int | None = None,
    normalisation: Normalisation | None = None,
) -> Blueprint:
    if image_size is not None and image_size < 1:
        raise ValueError(f"{WHERE}.image_size is {image_size}: give a positive integer")
    settings = (pretrained, image_size, normalisation)
    if isinstance(visual_encoder, str):
        library, _, name = visual_encoder.rpartition(":")
        if library == "open_clip":
            return open_clip_blueprint(name, *settings)
        if library == "timm":
            return timm_blueprint(name, *settings)
        if library == "clip":
            return clip_blueprint(name, *settings)
    return clip_blueprint(visual_encoder, *settings)
