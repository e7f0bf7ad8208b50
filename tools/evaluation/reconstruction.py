"""How well an autoencoder rebuilds shapes: F-score and Chamfer distances."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from extensions.chamfer_dist import chamfer
from models.discrete_vae import DiscreteVAE
from tools.evaluation.inference import evaluate
from utils.distributed import rank

THRESHOLD = 0.01  # distance within which a point counts as met
SCORES = {"F_score": "F-score at 0.01, %", "CDL1": "Chamfer L1 × 1000", "CDL2": "Chamfer L2 × 1000"}


class Rebuild(nn.Module):
    """Scores of clouds that an autoencoder rebuilds, each group from one word drawn at temperature 1.

    Args:
        model: the autoencoder.
        generator: of the draws, on the model's device.
    """

    def __init__(self, model: DiscreteVAE, generator: torch.Generator) -> None:
        super().__init__()
        self.model, self.generator = model, generator

    def forward(self, points: Tensor) -> Tensor:
        """Rebuild (B, N, 3) points; returns (B, 3), in the order of `SCORES`."""
        fine = self.model(points, temperature=1.0, hard=True, generator=self.generator)["fine"]
        centers = self.model.group(points).centers.unsqueeze(2)
        return scores((fine + centers).flatten(1, 2), points)


def scores(rebuilt: Tensor, true: Tensor) -> Tensor:
    """Compare clouds.

    Args:
        rebuilt: (B, M, 3).
        true: (B, N, 3), in the unit sphere.

    Returns:
        (B, 3): F-score in percent, the harmonic mean of the shares of points of either cloud that are nearer than 0.01
        to the other; mean distance and mean squared distance to the nearest point of the other cloud, times 1000, the
        former averaged over both directions and the latter added, as the Chamfer losses do.
    """
    squared = chamfer(rebuilt, true)[:2]
    precision, recall = ((distances.sqrt() < THRESHOLD).double().mean(1) for distances in squared)
    f_score = 200 * precision * recall / (precision + recall).clamp_min(torch.finfo(torch.float64).tiny)
    l1 = 1000 * sum(distances.sqrt().double().mean(1) for distances in squared) / 2
    l2 = 1000 * sum(distances.double().mean(1) for distances in squared)
    return torch.stack([f_score, l1, l2], dim=1)


def reconstruction_scores(model: DiscreteVAE, loader: DataLoader, device: torch.device, seed: int) -> dict[str, float]:
    """Rebuild every cloud of a loader.

    Args:
        model: the autoencoder, on its device.
        loader: yields (points, labels) in a fixed order.
        device: where the model is.
        seed: of the words that are drawn; several processes add their rank.

    Returns:
        `SCORES`, each the mean over the categories of the mean over the shapes of a category.
    """
    generator = torch.Generator(device).manual_seed(seed + rank())
    found, labels = evaluate(Rebuild(model, generator), loader, device)
    per_category = torch.stack([found[labels == label].mean(0) for label in labels.unique()])
    return dict(zip(SCORES, per_category.double().mean(0).tolist(), strict=True))
