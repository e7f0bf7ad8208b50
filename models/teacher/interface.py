"""What every 2D teacher has in common: frozen; images in, patch features and a saliency map out."""

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.projection import IMAGENET_MEAN, IMAGENET_STD
from utils.nearest import did_you_mean

WHERE = "model.clip_config"
Normalisation = Literal["imagenet", "own"]


class Statistics(NamedTuple):
    """Mean and standard deviation per colour channel that a model's images were normalised with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Statistics(IMAGENET_MEAN, IMAGENET_STD)


class Teacher(nn.Module):
    """A frozen 2D model that guides I2P-MAE.

    Args:
        feat_dim: C, channels of the features.
        image_size: S, pixels per side of the images.
        grid: (h, w), patches along rows and columns of an image.
        statistics: what the model's images are normalised with. `forward` takes images normalised with ImageNet's and
            turns them into these.
    """

    gain: Tensor | None
    shift: Tensor | None

    def __init__(self, feat_dim: int, image_size: int, grid: tuple[int, int], statistics: Statistics = IMAGENET):
        super().__init__()
        self.feat_dim, self.image_size, self.grid = feat_dim, image_size, grid
        gain = shift = None
        if statistics != IMAGENET:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
            gain, shift = torch.tensor(IMAGENET_STD).view(3, 1, 1) / std, torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
            shift = (shift - mean) / std
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def freeze(self) -> None:
        """Take the parameters out of training, and go to eval mode for good."""
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode, whatever the student does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Describe each patch of each image, and say how much the image's summary looks at it.

        On a GPU the model runs in half precision.

        Args:
            images: (V, 3, S, S) float, normalised with ImageNet's statistics.

        Returns:
            features: (V, C, h, w) float32.
            saliency: (V, h, w) float32, not negative; the maps of attention sum to at most 1.

        Raises:
            ValueError: if `images` is not (V, 3, S, S).
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.image_size, self.image_size):
            expected = f"(V, 3, {self.image_size}, {self.image_size})"
            raise ValueError(f"images are {tuple(images.shape)}, but this teacher takes {expected}: resize them")
        if self.gain is not None and self.shift is not None:
            images = images * self.gain + self.shift
        with torch.autocast(images.device.type, dtype=torch.float16, enabled=images.is_cuda):
            features, saliency = self.describe(images)
        return features.float().mT.unflatten(2, self.grid), saliency.float().unflatten(1, self.grid)

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (V, h·w, C) and saliency (V, h·w) of images that are normalised as the model's own are."""
        raise NotImplementedError


class Blueprint(NamedTuple):
    """A teacher before its weights are there.

    Attributes:
        feat_dim: channels that it will make.
        build: finds the weights and builds it.
    """

    feat_dim: int
    build: Callable[[], Teacher]


def unknown(name: str, valid: Collection[str], what: str, where: str = "visual_encoder") -> ValueError:
    """The error of a name that a library does not know, with the nearest that it knows."""
    hint = did_you_mean(name, valid, shown=3)
    return ValueError(f"{WHERE}.{where} is {name!r}, which is no {what}; {hint}docs/TEACHERS.md says what there is")


def check_grid(name: str, image_size: int, patch_size: int) -> None:
    """Refuse a size of which patches do not cover the whole image: features would be looked up beside their place."""
    if image_size % patch_size:
        nearest = max(round(image_size / patch_size), 1) * patch_size
        raise ValueError(
            f"{WHERE}.image_size, {image_size} for {name!r}, is no multiple of its patches of {patch_size} pixels: "
            f"give {nearest}, say"
        )


def warn_untrained() -> None:
    """Say that a teacher has random weights."""
    warnings.warn(
        "the 2D teacher is untrained: it guides as well as a random network does, not as a trained one does; "
        f"{WHERE}.pretrained gives it weights",
        stacklevel=2,
    )


@contextmanager
def seeded() -> Iterator[None]:
    """Draw the same random weights each time, and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the CPU's generator alone; torch.manual_seed also sets the GPUs'
        yield
