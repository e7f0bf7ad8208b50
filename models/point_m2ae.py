"""Point-M2AE (NeurIPS 2022): masked autoencoding of point clouds under a random multi-scale mask."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.masked_autoencoder import MaskedAutoencoder, visible_tokens
from models.tokenizer import PointwiseConv


class Point_M2AE(MaskedAutoencoder):
    """Point-M2AE's pre-training model.

    As released, a masked token predicts `group_sizes[0]` points, compared with its `group_sizes[1]` true neighbours.

    Args:
        padding_leak: let `local_radius` act as released (docs/FIDELITY.md, row 12): where the clouds of a batch keep
            different numbers of tokens, the shorter are padded with tokens at the origin, and tokens nearer to it than
            the radius of their level attend to these. What comes of a cloud then depends on the rest of its batch.
        local_radius: per level, fine to coarse; without `padding_leak` it does not act.
        **settings: those of `MaskedAutoencoder`.

    Raises:
        ValueError: if the sizes do not fit each other, or `padding_leak` finds no radius to act with.
    """

    def __init__(self, padding_leak: bool = False, local_radius: Sequence[float] = (0.0, 0.0, 0.0), **settings: Any):
        super().__init__(local_radius=local_radius, **settings)
        if padding_leak and not any(local_radius):
            raise ValueError(
                f"padding_leak: true acts through local_radius, which is {list(local_radius)}; give the released "
                "[0.32, 0.64, 1.28], or leave padding_leak out"
            )
        if padding_leak:
            self.h_encoder.padding_radius = tuple(local_radius)
        self.rec_head = PointwiseConv(self.decoder_dim, 3 * self.group_sizes[0])

    def forward(
        self, points: Tensor, coarse_mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Mask, reconstruct, compare.

        Args:
            points: (B, N, 3) coordinates in the unit sphere.
            coarse_mask: (B, G_2) bool, True = masked; None = draw it uniformly.
            generator: source of the draw's randomness; None = PyTorch's own.

        Returns:
            0-d tensors: loss, loss_3d, and visible_tokens, those of level 1 in a cloud.
        """
        groups = self.group(points)
        mask = self.mask(self._uniform_logits(points), coarse_mask, generator)
        encoded = self.h_encoder(groups, mask)
        decoded = self.decode(groups, encoded)
        loss_3d = self.loss_3d(self.rec_head, decoded, groups[1], encoded[1].mask)
        return {"loss": loss_3d, "loss_3d": loss_3d, "visible_tokens": visible_tokens(encoded[1].mask)}

    def pool(self, tokens: Tensor) -> Tensor:
        """The linear probe's feature, (B, C): mean plus max over the top-level tokens."""
        return tokens.mean(1) + tokens.amax(1)

    @torch.no_grad()
    def reconstruct(self, points: Tensor, coarse_mask: Tensor | None = None) -> dict[str, Tensor]:
        """What the model makes of (B, N, 3) points under a mask; see `MaskedAutoencoder.reconstruction`."""
        groups = self.group(points)
        mask = self.mask(self._uniform_logits(points), coarse_mask, None)
        return self.reconstruction(self.rec_head, groups, mask)

    def _uniform_logits(self, points: Tensor) -> Tensor:
        return points.new_zeros(points.shape[0], self.num_groups[-1])
