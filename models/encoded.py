"""What an encoder makes of clouds: a feature of each, and tokens with the places where they stand."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.tokenizer import Group


@dataclass(frozen=True)
class Encoded:
    """Levels go from fine to coarse; a single-scale encoder has one.

    Attributes:
        feature: (B, C), of the whole cloud.
        tokens: per level, (B, G, C_level); zeros where hidden.
        centers: per level, (B, G, 3): where the tokens stand.
        visible: per level, (B, G) bool, True = encoded. A pre-trained hierarchical encoder hides finer tokens that are
            in no coarser group; no other hides any.
        per_point: (B, N, sum of C_level), the tokens of all levels beside each other, carried to the points; of a list
            of clouds a list of (N, …); None unless asked for.
    """

    feature: Tensor
    tokens: list[Tensor]
    centers: list[Tensor]
    visible: list[Tensor]
    per_point: Tensor | list[Tensor] | None = None


def encoded(
    feature: Tensor, tokens: Sequence[Tensor], groups: Sequence[Group], visible: Sequence[Tensor] | None = None
) -> Encoded:
    """Put together what was made of groups; None = all tokens are visible."""
    centers = [group.centers for group in groups]
    everything = [torch.ones_like(group.index[..., 0], dtype=torch.bool) for group in groups]
    return Encoded(feature, [*tokens], centers, everything if visible is None else [*visible])
