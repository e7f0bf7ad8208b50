"""ACT (ICLR 2023, stage II): of masked groups, what a teacher makes of the whole cloud is predicted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.act_teacher import ACTTeacher
from models.encoded import Encoded, encoded
from models.initialisation import init_truncated_normal, init_xavier_uniform
from models.kinds import kind_of
from models.masked_autoencoder import visible_tokens
from models.masking import Packing, count_visible, split_tokens
from models.point_mae import Decoder
from models.single_scale import POSITION_HIDDEN_DIM, SingleScaleEncoder, mean_beside_max, with_class_token
from models.tokenizer import Group, PointwiseConv
from models.transformer import drop_path_rates, positional_embedding
from utils.checkpoint import LoadingRules


@dataclass(frozen=True)
class TransformerConfig:
    """The section `transformer_config` of ACT.

    Attributes:
        mask_ratio: share of the tokens that is masked, in (0, 1).
        mask_type: "rand" masks tokens drawn uniformly, "block" those around one.
        proj: from decoded tokens to the teacher's: "linear", "conv", the same as a 1×1 convolution, or "identity".
        embed_dim: channels of the blocks.
        depth, num_heads: blocks of the encoder, and attention heads of each.
        drop_path_rate: stochastic depth of the last block, of the encoder and of the decoder each.
        cls_dim: channels of the class token's head, which nothing trains.
        decoder_depth, decoder_num_heads: blocks of the decoder, and attention heads of each.
        cls_loss: whether a second decoding, from the class token and tokens of an earlier block, has a loss too.
        register_shallow_hook: number of that block, from 0.
    """

    mask_ratio: float = 0.8
    mask_type: Literal["rand", "block"] = "rand"
    proj: Literal["linear", "conv", "identity"] = "linear"
    embed_dim: int = 384
    depth: int = 12
    drop_path_rate: float = 0.1
    cls_dim: int = 512
    num_heads: int = 6
    decoder_depth: int = 2
    decoder_num_heads: int = 6
    cls_loss: bool = False
    register_shallow_hook: int = 9

    def __post_init__(self) -> None:
        for name, valid in (("mask_type", ("rand", "block")), ("proj", ("linear", "conv", "identity"))):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} must be one of {', '.join(valid)}, got {getattr(self, name)!r}")
        if self.decoder_depth < 1 or self.cls_dim < 1:
            raise ValueError(
                f"decoder_depth and cls_dim must be at least 1, got {self.decoder_depth} and {self.cls_dim}"
            )
        if self.cls_loss and not 0 <= self.register_shallow_hook < self.depth:
            raise ValueError(
                f"register_shallow_hook is the number of a block, 0 to {self.depth - 1}, got "
                f"{self.register_shallow_hook}"
            )


class Student(SingleScaleEncoder):
    """ACT's encoder: a class token before the tokens of the groups, and two heads that pre-training does not train.

    Args:
        config: sizes.
        num_words: outputs of the head over words.
    """

    def __init__(self, config: TransformerConfig, num_words: int):
        dim, cls_dim = config.embed_dim, config.cls_dim
        super().__init__(dim, config.depth, config.num_heads, config.drop_path_rate)
        self.cls_token, self.cls_pos = (nn.Parameter(torch.zeros(1, 1, dim)) for _ in range(2))
        self.lm_head = nn.Linear(dim, num_words)
        self.cls_head = nn.Sequential(nn.Linear(dim, cls_dim), nn.GELU(), nn.Linear(cls_dim, cls_dim))
        self.apply(init_truncated_normal)
        for parameter in (self.cls_token, self.cls_pos):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, group: Group, visible: Packing | None = None, shallow: int = -1) -> tuple[Tensor, Tensor]:
        """Encode the visible tokens.

        Args:
            group: all groups; BatchNorm of the token embedding sees the masked ones too.
            visible: which tokens are, None = all of them.
            shallow: number of the block whose output is asked for too; −1 = what goes into the first.

        Returns:
            (B, 1 + L, C) each, the class token first: the output of the last block after the norm, and that of block
            `shallow` without it.
        """
        tokens, centers, attention_mask = self.encoder(group.neighborhoods), group.centers, None
        if visible is not None:
            tokens, centers = visible.pack(tokens), visible.pack(centers)
            if visible.attention_mask is not None:  # the class token is never padding
                attention_mask = F.pad(visible.attention_mask, (1, 0), value=True)
        tokens = with_class_token(tokens, self.cls_token)
        position = with_class_token(self.pos_embed(centers), self.cls_pos)
        early = self.blocks(tokens, position, attention_mask, last=shallow + 1)
        return self.norm(self.blocks(early, position, attention_mask, first=shallow + 1)), early


class ACT_PointDistillation(nn.Module):
    """ACT's pre-training model.

    Args:
        transformer_config: arguments of `TransformerConfig`; None = the released ones.
        dvae_config: arguments of `ACTTeacher`, whose groups are those of the student.
        loss: between predicted and the teacher's features: "cosine" (released), "l2" or "smoothl1".

    Raises:
        ValueError: if the sizes do not fit each other, or the teacher has no weights.
        FileNotFoundError: if its checkpoint is not there.
    """

    loading = LoadingRules(kind=kind_of)
    sections: ClassVar = {"transformer_config": TransformerConfig, "dvae_config": ACTTeacher}
    encoder_parts: ClassVar = ("ACT_encoder",)

    def __init__(
        self,
        transformer_config: Mapping[str, Any] | None = None,
        dvae_config: Mapping[str, Any] | None = None,
        loss: Literal["cosine", "l2", "smoothl1"] = "cosine",
    ):
        super().__init__()
        config = TransformerConfig(**(transformer_config or {}))
        if loss not in ("cosine", "l2", "smoothl1"):
            raise ValueError(f"loss must be 'cosine', 'l2' or 'smoothl1', got {loss!r}")
        teacher = ACTTeacher(**(dvae_config or {}))
        check_widths(config, teacher)
        self.config, self.loss_type = config, loss
        self.shallow = config.register_shallow_hook if config.cls_loss else -1
        self.num_groups, self.num_tokens, self.group_size = (
            teacher.num_groups,
            teacher.num_groups[0],
            teacher.group_size,
        )
        self.num_visible = count_visible(config.mask_ratio, self.num_tokens)
        dim = config.embed_dim
        self.ACT_encoder = Student(config, num_words=len(teacher.codebook))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed = positional_embedding(dim, POSITION_HIDDEN_DIM)
        drop_paths = drop_path_rates(config.drop_path_rate, [config.decoder_depth])[0]
        self.ACT_decoder = Decoder(dim, config.decoder_num_heads, drop_paths)
        self.proj_head = projection(config.proj, dim, teacher.feature_dim)
        self.dvae_tokenizer = teacher
        self.ACT_decoder.apply(init_xavier_uniform)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        if config.cls_loss:
            self.cls_pos = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))

    def forward(
        self,
        points: Tensor,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Mask, encode what is visible, predict what the teacher makes of what is masked, compare.

        Args:
            points: (B, N, 3) coordinates in the unit sphere.
            mask: (B, G) bool, True = masked; None = draw it.
            noise: (B, G, num_tokens) Gumbel noise of the teacher; None = as it does by itself.
            generator: source of the draws' randomness; None = PyTorch's own.

        Returns:
            0-d tensors: loss; loss_token and loss_class, its two parts, where the config has `cls_loss`; and
            visible_tokens, those of a cloud.

        Raises:
            ValueError: if `mask` has another shape or type, or masks all or none of a sample, or `noise` another shape.
        """
        group = self.group(points)
        visible, masked = split_tokens(group.centers, mask, self.num_visible, self.config.mask_type, generator)
        target = masked.pack(self.dvae_tokenizer(group, noise, generator))
        encoded, early = self.ACT_encoder(group, visible, self.shallow)
        losses = {"loss": self.compare(self.predict(group, encoded[:, 1:], visible, masked), target, masked)}
        if self.config.cls_loss:
            predicted = self.predict(group, early[:, 1:], visible, masked, class_token=encoded[:, :1])
            of_class, of_tokens = cosine_loss(predicted, target, masked.valid), losses["loss"]
            losses = {"loss": of_tokens + of_class, "loss_token": of_tokens, "loss_class": of_class}
        return {**losses, "visible_tokens": visible_tokens(~visible.valid)}

    def group(self, points: Tensor) -> Group:
        """Group (B, N, 3) points into the neighbourhoods that become tokens."""
        return self.dvae_tokenizer.group(points)

    def predict(
        self, group: Group, tokens: Tensor, visible: Packing, masked: Packing, class_token: Tensor | None = None
    ) -> Tensor:
        """Predict the teacher's features of the masked groups.

        The mask token stands at every masked place. The blocks attend among all tokens, so that their order is free;
        here it is that of the groups.

        Args:
            group: gives the centres.
            tokens: (B, L, C) visible tokens.
            visible: where they belong among the groups.
            masked: where the others do.
            class_token: (B, 1, C), which is decoded with them; None = none is.

        Returns:
            (B, M, C), packed and padded as `masked`.
        """
        places = self.mask_token.expand(*group.centers.shape[:2], -1)
        x, position = visible.unpack(tokens, onto=places), self.decoder_pos_embed(group.centers)
        if class_token is not None:
            x, position = torch.cat([class_token, x], dim=1), with_class_token(position, self.cls_pos)
        decoded = self.ACT_decoder(x, position)[:, -self.num_tokens :]
        return self.proj_head(self.ACT_decoder.norm(masked.pack(decoded)))

    def compare(self, predicted: Tensor, target: Tensor, masked: Packing) -> Tensor:
        """How far (B, M, C) predictions are from the teacher's features, both packed as `masked`; a 0-d tensor."""
        if self.loss_type == "cosine":
            return cosine_loss(predicted, target, masked.valid)
        if masked.attention_mask is not None:
            predicted, target = predicted[masked.valid], target[masked.valid]
        return (F.mse_loss if self.loss_type == "l2" else F.smooth_l1_loss)(predicted.to(target.dtype), target)

    def encode(self, points: Tensor) -> Tensor:
        """The linear probe's feature, (B, 2C): mean beside max over the groups' tokens. It is of this project."""
        return self.encode_groups([self.group(points)]).feature

    def encode_groups(self, groups: Sequence[Group]) -> Encoded:
        """The tokens without that of the class, and the feature of `encode`."""
        tokens = self.ACT_encoder(groups[0])[0][:, 1:]
        return encoded(mean_beside_max(tokens), [tokens], groups)


def cosine_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 − cosine similarity, mean over the masked groups of a cloud, then over the clouds: 1 = unrelated, 2 = opposite.

    Args:
        predicted, target: (B, M, C).
        valid: (B, M) bool, True = a masked group, False = padding.

    Returns:
        0-d tensor.
    """
    similarity = F.cosine_similarity(predicted.to(target.dtype), target, dim=-1)  # (B, M)
    return 1 - ((similarity * valid).sum(1) / valid.sum(1)).mean()


def projection(kind: str, dim: int, feature_dim: int) -> nn.Module:
    """Build what turns decoded tokens (…, dim) into the teacher's features (…, feature_dim)."""
    if kind == "linear":
        return nn.Linear(dim, feature_dim)
    return nn.Sequential(PointwiseConv(dim, feature_dim)) if kind == "conv" else nn.Identity()


def check_widths(config: TransformerConfig, teacher: ACTTeacher) -> None:
    """Refuse sizes between which ACT has no layer.

    Raises:
        ValueError: naming both.
    """
    if teacher.token_dim != config.embed_dim:
        raise ValueError(
            f"dvae_config.encoder_dims, {teacher.token_dim}, must equal transformer_config.embed_dim, "
            f"{config.embed_dim}: the token embedding is as wide as the teacher's, and there is no layer behind it"
        )
    if config.proj == "identity" and teacher.feature_dim != config.embed_dim:
        raise ValueError(
            f"dvae_config.decoder_dims, {teacher.feature_dim}, must equal transformer_config.embed_dim, "
            f"{config.embed_dim}, with proj: identity"
        )
