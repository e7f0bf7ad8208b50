"""Derivatives beyond the one backward pass that custom ops have."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def beyond_backward(*tensors: Tensor) -> bool:
    """Whether plain PyTorch has to compute, as the derivative asked for is none that a custom op knows.

    Custom ops have no forward mode, which drops the tangents of their inputs, and take no part in the transforms of
    torch.func. A second backward pass shows only in the first: gradients are enabled there.
    """
    return transformed() or any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def transformed() -> bool:
    """Whether a transform of torch.func is at work, such as grad or vmap."""
    return torch._C._are_functorch_transforms_active()
