"""What Point-BERT does to the groups of a cloud before it looks at them: masked, swapped, mixed with another's."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Corruption:
    """What becomes of the tokens of a pass before the blocks see them.

    Attributes:
        masked: (B, G) bool, True = the mask token stands there.
        swapped: (B, G) bool, True = another token of the batch stands there, which is nowhere where it is masked;
            None = nowhere at all.
        sources: (B, G) int64, which one, counted through the batch.
    """

    masked: Tensor
    swapped: Tensor | None = None
    sources: Tensor | None = None

    @property
    def predicted(self) -> Tensor:
        """(B, G) bool, True = the word of the group is to be predicted."""
        return self.masked if self.swapped is None else self.masked | self.swapped

    def apply(self, tokens: Tensor, mask_token: Tensor) -> Tensor:
        """Corrupt (B, G, C) tokens; those that are swapped in carry no gradient."""
        if self.swapped is not None:
            others = tokens.detach().flatten(0, 1)[self.sources]
            tokens = torch.where(self.swapped.unsqueeze(-1), others, tokens)
        return torch.where(self.masked.unsqueeze(-1), mask_token.to(tokens.dtype), tokens)


@dataclass(frozen=True)
class Draws:
    """What chance decides of a step.

    Attributes:
        query, mixture, key: corruption of the three passes.
        ratio: (B,) in [0, 1), how much of a mixture counts as the cloud at its place.
        own: (B, G) bool, True = the mixture keeps the group, False = it takes that of the cloud B − 1 − b.
    """

    query: Corruption
    mixture: Corruption
    key: Corruption
    ratio: Tensor
    own: Tensor

    def mix(self, x: Tensor) -> Tensor:
        """Mix what the groups of each cloud have, (B, G, …), with the same of the batch in reverse order."""
        return torch.where(self.own.view(*self.own.shape, *[1] * (x.ndim - 2)), x, x.flip(0))
