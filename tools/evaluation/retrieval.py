"""Which shapes are nearest to others by the cosine of their features."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from models import load_encoder
from tools.evaluation.bank import normalised
from tools.evaluation.feature_files import Draw, FeatureFile, find_shapes
from tools.evaluation.figures import VISIBLE, Panel, draw_clouds
from utils.device import choose_device
from utils.files import sha256_of
from utils.nearest import did_you_mean_path

logger = logging.getLogger(__name__)

DRAWN_POINTS = 1024


def features_of(found: FeatureFile, names: Sequence[str], checkpoint: Path | None, source: Path) -> np.ndarray:
    """The features (q, C) of files: those that are known, others by the encoder that made the known ones.

    Args:
        found: what is known.
        names: paths of the files.
        checkpoint: of the encoder; None = where it was then.
        source: the file of `found`, for messages.

    Raises:
        FileNotFoundError: if a file or the checkpoint is not there.
        ValueError: if the checkpoint is another one, or a file cannot be read.
    """
    known = {path: row for row, path in enumerate(found.paths)}
    unknown = [name for name in names if name not in known]
    rows = {name: found.features[known[name]] for name in names if name in known}
    if unknown:
        shapes = find_shapes([Path(name) for name in dict.fromkeys(unknown)])
        path = checkpoint or Path(found.origin["checkpoint"])
        if not path.is_file():
            hint = f"give --ckpts FILE. {did_you_mean_path(path)}".strip()
            raise FileNotFoundError(f"{path}, the checkpoint of {source}, is not there: {hint}")
        if sha256_of(path) != found.origin["checkpoint_sha256"]:
            raise ValueError(f"{source} was made with another checkpoint than {path}: give that one, --ckpts FILE")
        encoder, draw = load_encoder(path, found.origin["model"]).to(choose_device()), Draw(**found.origin["draw"])
        clouds = torch.stack([draw.read(shape)[0] for shape in shapes])
        with torch.inference_mode():
            features = encoder(clouds).feature.float().cpu().numpy()
        rows |= {shape.name: feature for shape, feature in zip(shapes, features, strict=True)}
    return np.stack([rows[name] for name in names])


def nearest(
    found: FeatureFile, names: Sequence[str], queries: np.ndarray, top: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """The rows of `found` nearest to each query, itself left out; of equals the first.

    Of three features and more the mean of `found` is taken off: what all shapes share would bring every cosine near 1.

    Args:
        found: n features.
        names: of the q queries.
        queries: (q, C).
        top: how many at most.

    Returns:
        Rows of each query, nearest first, and all cosines (q, n).
    """
    mean = found.features.mean(0, dtype=np.float64) if len(found.features) > 2 else 0.0
    cosines = normalised(queries - mean, "query") @ normalised(found.features - mean, "known").T
    orders = [np.argsort(-row, kind="stable") for row in cosines]
    others = [order[[found.paths[i] != name for i in order]] for order, name in zip(orders, names, strict=True)]
    return [order[:top] for order in others], cosines


def draw_found(
    found: FeatureFile, names: Sequence[str], orders: Sequence[np.ndarray], cosines: np.ndarray, path: Path
) -> None:
    """Write a PNG with a row per query: it, and what was found; a file that is gone leaves its place empty."""
    draw = Draw(DRAWN_POINTS, found.origin["draw"]["up"], found.origin["draw"]["seed"])

    def panel(title: str, name: str) -> Panel:
        try:
            (shape,) = find_shapes([Path(name)])
            return title, [(draw.read(shape)[0], VISIBLE)]
        except (OSError, ValueError) as error:
            logger.warning("not drawn: %s", error)
            return title, []

    rows = [
        [
            panel(Path(name).name, name),
            *(panel(f"{cosines[query, row]:.3f} {Path(found.paths[row]).name}", found.paths[row]) for row in order),
        ]
        for query, (name, order) in enumerate(zip(names, orders, strict=True))
    ]
    draw_clouds(rows, path)
