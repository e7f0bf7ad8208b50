"""Vision transformers of timm: DINOv2, DINOv3, DeiT III, SigLIP, MAE, EVA, BEiT and more."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor

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
from .saliency import AttentionWatch, similarity_to_mean, use_fused_attention
from .weights import download_failed, existing_file, read_tensors

WAYS_OUT = (
    "Write under model.clip_config either `pretrained: default` or a tag of timm, and timm downloads the weights (this "
    "needs the network); or `pretrained: PATH` of a local file with them (.safetensors, .pth)."
)


class TimmTeacher(Teacher):
    """A vision transformer of timm.

    Features are the patch tokens after the last block and the model's final norm. Saliency is the attention of the
    model's attention pool, if it has one; else the class token's in the last block; else the similarity of each patch
    to their mean. Class and register tokens are left out of it.

    Args:
        name: what the model is called, for messages.
        model: it, on any device; its head is not used.
        statistics: what its images are normalised with.

    Raises:
        ValueError: if it is no plain vision transformer, or its patches do not cover the image.
    """

    def __init__(self, name: str, model: Any, statistics: Statistics) -> None:
        use_fused_attention(model)
        image_size, grid = _image_and_grid(name, model)
        super().__init__(model.num_features, image_size, grid, statistics)
        self.model = model
        pooled = isinstance(getattr(model, "attn_pool", None), AttentionPoolLatent)
        has_class_token = getattr(model, "cls_token", None) is not None
        self.summary = "pool" if pooled else "class token" if has_class_token else "mean"
        self.freeze()

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (V, h·w, C) and saliency (V, h·w) of images (V, 3, S, S)."""
        with AttentionWatch() as watch:
            tokens = self.model.forward_features(images)  # (V, class and register tokens + h·w, C)
            if self.summary == "pool":
                self.model.pool(tokens)
        patches = tokens[:, self.model.num_prefix_tokens :]
        if self.summary == "mean":
            return patches, similarity_to_mean(patches)
        return patches, watch.first_row()[:, -patches.shape[1] :]


def timm_blueprint(
    name: str, pretrained: str | Path | None, image_size: int | None, normalisation: Normalisation | None
) -> Blueprint:
    """Plan a model of timm; arguments as those of `build_teacher`, defaults `default` and `own`.

    Args:
        name: a model of timm, with or without a tag of weights (`vit_small_patch14_dinov2.lvd142m`).

    Raises:
        ValueError: if timm has no such model, or it is no plain vision transformer.
    """
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        raise unknown(arch, timm.list_models(), "model of timm")
    tags = [key.partition(".")[2] for key in timm.list_pretrained(f"{arch}.*")]
    wanted = str(pretrained or "default")
    if wanted in tags:
        if tag not in ("", wanted):
            raise ValueError(f"{WHERE} names two weights of {arch!r}, {tag!r} and {wanted!r}: leave one out")
        tag, wanted = wanted, "default"
    if tag and tag not in tags:
        raise unknown(tag, tags, f"tag of {arch!r} in timm (tags: {', '.join(tags) or 'none'})")
    full_name = f"{arch}.{tag}" if tag else arch
    with torch.device("meta"):
        model = _create(full_name, image_size, num_classes=0)
    plan = TimmTeacher(arch, model, IMAGENET)
    probe(arch, plan)
    config = model.pretrained_cfg
    own = Statistics(tuple(config["mean"]), tuple(config["std"]))

    def build() -> TimmTeacher:
        with seeded():
            model = _filled_model(full_name, image_size, wanted, tags, config["classifier"])
        return TimmTeacher(arch, model, IMAGENET if normalisation == "imagenet" else own)

    return Blueprint(plan.feat_dim, build)


def _create(name: str, image_size: int | None, **settings: Any) -> Any:
    if image_size is None:
        return timm.create_model(name, **settings)
    try:
        return timm.create_model(name, img_size=image_size, **settings)
    except TypeError as error:
        raise ValueError(
            f"{WHERE}.visual_encoder is 'timm:{name}', which takes no image_size: it is no plain vision transformer"
        ) from error


def _image_and_grid(name: str, model: Any) -> tuple[int, tuple[int, int]]:
    """Pixels per side of a model's images, and its patches along rows and columns."""
    embed: Any = getattr(model, "patch_embed", None)
    needed = ("blocks", "forward_features", "num_prefix_tokens", "num_features", "feature_info")
    if not hasattr(embed, "grid_size") or any(not hasattr(model, attribute) for attribute in needed):
        raise no_transformer(name)
    height, width = embed.img_size
    if height != width:
        raise ValueError(f"{WHERE}.visual_encoder is {name!r}, whose images are not square: {height}×{width} pixels")
    check_grid(name, height, model.feature_info[-1]["reduction"])
    return height, tuple(embed.grid_size)


def probe(name: str, teacher: TimmTeacher) -> None:
    """Refuse a model that makes other tokens than one a patch, or whose attention cannot be read in its last block.

    It runs on the meta device, which costs nothing.
    """
    images = torch.zeros(1, 3, teacher.image_size, teacher.image_size, device="meta")
    try:
        with torch.no_grad():
            with AttentionWatch() as watch:
                teacher.model.forward_features(images)
            features, saliency = teacher.describe(images)
    except Exception as error:  # the model can be anything that timm has
        raise no_transformer(name) from error
    patches = teacher.grid[0] * teacher.grid[1]
    attentions = len(teacher.model.blocks) if teacher.summary == "class token" else watch.calls
    if features.shape != (1, patches, teacher.feat_dim) or saliency.shape != (1, patches) or watch.calls != attentions:
        raise no_transformer(name)


def no_transformer(name: str) -> ValueError:
    """The error of a model that the teacher cannot read."""
    return ValueError(
        f"{WHERE}.visual_encoder is {name!r}, which is no plain vision transformer: the teacher needs a token for each "
        "patch and one attention in each block"
    )


def _filled_model(
    name: str, image_size: int | None, pretrained: str, tags: list[str], classifier: str | Sequence[str] | None
) -> Any:
    if pretrained == "untrained":
        warn_untrained()
        return _create(name, image_size, num_classes=0)
    if pretrained != "default":
        path = existing_file(f"timm:{name}", pretrained, ", ".join(tags) or "none", WAYS_OUT)
        return _read_model(name, image_size, path, classifier)
    if not timm.is_model_pretrained(name):
        raise FileNotFoundError(
            f"timm knows no weights of {name!r} (tags: {', '.join(tags) or 'none'}). {WAYS_OUT} `untrained` gives "
            "random weights."
        )
    try:
        model = _create(name, image_size, pretrained=True)
    except Exception as error:  # as many kinds as there are ways to fail on a network
        raise download_failed(f"timm:{name}", pretrained, error, WAYS_OUT) from error
    model.reset_classifier(0)
    return model


def _read_model(name: str, image_size: int | None, path: Path, classifier: str | Sequence[str] | None) -> Any:
    """Build a model from a file of its weights; timm converts other projects' names and fits position embeddings."""
    tensors = read_tensors(path, WAYS_OUT)
    heads = [classifier] if isinstance(classifier, str) else classifier or []
    unused = {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
    state = {
        bare: tensor.to(torch.float32, copy=True)  # a copy, or the whole file would stay mapped
        for key, tensor in tensors.items()
        if (bare := key.removeprefix("module.")) not in unused
    }
    overlay = {"state_dict": state, "num_classes": 0}
    try:
        return _create(name, image_size, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # timm's converters meet a file of anything
        raise ValueError(
            f"{path} does not hold the weights of {name!r}: {' '.join(str(error).split())[:300]}"
        ) from error
