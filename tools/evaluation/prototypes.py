"""Part segmentation without training: points are matched with the mean features of the parts of known shapes."""

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datasets.published import CATEGORIES, NUM_PARTS
from utils.distributed import gather
from utils.logger import progress

GAMMA = 300.0  # of the released script

Prototypes = tuple[Tensor, Tensor]  # (M, D) unit vectors, and the part of each, (M,) int64


class PrototypeBank:
    """For each category the mean feature of every part of every known shape, as a unit vector."""

    def __init__(self) -> None:
        self._found: dict[int, list[Prototypes]] = defaultdict(list)

    def add(self, features: Tensor, categories: Tensor, parts: Tensor) -> None:
        """Take in shapes.

        Args:
            features: (B, N, D) of their points.
            categories: (B,) int64.
            parts: (B, N) int64, the part of each point.
        """
        batch, dim = len(features), features.shape[-1]
        rows = (NUM_PARTS * torch.arange(batch, device=parts.device).unsqueeze(1) + parts).flatten()
        counts = rows.bincount(minlength=batch * NUM_PARTS)
        sums = features.new_zeros(batch * NUM_PARTS, dim).index_add_(0, rows, features.flatten(0, 1))
        present = counts.nonzero().squeeze(1)  # each shape's parts in turn
        prototypes = F.normalize(sums[present] / counts[present].unsqueeze(1), dim=1)
        labels, categories = present % NUM_PARTS, categories[present // NUM_PARTS]
        for category in categories.unique().tolist():
            of_it = categories == category
            self._found[category].append((prototypes[of_it], labels[of_it]))

    def of_category(self, category: int) -> Prototypes:
        """The prototypes of a category, in the order of the shapes.

        Raises:
            ValueError: if no shape of it was taken in.
        """
        if category not in self._found:
            raise ValueError(
                f"no training shape is of the category {CATEGORIES[category]}, which is to be segmented; dataset.train "
                "must hold every category of dataset.test"
            )
        prototypes, labels = zip(*self._found[category], strict=True)
        self._found[category] = [(torch.cat(prototypes), torch.cat(labels))]  # once for all queries
        return self._found[category][0]

    def shared(self, device: torch.device) -> "PrototypeBank":
        """A bank on `device` of what all processes took in."""
        own = {category: [*map(torch.Tensor.cpu, self.of_category(category))] for category in self._found}
        bank = PrototypeBank()
        for found in gather(own):
            for category, (prototypes, labels) in found.items():
                bank._found[category].append((prototypes.to(device), labels.to(device)))
        return bank

    def __len__(self) -> int:
        return sum(len(labels) for found in self._found.values() for _, labels in found)


class PrototypeSegmenter(nn.Module):
    """Gives each point of a cloud, whose category is known, the parts of the prototypes that its feature resembles.

    Args:
        encoder: has `encode_points`.
        bank: over the features of the same encoder.
        gamma: how much more the most similar prototypes count, ≥ 0.
    """

    def __init__(self, encoder: nn.Module, bank: PrototypeBank, gamma: float = GAMMA) -> None:
        super().__init__()
        self.encoder, self.bank, self.gamma = encoder, bank, gamma

    def forward(self, points: Tensor, categories: Tensor) -> Tensor:
        """Match (B, N, 3) points of (B,) categories; returns the logarithm of the logits, (B, N, parts).

        The logit of a part sums exp(−γ (1 − similarity)) over its prototypes; it is 0 for parts of other categories.

        Raises:
            ValueError: if the bank has no shape of a category.
        """
        features = F.normalize(self.encoder.encode_points(points), dim=-1)
        logits = features.new_empty(*points.shape[:2], NUM_PARTS)
        for category in categories.unique().tolist():
            of_it = categories == category
            logits[of_it] = log_logits(features[of_it], *self.bank.of_category(category), self.gamma)
        return logits


def log_logits(queries: Tensor, prototypes: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Logarithm of the logits of all parts; the most similar prototype counts 1 before the sum, so nothing vanishes.

    Args:
        queries: (B, N, D) unit vectors.
        prototypes: (M, D) unit vectors.
        labels: (M,) int64, the part of each.
        gamma: see `PrototypeSegmenter`.

    Returns:
        (B, N, parts); −∞ where a part has no prototype, or none that counts beside the most similar one.
    """
    scores = gamma * (queries @ prototypes.T - 1)  # (B, N, M)
    highest = scores.amax(-1, keepdim=True)
    sums = scores.new_zeros(*scores.shape[:2], NUM_PARTS).index_add_(2, labels, (scores - highest).exp_())
    return sums.log_() + highest


@torch.no_grad()
def build_bank(encoder: nn.Module, loader: DataLoader, device: torch.device) -> PrototypeBank:
    """Take in all shapes of a loader.

    Args:
        encoder: has `encode_points`; on `device`.
        loader: yields (points, categories, parts), to each process its share.
        device: where to compute, and where the bank stays.
    """
    bank = PrototypeBank()
    for batch in progress(loader, "prototypes"):
        points, categories, parts = (tensor.to(device, non_blocking=True) for tensor in batch)
        bank.add(encoder.encode_points(points), categories, parts)
    return bank.shared(device)
