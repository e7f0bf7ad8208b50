"""I2P-MAE (CVPR 2023): a frozen 2D model chooses what stays visible and gives the visible tokens a target."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from extensions.streams import beside
from models.encoder import EncodedLevel
from models.masked_autoencoder import MaskedAutoencoder, masked_mean, visible_tokens
from models.projection import VIEWS, Projection, project
from models.teacher import Teacher, build_teacher, feature_width
from models.tokenizer import Group, PointwiseConv


@dataclass(frozen=True)
class TeacherViews:
    """What the teacher sees of each cloud in its projected views.

    Attributes:
        projection: how the clouds were laid on the image grid.
        features: (V·B, C, h, w), view-major.
        saliency: (V·B, h, w), not negative.
    """

    projection: Projection
    features: Tensor
    saliency: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of this object."""
        layout = self.projection
        return self.features, self.saliency, layout.minimum, layout.cell, layout.offset

    def saliency_at(self, points: Tensor) -> Tensor:
        """Mean over the views of the back-projected saliency, (B, M), at (B, M, 3) points."""
        return self.projection.look_up(self.saliency.unsqueeze(1), points).mean(0).squeeze(-1)

    def features_at(self, points: Tensor) -> Tensor:
        """Back-projected features of each view, (V, B, M, C), at (B, M, 3) points."""
        return self.projection.look_up(self.features, points)


class I2P_MAE(MaskedAutoencoder):
    """I2P-MAE's pre-training model.

    The teacher is frozen and not part of the model's state: it is absent from `state_dict()` and `parameters()`, keeps
    its eval mode, and follows the model from device to device.

    Args:
        clip_config: arguments of `models.teacher.build_teacher`; with `visual_encoder` None the model has no teacher
            and only extracts features.
        mask_temperature: divides the saliency before the softmax that draws the mask; 1 as released, infinity (.inf in
            a config) for a mask that is drawn uniformly.
        teacher: used instead of building one from `clip_config`; any module with the interface of `models.teacher`.
        losses: which act: the Chamfer distance at masked tokens, the 2D features at visible ones, or both as released.
            The head of a loss that does not act stays untrained.
        loss_weights: of the Chamfer distance and of the 2D features in the sum of both; 1 and 1 as released.
        **settings: those of `MaskedAutoencoder`.
    """

    sections: ClassVar = {"clip_config": build_teacher}  # section of the config → what takes its keys
    teacher: Teacher | None

    def __init__(
        self,
        clip_config: Mapping[str, Any] | None = None,
        mask_temperature: float = 1.0,
        teacher: Teacher | None = None,
        losses: Literal["3d", "2d", "both"] = "both",
        loss_weights: Sequence[float] = (1.0, 1.0),
        **settings: Any,
    ):
        super().__init__(**settings)
        if not mask_temperature > 0:  # refuses NaN too
            raise ValueError(f"mask_temperature must be positive, got {mask_temperature}")
        if losses not in ("3d", "2d", "both"):
            raise ValueError(f"losses must be '3d', '2d' or 'both', got {losses!r}")
        if len(loss_weights) != 2 or not all(0 < weight < math.inf for weight in loss_weights):
            raise ValueError(
                f"loss_weights must be two positive numbers, of the 3D and of the 2D loss, got {list(loss_weights)}; "
                "to leave a loss out, set losses to '3d' or '2d'"
            )
        if clip_config is not None and teacher is None:
            teacher = build_teacher(**clip_config)
            feat_dim = teacher.feat_dim if teacher is not None else feature_width(clip_config)
        elif teacher is not None and clip_config is None:
            feat_dim = teacher.feat_dim
        else:
            raise ValueError("I2P_MAE needs a teacher: give either model.clip_config or teacher=")
        self.mask_temperature, self.losses = mask_temperature, losses
        self.loss_weights = dict(zip(("loss_3d", "loss_2d"), loss_weights, strict=True))
        self.teacher = teacher
        self.rec_head_3d = PointwiseConv(self.decoder_dim, 3 * self.group_sizes[1])
        self.rec_head_2d = PointwiseConv(self.decoder_dim, self.group_sizes[1] * len(VIEWS) * feat_dim)

    def forward(
        self, points: Tensor, coarse_mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Look at the cloud through the teacher, mask by its saliency, reconstruct points and 2D features.

        Args:
            points: (B, N, 3) coordinates in the unit sphere.
            coarse_mask: (B, G_2) bool, True = masked; None = draw it by saliency.
            generator: source of the draw's randomness; None = PyTorch's own.

        Returns:
            0-d tensors: loss; loss_3d and loss_2d, those of the two that act, not weighed; visible_tokens, those of
            level 1 in a cloud; and visible_saliency, the share of the coarse tokens' saliency that the visible ones
            hold (0.2 if the mask ignored it, at a mask ratio of 0.8).
        """
        with beside(points) as join:
            views = self.look(points)
        groups = self.group(points)
        tokens = self.h_encoder.embed_points(groups)
        join(*views.tensors())
        saliency = views.saliency_at(groups[-1].centers)
        mask = self.mask(saliency / self.mask_temperature, coarse_mask, generator)
        encoded = self.h_encoder(groups, mask, tokens)
        decoded = self.decode(groups, encoded)
        losses = {}
        if self.losses != "2d":
            losses["loss_3d"] = self.loss_3d(self.rec_head_3d, decoded, groups[1], encoded[1].mask)
        if self.losses != "3d":
            losses["loss_2d"] = self.loss_2d(decoded, groups[1], encoded[1], views)
        return {
            "loss": torch.stack([self.loss_weights[name] * value for name, value in losses.items()]).sum(),
            **losses,
            "visible_tokens": visible_tokens(encoded[1].mask),
            "visible_saliency": (saliency.masked_fill(mask, 0).sum(1) / saliency.sum(1)).mean(),
        }

    @torch.no_grad()
    def look(self, points: Tensor) -> TeacherViews:
        """Project (B, N, 3) points to depth images and pass them through the teacher."""
        if self.teacher is None:
            raise ValueError(
                "this I2P_MAE was built without a teacher and only extracts features; to pre-train, set "
                "model.clip_config.visual_encoder (for example 'ViT-B/16')"
            )
        images, projection = project(points, self.teacher.image_size)
        return TeacherViews(projection, *self.teacher(images))

    def loss_2d(self, decoded: Tensor, group: Group, encoded: EncodedLevel, views: TeacherViews) -> Tensor:
        """Mean squared error to the teacher's features at the neighbours, over the visible tokens of the whole batch.

        Args:
            decoded: (B, G, C).
            group: the level's neighbourhoods.
            encoded: says which of its tokens are visible.
            views: the teacher's features.

        Returns:
            0-d tensor.
        """
        packing = encoded.packing
        neighbors = packing.pack(group.points.flatten(2))  # (B, L, k·3)
        batch, length = neighbors.shape[:2]
        target = views.features_at(neighbors.view(batch, -1, 3))  # (V, B, L·k, feat_dim)
        target = target.unflatten(2, (length, -1)).permute(1, 2, 3, 0, 4)  # (B, L, k, V, feat_dim)
        predicted = self.rec_head_2d(packing.pack(decoded))  # (B, L, k·V·feat_dim)
        error = F.mse_loss(predicted.to(target.dtype), target.flatten(2), reduction="none").mean(2)  # (B, L)
        return masked_mean(error, packing.valid)

    def pool(self, tokens: Tensor) -> Tensor:
        """The linear probe's feature, (B, C): max over the top-level tokens."""
        return tokens.amax(1)

    @torch.no_grad()
    def reconstruct(self, points: Tensor, coarse_mask: Tensor | None = None) -> dict[str, Tensor]:
        """What the model makes of (B, N, 3) points under a mask; see `MaskedAutoencoder.reconstruction`."""
        groups = self.group(points)
        saliency = self.look(points).saliency_at(groups[-1].centers)
        mask = self.mask(saliency / self.mask_temperature, coarse_mask, None)
        return self.reconstruction(self.rec_head_3d, groups, mask)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "teacher":
            self.__dict__[name] = value  # past the registry of nn.Module: see the class docstring
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> "I2P_MAE":
        if self.teacher is not None:
            self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)
