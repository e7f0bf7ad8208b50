"""Point-BERT (CVPR 2022): the words of masked groups are predicted, and mixed clouds are told apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.class_token_encoder import ClassTokenEncoder
from models.corruption import Corruption, Draws
from models.encoded import Encoded, encoded
from models.frozen_tokenizer import FrozenTokenizer
from models.initialisation import init_truncated_normal
from models.kinds import kind_of
from models.masked_autoencoder import visible_tokens
from models.masking import check_mask, count_visible, draw_block_masks, draw_masks_of_one_ratio
from models.momentum_contrast import MomentumContrast
from models.tokenizer import Group
from utils.checkpoint import LoadingRules
from utils.distributed import mean


@dataclass(frozen=True)
class TransformerConfig:
    """The section `transformer_config` of Point-BERT.

    Attributes:
        mask_ratio: the least and the largest share of a cloud's tokens that is masked, in (0, 1).
        mask_rand: mask each token of a batch with one probability; otherwise those around one of each cloud.
        replace_pob: probability with which a token that is not masked is swapped for another one of the batch.
        trans_dim: channels of the blocks.
        depth, num_heads: blocks, and attention heads of each.
        drop_path_rate: stochastic depth of the last block.
        cls_dim: channels of the class feature.
        dvae_loss, moco_loss, cutmix_loss: which losses act: the words of masked groups, the momentum contrast, the
            contrast of mixed clouds.
        return_all_tokens: predict the words of all groups, not only of the masked ones.
    """

    mask_ratio: Sequence[float] = (0.25, 0.45)
    mask_rand: bool = False
    replace_pob: float = 0.0
    trans_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    drop_path_rate: float = 0.1
    cls_dim: int = 512
    dvae_loss: bool = True
    moco_loss: bool = False
    cutmix_loss: bool = True
    return_all_tokens: bool = False

    def __post_init__(self) -> None:
        if len(self.mask_ratio) != 2 or self.mask_ratio[0] > self.mask_ratio[1]:
            raise ValueError(f"mask_ratio must be [least, largest], got {[*self.mask_ratio]}")
        if not 0 <= self.replace_pob < 1:
            raise ValueError(f"replace_pob must be in [0, 1), got {self.replace_pob}")
        if self.cls_dim < 1:
            raise ValueError(f"cls_dim must be at least 1, got {self.cls_dim}")
        if not (self.dvae_loss or self.moco_loss or self.cutmix_loss):
            raise ValueError("dvae_loss, moco_loss and cutmix_loss are all false: nothing is left to learn")


class MaskTransformer(ClassTokenEncoder):
    """Point-BERT's encoder under a mask, with heads for the words of the groups and for the class feature.

    Args:
        config: sizes.
        encoder_dims: channels of the token embedding.
        num_words: words that a group can have.
    """

    def __init__(self, config: TransformerConfig, encoder_dims: int, num_words: int):
        dim, cls_dim = config.trans_dim, config.cls_dim
        super().__init__(dim, encoder_dims, config.depth, config.num_heads, config.drop_path_rate)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.lm_head = nn.Linear(dim, num_words)
        self.cls_head = nn.Sequential(nn.Linear(dim, cls_dim), nn.GELU(), nn.Linear(cls_dim, cls_dim))
        self.apply(init_truncated_normal)
        for parameter in (self.cls_token, self.cls_pos, self.mask_token):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self, neighborhoods: Tensor, centers: Tensor, corruption: Corruption | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode groups.

        Args:
            neighborhoods: (B, G, k, 3), relative to the centres.
            centers: (B, G, 3).
            corruption: of the tokens; None = they stay what they are.

        Returns:
            The class feature (B, cls_dim) and the tokens of the groups (B, G, C), after the norm.
        """
        tokens = self.embed(neighborhoods)
        if corruption is not None:
            tokens = corruption.apply(tokens, self.mask_token)
        tokens = self.norm(self.blocks(*self.with_class_token(tokens, centers)))
        return self.cls_head(tokens[:, 0]), tokens[:, 1:]


class Point_BERT(MomentumContrast):
    """Point-BERT's pre-training model.

    A training step, which a forward pass is, also moves the momentum encoder and the queue of keys.

    Args:
        transformer_config: arguments of `TransformerConfig`; None = the released ones.
        dvae_config: arguments of `FrozenTokenizer`, whose groups are those of the model.
        m, T, K: arguments of `MomentumContrast`.

    Raises:
        ValueError: if the sizes do not fit each other, or the tokenizer has no weights.
        FileNotFoundError: if its checkpoint is not there.
    """

    loading = LoadingRules(kind=kind_of)
    sections: ClassVar = {"transformer_config": TransformerConfig, "dvae_config": FrozenTokenizer}
    encoder_parts: ClassVar = ("transformer_q",)
    transformer_q: MaskTransformer

    def __init__(
        self,
        transformer_config: Mapping[str, Any] | None = None,
        dvae_config: Mapping[str, Any] | None = None,
        m: float = 0.999,
        T: float = 0.07,
        K: int = 16384,
    ):
        config = TransformerConfig(**(transformer_config or {}))
        super().__init__(config.cls_dim, m, T, K)
        self.config = config
        dvae = FrozenTokenizer(**(dvae_config or {}))
        self.num_groups, self.num_tokens, self.group_size = dvae.num_groups, dvae.num_groups[0], dvae.group_size
        for ratio in self.config.mask_ratio:
            count_visible(ratio, self.num_tokens)
        sizes = dvae.dgcnn_1.input_trans.in_channels, len(dvae.codebook)  # of the token embedding, of the words
        self.transformer_q, self.transformer_k = (MaskTransformer(self.config, *sizes) for _ in range(2))
        self.dvae = dvae
        self.transformer_q.encoder.load_state_dict(dvae.encoder.state_dict())
        self.transformer_k.requires_grad_(False)
        self.follow(momentum=0.0)

    def forward(
        self, points: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Name the groups, mask, mix, predict words, contrast.

        Args:
            points: (B, N, 3) coordinates in the unit sphere; B times the number of processes divides K.
            mask: (B, G) bool, True = masked, of the query pass; None = draw it.
            generator: source of the draws' randomness; None = PyTorch's own.

        Returns:
            0-d tensors: loss; dvae_loss, moco_loss and cutmix_loss, those that act; and visible_tokens, those of a
            cloud in the query pass.

        Raises:
            ValueError: if `mask` has another shape or type or masks all or none of a sample, or B does not divide K.
        """
        group = self.group(points)
        return self.learn(group, self.draw(group.centers, mask, generator))

    def group(self, points: Tensor) -> Group:
        """Group (B, N, 3) points into the neighbourhoods that become tokens."""
        return self.dvae.group(points)

    def draw(self, centers: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None) -> Draws:
        """Draw the masks of the three passes and the mixture.

        Args:
            centers: (B, G, 3).
            mask: (B, G) bool, True = masked, of the query pass; None = draw it.
            generator: source of the draws' randomness.
        """
        if mask is not None:
            check_mask(mask, centers.shape[:2], "mask")
        ratio = torch.rand(len(centers), generator=generator, device=centers.device)
        own = torch.rand(centers.shape[:2], generator=generator, device=centers.device) < ratio.unsqueeze(1)
        mixed = torch.where(own.unsqueeze(-1), centers, centers.flip(0))
        query = self.corrupt(centers, mask, generator)
        mixture, key = (self.corrupt(places, None, generator) for places in (mixed, centers))
        return Draws(query, mixture, key, ratio, own)

    def corrupt(self, centers: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> Corruption:
        """Draw what becomes of the tokens at (B, G, 3) centres; `mask` says which are masked if it is given."""
        config, shape, device = self.config, centers.shape[:2], centers.device
        if mask is None and config.mask_rand:
            mask = draw_masks_of_one_ratio(shape, config.mask_ratio, device, generator)
        elif mask is None:
            mask = draw_block_masks(centers, config.mask_ratio, generator)
        if not config.replace_pob:
            return Corruption(mask)
        swapped = torch.rand(shape, generator=generator, device=device) < config.replace_pob
        sources = torch.randperm(mask.numel(), generator=generator, device=device).view(shape)
        return Corruption(mask, swapped & ~mask, sources)

    def learn(self, group: Group, draws: Draws) -> dict[str, Tensor]:
        """Compute the losses of a step, and move the momentum encoder and the queue.

        Args:
            group: neighbourhoods and centres.
            draws: what chance decides.

        Returns:
            As `forward`.
        """
        neighborhoods, centers, words = group.neighborhoods, group.centers, self.dvae.words(group)
        query, tokens = self.transformer_q(neighborhoods, centers, draws.query)
        mixture, mixed_tokens = self.transformer_q(draws.mix(neighborhoods), draws.mix(centers), draws.mixture)
        self.follow(self.m)
        with torch.no_grad():
            keys = self.normalise(self.transformer_k(neighborhoods, centers, draws.key)[0])
        losses = {}
        if self.config.dvae_loss:
            losses["dvae_loss"] = self.word_loss(tokens, words, draws.query) + self.word_loss(
                mixed_tokens, draws.mix(words), draws.mixture
            )
        if self.config.moco_loss:
            losses["moco_loss"] = self.moco_loss(query, keys)
        if self.config.cutmix_loss:
            losses["cutmix_loss"] = self.cutmix_loss(mixture, keys, draws.ratio)
        self.enqueue(keys)
        loss = torch.stack([*losses.values()]).sum()
        return {"loss": loss, **losses, "visible_tokens": visible_tokens(draws.query.masked)}

    def word_loss(self, tokens: Tensor, words: Tensor, corruption: Corruption) -> Tensor:
        """Cross-entropy of the words of the corrupted groups, mean over those of the batch of all processes.

        Args:
            tokens: (B, G, C) after the norm.
            words: (B, G) int64.
            corruption: says which groups count.

        Returns:
            0-d tensor. Of several processes each divides by the mean number, so that the mean of their losses is that
            of the whole batch.
        """
        chosen = torch.ones_like(corruption.masked) if self.config.return_all_tokens else corruption.predicted
        logits = self.transformer_q.lm_head(tokens[chosen])  # (chosen groups, words)
        return F.cross_entropy(logits, words[chosen], reduction="sum") / mean(chosen.sum()).clamp_min(1)

    def encode(self, points: Tensor) -> Tensor:
        """The linear probe's feature, (B, cls_dim): that of the class token, nothing masked."""
        return self.encode_groups([self.group(points)]).feature

    def encode_groups(self, groups: Sequence[Group]) -> Encoded:
        """The tokens without that of the class, and the feature of `encode`."""
        (group,) = groups
        feature, tokens = self.transformer_q(group.neighborhoods, group.centers)
        return encoded(feature, [tokens], groups)
