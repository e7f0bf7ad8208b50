"""Furniture: each function draws one shape of its class and returns its named parts, y up, front towards +z."""

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


def bed(rng: np.random.Generator) -> Parts:
    """Mattress on a frame, headboard, perhaps a footboard, one or two pillows, legs or a plinth."""
    width, length, top = rng.uniform(0.8, 1.8), rng.uniform(1.8, 2.2), rng.uniform(0.35, 0.6)
    frame = move(box(width, 0.15, length), 0, top - 0.25, 0)
    head_height = rng.uniform(0.5, 1.2)
    boards = [move(box(width, head_height, 0.08), 0, head_height / 2, -length / 2)]
    if rng.random() < 0.5:
        foot_height = rng.uniform(0.4, 0.8) * head_height
        boards.append(move(box(width, foot_height, 0.08), 0, foot_height / 2, length / 2))
    if rng.random() < 0.3:
        feet = move(box(0.9 * width, top - 0.3, 0.9 * length), 0, (top - 0.3) / 2, 0)
    else:
        feet = four_legs(rng, 0.47 * width, 0.47 * length, top - 0.3, rng.uniform(0.03, 0.06))
    mattress = move(box(0.96 * width, 0.2, 0.96 * length), 0, top - 0.1, 0)
    offsets = (-0.24 * width, 0.24 * width) if width > 1.2 else (0.0,)
    pillow = move(ellipsoid(0.5 if len(offsets) == 1 else 0.4 * width, 0.2, 0.4), 0, top + 0.05, -0.38 * length)
    pillows = join(*(move(pillow, offset, 0, 0) for offset in offsets))
    return {"frame": frame, "board": join(*boards), "leg": feet, "mattress": mattress, "pillow": pillows}


def bookshelf(rng: np.random.Generator) -> Parts:
    """Two sides with shelves between them, perhaps a back, dividers and books."""
    width, height, depth = rng.uniform(0.6, 1.6), rng.uniform(1.1, 2.2), rng.uniform(0.25, 0.5)
    board = rng.uniform(0.02, 0.05)
    count = int(rng.integers(3, 7))
    levels = np.linspace(board / 2, height - board / 2, count)
    parts = {
        "side": both_sides(move(box(board, height, depth), width / 2, height / 2, 0)),
        "shelf": join(*(move(box(width, board, depth), 0, level, 0) for level in levels)),
    }
    if rng.random() < 0.5:
        parts["back"] = move(box(width, height, board / 2), 0, height / 2, -depth / 2)
    if rng.random() < 0.4:
        parts["divider"] = move(box(board, height, depth), rng.uniform(-0.2, 0.2) * width, height / 2, 0)
    gap = levels[1] - levels[0]
    books = []
    for level in levels[:-1][rng.random(count - 1) < 0.4]:
        book_width, book_height = rng.uniform(0.2, 0.45) * width, rng.uniform(0.5, 0.8) * gap
        place = (rng.uniform(-0.25, 0.25) * width, level + book_height / 2, 0)
        books.append(box(book_width, book_height, 0.7 * depth) + place)
    if books:
        parts["book"] = join(*books)
    return parts


def chair(rng: np.random.Generator) -> Parts:
    """Seat, back of a plate, slats or bars, legs, a pedestal or runners, perhaps arms."""
    width, depth, height = rng.uniform(0.8, 1.1), rng.uniform(0.8, 1.1), rng.uniform(0.75, 1.0)
    seat_thickness = rng.uniform(0.05, 0.18)
    seat = move(_seat(rng, width, depth, seat_thickness), 0, height, 0)
    back = move(_chair_back(rng, width, rng.uniform(0.7, 1.3)), 0, height, -depth / 2)
    style = rng.random()
    if style < 0.55:
        feet = four_legs(rng, 0.42 * width, 0.42 * depth, height, rng.uniform(0.03, 0.07))
    elif style < 0.8:
        feet = pedestal(rng, 0.45 * width, height)
    else:
        side = [(0, height, 0.4), (0, 0.03, 0.45), (0, 0.03, -0.45), (0, height, -0.4)]
        feet = both_sides(move(tube(np.array(side) * (1, 1, depth), 0.03), 0.42 * width, 0, 0))
    parts = {"back": back, "seat": seat, "leg": feet}
    if rng.random() < 0.45:
        arm_height, thickness = rng.uniform(0.25, 0.4), rng.uniform(0.05, 0.12)
        rest = move(box(thickness, thickness, 0.9 * depth), 0, arm_height, 0)
        post = move(box(0.7 * thickness, arm_height, 0.7 * thickness), 0, arm_height / 2, 0.35 * depth)
        parts["arm"] = both_sides(move(join(rest, post), width / 2, height, 0))
    return parts


def desk(rng: np.random.Generator) -> Parts:
    """Writing table: a wide top on legs, side panels or drawer cabinets, with a panel behind the knees."""
    width, depth, height = rng.uniform(1.3, 2.0), rng.uniform(0.6, 0.9), rng.uniform(0.7, 0.9)
    board = rng.uniform(0.03, 0.07)
    parts = {"top": move(box(width, board, depth), 0, height, 0)}
    cabinet = box(0.27 * width, rng.uniform(0.5, 0.95) * height, 0.9 * depth)
    cabinet += (0.35 * width, height - cabinet[..., 1].max(), 0)
    style = rng.random()
    if style < 0.3:
        parts["drawer"] = both_sides(cabinet)
    elif style < 0.7:
        parts["drawer"] = cabinet
    if style < 0.5:
        parts["leg"] = both_sides(move(box(board, height, 0.95 * depth), 0.47 * width, height / 2, 0))
    else:
        parts["leg"] = four_legs(rng, 0.46 * width, 0.44 * depth, height, rng.uniform(0.02, 0.05))
    panel = rng.uniform(0.3, 0.8) * height
    parts["panel"] = move(box(0.92 * width, panel, 0.02), 0, height - panel / 2, -0.42 * depth)
    if rng.random() < 0.35:
        hutch = rng.uniform(0.2, 0.5)
        parts["shelf"] = join(
            move(box(width, board, 0.35 * depth), 0, height + hutch, -0.3 * depth),
            both_sides(move(box(board, hutch, 0.35 * depth), 0.48 * width, height + hutch / 2, -0.3 * depth)),
        )
    return parts


def lamp(rng: np.random.Generator) -> Parts:
    """Floor or table lamp with a straight or an articulated pole, or a pendant lamp."""
    style = rng.random()
    reach = rng.uniform(0.7, 2.0)
    pole_radius, spread = rng.uniform(0.015, 0.04), rng.uniform(0.15, 0.4)
    shade = _lamp_shade(rng)
    if style < 0.25:
        canopy = move(cylinder(spread / 2, 0.06), 0, reach + 0.3, 0)
        return {"pole": move(cylinder(pole_radius / 2, reach), 0, 0.3, 0), "canopy": canopy, "shade": shade}
    round_base = cylinder(spread, rng.uniform(0.03, 0.1), rng.uniform(0.5, 1) * spread)
    base = round_base if rng.random() < 0.7 else move(box(1.6 * spread, 0.06, 1.6 * spread), 0, 0.03, 0)
    if style < 0.7:
        pole = cylinder(pole_radius, reach)
        if rng.random() < 0.35:  # the turned body of a table lamp
            heights = np.linspace(0, 0.6 * reach, 12)
            waves = 0.5 + 0.35 * np.sin(rng.uniform(3, 8) * heights / reach + rng.uniform(0, np.pi))
            pole = join(pole, revolve(np.column_stack([0.6 * spread * waves, heights])))
        return {"base": base, "shade": move(shade, 0, reach, 0), "pole": pole}
    elbow = np.array([-rng.uniform(0.1, 0.4), 0.55 * reach, 0])
    head = np.array([rng.uniform(0.1, 0.6), reach, 0])
    pole = join(tube([(0, 0, 0), elbow], pole_radius), tube([elbow, head], pole_radius))
    return {"base": base, "shade": rotate(0.7 * shade, 2, rng.uniform(0.3, 1.0)) + head, "pole": pole}


def monitor(rng: np.random.Generator) -> Parts:
    """Flat or box-shaped display on a foot."""
    width, ratio = rng.uniform(1.0, 1.8), rng.uniform(0.5, 0.8)
    height, lift = width * ratio, rng.uniform(0.1, 0.4)
    thickness = rng.uniform(0.04, 0.12)
    screen = move(box(width, height, thickness), 0, lift + height / 2, 0)
    parts = {"screen": rotate(screen, 0, rng.uniform(-0.15, 0.0))}
    if rng.random() < 0.3:  # cathode-ray tube
        depth = rng.uniform(0.4, 0.8)
        outline = [(-height / 2, 0), (height / 2, 0), (height / 4, -depth), (-height / 4, -depth)]
        parts["housing"] = move(extrude(outline, 0.8 * width, axis=0), 0, lift + height / 2, 0)
    neck = rng.uniform(0.05, 0.2) * width
    parts["neck"] = move(box(neck, lift + 0.3 * height, 0.06), 0, (lift + 0.3 * height) / 2, -0.1)
    spread = rng.uniform(0.2, 0.35) * width
    if rng.random() < 0.5:
        parts["foot"] = cylinder(spread, 0.05) * (1, 1, 0.7)
    else:
        parts["foot"] = move(box(2 * spread, 0.05, spread), 0, 0.025, 0)
    return parts


def sofa(rng: np.random.Generator) -> Parts:
    """Upholstered bench of one to three places with back and arms, perhaps an L-shaped extension."""
    places = int(rng.integers(1, 4))
    width, depth = places * rng.uniform(0.6, 0.75), rng.uniform(0.8, 1.0)
    seat_height, back_height, thickness = rng.uniform(0.35, 0.5), rng.uniform(0.3, 0.6), rng.uniform(0.12, 0.3)
    base = move(box(width, 0.6 * seat_height, depth), 0, 0.4 * seat_height, 0)
    if places > 1 and rng.random() < 0.25:
        base = join(
            base,
            move(
                box(width / places, 0.6 * seat_height, depth),
                0.5 * width * (1 - 1 / places),
                0.4 * seat_height,
                0.9 * depth,
            ),
        )
    cushion = box(0.94 * width / places, 0.35 * seat_height, 0.95 * depth)
    places_at = (np.arange(places) - (places - 1) / 2) * width / places
    back = box(width, seat_height + back_height, thickness)
    back = move(rotate(move(back, 0, (seat_height + back_height) / 2, 0), 0, -rng.uniform(0, 0.2)), 0, 0, -depth / 2)
    parts = {
        "base": base,
        "cushion": join(*(move(cushion, place, 0.85 * seat_height, 0.05) for place in places_at)),
        "back": back,
        "leg": four_legs(rng, 0.45 * width, 0.42 * depth, 0.15 * seat_height, 0.04),
    }
    if rng.random() < 0.85:
        arm_height, arm_width = seat_height + rng.uniform(0.1, 0.9) * back_height, rng.uniform(0.1, 0.25)
        arm = move(box(arm_width, arm_height - 0.1, depth), 0, arm_height / 2, 0)
        if rng.random() < 0.4:
            arm = join(arm, move(cylinder(0.6 * arm_width, depth, axis=2), 0, arm_height, -depth / 2))
        parts["arm"] = both_sides(move(arm, (width + arm_width) / 2, 0, 0))
    return parts


def stool(rng: np.random.Generator) -> Parts:
    """Seat without a back on three or four legs or a pedestal, perhaps with a foot ring."""
    width, height = rng.uniform(0.6, 0.9), rng.uniform(0.6, 1.6)
    parts = {"seat": move(_seat(rng, width, rng.uniform(0.8, 1.1) * width, rng.uniform(0.05, 0.2)), 0, height, 0)}
    style = rng.random()
    if style < 0.4:
        parts["leg"] = four_legs(rng, 0.4 * width, 0.4 * width, height, rng.uniform(0.03, 0.06))
    elif style < 0.65:
        splay = rng.uniform(1.0, 1.7)
        ends = [(np.cos(angle), np.sin(angle)) for angle in np.arange(3) * 2 * np.pi / 3]
        radius = 0.35 * width
        parts["leg"] = join(
            *(
                tube([(radius * x, height, radius * z), (splay * radius * x, 0, splay * radius * z)], 0.04)
                for x, z in ends
            )
        )
    else:
        parts["leg"] = pedestal(rng, 0.45 * width, height)
    if rng.random() < 0.5:
        parts["ring"] = move(torus(0.42 * width, 0.025), 0, rng.uniform(0.25, 0.45) * height, 0)
    return parts


def table(rng: np.random.Generator) -> Parts:
    """Round, rectangular or oval top on legs, a pedestal or two supports, perhaps with a shelf or stretchers."""
    width, depth, height = rng.uniform(1.0, 2.2), rng.uniform(0.8, 1.2), rng.uniform(0.4, 1.1)
    board = rng.uniform(0.03, 0.1)
    is_round = rng.random() < 0.4
    if is_round:
        width = depth * rng.choice([1.0, rng.uniform(1.2, 1.6)])
    top = (
        cylinder(depth / 2, board) * (width / depth, 1, 1)
        if is_round
        else move(box(width, board, depth), 0, board / 2, 0)
    )
    parts = {"top": move(top, 0, height, 0)}
    inset = 0.3 if is_round else rng.uniform(0.38, 0.47)
    style = rng.random()
    if style < 0.6:
        parts["leg"] = four_legs(rng, inset * width, inset * depth, height, rng.uniform(0.025, 0.07))
    elif style < 0.8:
        parts["leg"] = pedestal(rng, 0.35 * depth, height)
    else:
        parts["leg"] = both_sides(move(box(2 * board, height, 0.6 * depth), 0.32 * width, height / 2, 0))
    extra = rng.random()
    if extra < 0.3:
        shelf = box(2 * inset * width, 0.03, 2 * inset * depth)
        parts["support"] = move(shelf, 0, rng.uniform(0.15, 0.5) * height, 0)
    elif extra < 0.6:
        apron = rng.uniform(0.06, 0.15)
        parts["support"] = move(box(2 * inset * width, apron, 2 * inset * depth), 0, height - apron / 2, 0)
    return parts


def four_legs(rng: np.random.Generator, across: float, along: float, height: float, radius: float) -> Triangles:
    """Return legs from (±across, height, ±along) to the floor: straight, tapered or splayed, round or square."""
    splay = rng.choice([1.0, rng.uniform(1.0, 1.25)])
    taper = rng.uniform(0.5, 1.0)
    path = [(across, height, along), (splay * across, 0, splay * along)]
    leg = tube(path, [radius, taper * radius], segments=int(rng.choice([4, 12])))
    return both_sides(both_sides(leg, 0), 2)


def pedestal(rng: np.random.Generator, spread: float, height: float) -> Triangles:
    """Return a column on a disc or on a star of three to six feet."""
    column = cylinder(rng.uniform(0.1, 0.25) * spread, height)
    if rng.random() < 0.5:
        return join(column, cylinder(spread, rng.uniform(0.03, 0.08), rng.uniform(0.3, 1.0) * spread))
    angles = np.arange(rng.integers(3, 7))
    foot = tube([(0, rng.uniform(0.05, 0.15), 0), (spread, 0.03, 0)], [0.06, 0.03])
    return join(column, *(rotate(foot, 1, 2 * np.pi * angle / len(angles)) for angle in angles))


def _seat(rng: np.random.Generator, width: float, depth: float, thickness: float) -> Triangles:
    style = rng.random()
    if style < 0.5:
        return box(width, thickness, depth)
    if style < 0.8:
        return move(cylinder(width / 2, thickness) * (1, 1, depth / width), 0, -thickness / 2, 0)
    return ellipsoid(1.1 * width, 2 * thickness, 1.1 * depth)


def _chair_back(rng: np.random.Generator, width: float, height: float) -> Triangles:
    style = rng.random()
    thickness = rng.uniform(0.03, 0.1)
    if style < 0.35:
        back = move(box(width, height, thickness), 0, height / 2, 0)
    elif style < 0.7:
        count = int(rng.integers(2, 6))
        posts = both_sides(move(box(thickness, height, thickness), width / 2 - thickness, height / 2, 0))
        if rng.random() < 0.5:
            rail = box(width, 0.4 * height / count, 0.6 * thickness)
            back = join(posts, *(move(rail, 0, level, 0) for level in np.linspace(0.3, 0.95, count) * height))
        else:
            rail = move(box(width, 0.12 * height, thickness), 0, 0.95 * height, 0)
            bar = move(box(0.03, height, 0.03), 0, height / 2, 0)
            places = np.linspace(-0.35, 0.35, count) * width
            back = join(posts, rail, *(move(bar, place, 0, 0) for place in places))
    else:
        rim = move(arc(width / 2, 0, 1) * (1, 2 * (height - 0.3) / width, 1), 0, 0.3, 0)
        panel = np.vstack([rim[:, :2], [(-0.4 * width, 0), (0.4 * width, 0)]])
        back = extrude(panel, thickness)
    return rotate(back, 0, -rng.uniform(0, 0.3))


def _lamp_shade(rng: np.random.Generator) -> Triangles:
    size, height = rng.uniform(0.25, 0.55), rng.uniform(0.25, 0.5)
    style = rng.random()
    if style < 0.6:  # open frustum
        return revolve([(size, 0), (rng.uniform(0.4, 1.0) * size, height)])
    if style < 0.8:
        return ellipsoid(2 * size, 2 * height, 2 * size, 0.0, 0.5)
    return move(ellipsoid(1.4 * size, 1.4 * size, 1.4 * size), 0, 0.3 * size, 0)
