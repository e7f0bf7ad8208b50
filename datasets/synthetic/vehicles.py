"""Vehicles: each function draws one shape of its class and returns its named parts, y up, nose towards +z."""

import itertools

import numpy as np

from .primitives import (
    Triangles,
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


def airplane(rng: np.random.Generator) -> Parts:
    """Fuselage, swept or straight wings, tail planes, engines under the wings, at the tail or none."""
    length, radius = rng.uniform(1.6, 2.2), rng.uniform(0.09, 0.16)
    along = np.array([-0.5, -0.45, -0.25, 0.3, 0.42, 0.48, 0.5]) * length
    body = revolve(np.column_stack([np.array([0, 0.3, 0.9, 1, 0.8, 0.4, 0]) * radius, along]), axis=2)
    span, chord, sweep = rng.uniform(0.6, 1.1), rng.uniform(0.25, 0.5), rng.uniform(0.0, 0.7)
    at, level = rng.uniform(-0.05, 0.15) * length, rng.uniform(-0.7, 0.9) * radius
    dihedral = rng.uniform(-0.05, 0.15)
    wings = move(_wings(span, chord, rng.uniform(0.25, 0.9), sweep, dihedral), 0, level, at)
    fin = rng.uniform(0.25, 0.45)
    outline = [(0, -0.5 * length), (fin, -0.52 * length), (fin, -0.45 * length), (0, -0.36 * length)]
    tail_level = fin if rng.random() < 0.3 else 0.0
    planes = move(_wings(rng.uniform(0.25, 0.4), 0.5 * chord, 0.6, 0.5 * sweep, 0.0), 0, tail_level, -0.43 * length)
    parts = {"body": body, "wing": wings, "tail": join(extrude(outline, 0.03, axis=0), planes)}
    style = rng.random()
    if style < 0.6:
        size = rng.uniform(0.04, 0.08)
        pod = cylinder(size, 4 * size, 0.8 * size, axis=2)
        places = rng.uniform(0.3, 0.5) * span * np.array([1.0, 1.6])[: rng.integers(1, 3)]
        pods = [move(pod, place, level + dihedral * place - size, at - sweep * place) for place in places]
        parts["engine"] = both_sides(join(*pods))
    elif style < 0.8:
        pod = cylinder(0.5 * radius, 0.35, 0.4 * radius, axis=2)
        parts["engine"] = both_sides(move(pod, 1.4 * radius, 0.4 * radius, -0.4 * length))
    return parts


def car(rng: np.random.Generator) -> Parts:
    """Saloon, estate, pick-up or van: body, hood, roof and four wheels."""
    length, width = rng.uniform(1.8, 2.3), rng.uniform(0.75, 0.95)
    floor, waist = rng.uniform(0.12, 0.25), rng.uniform(0.45, 0.6)
    body = move(box(width, waist - floor, length), 0, (waist + floor) / 2, 0)
    cabin = rng.uniform(0.25, 0.5)
    rear, front = rng.choice([-0.48, -0.35, -0.1]), rng.uniform(0.1, 0.25)
    slope = rng.uniform(0.05, 0.15)
    sides = np.array(
        [(rear, waist), (front + 0.1, waist), (front - slope, waist + cabin), (rear + 0.5 * slope, waist + cabin)]
    )
    roof = extrude(sides[:, ::-1] * (1, length), 0.9 * width, axis=0)
    bonnet = 0.5 - front - 0.1
    hood_outline = [(waist, (0.5 - bonnet) * length), (waist, 0.5 * length), (waist + 0.1, (0.5 - bonnet) * length)]
    hood = extrude(hood_outline, 0.88 * width, axis=0)
    radius = rng.uniform(0.17, 0.25)
    wheel = move(cylinder(radius, 0.15, axis=0), 0.5 * width - 0.12, radius, 0)
    axles = (rng.uniform(0.28, 0.34) * length, -rng.uniform(0.28, 0.34) * length)
    wheels = both_sides(join(*(move(wheel, 0, 0, axle) for axle in axles)))
    return {"roof": roof, "hood": hood, "wheel": wheels, "body": body}


def motorbike(rng: np.random.Generator) -> Parts:
    """Two wheels, frame and fork, tank, seat, handlebar and a headlight."""
    base, radius = rng.uniform(1.2, 1.6), rng.uniform(0.28, 0.36)
    tyre = rng.uniform(0.05, 0.1)
    rim = join(torus(radius, tyre, axis=0), move(cylinder(0.25 * radius, 0.1, axis=0), -0.05, 0, 0))
    wheels = join(*(move(rim, 0, radius + tyre, end) for end in (-base / 2, base / 2)))
    axle, top = radius + tyre, rng.uniform(0.85, 1.05)
    head = np.array([0, top, 0.22 * base])
    fork = both_sides(tube([move(head, 0.08, 0, 0), (0.08, axle, base / 2)], 0.03))
    engine = move(box(0.25, 0.35, 0.4 * base), 0, axle + 0.1, -0.02)
    swing = both_sides(tube([(0.08, axle, -base / 2), (0.08, axle, 0)], 0.03))
    spine = tube([head, (0, 0.85 * top, -0.3 * base)], 0.05)
    bar_height = rng.uniform(0.05, 0.35)
    grips = [(0, 0, 0), (0.15, bar_height, -0.02), (0.38, bar_height, -0.1)]
    bar = both_sides(join(*(tube(np.array(pair) + head, 0.025) for pair in itertools.pairwise(grips))))
    tank = move(ellipsoid(0.3, 0.25, rng.uniform(0.4, 0.55)), 0, 0.97 * top, 0.05)
    seat = move(box(rng.uniform(0.2, 0.3), 0.1, 0.45 * base), 0, rng.uniform(0.8, 0.9) * top, -0.32 * base)
    parts = {"wheel": wheels, "seat": seat, "tank": tank, "handle": bar, "frame": join(fork, engine, swing, spine)}
    if rng.random() < 0.8:
        parts["light"] = move(ellipsoid(0.2, 0.2, 0.15) + head, 0, 0, 0.12)
    return parts


def rocket(rng: np.random.Generator) -> Parts:
    """Upright body with a pointed nose and three to five fins, perhaps with boosters."""
    radius, height = rng.uniform(0.13, 0.28), rng.uniform(1.2, 1.8)
    waist = rng.uniform(0.8, 1.0)
    body = revolve(
        [(0, 0), (radius, 0), (radius, 0.4 * height), (waist * radius, 0.45 * height), (waist * radius, height)]
    )
    tip = rng.uniform(0.3, 0.7)
    bend = np.linspace(0, 1, 8)
    nose = revolve(np.column_stack([waist * radius * (1 - bend ** rng.uniform(1.0, 2.5)), height + tip * bend]))
    reach, rise, drop = rng.uniform(0.2, 0.5), rng.uniform(0.25, 0.6), rng.uniform(-0.15, 0.1)
    outline = [(0.8 * radius, 0), (radius + reach, drop), (radius + reach, drop + 0.4 * rise), (0.8 * radius, rise)]
    fin = extrude(outline, 0.03)
    count = int(rng.integers(3, 6))
    fins = join(*(rotate(fin, 1, 2 * np.pi * turn / count) for turn in range(count)))
    if rng.random() < 0.3:
        booster = move(cylinder(0.5 * radius, 0.6 * height), 1.5 * radius, 0, 0)
        body = join(body, both_sides(booster))
    return {"body": body, "fin": fins, "nose": nose}


def skateboard(rng: np.random.Generator) -> Parts:
    """Deck with rounded, lifted ends on two trucks with four wheels."""
    length, width = rng.uniform(1.6, 2.2), rng.uniform(0.4, 0.6)
    bend = np.pi * np.linspace(-0.5, 0.5, 10)
    end = np.column_stack([0.5 * length - width / 2 + 0.5 * width * np.cos(bend), 0.5 * width * np.sin(bend)])
    middle = np.column_stack([np.linspace(-0.4, 0.4, 9)[::-1] * length, np.full(9, width / 2)])
    deck = extrude(np.vstack([end, middle, -end, -middle]), rng.uniform(0.03, 0.06), axis=1)
    beyond = np.clip(np.abs(deck[..., 2]) - 0.32 * length, 0, None)
    deck[..., 1] += rng.uniform(0.0, 0.8) * beyond
    radius, axle = rng.uniform(0.06, 0.11), rng.uniform(0.28, 0.34) * length
    wheel = move(cylinder(radius, 0.1, axis=0), 0.3 * width, -0.16, 0)
    truck = join(move(box(0.6 * width, 0.04, 0.05), 0, -0.16, 0), move(box(0.15, 0.14, 0.2), 0, -0.08, 0))
    return {
        "wheel": both_sides(both_sides(move(wheel, 0, 0, axle)), 2),
        "deck": deck,
        "truck": both_sides(move(truck, 0, 0, axle), 2),
    }


def _wings(span: float, chord: float, taper: float, sweep: float, dihedral: float) -> Triangles:
    """Return a pair of wings along x whose tips lie `sweep`·span behind and `dihedral`·span above the roots."""
    tip_chord = taper * chord
    outline = [
        (chord / 2, 0),
        (tip_chord / 2 - sweep * span, span),
        (-tip_chord / 2 - sweep * span, span),
        (-chord / 2, 0),
    ]
    wing = extrude(outline, 0.035, axis=1)
    wing[..., 1] += dihedral * wing[..., 0]
    return both_sides(wing)
