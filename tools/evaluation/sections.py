"""The parts of a page of pictures, as plain values that page.html draws.

A section has a kind, an id, a title and a text. One of clouds has `scenes`, titles of views beside each other, and
`shapes`. A shape has a name, a caption, `points`, arrays that its layers share, perhaps `images`, and `layers`: each a
name, the number of its points, the scenes that show it, and a `colour` by name, `rgb` or `values` with their range.
Layers are switched one by one, those that it names under `off` being off at first, or, where the section says `choose`,
one is shown at a time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from datasets.published import CATEGORIES, PARTS
from models.projection import VIEWS
from tools.evaluation.charts import curve, quantities_of, row_shares
from tools.evaluation.clouds import Clouds
from tools.evaluation.explain import Decisions, TeacherLook
from tools.evaluation.figures import SCALED
from tools.evaluation.page import packed, picture

AXES = "xyz"
INPUT = "all points"
NAMED = 3  # classes that a caption names


def reconstruction(clouds: Clouds, found: Mapping[str, Tensor]) -> dict[str, Any]:
    """Visible, masked and predicted points, true beside predicted; `found` is what `reconstructions` returned."""
    shapes = []
    for index, name in enumerate(clouds.names):
        visible, true = found["visible"][index], found["neighborhoods"][index]
        points = [true[visible], true[~visible], found["predictions"][index][~visible], clouds.points[index]]
        layers = [
            _layer("visible points", 0, [0, 1], colour="visible"),
            _layer("masked points", 1, [0], colour="masked"),
            _layer("predicted points", 2, [1], colour="predicted"),
            _layer(INPUT, 3, [0, 1], colour="all"),
        ]
        caption = f"{int(visible.sum())} of {len(visible)} tokens are visible; a token has {true.shape[1]} points"
        shapes.append(_shape(name, caption, points, layers))
    return _clouds(
        "reconstruction",
        "Reconstruction",
        "Left the truth, right what the model makes of the visible points alone. The masks are drawn by the model.",
        ["visible and masked points, as they are", "visible and predicted points"],
        shapes,
        off=[INPUT],
    )


def guidance(clouds: Clouds, look: TeacherLook, probability: Tensor) -> dict[str, Any]:
    """Depth images with the teacher's saliency over them; saliency and (B, N) mask probability on the cloud."""
    shapes = []
    for index, name in enumerate(clouds.names):
        values = {"saliency": look.of_points[index], "probability to be masked": probability[index]}
        layers = [_valued(title, found, "") for title, found in values.items()]
        shape = _shape(name, "", [clouds.points[index]], layers)
        shape["images"] = [
            {
                "name": f"{AXES[down]} down, {AXES[right]} to the right",
                "under": picture(_bytes(look.images[view, index])),
                "over": picture((255 * plt.cm.inferno(_bytes(look.saliency[view, index]))[..., :3]).astype(np.uint8)),
            }
            for view, (down, right, _) in enumerate(VIEWS)
        ]
        shapes.append(shape)
    return _clouds(
        "guidance",
        "What the 2D teacher looks at",
        "The teacher's depth images from three sides, its saliency over them. On the cloud: the saliency, averaged "
        "over the sides, and how often the coarse token nearest to a point is masked when the model draws masks by it.",
        [""],
        shapes,
        choose=True,
    )


def features(clouds: Clouds, colours: Tensor, share: float) -> dict[str, Any]:
    """Features of each point; `colours` and `share` are what `component_colours` returned."""
    shapes = [
        _shape(name, "", [points], [_layer("features", 0, [0], rgb=packed(rgb, 1))])
        for name, points, rgb in zip(clouds.names, clouds.points, colours, strict=True)
    ]
    return _clouds(
        "features",
        "Features",
        "Red, green and blue are three principal components of the features of all shapes here, nothing masked: points "
        f"of the same colour are alike to the encoder. They hold {100 * share:.0f} % of the variance.",
        [""],
        shapes,
    )


def decisions(clouds: Clouds, found: Decisions, class_names: Sequence[str]) -> dict[str, Any]:
    """What a classifier decides, and by which points its winning logit changes."""
    shapes = []
    for index, name in enumerate(clouds.names):
        probabilities = found.logits[index].softmax(0)
        best = probabilities.topk(min(NAMED, len(class_names)))
        said = [f"{class_names[i]} {100 * p:.0f} %" for p, i in zip(best.values.tolist(), best.indices, strict=True)]
        truth = f"; true class: {class_names[int(clouds.labels[index])]}" if clouds.labels is not None else ""
        layers = [_valued("saliency", found.saliency[index], "logit per unit of length")]
        shapes.append(_shape(name, f"predicted: {', '.join(said)}{truth}", [clouds.points[index]], layers))
    return _clouds(
        "decisions",
        "Decisions",
        "Colour is the length of the gradient of the winning logit by the coordinates of a point: by how much the "
        "logit would change at most if that point moved a little. It does not say what the class would be without it.",
        [""],
        shapes,
    )


def confusion(counts: np.ndarray, class_names: Sequence[str], text: str) -> dict[str, Any]:
    """How often each true class was taken for each; `text` says of what and how well."""
    return {
        "kind": "matrix",
        "id": "confusion",
        "title": "Confusion matrix",
        "text": f"{text}; colour is the share of the true class.",
        "classes": list(class_names),
        "counts": counts.tolist(),
        "shares": row_shares(counts).round(4).tolist(),
    }


def feature_map(
    places: np.ndarray, points: Tensor, labels: Tensor, predicted: Tensor, class_names: Sequence[str], text: str
) -> dict[str, Any]:
    """Clouds laid out by their features.

    Args:
        places: (n, 2) where they are.
        points: (n, N, 3) what is shown of them.
        labels, predicted: (n,) classes.
        class_names: of all classes.
        text: what the map is made of.
    """
    columns = zip(places.round(3).tolist(), points, labels.tolist(), predicted.tolist(), strict=True)
    clouds = [
        {"at": place, "points": packed(cloud, 1), "label": true, "predicted": guess}
        for place, cloud, true, guess in columns
    ]
    return {
        "kind": "map",
        "id": "map",
        "title": "Map of features",
        "text": f"{text} Point at a mark, or tap it, to see its cloud; a cross is one that is taken for another class.",
        "classes": list(class_names),
        "clouds": clouds,
    }


def parts(clouds: Clouds, predicted: Tensor, ious: Tensor | None) -> dict[str, Any]:
    """True beside predicted parts of shapes.

    Args:
        clouds: with labels, their categories, and parts where these are known.
        predicted: (B, N) int64.
        ious: (B,) mIoU of each shape, None where the parts are not known.
    """
    shapes = []
    for index, name in enumerate(clouds.names):
        category = CATEGORIES[int(clouds.labels[index])]
        sides = [predicted[index]] if clouds.parts is None else [clouds.parts[index], predicted[index]]
        points, layers = [], []
        for scene, given in enumerate(sides):
            for number, part in enumerate(PARTS[category]):
                layers.append(_layer(f"{category} part {part}", len(points), [scene], colour=f"part{number}"))
                points.append(clouds.points[index][given == part])
        caption = "" if ious is None else f"mIoU of this shape: {100 * ious[index]:.1f} %"
        shapes.append(_shape(name, caption, points, layers))
    return _clouds(
        "parts",
        "Parts",
        "Each point has the most probable of the parts of its category. A part that a shape neither has nor is given "
        "counts 100 % in its mIoU, as published.",
        ["predicted parts"] if clouds.parts is None else ["true parts", "predicted parts"],
        shapes,
    )


def training(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Curves of training runs, name → what was measured, an entry per epoch."""
    quantities = quantities_of(runs)
    return {
        "kind": "curves",
        "id": "training",
        "title": "Training",
        "text": "What was logged after each epoch; evaluation is what chose a checkpoint.",
        "quantities": quantities,
        "runs": [
            {"name": name, "curves": {quantity: curve(history, quantity) for quantity in quantities}}
            for name, history in runs.items()
        ],
    }


def _clouds(
    id: str, title: str, text: str, scenes: list[str], shapes: list[dict[str, Any]], **settings: Any
) -> dict[str, Any]:
    return {"kind": "clouds", "id": id, "title": title, "text": text, "scenes": scenes, "shapes": shapes, **settings}


def _shape(name: str, caption: str, points: Sequence[Tensor], layers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "caption": caption, "points": [packed(array) for array in points], "layers": layers}


def _layer(name: str, points: int, scenes: list[int], **colour: Any) -> dict[str, Any]:
    return {"name": name, "points": points, "scenes": scenes, **colour}


def _valued(name: str, values: Tensor, unit: str) -> dict[str, Any]:
    """A layer coloured by (N,) values."""
    spread = [float(values.min()), float(torch.quantile(values, SCALED))]
    return _layer(name, 0, [0], values=packed(values), range=spread, unit=unit)


def _bytes(image: Tensor) -> np.ndarray:
    """Stretch an image to 0 … 255."""
    low, high = image.aminmax()
    return (255 * (image - low) / (high - low).clamp_min(1e-12)).round().byte().numpy()
