"""How much a model's summary of an image looks at each patch, read from the attention that the model computes."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class AttentionWatch(TorchFunctionMode):
    """Keeps what the last attention inside the block was given; `with AttentionWatch() as watch: ...`.

    Whatever a model does to queries and keys (norms, rotary positions, biases) has been done when it calls PyTorch's
    attention, so what is read there holds for every model that calls it.

    Attributes:
        calls: how many attentions there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self._last: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let everything happen as it does, and remember the attention."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.calls += 1
            self._last = args, kwargs
        return func(*args, **kwargs)

    def first_row(self) -> Tensor:
        """Attention of the first query to all keys in the last call, (V, keys) float32, averaged over heads."""
        args, kwargs = self._last
        return first_row(*args, **kwargs)


def first_row(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **settings: Any) -> Tensor:
    """Attention of the first query, (V, keys) float32, averaged over heads; arguments as PyTorch's attention has them.

    Args:
        query: (V, heads, queries, head_dim).
        key: (V, heads, keys, head_dim).
        value: not looked at.
        attn_mask: None, or what is added to the logits, which broadcasts to (V, heads, queries, keys).
        **settings: `scale` multiplies the logits, 1/√head_dim by default; others do not matter to an evaluated model.
    """
    scale = settings.get("scale") or query.shape[-1] ** -0.5
    logits = ((query[:, :, :1] * scale) @ key.mT).float()  # (V, heads, 1, keys)
    if attn_mask is not None:
        logits = logits + attn_mask[..., :1, :].float()
    return logits.softmax(-1)[:, :, 0].mean(1)


def pooling_row(attn: nn.MultiheadAttention, query: Tensor, tokens: Tensor) -> Tensor:
    """Attention of a query (V, 1, D) to tokens (V, N, context) in PyTorch's own layer, (V, N), averaged over heads."""
    return attn(query, tokens, tokens, need_weights=True)[1][:, 0]


def similarity_to_mean(patches: Tensor) -> Tensor:
    """Softmax over the patches of their cosine similarity to their mean, (V, P) for patches (V, P, C).

    The saliency of a model whose summary is the mean of the patches: like attention not negative and with sum 1, so
    that the mask's softmax meets the same scale.
    """
    patches = patches.float()
    return F.cosine_similarity(patches, patches.mean(1, keepdim=True), dim=-1).softmax(-1)


def use_fused_attention(model: Any) -> None:
    """Let timm's layers call PyTorch's attention, whatever TIMM_FUSED_ATTN says: it is where saliency is read."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
