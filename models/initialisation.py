"""How the pre-training models start their encoders and decoders; use with `nn.Module.apply`."""

from torch import nn


def init_truncated_normal(module: nn.Module) -> None:
    """Draw the weight of a linear layer or 1×1 convolution from a truncated normal, std 0.02; its bias is 0."""
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        _no_bias(module)


def init_xavier_uniform(module: nn.Module) -> None:
    """Draw the weight of a linear layer from Xavier's uniform distribution; its bias is 0."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        _no_bias(module)


def _no_bias(module: nn.Linear | nn.Conv1d) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)
