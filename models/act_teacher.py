"""ACT's autoencoder as the teacher of its pre-training: frozen, and as changeable as it was released or not at all."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.act_autoencoder import ACTPromptedDiscreteVAEwithVIT
from models.discrete_vae import add_noise
from models.frozen import UNTRAINED, fill_frozen, warn_untrained
from models.tokenizer import Group
from models.visual_transformer import filled_later

TRAIN_ONE = "python main.py --config cfgs/act/autoencoder.yaml --exp_name autoencoder"


class ACTTeacher(ACTPromptedDiscreteVAEwithVIT):
    """An autoencoder of ACT whose parameters take no gradient; what it would decode is the target.

    Args:
        ckpt: its checkpoint, ours or the released one; `untrained` leaves the weights random, for small experiments
            and where those of the whole model are loaded.
        deterministic: whether it is the same each time: in evaluation mode, and of each group the best word. Otherwise,
            as released, it follows the mode of the student, so that in training its BatchNorm layers take the
            statistics of the batch, their running ones drift and prompts are dropped; and words are drawn with noise,
            in evaluation too.
        visual_embed_pretrained: weights of the 2D transformer of a teacher without a checkpoint, which has them inside.
        **settings: those of `ACTPromptedDiscreteVAEwithVIT`.

    Attributes:
        token_dim, feature_dim: channels of a group's embedding and of what would be decoded.

    Raises:
        ValueError: if there is no checkpoint, it does not fit, or a value is out of range.
        FileNotFoundError: if the checkpoint is not there.
    """

    def __init__(
        self,
        ckpt: str | Path | None = None,
        deterministic: bool = False,
        visual_embed_pretrained: str = UNTRAINED,
        **settings: Any,
    ):
        untrained = str(ckpt) == UNTRAINED
        with filled_later():
            super().__init__(visual_embed_pretrained=visual_embed_pretrained if untrained else UNTRAINED, **settings)
        self.deterministic = deterministic
        self.token_dim = self.dgcnn_1.input_trans.in_channels
        self.feature_dim = cast(nn.Linear, self.decoder.mlp[0]).in_features
        self.requires_grad_(False)
        self.untrained = untrained
        if not untrained:
            fill_frozen(self, ckpt, "teacher", "an ACT autoencoder", TRAIN_ONE)
        self.train()

    def train(self, mode: bool = True) -> "ACTTeacher":
        """Follow the mode of the student, or stay in evaluation if it is deterministic."""
        return super().train(mode and not self.deterministic)

    @torch.no_grad()
    def forward(  # type: ignore[override]
        self, group: Group, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Say what would be decoded of each group.

        Args:
            group: neighbourhoods and centres.
            noise: (B, G, num_tokens) Gumbel noise added to the logits; None = draw it, or none if it is deterministic.
            generator: source of the noise; None = PyTorch's own.

        Returns:
            (B, G, decoder_dims), float32 under autocast too.

        Raises:
            ValueError: if `noise` has another shape.
        """
        if self.untrained:  # said once, and not where no target is needed
            warn_untrained("targets")
            self.untrained = False
        logits = self.logits(group)
        if noise is not None or not self.deterministic:
            logits = add_noise(logits, noise, generator)
        features = self.features(self.codebook[logits.argmax(-1)], group.centers)
        return features.to(torch.promote_types(features.dtype, torch.float32))  # losses are not of half precision
