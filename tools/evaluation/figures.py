"""Pictures of what a pre-training model and its teacher see, and of the parts that a segmenter finds."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D
from torch import Tensor, nn

from models.projection import VIEWS, project
from utils.files import atomic_write

VISIBLE, MASKED, PREDICTED = "tab:blue", "tab:gray", "tab:orange"
RIGHT, WRONG = "lightgray", "tab:red"


@torch.no_grad()
def draw_reconstructions(model: nn.Module, points: Tensor, path: Path) -> None:
    """Write a PNG with a row per cloud: input, visible points, masked points, reconstruction.

    Args:
        model: a pre-training model; it draws the masks. Used in evaluation mode.
        points: (B, N, 3) clouds on the model's device, y up.
        path: the file to write, in an existing folder.
    """
    was_training = model.training
    found = {key: value.cpu() for key, value in model.eval().reconstruct(points).items()}
    model.train(was_training)
    figure, axes = plt.subplots(
        *(len(points), 4), figsize=(12, 2.6 * len(points)), subplot_kw={"projection": "3d"}, squeeze=False
    )
    titles = ("input", "visible points", "masked points", "visible and reconstructed points")
    for cloud, row in enumerate(axes):
        visible = found["visible"][cloud]
        seen, hidden = found["neighborhoods"][cloud][visible], found["neighborhoods"][cloud][~visible]
        predicted = found["predictions"][cloud][~visible]
        panels = [
            [(points[cloud].cpu(), VISIBLE)],
            [(seen, VISIBLE)],
            [(hidden, MASKED)],
            [(seen, VISIBLE), (predicted, PREDICTED)],
        ]
        for axis, title, panel in zip(row, titles, panels, strict=True):
            for cloud_points, color in panel:
                _scatter(axis, cloud_points.reshape(-1, 3), color)
            axis.set_title(title if cloud == 0 else "")
    save_figure(figure, path)


def draw_parts(points: Tensor, true: Tensor, predicted: Tensor, names: Sequence[str], path: Path) -> None:
    """Write a PNG with a row per shape: true parts, predicted parts, wrong points.

    Args:
        points: (B, N, 3) on the CPU, y up.
        true, predicted: (B, N) int64; the colour of a part is that of its last digit.
        names: of the shapes.
        path: the file to write, in an existing folder.
    """
    figure, axes = plt.subplots(
        *(len(points), 3), figsize=(9, 2.6 * len(points)), subplot_kw={"projection": "3d"}, squeeze=False
    )
    for shape, row in enumerate(axes):
        wrong = predicted[shape] != true[shape]
        panels = [
            (f"{names[shape]}: true parts", plt.cm.tab10((true[shape] % 10).numpy())),
            ("predicted parts", plt.cm.tab10((predicted[shape] % 10).numpy())),
            (f"{100 * wrong.float().mean():.1f} % wrong", [WRONG if error else RIGHT for error in wrong]),
        ]
        for axis, (title, colors) in zip(row, panels, strict=True):
            _scatter(axis, points[shape], colors)
            axis.set_title(title)
    save_figure(figure, path)


def draw_shapes(rows: Sequence[Sequence[tuple[str, Tensor | None]]], path: Path) -> None:
    """Write a PNG with rows of shapes.

    Args:
        rows: of titles and (N, 3) points, y up; None leaves a place empty.
        path: the file to write, in an existing folder.
    """
    columns = max(map(len, rows))
    figure, axes = plt.subplots(
        *(len(rows), columns), figsize=(2.6 * columns, 2.6 * len(rows)), subplot_kw={"projection": "3d"}, squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for row, panels in zip(axes, rows, strict=True):
        for axis, (title, points) in zip(row, panels, strict=False):
            axis.set_title(title, fontsize=8)
            if points is not None:
                _scatter(axis, points, VISIBLE)
    save_figure(figure, path)


@torch.no_grad()
def draw_saliency(teacher: nn.Module, points: Tensor, names: Sequence[str], path: Path) -> None:
    """Write a PNG with a row per shape: depth image and, over it, the saliency of a 2D teacher, for each side.

    Args:
        teacher: a teacher of `models.teacher`.
        points: (B, N, 3) clouds on the teacher's device.
        names: of the shapes.
        path: the file to write, in an existing folder.
    """
    size = teacher.image_size
    images, _ = project(points, size)
    maps = teacher(images)[1].unsqueeze(1)  # (V·B, 1, h, w)
    maps = F.interpolate(maps, (size, size), mode="bicubic", align_corners=False)
    maps, images = (found.unflatten(0, (len(VIEWS), -1)).cpu().numpy() for found in (maps[:, 0], images[:, 0]))
    figure, axes = plt.subplots(len(points), 2 * len(VIEWS), figsize=(12, 2.1 * len(points)), squeeze=False)
    for shape, row in enumerate(axes):
        for view in range(len(VIEWS)):
            for panel, is_saliency in zip(row[2 * view : 2 * view + 2], (False, True), strict=True):
                panel.imshow(images[view, shape], cmap="gray")
                if is_saliency:
                    panel.imshow(maps[view, shape], cmap="inferno", alpha=0.7)
                panel.set_axis_off()
        row[0].set_title(names[shape])
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, which is whole or absent, and close it."""
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=80)
    plt.close(figure)


def _scatter(axis: Axes3D, points: Tensor, color: str | Sequence) -> None:
    x, y, z = points.unbind(-1)
    axis.scatter(x, -z, y, s=4, c=color, depthshade=False)  # matplotlib's third axis points up
    for set_limits in (axis.set_xlim, axis.set_ylim, axis.set_zlim):
        set_limits(-0.8, 0.8)
    axis.set_box_aspect((1, 1, 1))
    axis.set_axis_off()
