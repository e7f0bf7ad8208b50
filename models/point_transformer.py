"""The classifiers of Point-MAE, Point-BERT and ACT: a class token among a cloud's tokens, a head over it and their max.

The networks differ in the width of the token embedding, in the head and in what of it learns; all three are called
`PointTransformer` in configs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from models.classifier import HEAD_DIM, classification_head, cross_entropy
from models.encoded import Encoded, encoded
from models.loading import ACT_CLASSIFIER, POINT_BERT_CLASSIFIER, POINT_MAE_CLASSIFIER
from models.single_scale import SingleScaleEncoder, check_groups, check_token_width, group_points, with_class_token
from models.tokenizer import Group
from utils.checkpoint import LoadingRules

TRANSFERS = ("full", "linear", "mlp-3")


class ClassTokenClassifier(SingleScaleEncoder):
    """Classifies clouds by the class token and the largest of the others; a subclass gives it a head and a start.

    Args:
        cls_dim: outputs of the head, the number of classes.
        dim: channels of the blocks.
        encoder_dims: channels of the token embedding.
        depth, num_heads: blocks, and attention heads of each.
        drop_path_rate: stochastic depth of the last block.
        num_group: tokens of a cloud.
        group_size: points of a token's neighbourhood.

    Raises:
        ValueError: if the sizes do not fit each other.

    Attributes:
        loading: what of a checkpoint fills it.
        smooth: label smoothing of the loss.
    """

    loading: ClassVar[LoadingRules]
    smooth: float = 0.0
    cls_head_finetune: nn.Sequential
    encoder_parts: ClassVar = ("encoder", "reduce_dim", "pos_embed", "blocks", "norm", "cls_token", "cls_pos")

    def __init__(
        self,
        cls_dim: int,
        dim: int,
        encoder_dims: int,
        depth: int,
        num_heads: int,
        drop_path_rate: float,
        num_group: int,
        group_size: int,
    ):
        check_groups(num_group, group_size)
        if cls_dim < 2:
            raise ValueError(f"cls_dim must be at least 2, got {cls_dim}")
        super().__init__(dim, depth, num_heads, drop_path_rate, encoder_dims)
        self.num_groups, self.group_size, self.num_classes = (num_group,), group_size, cls_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, points: Tensor) -> Tensor:
        """Classify (B, N, 3) points; returns logits (B, cls_dim)."""
        group = group_points(points, *self.num_groups, self.group_size)
        return self.cls_head_finetune(self.encode_groups([group]).feature)

    def encode_groups(self, groups: Sequence[Group]) -> Encoded:
        """The tokens without that of the class, and what the head sees: it beside the largest of the others."""
        (group,) = groups
        tokens = with_class_token(self.embed(group.neighborhoods), self.cls_token)
        position = with_class_token(self.pos_embed(group.centers), self.cls_pos)
        tokens = self.norm(self.blocks(tokens, position))  # (B, 1 + G, C)
        feature = torch.cat([tokens[:, 0], tokens[:, 1:].amax(1)], dim=-1)
        return encoded(feature, [tokens[:, 1:]], groups)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of (B, cls_dim) logits against (B,) labels, smoothed if the model was built so."""
        return cross_entropy(logits, labels, self.smooth)

    def _start_truncated_normal(self) -> None:
        for parameter in (self.cls_token, self.cls_pos):
            nn.init.trunc_normal_(parameter, std=0.02)


class PointTransformer(ClassTokenClassifier):
    """The classifier of Point-MAE.

    Args:
        cls_dim: outputs of the head, the number of classes.
        trans_dim, encoder_dims: channels of the blocks and of the token embedding, which must be equal.
        depth, num_heads, drop_path_rate, num_group, group_size: as in `ClassTokenClassifier`.

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    loading = POINT_MAE_CLASSIFIER

    def __init__(
        self,
        cls_dim: int,
        trans_dim: int = 384,
        encoder_dims: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        num_group: int = 64,
        group_size: int = 32,
    ):
        check_token_width(encoder_dims, trans_dim)
        super().__init__(cls_dim, trans_dim, encoder_dims, depth, num_heads, drop_path_rate, num_group, group_size)
        self.cls_head_finetune = classification_head(2 * trans_dim, cls_dim)
        self._start_truncated_normal()


class PointBERTClassifier(ClassTokenClassifier):
    """The classifier of Point-BERT: a layer between token embedding and blocks, a head of one hidden layer.

    Args:
        cls_dim: outputs of the head, the number of classes.
        trans_dim, encoder_dims: channels of the blocks and of the token embedding.
        smooth: label smoothing: the true class weighs 1 − smooth, every other smooth / (cls_dim − 1).
        depth, num_heads, drop_path_rate, num_group, group_size: as in `ClassTokenClassifier`.

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    loading = POINT_BERT_CLASSIFIER

    def __init__(
        self,
        cls_dim: int,
        trans_dim: int = 384,
        encoder_dims: int = 256,
        smooth: float = 0.0,
        depth: int = 12,
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        num_group: int = 64,
        group_size: int = 32,
    ):
        if not 0 <= smooth < 1:
            raise ValueError(f"smooth must be in [0, 1), got {smooth}")
        super().__init__(cls_dim, trans_dim, encoder_dims, depth, num_heads, drop_path_rate, num_group, group_size)
        self.smooth = smooth
        self.cls_head_finetune = nn.Sequential(
            *(nn.Linear(2 * trans_dim, HEAD_DIM), nn.ReLU(inplace=True), nn.Dropout(0.5)), nn.Linear(HEAD_DIM, cls_dim)
        )
        nn.init.normal_(self.cls_pos)


class ACTClassifier(ClassTokenClassifier):
    """The classifier of ACT, all of which learns, or its class token and its head alone.

    What does not learn has `requires_grad` False, and runs as it does in training: stochastic depth acts, BatchNorm
    takes the statistics of the batch.

    Args:
        cls_dim: outputs of the head, the number of classes.
        embed_dim, encoder_dims: channels of the blocks and of the token embedding.
        transfer_type: "full" lets all of it learn; "linear" a head of one layer, "mlp-3" one of three, and with either
            the class token and its position.
        depth, num_heads, drop_path_rate, num_group, group_size: as in `ClassTokenClassifier`.

    Raises:
        ValueError: if the sizes do not fit each other, or there is no such `transfer_type`.
    """

    loading = ACT_CLASSIFIER

    def __init__(
        self,
        cls_dim: int,
        embed_dim: int = 384,
        encoder_dims: int = 384,
        transfer_type: Literal["full", "linear", "mlp-3"] = "full",
        depth: int = 12,
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        num_group: int = 64,
        group_size: int = 32,
    ):
        if transfer_type not in TRANSFERS:
            raise ValueError(f"transfer_type must be one of {', '.join(TRANSFERS)}, got {transfer_type!r}")
        super().__init__(cls_dim, embed_dim, encoder_dims, depth, num_heads, drop_path_rate, num_group, group_size)
        linear = nn.Sequential(nn.Linear(2 * embed_dim, cls_dim))
        self.cls_head_finetune = linear if transfer_type == "linear" else classification_head(2 * embed_dim, cls_dim)
        self._start_truncated_normal()
        if transfer_type != "full":
            for name, parameter in self.named_parameters():
                parameter.requires_grad_("cls" in name)


def classifier_of(settings: Mapping[str, Any]) -> Callable[..., ClassTokenClassifier]:
    """Tell by its settings which of the three a `PointTransformer` is.

    Args:
        settings: arguments of one of them. `embed_dim` and `transfer_type` are ACT's; of the other two it is
            Point-BERT's whose token embedding has another width than its blocks.
    """
    if "embed_dim" in settings or "transfer_type" in settings:
        return ACTClassifier
    widths = {settings.get(key, 384) for key in ("trans_dim", "encoder_dims")}
    return PointTransformer if len(widths) == 1 else PointBERTClassifier
