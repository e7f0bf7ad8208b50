"""Pre-norm transformer blocks that see the positional embedding at every depth."""

from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values without bias."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"{dim} channels do not divide into {num_heads} heads; choose num_heads that divides them")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend among (B, L, C) tokens.

        Args:
            x: (B, L, C).
            mask: bool, broadcastable to (B, heads, L, L), True = the query may attend to the key; None = to all.

        Returns:
            (B, L, C).
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, head_dim)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """LayerNorm, attention, LayerNorm, MLP, each branch with stochastic depth."""

    def __init__(self, dim: int, num_heads: int, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform (B, L, C) tokens; `mask` as in `Attention`."""
        x = x + self.drop_path(self.attn(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class BlockStack(nn.Module):
    """Blocks in a row; the positional embedding is added to the input of each.

    Args:
        dim: channels.
        num_heads: attention heads.
        drop_paths: the stochastic depth rate of each block; their number is the depth.
    """

    def __init__(self, dim: int, num_heads: int, drop_paths: Sequence[float]):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, num_heads, rate) for rate in drop_paths)

    def forward(
        self, x: Tensor, position: Tensor, mask: Tensor | None = None, first: int = 0, last: int | None = None
    ) -> Tensor:
        """Transform tokens by the blocks `first` to `last` − 1, all of them unless said otherwise.

        Args:
            x: (B, L, C).
            position: (B, L, C) positional embeddings.
            mask: as in `Attention`.
            first: number of the first block that acts, from 0.
            last: number of the first that does not any more; None = the end.

        Returns:
            (B, L, C).
        """
        for block in list(self.blocks)[first:last]:
            x = block(x + position, mask)
        return x


def positional_embedding(dim: int, hidden_dim: int | None = None) -> nn.Sequential:
    """Two layers that embed the absolute coordinates of a token's centre, (…, 3) to (…, dim).

    Args:
        dim: channels of the embedding.
        hidden_dim: channels between the layers, None = `dim`.
    """
    hidden_dim = hidden_dim or dim
    return nn.Sequential(nn.Linear(3, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth rates that rise linearly from 0 to `rate` over all blocks, split into levels of `depths`."""
    total = sum(depths)
    rates = iter([rate * i / max(1, total - 1) for i in range(total)])
    return [[next(rates) for _ in range(depth)] for depth in depths]
