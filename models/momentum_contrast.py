"""Momentum contrast (MoCo) as Point-BERT has it: keys of a slow copy of the encoder, kept in a queue."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.distributed import gather_rows


class MomentumContrast(nn.Module):
    """What a model with an encoder `transformer_q` and its slow copy `transformer_k` needs to contrast clouds.

    Args:
        width: channels of a class feature.
        m: share of the momentum encoder that a step keeps.
        T: temperature of the contrasts.
        K: keys in the queue, a multiple of the batch of all processes.
    """

    transformer_q: nn.Module
    transformer_k: nn.Module
    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, width: int, m: float, T: float, K: int):
        super().__init__()
        if not 0 <= m <= 1 or not T > 0 or K < 1:
            raise ValueError(f"m must be in [0, 1], T more than 0 and K at least 1, got {m}, {T} and {K}")
        self.m, self.T, self.K = m, T, K
        self.register_buffer("queue", F.normalize(torch.randn(width, K), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def moco_loss(self, query: Tensor, keys: Tensor) -> Tensor:
        """Contrast (B, width) class features with the key of the same cloud against the queue."""
        query = self.normalise(query)
        logits = torch.cat([(query * keys).sum(1, keepdim=True), self.in_queue(query)], dim=1) / self.T
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))

    def cutmix_loss(self, mixture: Tensor, keys: Tensor, ratio: Tensor) -> Tensor:
        """Contrast features of mixtures with the keys of both clouds, each by its share, against batch and queue.

        Args:
            mixture: (B, width) class features.
            keys: (B, width), of the clouds.
            ratio: (B,), share of the cloud at the same place.

        Returns:
            0-d tensor.
        """
        mixture = self.normalise(mixture)
        logits = torch.cat([self.similarity(mixture, keys.t()), self.in_queue(mixture)], dim=1) / self.T
        place = torch.arange(len(keys), device=keys.device)
        own, other = (F.cross_entropy(logits, cloud, reduction="none") for cloud in (place, place.flip(0)))
        return (ratio * own + (1 - ratio) * other).mean()

    def normalise(self, feature: Tensor) -> Tensor:
        """Scale (B, width) class features to length 1, in the type of the queue."""
        return F.normalize(feature.to(self.queue.dtype), dim=1)

    def in_queue(self, feature: Tensor) -> Tensor:
        """Similarities (B, K) of (B, width) features with the keys in the queue as it is now."""
        return self.similarity(feature, self.queue.clone())  # a copy: the queue moves before the backward pass

    @staticmethod
    def similarity(feature: Tensor, keys: Tensor) -> Tensor:
        """Products of (B, C) features with (C, M) keys, not rounded to a lower precision: T would multiply that."""
        with torch.autocast(feature.device.type, enabled=False):
            return feature @ keys

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move each parameter of the momentum encoder towards its original, by 1 − momentum of the way."""
        moved, originals = (tuple(part.parameters()) for part in (self.transformer_k, self.transformer_q))
        torch._foreach_lerp_(moved, originals, 1 - momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Overwrite the oldest keys in the queue by the (B, width) ones of all processes."""
        keys = gather_rows(keys)
        if self.K % len(keys):
            raise ValueError(
                f"model.K, {self.K} keys, is no multiple of the batch of all processes, {len(keys)} clouds (total_bs "
                f"in the config): set K to {max(self.K // len(keys), 1) * len(keys)}, say, or change total_bs"
            )
        places = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % self.K
        self.queue.index_copy_(1, places, keys.t())
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.K)
