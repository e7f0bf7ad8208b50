"""The segmenter of Point-MAE and ACT: tokens of three depths are carried back to the points, each of which gets a part.

ACT's for indoor scenes is the same without a category: its parts are the classes of what stands in a room.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoded import Encoded, encoded
from models.initialisation import init_truncated_normal
from models.loading import ACT_SEGMENTER_HEAD, HEAD_LAYERS, POINT_MAE_SEGMENTER_HEAD, act_rules, point_mae_rules
from models.propagation import PointPropagation
from models.segmenter import CATEGORY_DIM, CloudAwareSegmenter, category_embedding, check_segmenter, log_probabilities
from models.single_scale import SingleScaleEncoder, check_groups, check_token_width, group_points, mean_beside_max
from models.tokenizer import Group

HEAD_DIMS = (512, 256)
NUM_TAPS = 3


class PointTransformerSegmenter(SingleScaleEncoder, CloudAwareSegmenter):
    """Gives every point of a cloud, whose category is known if it has one, the log-probability of each part.

    Args:
        num_parts: parts of all categories together.
        num_categories: categories of shapes; 0 = the clouds have none.
        trans_dim, encoder_dims: channels of the blocks and of the token embedding, which must be equal.
        depth: blocks, a multiple of 3: the tokens after each third of them are taken.
        num_heads: attention heads of each block.
        drop_path_rate: stochastic depth of the last block.
        num_group: tokens of a cloud.
        group_size: points of a token's neighbourhood.
        point_dims: channels of the two layers over what the tokens give to the points.

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    loading = point_mae_rules(
        POINT_MAE_SEGMENTER_HEAD,
        renamed={f"{name}_cls.": f"{name}." for name in HEAD_LAYERS},  # ACT's names
    )
    local_first: ClassVar = True
    encoder_parts: ClassVar = ("encoder", "reduce_dim", "pos_embed", "blocks", "norm")

    def __init__(
        self,
        num_parts: int = 50,
        num_categories: int = 16,
        trans_dim: int = 384,
        encoder_dims: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        num_group: int = 128,
        group_size: int = 32,
        point_dims: Sequence[int] = (1536, 1024),
    ):
        check_token_width(encoder_dims, trans_dim)
        check_groups(num_group, group_size, least=3)  # a point takes its features from three
        check_segmenter(num_parts, num_categories, point_dims, least_categories=0)
        if depth % NUM_TAPS:
            raise ValueError(f"depth must be a multiple of {NUM_TAPS}, got {depth}: each third of the blocks is tapped")
        super().__init__(trans_dim, depth, num_heads, drop_path_rate)
        self.num_groups, self.group_size = (num_group,), group_size
        self.num_parts, self.num_categories = num_parts, num_categories
        self.taps = range(0, depth + 1, depth // NUM_TAPS)
        tapped_dim, self.local_dim = NUM_TAPS * trans_dim, point_dims[-1]
        if num_categories:
            self.label_conv = category_embedding(num_categories)
        self.propagation_0 = PointPropagation(tapped_dim, point_dims)
        of_cloud_dim = 2 * tapped_dim + (CATEGORY_DIM if num_categories else 0)
        self.convs1 = nn.Conv1d(self.local_dim + of_cloud_dim, HEAD_DIMS[0], 1)
        self.convs2 = nn.Conv1d(HEAD_DIMS[0], HEAD_DIMS[1], 1)
        self.convs3 = nn.Conv1d(HEAD_DIMS[1], num_parts, 1)
        self.bns1, self.bns2 = (nn.BatchNorm1d(dim) for dim in HEAD_DIMS)
        self.dropout = nn.Dropout(0.5)

    def forward(self, points: Tensor, category: Tensor | None = None) -> Tensor:
        """Segment clouds.

        Args:
            points: (B, N, 3) coordinates.
            category: (B,) int from 0 to num_categories − 1, or (B, num_categories) one-hot; None if there are none.

        Returns:
            (B, N, num_parts) log-probabilities.

        Raises:
            ValueError: if `category` has another shape, or is given or not contrary to `num_categories`.
        """
        group = group_points(points, *self.num_groups, self.group_size)
        tokens = self.tap(self.embed(group.neighborhoods), self.pos_embed(group.centers))  # (B, G, 3C)
        local = self.propagation_0(points, group.centers, tokens)  # (B, local_dim, N)
        of_cloud = torch.cat([tokens.amax(1), tokens.mean(1), *self._embedded(category, points)], dim=1)
        x = self.dropout(F.relu(self.bns1(self.mix(of_cloud, local)), inplace=True))
        x = F.relu(self.bns2(self.convs2(x)), inplace=True)
        return log_probabilities(self.convs3(x))

    def encode_groups(self, groups: Sequence[Group]) -> Encoded:
        """The tokens after all blocks, normalised, and their mean beside their max."""
        tokens = self.encode_group(groups[0])
        return encoded(mean_beside_max(tokens), [tokens], groups)

    def _embedded(self, category: Tensor | None, points: Tensor) -> list[Tensor]:
        """The (B, CATEGORY_DIM) embedding of the categories, where there are some."""
        if (category is None) == (self.num_categories > 0):
            wanted = "its category" if self.num_categories else "no category"
            raise ValueError(f"the segmenter has num_categories {self.num_categories}: give a cloud with {wanted}")
        return [] if category is None else [self.embed_category(category, points)]

    def tap(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Transform (B, G, C) tokens; returns them after each third of the blocks, normalised, beside each other."""
        tapped = []
        for first, last in pairwise(self.taps):
            tokens = self.blocks(tokens, position, first=first, last=last)
            tapped.append(self.norm(tokens))
        return torch.cat(tapped, dim=-1)


class ACTSegmenter(PointTransformerSegmenter):
    """Point-MAE's segmenter with `_cls` in the names of its head's layers, started as ACT starts it.

    Files of either names fill it.

    Args:
        **settings: of `PointTransformerSegmenter`.
    """

    loading = act_rules(
        ACT_SEGMENTER_HEAD, own_tokens=False, renamed={f"{name}.": f"{name}_cls." for name in HEAD_LAYERS}
    )

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        for name in HEAD_LAYERS:
            if name in self._modules:
                self.add_module(f"{name}_cls", self._modules.pop(name))
        self.apply(init_truncated_normal)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(f"{name}_cls" if name in HEAD_LAYERS else name)
