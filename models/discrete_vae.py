"""The discrete variational autoencoder of Point-BERT (CVPR 2022): groups of points as words of a codebook."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions.chamfer_dist import ChamferDistanceL1
from models.dgcnn import DGCNN, NEIGHBOURS, NORM_GROUPS
from models.kinds import kind_of
from models.single_scale import check_groups, group_points
from models.tokenizer import Group, TokenEmbed
from utils.checkpoint import LoadingRules

COARSE_POINTS, FOLDS = 8, 4  # of a group; fine points of a coarse one
SEED = 0.05  # half the side of the square that is folded around a coarse point
KL_WEIGHT = 0.1  # where the released schedule ends


class FoldingDecoder(nn.Module):
    """Points of a group out of its feature: some coarse ones, around each of which a small square is folded.

    Args:
        dim: channels of the feature.
    """

    seeds: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(
            *(nn.Linear(dim, 1024), nn.ReLU(inplace=True), nn.Linear(1024, 1024), nn.ReLU(inplace=True)),
            nn.Linear(1024, 3 * COARSE_POINTS),
        )
        self.final_conv = nn.Sequential(
            *(nn.Conv1d(dim + 3 + 2, 512, 1), nn.BatchNorm1d(512), nn.ReLU(inplace=True)),
            *(nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(inplace=True)),
            nn.Conv1d(512, 3, 1),
        )
        corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
        self.register_buffer("seeds", SEED * corners, persistent=False)  # (FOLDS, 2)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Decode (B, G, dim) features; returns coarse points (B, G, 8, 3) and fine ones (B, G, 32, 3)."""
        coarse = self.mlp(feature).unflatten(-1, (COARSE_POINTS, 3))
        centers = coarse.repeat_interleave(FOLDS, dim=2)  # (B, G, 32, 3)
        seeds = self.seeds.to(coarse.dtype).repeat(COARSE_POINTS, 1).expand(*centers.shape[:3], 2)
        of_group = feature.unsqueeze(2).expand(-1, -1, centers.shape[2], -1)
        x = torch.cat([of_group, seeds, centers], dim=-1).flatten(0, 1).transpose(1, 2)  # (B·G, dim + 5, 32)
        folded = self.final_conv(x).transpose(1, 2).unflatten(0, feature.shape[:2])
        return coarse, folded + centers


class DiscreteVAE(nn.Module):
    """Names each group of a cloud by a word of a codebook, and rebuilds the group from the word.

    Args:
        group_size: points of a group.
        num_group: groups of a cloud.
        encoder_dims, tokens_dims, decoder_dims: channels of the group embedding, of a word and of what is decoded.
        num_tokens: words of the codebook.

    Raises:
        ValueError: if a value is out of range.
    """

    loading: ClassVar = LoadingRules(kind=kind_of)

    def __init__(
        self,
        group_size: int = 32,
        num_group: int = 64,
        encoder_dims: int = 256,
        num_tokens: int = 8192,
        tokens_dims: int = 256,
        decoder_dims: int = 256,
    ):
        super().__init__()
        check_groups(num_group, group_size, least=NEIGHBOURS)  # a node of the graph has so many neighbours
        for name, value in (("num_tokens", num_tokens), ("decoder_dims", decoder_dims)):
            if value < 1 or value % NORM_GROUPS:
                raise ValueError(f"{name} must be a multiple of {NORM_GROUPS}, the groups of a norm, got {value}")
        if min(encoder_dims, tokens_dims) < 1:
            raise ValueError(f"encoder_dims and tokens_dims must be at least 1, got {encoder_dims} and {tokens_dims}")
        self.num_groups, self.group_size = (num_group,), group_size
        self.encoder = TokenEmbed(3, (128, 256, 512), encoder_dims)
        self.dgcnn_1 = DGCNN(encoder_dims, num_tokens)
        self.codebook = nn.Parameter(torch.randn(num_tokens, tokens_dims))
        self.dgcnn_2 = DGCNN(tokens_dims, decoder_dims)
        self.decoder = FoldingDecoder(decoder_dims)
        self.distance = ChamferDistanceL1()

    def forward(
        self,
        points: Tensor,
        temperature: float = 1.0,
        hard: bool = False,
        noise: Tensor | None = None,
        kl_weight: float = KL_WEIGHT,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Name the groups, rebuild them from their words, compare.

        Args:
            points: (B, N, 3) coordinates in the unit sphere.
            temperature: of the softmax over the words, > 0; the lower, the nearer to one word.
            hard: take one word forward, and the gradient of the softmax backward.
            noise: (B, G, num_tokens) Gumbel noise added to the logits; None = draw it, in evaluation mode too.
            kl_weight: of the divergence in the loss.
            generator: source of the noise; None = PyTorch's own.

        Returns:
            0-d tensors: loss = recon + kl_weight · kl; recon, Chamfer distance of coarse and of fine points; kl. And
            coarse (B, G, 8, 3), fine (B, G, 32, 3): the points, relative to the centres of their groups.

        Raises:
            ValueError: if `temperature` is not positive or `noise` has another shape.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be more than 0, got {temperature}")
        group = self.group(points)
        logits = self.logits(group)
        coarse, fine = self.decode(sample(add_noise(logits, noise, generator), temperature, hard), group.centers)
        recon, kl = self.reconstruction_loss(coarse, fine, group), divergence(logits)
        return {"loss": recon + kl_weight * kl, "recon": recon, "kl": kl, "coarse": coarse, "fine": fine}

    def group(self, points: Tensor) -> Group:
        """Group (B, N, 3) points into the neighbourhoods that are named."""
        return group_points(points, *self.num_groups, self.group_size)

    def logits(self, group: Group) -> Tensor:
        """How well each word suits each group, (B, G, num_tokens)."""
        return self.dgcnn_1(self.encoder(group.neighborhoods), group.centers)

    def decode(self, words: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
        """Rebuild groups from weights over the words, (B, G, num_tokens): coarse (B, G, 8, 3), fine (B, G, 32, 3)."""
        return self.decoder(self.features(words @ self.codebook, centers))

    def features(self, codes: Tensor, centers: Tensor) -> Tensor:
        """Mix the words (B, G, tokens_dims) of groups at (B, G, 3) centres: (B, G, decoder_dims), what is decoded."""
        return self.dgcnn_2(codes, centers)

    def reconstruction_loss(self, coarse: Tensor, fine: Tensor, group: Group) -> Tensor:
        """Chamfer distances, not squared, of coarse and of fine points to the true neighbourhoods, added."""
        true = group.neighborhoods.flatten(0, 1)
        return self.distance(coarse.flatten(0, 1), true) + self.distance(fine.flatten(0, 1), true)

    @torch.no_grad()
    def tokenize(self, points: Tensor) -> Tensor:
        """Name the groups of (B, N, 3) points by their best words, without noise: (B, G) int64."""
        return self.logits(self.group(points)).argmax(-1)

    @torch.no_grad()
    def reconstruct(self, points: Tensor) -> dict[str, Tensor]:
        """True and rebuilt groups of (B, N, 3) points, each from its best word, for looking at.

        Returns:
            `neighborhoods` (B, G, k, 3), the true points; `predictions` (B, G, 32, 3); absolute coordinates.
        """
        group = self.group(points)
        _, fine = self.decode(sample(self.logits(group), 1.0, hard=True), group.centers)
        return {"neighborhoods": group.points, "predictions": fine + group.centers.unsqueeze(2)}


def add_noise(logits: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Add Gumbel noise to (B, G, num_tokens) logits; None = draw it. ValueError if it has another shape."""
    if noise is None:
        noise = gumbel(logits, generator)
    elif noise.shape != logits.shape:
        raise ValueError(f"noise must be {tuple(logits.shape)}, got {tuple(noise.shape)}")
    return logits + noise


def gumbel(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw standard Gumbel noise of the shape of `logits`, in float32."""
    drawn = torch.empty(logits.shape, device=logits.device)  # not like the logits: its order in memory is its own
    return -drawn.exponential_(generator=generator).log()


def sample(logits: Tensor, temperature: float, hard: bool) -> Tensor:
    """Weights over the words: softmax(logits / temperature).

    Args:
        logits: (B, G, num_tokens), with noise.
        temperature: > 0.
        hard: one for the best word forward, the gradient of the softmax backward.

    Returns:
        (B, G, num_tokens), summing to 1.
    """
    soft = F.softmax(logits / temperature, dim=-1)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return one_hot + (soft - soft.detach())


def divergence(logits: Tensor) -> Tensor:
    """KL(uniform ‖ mean over the groups of softmax(logits)), mean over the clouds.

    Args:
        logits: (B, G, num_tokens), without noise.

    Returns:
        0-d tensor, ≥ 0; 0 where a cloud uses all words alike.
    """
    log_used = F.log_softmax(logits, dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])  # (B, num_tokens)
    return (-math.log(logits.shape[-1]) - log_used).mean()
