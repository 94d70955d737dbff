"""Silhouettes of the demo dataset, and a rasteriser whose result is the same on every machine.

A silhouette is a list of parts `(adds, polygon)`: the polygon, (N, 2) points (x, y) with y down and
everything within about [-1, 1], is added to the shape or, where `adds` is False, cut out of it.
"""

import functools
import math

import numpy as np

SAMPLES = 4  # samples a pixel along each axis
_UNITS = 64  # corners are rounded to this fraction of a pixel before any comparison
_STEP = _UNITS // SAMPLES


def fill_polygon(corners, height, width):
    """Even-odd fill of a polygon, (N, 2) pixels (x, y), as bool (height·SAMPLES, width·SAMPLES).

    Integer arithmetic after the rounding of the corners: no rounding of the machine or of a library
    version decides whether a sample is inside.
    """
    rows, columns = height * SAMPLES, width * SAMPLES
    start = np.rint(np.asarray(corners, np.float64) * _UNITS).astype(np.int64)
    end = np.roll(start, -1, axis=0)
    down = (start[:, 1] <= end[:, 1])[:, None]
    (x0, y0), (x1, y1) = np.where(down, start, end).T, np.where(down, end, start).T
    y = np.arange(rows) * _STEP + _STEP // 2
    edge, row = np.nonzero((y0[:, None] <= y) & (y < y1[:, None]))
    x0, y0, dx, dy = x0[edge], y0[edge], (x1 - x0)[edge], (y1 - y0)[edge]
    crossing = x0 * dy + (y[row] - y0) * dx - (_STEP // 2) * dy
    first = np.clip(-(-crossing // (_STEP * dy)), 0, columns)  # first sample right of the edge
    crossings = np.zeros((rows, columns + 1), np.uint8)
    np.add.at(crossings, (row, first), 1)
    return (np.cumsum(crossings[:, :columns], axis=1, dtype=np.uint8) & 1).view(bool)


def coverage(parts, matrix, centre, height, width):
    """Samples of every pixel inside the silhouette `parts`, uint8 (height, width) 0..SAMPLES².

    `matrix` (2, 2) takes silhouette coordinates to pixels; the origin goes to `centre` (x, y).
    """
    inside = np.zeros((height * SAMPLES, width * SAMPLES), bool)
    for adds, polygon in parts:
        region = fill_polygon(polygon @ np.asarray(matrix).T + centre, height, width)
        inside = inside | region if adds else inside & ~region
    hits = inside.view(np.uint8)
    hits = sum(hits[k::SAMPLES] for k in range(SAMPLES))
    return sum(hits[:, k::SAMPLES] for k in range(SAMPLES))


@functools.cache
def silhouette(name):
    """The parts of a silhouette, scaled to an area of 1 and moved to its centre of mass."""
    parts = SILHOUETTES[name]()
    side, scale = 260, 100
    grid = coverage(parts, np.eye(2) * scale, (side // 2, side // 2), side, side)
    weights = grid.astype(np.int64)
    total = int(weights.sum())
    middle = np.array(
        [
            (weights.sum(axis=axis) * (2 * np.arange(side) + 1)).sum() / (2 * total)
            for axis in (0, 1)
        ]
    )
    origin = (middle - side / 2) / scale
    length = math.sqrt(total / SAMPLES**2) / scale
    return [(adds, (polygon - origin) / length) for adds, polygon in parts]


def _polar(radius, points=72):
    """The closed curve radius(angle); the angle starts at the top and runs clockwise."""
    angles = [2 * math.pi * step / points for step in range(points)]
    return np.array([(radius(a) * math.sin(a), -radius(a) * math.cos(a)) for a in angles])


def _ellipse(x, y, rx, ry, points=48):
    return _polar(lambda angle: 1.0, points) * (rx, ry) + (x, y)


def _box(left, top, right, bottom):
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def _mirrored(*half):
    """A polygon symmetric about the vertical axis from its right half, top to bottom."""
    return np.array([*half, *[(-x, y) for x, y in reversed(half)]], float)


def _star():
    corners = _polar(lambda angle: 1.0, 10)
    corners[1::2] *= 0.48
    return [(True, corners)]


def _ring():
    return [(True, _ellipse(0, 0, 1, 1)), (False, _ellipse(0, 0, 0.5, 0.5))]


def _leaf():
    half = [(0.62 * math.sin(math.pi * t / 20) ** 0.8, t / 12 - 1) for t in range(21)]
    return [(True, _mirrored(*half)), (True, _box(-0.08, 0.5, 0.08, 1.05))]


def _gear():
    teeth, rim = 9, []
    for tooth in range(teeth):
        for offset, radius in ((-0.33, 0.74), (-0.2, 1.0), (0.2, 1.0), (0.33, 0.74)):
            angle = 2 * math.pi * (tooth + offset) / teeth
            rim.append((radius * math.sin(angle), -radius * math.cos(angle)))
    return [(True, np.array(rim)), (False, _ellipse(0, 0, 0.27, 0.27))]


def _bottle():
    neck = [(0.22, -1.05), (0.22, -0.85), (0.17, -0.85), (0.17, -0.45)]
    return [(True, _mirrored(*neck, (0.3, -0.25), (0.46, -0.05), (0.46, 0.95), (0.4, 1.02)))]


def _fish():
    tail = np.array([(0.45, 0), (1.05, -0.55), (0.92, 0), (1.05, 0.55)])
    fin = np.array([(-0.3, -0.35), (0.1, -0.8), (0.35, -0.25)])
    return [(True, _ellipse(-0.2, 0, 0.8, 0.5)), (True, tail), (True, fin)]


def _cross():
    arm = 0.34
    return [(True, _box(-arm, -1, arm, 1)), (True, _box(-1, -arm, 1, arm))]


def _crescent():
    return [(True, _ellipse(0, 0, 1, 1, 64)), (False, _ellipse(0.5, 0, 0.74, 0.74, 64))]


def _key():
    head = [(True, _ellipse(-0.55, 0, 0.52, 0.52)), (False, _ellipse(-0.6, 0, 0.2, 0.2))]
    teeth = [(True, _box(0.42, 0, 0.64, 0.5)), (True, _box(0.83, 0, 1.05, 0.5))]
    return [*head, (True, _box(-0.2, -0.18, 1.05, 0.18)), *teeth]


def _house():
    walls = np.array(
        [(0, -0.95), (0.95, -0.1), (0.75, -0.1), (0.75, 0.9), (0.25, 0.9), (0.25, 0.35)]
    )
    left = np.array([(-0.15, 0.35), (-0.15, 0.9), (-0.75, 0.9), (-0.75, -0.1), (-0.95, -0.1)])
    return [(True, np.concatenate([walls, left])), (True, _box(0.4, -0.9, 0.68, -0.3))]


def _mushroom():
    cap = [(math.sin(a), 0.1 - 0.95 * math.cos(a)) for a in (math.pi * t / 32 for t in range(17))]
    return [(True, _mirrored(*cap)), (True, _mirrored((0.26, 0.05), (0.26, 0.6), (0.42, 0.95)))]


def _arrow():
    return [(True, _mirrored((0, -1.05), (0.8, -0.15), (0.33, -0.15), (0.33, 1.0)))]


def _heart():
    angles = [2 * math.pi * step / 64 for step in range(64)]
    curve = [
        (
            16 * math.sin(a) ** 3,
            -13 * math.cos(a) + 5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a),
        )
        for a in angles
    ]
    return [(True, np.array(curve) / 16)]


def _hourglass():
    return [(True, _mirrored((0.72, -1), (0.72, -0.78), (0.14, 0), (0.72, 0.78), (0.72, 1)))]


def _butterfly():
    wings = []
    for side in (-1, 1):
        upper = np.array([(0.05, 0.12), (0.4, -0.75), (0.75, -0.9), (1.05, -0.75), (0.95, -0.15)])
        lower = np.array([(0.05, -0.1), (0.75, 0.1), (0.85, 0.5), (0.55, 0.85), (0.25, 0.6)])
        wings += [(True, upper * (side, 1)), (True, lower * (side, 1))]
    return [*wings, (True, _ellipse(0, 0, 0.13, 0.7))]


def _crown():
    right = [(0, -0.75), (0.3, -0.05), (0.95, -0.7), (0.75, 0.75)]
    return [(True, _mirrored(*right))]


def _cloud():
    puffs = [(-0.55, 0.15, 0.42), (-0.1, -0.15, 0.5), (0.4, -0.05, 0.4), (0.7, 0.25, 0.32)]
    base = _box(-0.55, 0.1, 0.7, 0.57)
    return [*[(True, _ellipse(x, y, r, r)) for x, y, r in puffs], (True, base)]


def _bell():
    dome = [(0.0, -0.9), (0.2, -0.87), (0.38, -0.72), (0.48, -0.45), (0.54, 0.05), (0.68, 0.38)]
    body = _mirrored(*dome, (0.9, 0.58), (0.9, 0.72))
    return [
        (True, body),
        (True, _ellipse(0, 0.75, 0.26, 0.26)),
        (True, _ellipse(0, -0.92, 0.15, 0.15)),
    ]


def _boat():
    hull = np.array([(-1, 0.4), (1, 0.4), (0.62, 0.9), (-0.62, 0.9)])
    sail = np.array([(0.06, -1.0), (0.95, 0.25), (0.06, 0.25)])
    jib = np.array([(-0.08, -0.75), (-0.08, 0.25), (-0.75, 0.25)])
    return [(True, hull), (True, sail), (True, jib), (True, _box(-0.1, -1, 0.08, 0.5))]


def _flower():
    return [(True, _polar(lambda angle: 0.72 + 0.28 * math.cos(5 * angle), 90))]


SILHOUETTES = {
    "star": _star,
    "ring": _ring,
    "leaf": _leaf,
    "gear": _gear,
    "bottle": _bottle,
    "fish": _fish,
    "cross": _cross,
    "crescent": _crescent,
    "key": _key,
    "house": _house,
    "mushroom": _mushroom,
    "heart": _heart,
    "arrow": _arrow,
    "hourglass": _hourglass,
    "butterfly": _butterfly,
    "crown": _crown,
    "cloud": _cloud,
    "bell": _bell,
    "boat": _boat,
    "flower": _flower,
}
