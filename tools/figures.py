"""Pictures of what a pre-training model sees and makes."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from mpl_toolkits.mplot3d import Axes3D
from torch import Tensor

from models.masked_autoencoder import MaskedAutoencoder
from utils.files import atomic_write

VISIBLE, MASKED, PREDICTED = "tab:blue", "tab:gray", "tab:orange"


@torch.no_grad()
def draw_reconstructions(model: MaskedAutoencoder, points: Tensor, path: Path) -> None:
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
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=80)
    plt.close(figure)


def _scatter(axis: Axes3D, points: Tensor, color: str) -> None:
    x, y, z = points.unbind(-1)
    axis.scatter(x, -z, y, s=4, c=color, depthshade=False)  # matplotlib's third axis points up
    for set_limits in (axis.set_xlim, axis.set_ylim, axis.set_zlim):
        set_limits(-0.8, 0.8)
    axis.set_box_aspect((1, 1, 1))
    axis.set_axis_off()
