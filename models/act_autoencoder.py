"""ACT's autoencoder (ICLR 2023, stage I): the words of a cloud pass a frozen transformer of images, prompted."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from models.discrete_vae import DiscreteVAE
from models.single_scale import POSITION_HIDDEN_DIM
from models.transformer import positional_embedding
from models.visual_transformer import TIMM, build_visual

PROMPT_DROPOUT = 0.1


class ACTPromptedDiscreteVAEwithVIT(DiscreteVAE):
    """A discrete autoencoder with a transformer of images between the words and what is decoded from them.

    Args:
        group_size, num_group, encoder_dims, num_tokens, tokens_dims, decoder_dims: as in `DiscreteVAE`.
        visual_embed_type: the transformer: a name of timm, or sizes as in `VisualSizes`.
        visual_embed_dim: its channels; None = those that it has.
        visual_embed_pretrained: its weights, as in `build_visual`.
        freeze_visual_embed: whether they stay as they are; gradients flow through them in either case.
        num_prompt_token: learnt tokens beside the words; with 0 of them nothing is learnt through a frozen transformer.
        use_deep_prompt: whether each block has prompts of its own, or those before the first are carried through.

    Raises:
        ValueError: if a value is out of range, or the transformer is not as described.
        FileNotFoundError: if its weights are not there.
    """

    def __init__(
        self,
        group_size: int = 32,
        num_group: int = 64,
        encoder_dims: int = 384,
        num_tokens: int = 8192,
        tokens_dims: int = 384,
        decoder_dims: int = 384,
        visual_embed_type: str | Mapping[str, int] = "vit_base_patch16_384",
        visual_embed_dim: int | None = None,
        visual_embed_pretrained: str = TIMM,
        freeze_visual_embed: bool = True,
        num_prompt_token: int = 64,
        use_deep_prompt: bool = True,
    ):
        super().__init__(group_size, num_group, encoder_dims, num_tokens, tokens_dims, decoder_dims)
        if num_prompt_token < 0:
            raise ValueError(f"num_prompt_token must be at least 0, got {num_prompt_token}")
        self.visual_embed = build_visual(visual_embed_type, visual_embed_pretrained)
        self.visual_embed.requires_grad_(not freeze_visual_embed)
        (dim,) = cast(nn.LayerNorm, self.visual_blocks[0].norm1).normalized_shape
        if visual_embed_dim not in (None, dim):
            raise ValueError(
                f"visual_embed_dim is {visual_embed_dim}, but {visual_embed_type!r} has {dim} channels: write "
                f"visual_embed_dim: {dim}, or leave it out"
            )
        self.num_prompts, self.deep = num_prompt_token, use_deep_prompt
        self.learns_through = num_prompt_token > 0 or not freeze_visual_embed
        self.proj_pre = nn.Linear(tokens_dims, dim)
        self.visual_pos_embed = positional_embedding(dim, POSITION_HIDDEN_DIM)
        self.proj_post = nn.Linear(dim, tokens_dims)
        self.prompt_dropout = nn.Dropout(PROMPT_DROPOUT)
        if num_prompt_token:
            self.visual_prompt_token, self.visual_prompt_pos = (_prompts(1, num_prompt_token, dim) for _ in range(2))
        if num_prompt_token and use_deep_prompt:
            later = len(self.visual_blocks) - 1
            self.deep_prompt_tokens, self.deep_prompt_pos = (_prompts(later, num_prompt_token, dim) for _ in range(2))

    @property
    def visual_blocks(self) -> nn.Sequential:
        """The blocks of the transformer of images."""
        return cast(nn.Sequential, self.visual_embed[0])

    def features(self, codes: Tensor, centers: Tensor) -> Tensor:
        """Mix the words (B, G, tokens_dims) of groups at (B, G, 3) centres: (B, G, decoder_dims), what is decoded."""
        return super().features(self.look(codes, centers), centers)

    def look(self, codes: Tensor, centers: Tensor) -> Tensor:
        """Pass words through the transformer of images; positions are added to the input of each block.

        Args:
            codes: (B, G, tokens_dims) words.
            centers: (B, G, 3) of their groups.

        Returns:
            (B, G, tokens_dims).
        """
        groups = codes.shape[1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.learns_through):
            x, position = self.proj_pre(codes), self.visual_pos_embed(centers)  # (B, G, D)
            for number, block in enumerate(self.visual_blocks):
                if self.num_prompts and (number == 0 or self.deep):
                    tokens, places = self.prompts(number, len(codes))
                    x = torch.cat([self.prompt_dropout(tokens), x[:, -groups:]], dim=1)  # (B, P + G, D)
                    position = torch.cat([places, position[:, -groups:]], dim=1)
                x = block(x + position)
            x = self.visual_embed[1](x)[:, -groups:]
        return self.proj_post(x)

    def prompts(self, number: int, batch: int) -> tuple[Tensor, Tensor]:
        """Prompts that enter before a block, and their positions: both (batch, P, D)."""
        tokens, places = (
            (self.deep_prompt_tokens[number - 1], self.deep_prompt_pos[number - 1])
            if number
            else (self.visual_prompt_token[0], self.visual_prompt_pos[0])
        )
        return tokens.expand(batch, -1, -1), places.expand(batch, -1, -1)


def _prompts(blocks: int, count: int, dim: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(blocks, count, dim), std=0.02))
