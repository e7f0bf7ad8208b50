"""How strongly each loss of a pre-training model pulls at the weights that all of them train."""

import torch
from torch import Tensor, nn


def gradient_norms(model: nn.Module, points: Tensor, seed: int = 0) -> dict[str, float]:
    """Norm of the gradient of each loss alone, with respect to encoder and decoder, without the heads.

    Args:
        model: a pre-training model whose forward returns several `loss_…`. In the mode it is in; BatchNorm's running
            statistics stay as they are.
        points: (B, N, 3) clouds on the model's device.
        seed: of the mask.

    Returns:
        Name of the loss → norm, of the losses as they are, not weighted.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = model(points, generator=torch.Generator(points.device).manual_seed(seed))
    shared = [parameter for name, parameter in model.named_parameters() if not name.startswith("rec_head")]
    norms = {}
    for name in (name for name in found if name.startswith("loss_")):
        gradients = torch.autograd.grad(found[name], shared, retain_graph=True, allow_unused=True)
        norms[name] = float(torch.stack([g.detach().norm() for g in gradients if g is not None]).norm())
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return norms
