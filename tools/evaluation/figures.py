"""Pictures of clouds: what a pre-training model and its teacher make of them, and the parts that a segmenter finds."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mpl_toolkits.mplot3d import Axes3D
from torch import Tensor, nn

from datasets.published import PARTS
from models.projection import VIEWS
from tools.evaluation.explain import TeacherLook, reconstructions
from utils.files import atomic_write

VISIBLE, MASKED, PREDICTED = "tab:blue", "tab:gray", "tab:orange"
RIGHT, WRONG = "lightgray", "tab:red"
SCALED = 0.99  # of the values of a shape have colours of their own; those above look like the highest of these
SHAPES_A_ROW = 2  # of those whose parts are drawn

ZOOM = 1.35  # of clouds, which fill the unit sphere only in part


class Depth(NamedTuple):
    """An (H, W) depth image to draw, and over it (H, W) values."""

    image: Tensor
    over: Tensor | None = None


Coloured = Sequence[tuple[Tensor, str | Sequence]]  # clouds (…, 3) with their colour or colours
Panel = tuple[str, Coloured | Depth]  # with its title


def draw_reconstructions(model: nn.Module, points: Tensor, path: Path, seed: int | None = None) -> None:
    """Reconstruct clouds and draw them, see `draw_reconstructed`.

    Args:
        model: a pre-training model; it draws the masks. Used in evaluation mode.
        points: (B, N, 3) clouds on the model's device, y up.
        path: the file to write, in an existing folder.
        seed: of the masks, see `reconstructions`.
    """
    draw_reconstructed(points.cpu(), reconstructions(model, points, seed), path)


def draw_reconstructed(points: Tensor, found: dict[str, Tensor], path: Path) -> None:
    """Write a PNG with a row per cloud: input, visible points, masked points, reconstruction.

    Args:
        points: (B, N, 3) on the CPU, y up.
        found: what `reconstructions` returned.
        path: the file to write, in an existing folder.
    """
    rows = []
    for cloud, visible in enumerate(found["visible"]):
        seen, predicted = _seen_and_predicted(found, cloud)
        hidden = found["neighborhoods"][cloud][~visible]
        rows.append(
            [
                ("input", [(points[cloud], VISIBLE)]),
                ("visible points", [(seen, VISIBLE)]),
                ("masked points", [(hidden, MASKED)]),
                ("visible and reconstructed points", [(seen, VISIBLE), (predicted, PREDICTED)]),
            ]
        )
    save_figure(_figure_of(rows, names=[""] * len(rows))[0], path)


def draw_parts(points: Tensor, true: Tensor | None, predicted: Tensor, names: Sequence[str], path: Path) -> None:
    """Write a PNG with, of each shape, true parts, predicted parts, wrong points, and the numbers of its parts.

    Args:
        points: (B, N, 3) on the CPU, y up.
        true: (B, N) int64; None, where it is not known, draws the predicted parts alone.
        predicted: (B, N) int64; the colour of a part is that of its last digit.
        names: categories of the shapes.
        path: the file to write, in an existing folder.
    """
    shapes = [
        _part_panels(points[shape], None if true is None else true[shape], predicted[shape], name)
        for shape, name in enumerate(names)
    ]
    firsts = range(0, len(shapes), SHAPES_A_ROW)
    rows = [list(itertools.chain(*shapes[first : first + SHAPES_A_ROW])) for first in firsts]
    figure, axes = _figure_of(rows)
    for shape, name in enumerate(names):
        row, place = divmod(shape, SHAPES_A_ROW)
        handles = [Line2D([], [], marker="o", linestyle="", color=plt.cm.tab10(part % 10)) for part in PARTS[name]]
        first = axes[row][place * len(shapes[shape])]
        first.legend(handles, PARTS[name], title="part", loc="center right", bbox_to_anchor=(0, 0.5), frameon=False)
    save_figure(figure, path)


def draw_saliency(looks: dict[str, TeacherLook], points: Tensor, names: Sequence[str], path: Path) -> None:
    """Write a PNG with a row per shape: its depth images; for each teacher the saliency over them and on the cloud.

    Args:
        looks: name of a teacher → what it sees of the shapes. The depth images are those of the first.
        points: (B, N, 3) on the CPU, y up.
        names: of the shapes.
        path: the file to write, in an existing folder.
    """
    images = next(iter(looks.values())).images
    rows: list[list[Panel]] = []
    for shape in range(len(points)):
        row: list[Panel] = [(f"side {view + 1}", Depth(images[view, shape])) for view in range(len(VIEWS))]
        for teacher, look in looks.items():
            sides = zip(images[:, shape], look.saliency[:, shape], strict=True)
            row += [(teacher, Depth(*side)) for side in sides]
            row.append((f"{teacher}, cloud", [(points[shape], _brightness(look.of_points[shape]))]))
        rows.append(row)
    save_figure(_figure_of(rows, 1.6, names)[0], path)


def draw_overview(
    points: Tensor,
    found: dict[str, Tensor],
    look: TeacherLook | None,
    colours: Tensor,
    names: Sequence[str],
    path: Path,
) -> None:
    """Write a PNG with a row per shape: what pre-training does with it, from the cloud to its features.

    Args:
        points: (B, N, 3) on the CPU, y up.
        found: what `reconstructions` returned.
        look: what the 2D teacher sees, if there is one.
        colours: (B, N, 3) of the features, red, green and blue.
        names: of the shapes.
        path: the file to write, in an existing folder.
    """
    rows: list[list[Panel]] = []
    for shape in range(len(points)):
        seen, predicted = _seen_and_predicted(found, shape)
        row: list[Panel] = [("a cloud", [(points[shape], VISIBLE)])]
        if look is not None:
            row.append(("seen from one side", Depth(look.images[0, shape])))
            row.append(("where the 2D teacher looks", Depth(look.images[0, shape], look.saliency[0, shape])))
        row.append(("visible points", [(seen, VISIBLE)]))
        row.append(("and predicted points", [(seen, VISIBLE), (predicted, PREDICTED)]))
        row.append(("features", [(points[shape], colours[shape].numpy())]))
        rows.append(row)
    save_figure(_figure_of(rows, 2.4, names)[0], path)


def draw_values(points: Tensor, panels: dict[str, Tensor], names: Sequence[str], path: Path) -> None:
    """Write a PNG with a row per shape and a panel for each kind of value that colours its points.

    Args:
        points: (B, N, 3) on the CPU, y up.
        panels: name → (B, N) values, of which the highest hundredth of a shape is brightest, or (B, N, 3) red, green,
            blue.
        names: of the shapes.
        path: the file to write, in an existing folder.
    """
    rows = []
    for shape, name in enumerate(names):
        row = []
        for title, values in panels.items():
            of_shape = values[shape]
            colours = of_shape.numpy() if of_shape.ndim == 2 else _brightness(of_shape)
            row.append((f"{name}\n{title}", [(points[shape], colours)]))
        rows.append(row)
    draw_clouds(rows, path)


def draw_clouds(rows: Sequence[Sequence[Panel]], path: Path) -> None:
    """Write a PNG with a grid of panels, in each of which clouds are drawn over each other."""
    save_figure(_figure_of(rows)[0], path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, which is whole or absent, and close it."""
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=80)
    plt.close(figure)


def _seen_and_predicted(found: dict[str, Tensor], cloud: int) -> tuple[Tensor, Tensor]:
    """Points of the visible tokens of a cloud, and those predicted for the others; `found` is of `reconstructions`."""
    visible = found["visible"][cloud]
    return found["neighborhoods"][cloud][visible], found["predictions"][cloud][~visible]


def _brightness(values: Tensor) -> Sequence:
    """Colours of the (N,) values of a shape, of which the highest hundredth is brightest."""
    scale = plt.Normalize(float(values.min()), float(torch.quantile(values, SCALED)), clip=True)
    return plt.cm.inferno(scale(values.numpy()))


def _part_panels(points: Tensor, true: Tensor | None, predicted: Tensor, name: str) -> list[Panel]:
    """Panels of a shape of (N, 3) points with (N,) parts."""

    def coloured(parts: Tensor) -> list[tuple[Tensor, Sequence]]:
        return [(points, plt.cm.tab10((parts % 10).numpy()))]

    if true is None:
        return [(f"{name}: predicted parts", coloured(predicted))]
    wrong = predicted != true
    return [
        (f"{name}: true parts", coloured(true)),
        ("predicted parts", coloured(predicted)),
        (f"{100 * wrong.float().mean():.1f} % wrong", [(points, [WRONG if error else RIGHT for error in wrong])]),
    ]


def _figure_of(
    rows: Sequence[Sequence[Panel]], side: float = 2.8, names: Sequence[str] | None = None
) -> tuple[Figure, list[list[Axes]]]:
    """Draw a grid of panels, of which a row may have fewer than another.

    Args:
        rows: of panels.
        side: of a panel, in inches.
        names: of the rows, written at their left. The titles of the first row are then those of the columns.

    Returns:
        The figure, and the axes of each panel.
    """
    columns = max(map(len, rows))
    figure = plt.figure(figsize=(side * columns, side * len(rows)))
    axes: list[list[Axes]] = []
    for row, panels in enumerate(rows):
        axes.append([])
        for column, (title, content) in enumerate(panels):
            clouds = None if isinstance(content, Depth) else content
            place = (len(rows), columns, row * columns + column + 1)
            axis = figure.add_subplot(*place, projection=None if clouds is None else "3d")
            axis.set_axis_off()
            axis.set_title(title if names is None or row == 0 else "")
            if names is not None and column == 0:
                axis.annotate(names[row], (-0.1, 0.5), xycoords="axes fraction", rotation=90, ha="center", va="center")
            if clouds is None:
                axis.imshow(content.image.numpy(), cmap="gray")
                if content.over is not None:
                    axis.imshow(content.over.numpy(), cmap="inferno", alpha=0.7)
            for points, colour in clouds or ():
                _scatter(axis, points.reshape(-1, 3), colour)
            axes[-1].append(axis)
    return figure, axes


def _scatter(axis: Axes3D, points: Tensor, color: str | Sequence) -> None:
    x, y, z = points.numpy().T
    axis.scatter(x, -z, y, s=4, c=color, depthshade=False)  # matplotlib's third axis points up
    for set_limits in (axis.set_xlim, axis.set_ylim, axis.set_zlim):
        set_limits(-0.8, 0.8)
    axis.set_box_aspect((1, 1, 1), zoom=ZOOM)
