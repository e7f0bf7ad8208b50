"""What a model makes of some clouds, as plain tensors on the CPU to look at: its features, its masks, its decisions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.i2p_mae import I2P_MAE, TeacherViews
from models.masked_autoencoder import MaskedAutoencoder
from models.projection import VIEWS, project
from models.propagation import interpolate_features
from utils.seed import own_draws

MASKS_DRAWN = 256  # of which the share that masks a token is its probability, to ±0.03
COMPONENTS = 3  # red, green and blue
CLIPPED = 0.02  # of the values of a component, at either end


class TeacherLook(NamedTuple):
    """What a 2D teacher sees of clouds, from the V sides.

    Attributes:
        images: (V, B, H, W) depth images, in the teacher's own scale.
        saliency: (V, B, H, W) its saliency, enlarged to the images.
        of_points: (B, N) that of each point, the mean over the sides.
    """

    images: Tensor
    saliency: Tensor
    of_points: Tensor


class Decisions(NamedTuple):
    """What a classifier says of clouds.

    Attributes:
        logits: (B, classes).
        saliency: (B, N) length of the gradient of the winning logit by the coordinates of each point.
    """

    logits: Tensor
    saliency: Tensor


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode for the time of the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def reconstructs(model: nn.Module) -> bool:
    """Whether a model has learnt to predict points: the head of an I2P-MAE without that loss stays untrained."""
    return hasattr(model, "reconstruct") and getattr(model, "losses", "both") != "2d"


def reconstructions(model: nn.Module, points: Tensor, seed: int | None = None) -> dict[str, Tensor]:
    """What a pre-training model, in evaluation mode, makes of clouds under masks that it draws.

    Args:
        model: has `reconstruct`.
        points: (B, N, 3) on the model's device.
        seed: of the masks; PyTorch's generator then goes on as if none had been drawn. None draws from it.

    Returns:
        What `model.reconstruct` returns, on the CPU.
    """
    if seed is not None:
        with own_draws(seed):
            return reconstructions(model, points)
    with evaluating(model):
        return {key: value.cpu() for key, value in model.reconstruct(points).items()}


@torch.no_grad()
def teacher_look(teacher: nn.Module, points: Tensor) -> TeacherLook:
    """Depth images of (B, N, 3) clouds; over them and on the points the saliency of a teacher of `models.teacher`."""
    size = teacher.image_size
    images, projection = project(points, size)
    views = TeacherViews(projection, *teacher(images))
    maps = F.interpolate(views.saliency.unsqueeze(1), (size, size), mode="bicubic", align_corners=False)
    sides = (found[:, 0].unflatten(0, (len(VIEWS), -1)).cpu() for found in (images, maps))
    return TeacherLook(*sides, views.saliency_at(points).cpu())


@torch.no_grad()
def mask_probability(model: I2P_MAE, points: Tensor, seed: int) -> Tensor:
    """How often the coarse token nearest to a point of (B, N, 3) clouds is masked, (B, N).

    Args:
        model: with a teacher, on the device of the points.
        points: the clouds.
        seed: of the masks, of which `MASKS_DRAWN` are drawn of each cloud.
    """
    centers = model.group(points)[-1].centers  # (B, G, 3)
    logits = model.look(points).saliency_at(centers) / model.mask_temperature
    generator = torch.Generator(points.device).manual_seed(seed)
    masks = model.mask(logits.repeat(MASKS_DRAWN, 1), None, generator).unflatten(0, (MASKS_DRAWN, -1))
    nearest = torch.cdist(points, centers).argmin(-1)  # (B, N)
    return masks.float().mean(0).gather(1, nearest).cpu()


@torch.no_grad()
def point_features(model: nn.Module, points: Tensor) -> Tensor:
    """Features of every point of (B, N, 3) clouds: those of the three nearest coarsest tokens, nothing masked.

    Args:
        model: a pre-training model, used in evaluation mode.
        points: on its device.

    Returns:
        (B, N, C).
    """
    with evaluating(model):
        groups = model.group(points)
        if isinstance(model, MaskedAutoencoder):
            centers, tokens = groups[-1].centers, model.encode_unmasked(points)
        else:
            centers, tokens = groups.centers, model.MAE_encoder.encode_group(groups)
        return interpolate_features(points, centers, tokens).cpu()


def component_colours(features: Tensor) -> tuple[Tensor, float]:
    """Three principal components of the features of all points of all clouds, as red, green and blue.

    Args:
        features: (B, N, C), C ≥ 3.

    Returns:
        (B, N, 3) from 0 to 1, each component stretched but for its outermost 2 %; the share of variance they hold. The
        largest weight of a component is positive, so that the colours are the same on every machine.
    """
    flat = features.flatten(0, 1).double()
    flat = flat - flat.mean(0)
    variances, directions = torch.linalg.eigh(flat.T @ flat)  # ascending
    directions = directions[:, -COMPONENTS:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    values = flat @ (directions * largest.sign())  # (B·N, 3)
    low, high = (torch.quantile(values, share, dim=0) for share in (CLIPPED, 1 - CLIPPED))
    colours = ((values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)).clamp(0, 1)
    share = variances[-COMPONENTS:].sum() / variances.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return colours.float().unflatten(0, features.shape[:2]), float(share)


def decisions(model: nn.Module, points: Tensor) -> Decisions:
    """What a classifier, in evaluation mode, says of (B, N, 3) clouds, and which points its winning logit hangs on."""
    points = points.clone().requires_grad_()
    with evaluating(model), torch.enable_grad():
        logits = model(points)
        (gradient,) = torch.autograd.grad(logits.amax(1).sum(), points)
    return Decisions(logits.detach().float().cpu(), gradient.norm(dim=-1).cpu())


class BeforeHead(nn.Module):
    """A classifier that also gives what its head takes in.

    Args:
        model: its head is `cls_head_finetune`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, points: Tensor) -> Tensor:
        """Features of (B, N, 3) clouds, and behind them the logits, (B, C + classes)."""
        taken: list[Tensor] = []
        hook = self.model.cls_head_finetune.register_forward_pre_hook(lambda module, given: taken.append(given[0]))
        try:
            logits = self.model(points)
        finally:
            hook.remove()
        return torch.cat([taken[0].to(logits.dtype), logits], dim=1)
