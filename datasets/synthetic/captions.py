"""Captions of generated shapes: what the generator knows of them, in words."""

from collections.abc import Sequence

import numpy as np

from .catalogue import CATALOGUE
from .sampling import Cloud

TEMPLATES = ("a {}", "a depth image of a {}", "a 3D shape of a {}")
PROPORTIONS = ("tall", "flat", "wide", "deep", "compact")


def describe(class_name: str, cloud: Cloud, rng: np.random.Generator) -> str:
    """Describe a shape, each time with other words: its class, at random its proportions and some of its parts.

    Args:
        class_name: a name of `CATALOGUE`.
        cloud: a shape of this class, y up.
        rng: chooses what is said.

    Returns:
        A caption such as "a depth image of a tall chair with back, seat and leg".
    """
    words = class_name
    if rng.random() < 0.5:
        words = f"{proportions(cloud)} {words}"
    if rng.random() < 0.5:
        present = part_names(class_name, cloud)
        count = int(rng.integers(1, len(present) + 1))
        named = [present[i] for i in sorted(rng.choice(len(present), count, replace=False))]
        words += " with " + " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
    return str(rng.choice(TEMPLATES)).format(words)


def vocabulary(class_names: Sequence[str]) -> list[str]:
    """Texts that together have every word of the captions of these classes."""
    parts = {part for name in class_names for part in CATALOGUE[name].parts}
    return [*(template.format("") for template in TEMPLATES), *PROPORTIONS, *class_names, *sorted(parts), "with , and"]


def part_names(class_name: str, cloud: Cloud) -> list[str]:
    """Names of the parts that a shape has, in the order of the catalogue."""
    names = CATALOGUE[class_name].parts
    return [names[part] for part in np.unique(cloud.parts)]


def proportions(cloud: Cloud) -> str:
    """One word for how the sides of a shape compare: the first of these that is true of it.

    tall: the height is 1.4 times both others at least; flat: it is 0.4 times the longer other at most; wide: the width
    is 1.4 times the depth at least; deep: the reverse; compact: none of these.
    """
    width, height, depth = np.ptp(cloud.points, axis=0)
    if height >= 1.4 * max(width, depth):
        return "tall"
    if height <= 0.4 * max(width, depth):
        return "flat"
    if width >= 1.4 * depth:
        return "wide"
    return "deep" if depth >= 1.4 * width else "compact"
