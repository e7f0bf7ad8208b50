"""Which tokens are masked: drawn at the coarsest level, propagated to the finer ones. In every mask True = masked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from extensions.knn_cuda import KNN


def draw_mask(logits: Tensor, num_visible: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw the visible tokens without replacement, with probabilities softmax(logits).

    The draw adds Gumbel noise to the logits and keeps the largest: the same distribution as drawing one by one, and it
    survives probabilities that underflow. Equal logits give a uniformly random mask.

    Args:
        logits: (B, G).
        num_visible: tokens that stay visible in each sample.
        generator: source of randomness on the device of `logits`; None = PyTorch's own.

    Returns:
        (B, G) bool, True = masked.
    """
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float64).tiny)))
    visible = (logits + gumbel).topk(num_visible, dim=1).indices
    return torch.ones_like(logits, dtype=torch.bool).scatter_(1, visible, False)


def draw_block_mask(centers: Tensor, num_visible: int, generator: torch.Generator | None = None) -> Tensor:
    """Mask the tokens nearest to the centre of one that is drawn uniformly, itself included.

    Args:
        centers: (B, G, 3).
        num_visible: tokens that stay visible in each sample.
        generator: source of randomness on the device of `centers`; None = PyTorch's own.

    Returns:
        (B, G) bool, True = masked.
    """
    batch, groups, _ = centers.shape
    seeds = torch.randint(groups, (batch,), generator=generator, device=centers.device)
    return block_mask(centers, seeds, torch.full_like(seeds, groups - num_visible))


def block_mask(centers: Tensor, seeds: Tensor, num_masked: Tensor) -> Tensor:
    """Mask the tokens nearest to the centre of a given one, itself included.

    Args:
        centers: (B, G, 3).
        seeds: (B,) int64, the token of each cloud around which the others are masked.
        num_masked: (B,) int, how many are.

    Returns:
        (B, G) bool, True = masked.
    """
    groups = centers.shape[1]
    around = centers.gather(1, seeds.view(-1, 1, 1).expand(-1, -1, 3))  # (B, 1, 3)
    _, nearest = KNN(groups, transpose_mode=True)(centers, around)  # (B, 1, G), all of them, in order
    among = torch.arange(groups, device=centers.device) < num_masked.unsqueeze(1)  # (B, G)
    return torch.zeros_like(among).scatter(1, nearest.squeeze(1), among)


def draw_block_masks(centers: Tensor, mask_ratio: Sequence[float], generator: torch.Generator | None = None) -> Tensor:
    """Mask another share of each cloud's tokens, those nearest to one that is drawn uniformly, itself included.

    Args:
        centers: (B, G, 3).
        mask_ratio: the least and the largest share, between which each cloud's is drawn uniformly.
        generator: source of randomness on the device of `centers`; None = PyTorch's own.

    Returns:
        (B, G) bool, True = masked.
    """
    batch, groups, _ = centers.shape
    ratio = torch.empty(batch, device=centers.device).uniform_(*mask_ratio, generator=generator)
    seeds = torch.randint(groups, (batch,), generator=generator, device=centers.device)
    return block_mask(centers, seeds, (ratio * groups).int())


def draw_masks_of_one_ratio(
    shape: Sequence[int], mask_ratio: Sequence[float], device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Mask each token of a batch with the same probability, which is drawn between two shares.

    Args:
        shape: (B, G).
        mask_ratio: the least and the largest probability.
        device: where to draw.
        generator: source of randomness on `device`; None = PyTorch's own.

    Returns:
        (B, G) bool, True = masked.
    """
    ratio = torch.empty(1, 1, device=device).uniform_(*mask_ratio, generator=generator)
    return torch.rand(*shape, generator=generator, device=device) < ratio


def count_visible(mask_ratio: float, num_tokens: int) -> int:
    """Return how many of `num_tokens` stay visible; ValueError if `mask_ratio` masks none or all."""
    num_visible = num_tokens - int(mask_ratio * num_tokens)
    if not 0 < num_visible < num_tokens:
        raise ValueError(f"mask_ratio {mask_ratio} masks none or all of {num_tokens} tokens; choose between 0 and 1")
    return num_visible


def check_mask(mask: Tensor, shape: Sequence[int], name: str) -> None:
    """Refuse a given mask that is not bool, (B, G) as in `shape`, or masks all or none of a sample's tokens.

    Raises:
        ValueError: naming `name`.
    """
    if mask.shape != shape or mask.dtype != torch.bool:
        raise ValueError(f"{name} must be bool {tuple(shape)} with True = masked, got {mask.dtype} {tuple(mask.shape)}")
    num_masked = mask.sum(1)
    if ((num_masked == 0) | (num_masked == mask.shape[1])).any():
        raise ValueError(f"{name} must leave at least one token visible and one masked in every sample")


def propagate_mask(coarse_mask: Tensor, indices: Sequence[Tensor]) -> list[Tensor]:
    """Carry the coarse mask down: a finer token is visible if any visible coarser token has it in its neighbourhood.

    Args:
        coarse_mask: (B, G_top) bool, True = masked.
        indices: per level, fine to coarse, (B, G_i, k_i) members of each group among the tokens of level i−1;
            those of level 0 index points and are not used.

    Returns:
        Per level, fine to coarse, (B, G_i) bool, True = masked.
    """
    masks = [coarse_mask]
    for level in range(len(indices) - 1, 0, -1):
        index = indices[level]
        num_finer = indices[level - 1].shape[1]
        visible = (~masks[0]).unsqueeze(-1).expand_as(index).flatten(1).to(torch.uint8)
        reached = visible.new_zeros(index.shape[0], num_finer).scatter_reduce_(1, index.flatten(1), visible, "amax")
        masks.insert(0, reached == 0)
    return masks


class Packing:
    """The visible tokens of each sample moved to the front, in order, and padded to the longest sample.

    Args:
        mask: (B, G) bool, True = masked.
        length: L, at least the most visible tokens in a sample.
        padded: whether a sample has fewer.

    Attributes:
        index: (B, L) int64 positions of the packed tokens among the G.
        valid: (B, L) bool, True = a visible token, False = padding.
        attention_mask: (B, 1, 1, L) bool for `Attention`, or None where nothing is padded.
    """

    def __init__(self, mask: Tensor, length: int, padded: bool):
        visible = ~mask
        self.index = visible.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :length]
        self.valid = torch.arange(length, device=mask.device) < visible.sum(1, keepdim=True)
        self.attention_mask = self.valid[:, None, None, :] if padded else None

    @classmethod
    def of_levels(cls, masks: Sequence[Tensor]) -> "list[Packing]":
        """Pack each level as short as it goes. The lengths of all levels reach the host in one transfer."""
        counts = torch.stack([torch.stack((~mask).sum(1).aminmax()) for mask in masks]).tolist()
        return [cls(mask, longest, shortest < longest) for mask, (shortest, longest) in zip(masks, counts, strict=True)]

    def pack(self, x: Tensor) -> Tensor:
        """Take the packed tokens, (B, L, C), out of all, (B, G, C); padding holds masked tokens."""
        return x.gather(1, self.index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def unpack(self, packed: Tensor, onto: Tensor) -> Tensor:
        """Write packed tokens (B, L, C) back over the visible positions of `onto` (B, G, C); returns a new tensor."""
        packed = torch.where(self.valid.unsqueeze(-1), packed, self.pack(onto).to(packed.dtype))
        return onto.to(packed.dtype).scatter(1, self.index.unsqueeze(-1).expand_as(packed), packed)


def split_tokens(
    centers: Tensor, mask: Tensor | None, num_visible: int, mask_type: str, generator: torch.Generator | None
) -> tuple[Packing, Packing]:
    """Part the tokens of a single scale into visible and masked ones, by the given mask or one that is drawn.

    Args:
        centers: (B, G, 3).
        mask: (B, G) bool, True = masked, or None to draw it.
        num_visible: tokens of a cloud that a drawn mask leaves visible.
        mask_type: "rand" masks tokens drawn uniformly, "block" those around one.
        generator: source of randomness of the draw.

    Returns:
        The visible tokens and the masked ones, each in the order of the groups.

    Raises:
        ValueError: if `mask` has another shape or type, or masks all or none of a sample.
    """
    if mask is not None:
        check_mask(mask, centers.shape[:2], "mask")
        visible, masked = Packing.of_levels([mask, ~mask])
        return visible, masked
    if mask_type == "rand":
        mask = draw_mask(centers.new_zeros(centers.shape[:2]), num_visible, generator)
    else:
        mask = draw_block_mask(centers, num_visible, generator)
    num_masked = centers.shape[1] - num_visible  # known beforehand: nothing has to wait for the GPU
    return Packing(mask, num_visible, padded=False), Packing(~mask, num_masked, padded=False)
