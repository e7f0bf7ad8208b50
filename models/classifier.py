"""The downstream classifier: the unmasked encoder, pooled, under a small head."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.encoded import Encoded, encoded
from models.encoder import HierarchicalEncoder, check_encoder
from models.loading import CLASSIFIER_HEAD, loading_rules
from models.tokenizer import Group, group_levels

HEAD_DIM = 256  # channels of the hidden layers of a head


class Classifier(nn.Module):
    """Classifies clouds by the pooled top-level tokens.

    Args:
        num_classes: outputs of the head.
        pooling: "sum" adds mean and max over the tokens; "concat" puts them side by side.
        skip_first_token: leave token 0 out of the max, as the released ScanObjectNN head of Point-M2AE does.
        smooth: label smoothing: the true class weighs 1 − smooth, every other smooth / (num_classes − 1).
        num_groups, group_sizes: tokens, and neighbours per token, of each level, fine to coarse.
        encoder_dims, encoder_depths, num_heads, drop_path_rate: of the encoder.
        local_radius: per level, a token attends only to tokens whose centres are nearer; 0 = to all.

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    loading = loading_rules(new=CLASSIFIER_HEAD)
    encoder_parts: ClassVar = ("h_encoder", "norm")

    def __init__(
        self,
        num_classes: int,
        pooling: Literal["sum", "concat"],
        skip_first_token: bool = False,
        smooth: float = 0.0,
        num_groups: Sequence[int] = (512, 256, 64),
        group_sizes: Sequence[int] = (16, 8, 8),
        encoder_dims: Sequence[int] = (96, 192, 384),
        encoder_depths: Sequence[int] = (5, 5, 5),
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        local_radius: Sequence[float] = (0.0, 0.0, 0.0),
    ):
        super().__init__()
        check_encoder(num_groups, group_sizes, encoder_dims, encoder_depths, local_radius, drop_path_rate)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if pooling not in ("sum", "concat"):
            raise ValueError(f"pooling must be 'sum' or 'concat', got {pooling!r}")
        if not 0 <= smooth < 1:
            raise ValueError(f"smooth must be in [0, 1), got {smooth}")
        self.num_groups, self.group_sizes = tuple(num_groups), tuple(group_sizes)
        self.local_radius = tuple(local_radius)
        self.num_classes, self.pooling = num_classes, pooling
        self.skip_first_token, self.smooth = skip_first_token, smooth
        dim = encoder_dims[-1]
        self.h_encoder = HierarchicalEncoder(encoder_dims, encoder_depths, num_heads, drop_path_rate, norms=False)
        self.norm = nn.LayerNorm(dim)
        self.cls_head_finetune = classification_head(dim if pooling == "sum" else 2 * dim, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        """Classify (B, N, 3) points; returns logits (B, num_classes)."""
        groups = group_levels(points, self.num_groups, self.group_sizes)
        return self.cls_head_finetune(self.encode_groups(groups).feature)

    def encode_groups(self, groups: Sequence[Group]) -> Encoded:
        """Tokens of all levels, the top ones normalised, and what the head sees of them."""
        *finer, top = self.h_encoder.forward_all(groups, self.local_radius)
        tokens = self.norm(top)  # (B, G_2, C)
        return encoded(self.pool(tokens), [*finer, tokens], groups)

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool (B, G, C) tokens to (B, C), or (B, 2C) where mean and max are concatenated."""
        mean, maximum = tokens.mean(1), tokens[:, int(self.skip_first_token) :].amax(1)
        return mean + maximum if self.pooling == "sum" else torch.cat([mean, maximum], dim=-1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of (B, num_classes) logits against (B,) labels, smoothed if the model was built so."""
        return cross_entropy(logits, labels, self.smooth)


def classification_head(in_dim: int, num_classes: int) -> nn.Sequential:
    """The head of all classifiers: two hidden layers of 256, half of each dropped in training, then the logits."""
    return nn.Sequential(
        *_hidden_layer(in_dim, HEAD_DIM), *_hidden_layer(HEAD_DIM, HEAD_DIM), nn.Linear(HEAD_DIM, num_classes)
    )


def cross_entropy(logits: Tensor, labels: Tensor, smooth: float = 0.0) -> Tensor:
    """Cross-entropy, mean over the batch.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        smooth: the true class weighs 1 − smooth, every other smooth / (C − 1).

    Returns:
        0-d tensor.
    """
    log_probs = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))  # not in bfloat16
    of_true = log_probs.gather(1, labels.unsqueeze(1)).squeeze(1)
    of_others = (log_probs.sum(1) - of_true) / (logits.shape[1] - 1)
    return -((1 - smooth) * of_true + smooth * of_others).mean()


def _hidden_layer(in_dim: int, dim: int) -> list[nn.Module]:
    return [nn.Linear(in_dim, dim), nn.BatchNorm1d(dim), nn.ReLU(inplace=True), nn.Dropout(0.5)]
