"""Depth images of a cloud from three sides, and reading feature maps back at 3D points (I2P-MAE, sections 3.2, 3.3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Of each view: the coordinates that run along the image rows and columns, then the one that is the depth.
VIEWS = ((0, 1, 2), (2, 0, 1), (1, 2, 0))
MARGIN = 3  # pixels that the cells of a cloud leave free along an axis
SPREAD = range(-2, 3)  # a point covers the pixels at these offsets on both axes
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Projection:
    """How each cloud was laid on the image grid, per view.

    Attributes:
        image_size: pixels along each side.
        minimum: (V, B, 2) smallest coordinate along the rows and columns.
        cell: (V, B) side of a pixel, in the unit of the coordinates.
        offset: (V, B, 2) whole pixels that centre the object.
    """

    image_size: int
    minimum: Tensor
    cell: Tensor
    offset: Tensor

    def pixels(self, points: Tensor) -> Tensor:
        """The pixel of each 3D point in each view.

        Args:
            points: (B, M, 3), points of the projected clouds.

        Returns:
            (V, B, M, 2) int64, row and column.
        """
        plane = _image_plane(points)  # (V, B, M, 2)
        cells = ((plane - self.minimum.unsqueeze(2)) / self.cell[..., None, None]).floor()
        pixels = (cells + 1 + self.offset.unsqueeze(2)).long()
        return pixels.clamp(0, self.image_size - 1)  # only what is not finite would lie outside

    def look_up(self, maps: Tensor, points: Tensor) -> Tensor:
        """Back-project feature maps: the value of the bicubically enlarged map at each point's pixel.

        Resizing is linear and separable, so a pixel is a weighted sum over the small map: rows of the resize matrix for
        its row and column. Nothing of the image's size is made.

        Args:
            maps: (V·B, C, h, w), view-major.
            points: (B, M, 3), points of the projected clouds.

        Returns:
            (V, B, M, C).
        """
        pixels = self.pixels(points).flatten(0, 1)  # (V·B, M, 2)
        row_weights = resize_matrix(maps.shape[2], self.image_size, maps)[pixels[..., 0]]  # (V·B, M, h)
        col_weights = resize_matrix(maps.shape[3], self.image_size, maps)[pixels[..., 1]]  # (V·B, M, w)
        weights = (row_weights.unsqueeze(-1) * col_weights.unsqueeze(-2)).flatten(2)  # (V·B, M, h·w)
        with torch.autocast(maps.device.type, enabled=False):  # rounded, saliencies of neighbours would be equal
            return (weights @ maps.flatten(2).transpose(1, 2)).unflatten(0, (len(VIEWS), -1))


def project(points: Tensor, image_size: int = 224) -> tuple[Tensor, Projection]:
    """Draw each cloud as three depth images, ready for a network trained on ImageNet's statistics.

    A pixel holds the sum of the depths that land on it (0 where none does), through a sigmoid. A cloud without extent
    in a view becomes one blot in the middle.

    Args:
        points: (B, N, 3).
        image_size: pixels along each side.

    Returns:
        Images (V·B, 3, image_size, image_size), view-major, and how they were laid out.
    """
    plane = _image_plane(points)  # (V, B, N, 2)
    depth = torch.stack([points[..., view[2]] for view in VIEWS])  # (V, B, N)
    minimum, maximum = plane.amin(2), plane.amax(2)  # (V, B, 2)
    cell = (maximum - minimum).amax(-1) / (image_size - MARGIN)  # (V, B)
    cell = torch.where(cell > 0, cell, torch.ones_like(cell))
    cells = ((plane - minimum.unsqueeze(2)) / cell[..., None, None]).floor()
    lowest, highest = cells.amin(2) + 1 + SPREAD[0], cells.amax(2) + 1 + SPREAD[-1]  # (V, B, 2) of all covered pixels
    offset = image_size // 2 - ((highest + lowest) / 2).floor() - 1
    projection = Projection(image_size, minimum, cell, offset)

    spread = torch.arange(SPREAD.start, SPREAD.stop, device=points.device)
    covered = projection.pixels(points).unsqueeze(-2) + spread[:, None]  # (V, B, N, 5, 2)
    covered = covered.clamp(0, image_size - 1)  # a pixel beyond the edge, by one at most, moves inwards
    rows, cols = covered[..., 0], covered[..., 1]
    flat = (rows.unsqueeze(-1) * image_size + cols.unsqueeze(-2)).flatten(2).flatten(0, 1)  # (V·B, N·25)
    image = depth.new_zeros(flat.shape[0], image_size * image_size)
    image.scatter_add_(1, flat, depth.flatten(0, 1).repeat_interleave(len(SPREAD) ** 2, dim=1))
    image = image.sigmoid().view(-1, 1, image_size, image_size)
    channels = [(image - mean) / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    return torch.cat(channels, dim=1), projection


def resize_matrix(size: int, image_size: int, like: Tensor) -> Tensor:
    """(image_size, size): row i holds pixel i's weights in the bicubic enlargement (a = −0.75) from `size` pixels."""
    identity = torch.eye(size, dtype=torch.float32, device=like.device)[None, None]
    return F.interpolate(identity, size=(image_size, size), mode="bicubic", align_corners=False)[0, 0].to(like.dtype)


def _image_plane(points: Tensor) -> Tensor:
    """(V, B, N, 2): the row and column coordinate of each point in each view.

    One axis at a time: a list of indices would be copied to a GPU, and the copy waits for all work before it.
    """
    return torch.stack([torch.stack([points[..., axis] for axis in view[:2]], dim=-1) for view in VIEWS])
