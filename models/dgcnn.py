"""A graph network over tokens (DGCNN, 2019), as Point-BERT uses it: at every layer the graph is that of the centres."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions.knn_cuda import KNN
from models.tokenizer import take

NEIGHBOURS = 4
NORM_GROUPS = 4
SLOPE = 0.2  # of LeakyReLU
PROPAGATED_DIM = 512  # between the two layers that carry features to other points


class EdgeConv(nn.Sequential):
    """A layer over the edges from each query to its nearest sources, and the maximum over them.

    An edge is [source − query, query]. The layer is linear in it, so that its product is made once a source and once a
    query, not once an edge.

    Args:
        in_dim: channels of sources and queries.
        dim: channels of the result, a multiple of 4.
    """

    def __init__(self, in_dim: int, dim: int):
        super().__init__(
            nn.Conv2d(2 * in_dim, dim, kernel_size=1, bias=False), nn.GroupNorm(NORM_GROUPS, dim), nn.LeakyReLU(SLOPE)
        )

    def forward(self, sources: Tensor, queries: Tensor, index: Tensor) -> Tensor:  # type: ignore[override]
        """Aggregate along the edges.

        Args:
            sources: (B, M, in_dim).
            queries: (B, Q, in_dim).
            index: (B, Q, k) int64, the sources of each query.

        Returns:
            (B, Q, dim).
        """
        conv, norm, activation = self
        of_difference, of_query = conv.get_parameter("weight").flatten(1).chunk(2, dim=1)  # (dim, in_dim) each
        from_sources = take(F.linear(sources, of_difference), index)  # (B, Q, k, dim)
        edges = from_sources + F.linear(queries, of_query - of_difference).unsqueeze(2)
        edges = activation(norm(edges.movedim(-1, 1)))  # (B, dim, Q, k)
        return edges.max(-1).values.transpose(1, 2)  # unlike amax: where tokens are equal its gradient goes to one


class DGCNN(nn.Module):
    """Four edge layers on one graph; what all of them give is mixed by a last layer.

    Args:
        in_dim: channels of the tokens.
        dim: channels of the result, a multiple of 4.
    """

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.input_trans = nn.Conv1d(in_dim, 128, kernel_size=1)
        self.layer1 = EdgeConv(128, 256)
        self.layer2 = EdgeConv(256, 512)
        self.layer3 = EdgeConv(512, 512)
        self.layer4 = EdgeConv(512, 1024)
        self.layer5 = nn.Sequential(
            nn.Conv1d(2304, dim, kernel_size=1, bias=False), nn.GroupNorm(NORM_GROUPS, dim), nn.LeakyReLU(SLOPE)
        )

    @property
    def edge_layers(self) -> tuple[EdgeConv, ...]:
        """The layers over the graph, in their order."""
        return self.layer1, self.layer2, self.layer3, self.layer4

    def forward(self, tokens: Tensor, centers: Tensor) -> Tensor:
        """Transform (B, G, in_dim) tokens at (B, G, 3) centres, G at least 4; returns (B, G, dim)."""
        _, index = KNN(NEIGHBOURS, transpose_mode=True)(centers, centers)
        x, taken = self.input_trans(tokens.transpose(1, 2)).transpose(1, 2), []
        for layer in self.edge_layers:
            x = layer(x, x, index)
            taken.append(x)
        return self.layer5(torch.cat(taken, dim=-1).transpose(1, 2)).transpose(1, 2)


class GraphPropagation(nn.Module):
    """Carries features along a graph: from sources to queries, then among the queries.

    Args:
        dim: channels of sources, queries and result, a multiple of 4.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.layer1 = EdgeConv(dim, PROPAGATED_DIM)
        self.layer2 = EdgeConv(PROPAGATED_DIM, dim)

    def forward(self, sources: Tensor, features: Tensor, queries: Tensor, own: Tensor) -> Tensor:
        """Carry features.

        Args:
            sources: (B, M, 3) coordinates, M at least 4.
            features: (B, M, dim) of the sources.
            queries: (B, Q, 3) coordinates, Q at least 4.
            own: (B, Q, dim) of the queries.

        Returns:
            (B, Q, dim).
        """
        nearest = KNN(NEIGHBOURS, transpose_mode=True)
        own = self.layer1(features, own, nearest(sources, queries)[1])
        return self.layer2(own, own, nearest(queries, queries)[1])
