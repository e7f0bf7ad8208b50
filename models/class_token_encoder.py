"""The encoder of Point-BERT: tokens of another width than their embedding, a class token before them."""

import torch
from torch import Tensor, nn

from models.single_scale import SingleScaleEncoder, with_class_token


class ClassTokenEncoder(SingleScaleEncoder):
    """A single-scale encoder with a layer between embedding and blocks, and a class token.

    The class token starts at 0 and its position is drawn from N(0, 1).

    Args:
        dim: channels of a token.
        encoder_dims: channels of the token embedding.
        depth: transformer blocks.
        num_heads: attention heads of every block.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(self, dim: int, encoder_dims: int, depth: int, num_heads: int, drop_path_rate: float):
        super().__init__(dim, depth, num_heads, drop_path_rate, encoder_dims)
        self.reduce_dim = nn.Linear(encoder_dims, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_pos = nn.Parameter(torch.randn(1, 1, dim))

    def with_class_token(self, tokens: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
        """Put the class token before (B, G, dim) tokens at (B, G, 3) centres; returns tokens and positions."""
        position = self.pos_embed(centers)
        return with_class_token(tokens, self.cls_token), with_class_token(position, self.cls_pos)
