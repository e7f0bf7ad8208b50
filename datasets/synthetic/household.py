"""Household things: each function draws one shape of its class and returns its named parts, y up, front towards +z."""

import numpy as np

from .primitives import (
    Triangles,
    arc,
    both_sides,
    box,
    cylinder,
    ellipsoid,
    extrude,
    join,
    move,
    revolve,
    rotate,
    torus,
    tube,
)

Parts = dict[str, Triangles]


def bag(rng: np.random.Generator) -> Parts:
    """Tapering body with one or two handles, or a shoulder strap."""
    width, height, depth = rng.uniform(0.8, 1.4), rng.uniform(0.6, 1.2), rng.uniform(0.25, 0.6)
    taper = rng.uniform(0.6, 1.1)
    outline = [(-width / 2, 0), (width / 2, 0), (taper * width / 2, height), (-taper * width / 2, height)]
    body = extrude(outline, depth)
    if rng.random() < 0.4:
        body = join(body, move(box(0.6 * width, 0.5 * height, 0.3 * depth), 0, 0.3 * height, 0.6 * depth))
    radius, rise = rng.uniform(0.15, 0.3) * width, rng.uniform(0.8, 2.5)
    handle = move(tube(arc(radius, 0, 1) * (1, rise, 1), rng.uniform(0.02, 0.04)), 0, height, 0)
    if rng.random() < 0.5:
        handle = both_sides(move(handle, 0, 0, 0.35 * depth), 2)
    return {"handle": handle, "body": body}


def bottle(rng: np.random.Generator) -> Parts:
    """Body with a shoulder and a neck, closed by a cap, a cork or nothing; round or flattened."""
    radius, height = rng.uniform(0.18, 0.4), rng.uniform(0.7, 1.2)
    neck, neck_height, shoulder = rng.uniform(0.2, 0.5) * radius, rng.uniform(0.1, 0.5), rng.uniform(0.05, 0.4)
    waist = rng.choice([1.0, rng.uniform(0.75, 1.0)])
    flatness = (1, 1, rng.choice([1.0, rng.uniform(0.4, 0.8)]))
    profile = [(0, 0), (radius, 0), (waist * radius, height / 2), (radius, height)]
    bend = np.linspace(0, np.pi / 2, 6)[1:]
    shoulder_profile = np.column_stack([neck + (radius - neck) * np.cos(bend), height + shoulder * np.sin(bend)])
    parts = {"body": revolve(np.vstack([profile, shoulder_profile])) * flatness}
    top = height + shoulder
    parts["neck"] = revolve([(neck, top), (neck, top + neck_height)])
    if rng.random() < 0.7:
        cap = rng.uniform(1.05, 1.5) * neck
        parts["cap"] = move(cylinder(cap, rng.uniform(0.06, 0.15)), 0, top + neck_height, 0)
    if rng.random() < 0.15:
        parts["handle"] = move(tube(arc(0.25, -0.5, 0.5) * (0.7, 1, 1), 0.03), radius, 0.75 * height, 0)
    return parts


def cap(rng: np.random.Generator) -> Parts:
    """Baseball cap: a domed panel with a peak, which may be flat or bent, perhaps a button on top."""
    width, height, length = rng.uniform(0.8, 1.0), rng.uniform(0.5, 0.9), rng.uniform(0.9, 1.2)
    panel = ellipsoid(width, 2 * height, length, 0.0, 0.5)
    if rng.random() < 0.5:
        panel = join(panel, move(ellipsoid(0.08, 0.06, 0.08), 0, height, 0))
    angle = np.pi * np.linspace(0, 1, 16)
    reach = rng.uniform(0.3, 0.6)
    outer = np.column_stack([0.3 * length + reach * np.sin(angle), 0.5 * width * np.cos(angle)])
    inner = np.array([(0.25 * length, -0.48 * width), (0.25 * length, 0.48 * width)])
    peak = extrude(np.vstack([outer, inner]), 0.03, axis=1)
    peak[..., 1] -= rng.uniform(0, 0.6) * peak[..., 0] ** 2
    return {"panel": panel, "peak": rotate(peak, 0, rng.uniform(-0.1, 0.35))}


def earphone(rng: np.random.Generator) -> Parts:
    """Headphones with a band, or a pair of earbuds on a wire."""
    if rng.random() < 0.7:
        radius, cup = rng.uniform(0.5, 0.65), rng.uniform(0.2, 0.35)
        depth = rng.uniform(0.1, 0.25)
        pair = both_sides(move(cylinder(cup, depth, rng.uniform(0.7, 1.0) * cup, axis=0), radius - depth / 2, 0, 0))
        band = tube(arc(radius, 0, 1) * (1, rng.uniform(1.0, 1.4), 1), rng.uniform(0.03, 0.07))
        parts = {"headphone": pair, "band": band * (1, 1, rng.uniform(1, 2))}
        if rng.random() < 0.5:
            length = rng.uniform(0.4, 1.0)
            parts["wire"] = move(tube([(0, -cup, 0), (0.05, -cup - length, 0)], 0.02), radius, 0, 0)
        return parts
    bud = ellipsoid(0.28, 0.28, rng.uniform(0.25, 0.4))
    stem = move(cylinder(0.05, 0.3), 0, -0.35, 0)
    spread, length = rng.uniform(0.3, 0.5), rng.uniform(0.8, 1.4)
    wire = both_sides(tube([(spread, -0.3, 0), (0.02, -length, 0)], 0.018))
    return {"headphone": both_sides(move(join(bud, stem), spread, 0, 0)), "wire": wire}


def guitar(rng: np.random.Generator) -> Parts:
    """Waisted or angular body, a long neck and a head, standing upright."""
    size, waist, thickness = rng.uniform(0.3, 0.42), rng.uniform(0.6, 0.9), rng.uniform(0.06, 0.2)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    outline = np.column_stack([np.cos(angle), 1.35 * np.sin(angle)]) * size
    height = outline[:, 1] / size
    if rng.random() < 0.7:
        outline[:, 0] *= 1 - (1 - waist) * np.exp(-8 * (height - 0.15) ** 2) - 0.1 * height
    else:  # horns of an electric guitar
        outline[:, 1] += 0.35 * size * np.clip(height, 0, None) * np.abs(outline[:, 0]) / size
        outline[:, 0] *= 0.8 + 0.2 * np.cos(rng.uniform(1, 2) * np.pi * height)
    neck_length, neck_width = rng.uniform(0.7, 1.0), rng.uniform(0.06, 0.09)
    neck = move(box(neck_width, neck_length + 0.3 * size, 0.05), 0, 1.2 * size + neck_length / 2, thickness / 2)
    head_length, head_width = rng.uniform(0.18, 0.28), rng.uniform(1.4, 2.6) * neck_width
    sides = [
        (-neck_width / 2, 0),
        (neck_width / 2, 0),
        (head_width / 2, head_length),
        (-head_width / 2, 0.9 * head_length),
    ]
    head = rotate(extrude(sides, 0.04), 0, -rng.uniform(0, 0.3))
    top = 1.35 * size + neck_length
    return {"head": move(head, 0, top, thickness / 2), "neck": neck, "body": extrude(outline, thickness)}


def knife(rng: np.random.Generator) -> Parts:
    """Pointed, rounded or cleaver blade and a handle, lying along x."""
    length, width = rng.uniform(0.8, 1.4), rng.uniform(0.12, 0.32)
    style = rng.random()
    if style < 0.4:
        blade = [(0, 0), (0.7 * length, 0), (length, width), (0, width)]
    elif style < 0.7:
        bend = np.linspace(0, np.pi / 2, 8)
        curve = np.column_stack([(0.6 + 0.4 * np.sin(bend)) * length, width * (1 - np.cos(bend))])
        blade = [(0, 0), *curve, (0, width)]
    elif style < 0.85:
        blade = [(0, 0), (0.8 * length, 0), (0.8 * length, 1.6 * width), (0, 1.6 * width)]
    else:  # dagger
        blade = [(0, 0.1 * width), (0.7 * length, 0), (length, width / 2), (0.7 * length, width), (0, 0.9 * width)]
    grip, thick = rng.uniform(0.45, 0.7), rng.uniform(0.05, 0.1)
    if rng.random() < 0.5:
        handle = move(box(grip, 0.7 * width, thick), -grip / 2, width / 2, 0)
    else:
        along = np.linspace(-grip, 0.02, 10)
        swell = 0.35 + 0.12 * np.cos(rng.uniform(4, 9) * along / grip)
        rounded = tube(np.column_stack([along, 0 * along, 0 * along]), swell * width)
        handle = move(rounded * (1, 1, thick / (0.5 * width)), 0, width / 2, 0)
    if rng.random() < 0.3:
        handle = join(handle, move(box(0.05, 1.6 * width, 1.5 * thick), 0, width / 2, 0))
    return {"blade": extrude(blade, rng.uniform(0.015, 0.04)), "handle": handle}


def laptop(rng: np.random.Generator) -> Parts:
    """Keyboard half and screen half, opened by 70 to 150 degrees."""
    width, ratio, thickness = rng.uniform(1.0, 1.3), rng.uniform(0.58, 0.8), rng.uniform(0.03, 0.09)
    depth = width * ratio
    keyboard = move(box(width, thickness, depth), 0, 0, depth / 2)
    screen = move(box(width, 0.6 * thickness, depth), 0, 0, depth / 2)
    return {
        "keyboard": keyboard,
        "screen": move(rotate(screen, 0, -np.radians(rng.uniform(70, 150))), 0, thickness / 2, 0),
    }


def mug(rng: np.random.Generator) -> Parts:
    """Open vessel with an inner wall and one handle, round or angular."""
    radius, height = rng.uniform(0.35, 0.5), rng.uniform(0.7, 1.1)
    flare, wall = rng.uniform(0.75, 1.1), rng.uniform(0.03, 0.07)
    outer = [(0, 0), (flare * radius, 0), (radius, height / 2), (radius, height)]
    inner = [(radius - wall, height), (radius - wall, height / 2), (flare * radius - wall, wall), (0, wall)]
    reach, middle = rng.uniform(0.2, 0.35), rng.uniform(0.4, 0.6) * height
    if rng.random() < 0.6:
        path = arc(reach, -0.5, 0.5) * (rng.uniform(0.7, 1.2), 1, 1)
    else:
        path = np.array([(0, -reach, 0), (reach, -reach, 0), (reach, reach, 0), (0, reach, 0)])
    return {
        "handle": move(tube(path, rng.uniform(0.03, 0.06)), 0.93 * radius, middle, 0),
        "body": revolve(outer + inner),
    }


def pistol(rng: np.random.Generator) -> Parts:
    """Barrel along x, slanted grip, trigger with its guard; automatic or revolver."""
    length, height = rng.uniform(0.9, 1.5), rng.uniform(0.14, 0.25)
    if rng.random() < 0.6:
        barrel = move(box(length, height, 0.12), length / 2, 0, 0)
    else:
        drum = move(cylinder(0.9 * height, 0.3, axis=0), 0.2, -0.2 * height, 0)
        barrel = join(cylinder(0.35 * height, length, axis=0), drum, move(box(0.5, height, 0.1), 0.2, 0, 0))
    grip_length, grip_width = rng.uniform(0.4, 0.65), rng.uniform(0.18, 0.26)
    grip = move(box(grip_width, grip_length, 0.12), 0, -grip_length / 2, 0)
    guard = move(torus(0.12, 0.018, axis=2), 0.33, -height / 2 - 0.1, 0)
    lever = tube([(0.33, -height / 2, 0), (0.29, -height / 2 - 0.15, 0)], 0.02)
    slant = move(rotate(grip, 2, -rng.uniform(0.05, 0.45)), 0.12, -0.3 * height, 0)
    return {"barrel": barrel, "handle": slant, "trigger": join(guard, lever)}


def vase(rng: np.random.Generator) -> Parts:
    """Vessel with a smooth wavy outline, open at the top, perhaps with a foot, two handles or a plant."""
    height, radius = rng.uniform(0.9, 1.5), rng.uniform(0.25, 0.45)
    level = np.linspace(0, 1, 16)
    wave = np.sin(np.pi * (rng.uniform(0.8, 1.6) * level + rng.uniform(0, 0.4)))
    outer = radius * (rng.uniform(0.45, 0.65) + rng.uniform(0.35, 0.55) * wave)
    outer = np.maximum(outer, 0.25 * radius)
    wall = np.column_stack([outer, level * height])
    inside = np.column_stack([0.92 * outer, level * height])[:3:-1]
    parts = {"body": revolve(np.vstack([[(0, 0)], wall, inside, [(0, inside[-1, 1])]]))}
    if rng.random() < 0.4:
        parts["foot"] = move(cylinder(rng.uniform(1.0, 1.4) * outer[0], 0.06), 0, -0.06, 0)
    extra = rng.random()
    if extra < 0.25:
        handle = move(tube(arc(0.22, -0.5, 0.5), 0.03), 0.85 * outer[9], 0.65 * height, 0)
        parts["handle"] = both_sides(handle)
    elif extra < 0.55:
        parts["plant"] = _plant(rng, outer[-1], height)
    return parts


def _plant(rng: np.random.Generator, radius: float, height: float) -> Triangles:
    stems = []
    for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))):
        tip = np.array([rng.uniform(0.5, 2.0) * radius, height + rng.uniform(0.2, 0.6), 0])
        leaf = ellipsoid(0.2, 0.1, 0.1) + tip
        stems.append(rotate(join(tube([(0, 0.7 * height, 0), tip], 0.015), leaf), 1, angle))
    return join(*stems)
