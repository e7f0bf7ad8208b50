"""Pictures of clouds: what a pre-training model and its teacher make of them, and the parts that a segmenter finds."""

import itertools
from collections.abc import Sequence
from pathlib import Path

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

Panel = tuple[str, Sequence[tuple[Tensor, str | Sequence]]]  # title, clouds (…, 3) with their colour or colours


def draw_reconstructions(model: nn.Module, points: Tensor, path: Path, seed: int | None = None) -> None:
    """Write a PNG with a row per cloud: input, visible points, masked points, reconstruction.

    Args:
        model: a pre-training model; it draws the masks. Used in evaluation mode.
        points: (B, N, 3) clouds on the model's device, y up.
        path: the file to write, in an existing folder.
        seed: of the masks, see `reconstructions`.
    """
    found = reconstructions(model, points, seed)
    rows = []
    for cloud, visible in enumerate(found["visible"]):
        seen, hidden = found["neighborhoods"][cloud][visible], found["neighborhoods"][cloud][~visible]
        predicted = found["predictions"][cloud][~visible]
        rows.append(
            [
                ("input", [(points[cloud].cpu(), VISIBLE)]),
                ("visible points", [(seen, VISIBLE)]),
                ("masked points", [(hidden, MASKED)]),
                ("visible and reconstructed points", [(seen, VISIBLE), (predicted, PREDICTED)]),
            ]
        )
    draw_clouds([rows[0], *([("", clouds) for _, clouds in row] for row in rows[1:])], path)


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
    views = len(VIEWS)
    columns = views + (views + 1) * len(looks)
    figure = plt.figure(figsize=(1.5 * columns, 1.5 * len(points) + 0.6))
    images = next(iter(looks.values())).images
    for shape, name in enumerate(names):
        place = itertools.count(shape * columns + 1)
        panels = [_image(figure, (len(points), columns, next(place)), images[view, shape]) for view in range(views)]
        panels[0].text(-0.1, 0.5, name, transform=panels[0].transAxes, rotation="vertical", ha="center", va="center")
        titled = {views // 2: "depth images"}
        for teacher, look in looks.items():
            titled[len(panels) + views // 2] = f"{teacher}: saliency"
            for view in range(views):
                axis = _image(figure, (len(points), columns, next(place)), images[view, shape])
                axis.imshow(look.saliency[view, shape].numpy(), cmap="inferno", alpha=0.7)
                panels.append(axis)
            titled[len(panels)] = "on the cloud"
            panels.append(figure.add_subplot(len(points), columns, next(place), projection="3d"))
            panels[-1].set_axis_off()
            _scatter(panels[-1], points[shape], _brightness(look.of_points[shape]))
        for panel, title in titled.items() if shape == 0 else ():
            panels[panel].set_title(title)
    save_figure(figure, path)


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


def _image(figure: Figure, place: tuple[int, int, int], image: Tensor) -> Axes:
    """Draw an (H, W) image in a place of a figure."""
    axis = figure.add_subplot(*place)
    axis.imshow(image.numpy(), cmap="gray")
    axis.set_axis_off()
    return axis


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


def _figure_of(rows: Sequence[Sequence[Panel]]) -> tuple[Figure, Sequence[Sequence[Axes3D]]]:
    """Draw a grid of panels; a row may be shorter than others."""
    columns = max(map(len, rows))
    figure, axes = plt.subplots(
        *(len(rows), columns), figsize=(3 * columns, 2.6 * len(rows)), subplot_kw={"projection": "3d"}, squeeze=False
    )
    for row, panels in zip(axes, rows, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, (title, clouds) in zip(row, panels, strict=False):
            for points, colour in clouds:
                _scatter(axis, points.reshape(-1, 3), colour)
            axis.set_title(title)
    return figure, axes


def _scatter(axis: Axes3D, points: Tensor, color: str | Sequence) -> None:
    x, y, z = points.numpy().T
    axis.scatter(x, -z, y, s=4, c=color, depthshade=False)  # matplotlib's third axis points up
    for set_limits in (axis.set_xlim, axis.set_ylim, axis.set_zlim):
        set_limits(-0.8, 0.8)
    axis.set_box_aspect((1, 1, 1), zoom=1.3)
