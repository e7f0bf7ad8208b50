"""The tokenizer of Point-BERT in another model's service: it names groups by words and is not trained any more."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from models.discrete_vae import DiscreteVAE
from models.frozen import UNTRAINED, fill_frozen, warn_untrained
from models.tokenizer import Group

TRAIN_ONE = "python main.py --config cfgs/point-bert/dvae.yaml --exp_name dvae"


class FrozenTokenizer(DiscreteVAE):
    """A discrete autoencoder whose parameters take no gradient.

    Args:
        ckpt: its checkpoint, ours or the released one; `untrained` leaves the weights random, for
            small experiments and where those of the whole model are loaded.
        statistics: what its BatchNorm layers normalise by while the model around it trains: "batch", those of the
            batch, as released, which moves the running ones; "running", those that it was saved with, as in
            evaluation, so that a cloud's words depend on nothing else.
        **settings: those of `DiscreteVAE`.

    Raises:
        ValueError: if there is no checkpoint, it does not fit, or a value is out of range.
        FileNotFoundError: if the checkpoint is not there.
    """

    def __init__(
        self,
        ckpt: str | Path | None = None,
        statistics: Literal["batch", "running"] = "batch",
        **settings: Any,
    ):
        super().__init__(**settings)
        if statistics not in ("batch", "running"):
            raise ValueError(f"statistics must be 'batch' or 'running', got {statistics!r}")
        self.statistics = statistics
        self.requires_grad_(False)
        self.untrained = str(ckpt) == UNTRAINED
        if not self.untrained:
            fill_frozen(self, ckpt, "tokenizer", "a DiscreteVAE", TRAIN_ONE)
        self.train()

    def train(self, mode: bool = True) -> "FrozenTokenizer":
        """Follow the mode of the model around it if the statistics are those of the batch; else stay in evaluation."""
        return super().train(mode and self.statistics == "batch")

    @torch.no_grad()
    def words(self, group: Group) -> Tensor:
        """Name groups by their best words, without noise: (B, G) int64."""
        if self.untrained:  # said once, and not where the words are not needed
            warn_untrained("words")
            self.untrained = False
        return self.logits(group).argmax(-1)
