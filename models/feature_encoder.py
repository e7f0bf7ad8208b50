"""The encoder of a checkpoint, as others use it: points in, features out; no decoder, no head, no 2D teacher."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.encoded import Encoded
from models.loading import ACT_LEFTOVER, LEFTOVER, POINT_BERT_LEFTOVER, POINT_MAE_LEFTOVER
from models.propagation import interpolate_features
from models.released import WAY_OUT, model_config
from models.tokenizer import Group, choose_groups, group_by
from utils.checkpoint import LoadingRules, LoadReport, fill_model, read_checkpoint

Points = Tensor | np.ndarray
ANY_LEFTOVER = {**LEFTOVER, **POINT_MAE_LEFTOVER, **POINT_BERT_LEFTOVER, **ACT_LEFTOVER}
NEAREST = 3  # tokens that a point takes its features from


class Encoder(nn.Module):
    """An encoder with its weights, in evaluation mode.

    What it computes is that of each cloud alone, whatever else is in the batch. Gradients flow, to the points too.

    Args:
        model: any of the models that have `encode_groups`; what encoding does not need is taken out of it.
        config: the `model` section that it was built from.
        report: what became of the checkpoint.

    Attributes:
        config, report: the arguments.
        num_groups, group_sizes: tokens, and points or finer tokens of each, per level, fine to coarse.
    """

    def __init__(self, model: Any, config: dict[str, Any], report: LoadReport) -> None:
        super().__init__()
        self.config, self.report = config, report
        self.model = model
        self.num_groups: tuple[int, ...] = model.num_groups
        self.group_sizes: tuple[int, ...] = getattr(model, "group_sizes", None) or (model.group_size,)
        self.eval()

    def forward(self, points: Points | Sequence[Points], per_point: bool = False) -> Encoded:
        """Encode clouds.

        Args:
            points: (B, N, 3) coordinates in the unit sphere, y up, as a tensor or an array, or a list of (N, 3) of any
                sizes; they go to the encoder's device and type. N is at least 1: of fewer points than a group has, they
                repeat, and of fewer than there are groups, groups do.
            per_point: also carry the tokens to the points, each from its three nearest visible tokens of a level.

        Returns:
            The feature and the tokens; on the encoder's device.

        Raises:
            ValueError: if the points are not as described or not finite, or `per_point` finds fewer than three tokens.
        """
        if per_point and min(self.num_groups) < NEAREST:
            raise ValueError(
                f"per_point carries features from {NEAREST} tokens of each level, and this encoder has "
                f"{list(self.num_groups)}: call it without"
            )
        if not isinstance(points, Tensor | np.ndarray):
            return self._encode_list(points, per_point)
        cloud = self._checked(points, 3, "points", "(B, N, 3), or a list of (N, 3)")
        least = self.group_sizes[0]
        repeated = cloud[:, torch.arange(max(least, cloud.shape[1]), device=cloud.device) % cloud.shape[1]]
        found = self.encode_chosen(repeated, *self.choose(repeated))
        return replace(found, per_point=carry(cloud, found)) if per_point else found

    def choose(self, points: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Sample and search: all that needs more than standard operators.

        Args:
            points: (B, N, 3), N at least `group_sizes[0]`.

        Returns:
            Per level, fine to coarse, which points of the level below are the centres, (B, G) int64, and which are the
            members of each group, (B, G, k) int64, nearest first.
        """
        samples, members = [], []
        for groups, size in zip(self.num_groups, self.group_sizes, strict=True):
            sample, index = choose_groups(points, groups, size)
            samples.append(sample)
            members.append(index)
            points = group_by(points, sample, index).centers
        return samples, members

    def encode_chosen(self, points: Tensor, samples: Sequence[Tensor], members: Sequence[Tensor]) -> Encoded:
        """Encode (B, N, 3) points in the groups that `choose` returned."""
        groups: list[Group] = []
        for sample, index in zip(samples, members, strict=True):
            groups.append(group_by(groups[-1].centers if groups else points, sample, index))
        return self.model.encode_groups(groups)

    def _encode_list(self, clouds: Sequence[Points], per_point: bool) -> Encoded:
        """Encode clouds of different sizes, those of a size together, and bring the results into their order."""
        if not isinstance(clouds, list | tuple) or not clouds:
            raise ValueError(f"points must be a tensor, an array or a list of clouds, at least one, got {clouds!r:.80}")
        checked = [self._checked(cloud, 2, f"cloud {i} of the list", "(N, 3)") for i, cloud in enumerate(clouds)]
        sizes = sorted({len(cloud) for cloud in checked})
        parts = [[i for i, cloud in enumerate(checked) if len(cloud) == size] for size in sizes]
        found: list[Any] = [self(torch.stack([checked[i] for i in part]), per_point) for part in parts]
        place = torch.tensor([i for part in parts for i in part], device=checked[0].device).argsort()

        def joined(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat([*tensors])[place]

        def by_level(name: str) -> list[Tensor]:
            return [joined(level) for level in zip(*(getattr(part, name) for part in found), strict=True)]

        tokens, centers, visible = map(by_level, ("tokens", "centers", "visible"))
        rows = [row for part in found for row in part.per_point] if per_point else []
        return Encoded(
            joined([part.feature for part in found]),
            *(tokens, centers, visible),
            per_point=[rows[i] for i in place.tolist()] if per_point else None,
        )

    def _checked(self, points: Points, dimensions: int, name: str, expected: str) -> Tensor:
        """Bring points to the encoder's device and type; ValueError unless they are as expected and finite."""
        weight = next(self.parameters())
        if not isinstance(points, Tensor | np.ndarray):
            raise ValueError(f"{name} must be a tensor or an array {expected}, got {type(points).__name__}")
        points = torch.as_tensor(points)
        if points.ndim != dimensions or points.shape[-1] != 3 or points.numel() == 0:
            raise ValueError(f"{name} must be {expected} with at least one point, got {tuple(points.shape)}")
        points = points.to(weight)
        if not points.isfinite().all():
            raise ValueError(f"{name}: coordinates that are not finite in {weight.dtype}; leave these points out")
        return points


def load_encoder(path: str | Path, config: str | Path | Mapping[str, Any] | None = None) -> Encoder:
    """Load the encoder of a checkpoint, one of this project or a released one, on the CPU.

    Args:
        path: a pre-training model, a classifier or a part segmenter, as .pth or .safetensors.
        config: a YAML file, or a mapping, whole or its `model` section. None: what the file says; of a file that says
            none, the released config whose model has the same tensors.

    Returns:
        The encoder; `report` says which tensors were taken.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, none of these models, does not fit the config, or does not say its config
            and more than one or none of the released ones fits.
    """
    from models import build_model  # not at the top: models imports this file

    path, content = Path(path), read_checkpoint(path)
    settings = model_config(content, path, config)
    with torch.random.fork_rng(devices=[]):  # weights that are drawn first leave the caller's draws alone
        model: Any = build_model(settings)
    if not hasattr(model, "encode_groups"):
        raise ValueError(f"{settings['NAME']} has no encoder with weights of its own; {WAY_OUT}")
    for name in _superfluous(model):
        delattr(model, name)
    rules = getattr(model, "loading", LoadingRules())
    model.loading = replace(rules, new=(), leftover=ANY_LEFTOVER)
    return Encoder(model, settings, fill_model(model, content, path))


def _superfluous(model: Any) -> Iterator[str]:
    """Names of the modules, parameters and buffers of a model that encoding does not need."""
    names = [name for name, _ in model.named_children()] + [*model._parameters, *model._buffers]
    return (name for name in names if name not in model.encoder_parts)


def carry(points: Tensor, found: Encoded) -> Tensor:
    """Carry the visible tokens of all levels to (B, N, 3) points."""
    levels = zip(found.tokens, found.centers, found.visible, strict=True)
    carried = [
        interpolate_features(points, centers.masked_fill(~visible.unsqueeze(-1), torch.inf), tokens)
        for tokens, centers, visible in levels
    ]
    return torch.cat(carried, dim=-1)
