"""In which precision the networks train."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Automatic mixed precision: autocast around the forward pass and, for fp16, a scaled loss.

    Args:
        amp: "none", "bf16" or "fp16".
        device: where the model is.
    """

    def __init__(self, amp: str = "none", device: torch.device | None = None):
        self.amp, self.device = amp, device or torch.device("cpu")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")

    def autocast(self) -> AbstractContextManager:
        """Context in which matrix products run in the lower precision."""
        return torch.autocast(self.device.type, DTYPES[self.amp]) if self.amp != "none" else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to the parameters', scaled where the precision needs it."""
        self.scaler.scale(loss).backward()

    def clip(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
        """Unscale the gradients, limit their norm if asked to, and return the norm before, a 0-d tensor.

        Gradients of a norm that is not finite stay as they are, for the one at fault to be found; the norm is then NaN.
        """
        self.scaler.unscale_(optimizer)
        limit = float("inf") if limit is None else limit
        try:
            return nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=True)
        except RuntimeError as error:
            if "non-finite" not in str(error):
                raise
            return torch.full((), torch.nan, device=self.device)

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's step; with fp16, leave it out where a gradient overflowed, and lower the scale."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def leave_out(self) -> None:
        """Leave an update out after `clip`; with fp16, be ready for the next one."""
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; one of another precision is left aside."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
