"""The silhouettes of the demo dataset and their rasterisation.

A silhouette is a list of parts `(adds, polygon)`: the polygon, (N, 2) points (x, y) with y down and
all within about [-1, 1], is added to the shape or, where `adds` is False, cut out of it.
"""

import functools
import math
from collections.abc import Callable

import cv2
import numpy as np

Parts = list[tuple[bool, np.ndarray]]

SAMPLES = 4  # samples of a pixel along each axis
_SHIFT = 6  # fractional bits of the corners that OpenCV fills between


def coverage(
    parts: Parts, matrix: np.ndarray, centre: np.ndarray | tuple[int, int], height: int, width: int
) -> np.ndarray:
    """Count the samples of every pixel that lie inside a silhouette.

    Args:
        parts: The silhouette.
        matrix: A (2, 2) matrix from silhouette coordinates to pixels.
        centre: The pixel position (x, y) of the silhouette's origin.
        height: Pixels.
        width: Pixels.

    Returns:
        uint8 (height, width), 0 to SAMPLES².
    """
    inside = np.zeros((height * SAMPLES, width * SAMPLES), np.uint8)
    for adds, polygon in parts:
        # OpenCV's whole numbers are the centres of samples.
        corners = (polygon @ np.asarray(matrix).T + centre) * SAMPLES - 0.5
        fixed = np.rint(corners * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(inside, [fixed], int(adds), shift=_SHIFT)
    return inside.reshape(height, SAMPLES, width, SAMPLES).sum((1, 3), dtype=np.uint8)


@functools.cache
def silhouette(name: str) -> Parts:
    """Return the parts of a silhouette, scaled to an area of 1 around its centre of mass."""
    parts = [(True, polygon) for polygon in SILHOUETTES[name]]
    if name in _HOLES:
        parts.append((False, _HOLES[name]))
    side, scale = 260, 100
    grid = coverage(parts, np.eye(2) * scale, (side // 2, side // 2), side, side)
    weights = grid.astype(np.int64)
    total = int(weights.sum())
    odd = 2 * np.arange(side) + 1
    middle = np.array([weights.sum(axis=axis) @ odd / (2 * total) for axis in (0, 1)])
    origin = (middle - side / 2) / scale
    length = math.sqrt(total / SAMPLES**2) / scale
    return [(adds, (polygon - origin) / length) for adds, polygon in parts]


def _polar(radius: Callable[[float], float], points: int = 72) -> np.ndarray:
    """Return the closed curve radius(angle); the angle starts at the top and runs clockwise."""
    angles = [2 * math.pi * step / points for step in range(points)]
    return np.array([(radius(a) * math.sin(a), -radius(a) * math.cos(a)) for a in angles])


def _ellipse(
    x: float, y: float, rx: float, ry: float | None = None, points: int = 48
) -> np.ndarray:
    """Return an ellipse, or a circle of radius rx."""
    return _polar(lambda angle: 1.0, points) * (rx, ry or rx) + (x, y)


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def _mirrored(*half: tuple[float, float]) -> np.ndarray:
    """Return a polygon symmetric about the vertical axis from its right half, top to bottom."""
    return np.array([*half, *[(-x, y) for x, y in reversed(half)]], float)


def _gear() -> np.ndarray:
    tooth = ((-0.33, 0.74), (-0.2, 1.0), (0.2, 1.0), (0.33, 0.74))
    rim = [(2 * math.pi * (k + turn) / 9, radius) for k in range(9) for turn, radius in tooth]
    return np.array([(radius * math.sin(a), -radius * math.cos(a)) for a, radius in rim])


def _heart() -> np.ndarray:
    def y(a: float) -> float:
        return -13 * math.cos(a) + 5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a)

    angles = [2 * math.pi * step / 64 for step in range(64)]
    return np.array([(16 * math.sin(a) ** 3, y(a)) for a in angles]) / 16


_LEAF = [(0.62 * math.sin(math.pi * t / 20) ** 0.8, t / 12 - 1) for t in range(21)]
_CAP = [(math.sin(a), 0.1 - 0.95 * math.cos(a)) for a in (math.pi * t / 32 for t in range(17))]
_UPPER_WING = np.array([(0.05, 0.12), (0.4, -0.75), (0.75, -0.9), (1.05, -0.75), (0.95, -0.15)])
_LOWER_WING = np.array([(0.05, -0.1), (0.75, 0.1), (0.85, 0.5), (0.55, 0.85), (0.25, 0.6)])
_WALLS = [
    *((0, -0.95), (0.95, -0.1), (0.75, -0.1), (0.75, 0.9), (0.25, 0.9), (0.25, 0.35)),
    *((-0.15, 0.35), (-0.15, 0.9), (-0.75, 0.9), (-0.75, -0.1), (-0.95, -0.1)),
]
_NECK = [(0.22, -1.05), (0.22, -0.85), (0.17, -0.85), (0.17, -0.45)]
_DOME = [(0.0, -0.9), (0.2, -0.87), (0.38, -0.72), (0.48, -0.45), (0.54, 0.05), (0.68, 0.38)]

# The polygons of each silhouette, and below those that are cut out.
SILHOUETTES: dict[str, list[np.ndarray]] = {
    "star": [_polar(lambda angle: (1.0, 0.48)[round(5 * angle / math.pi) % 2], 10)],
    "ring": [_ellipse(0, 0, 1)],
    "leaf": [_mirrored(*_LEAF), _box(-0.08, 0.5, 0.08, 1.05)],
    "gear": [_gear()],
    "bottle": [_mirrored(*_NECK, (0.3, -0.25), (0.46, -0.05), (0.46, 0.95), (0.4, 1.02))],
    "fish": [
        _ellipse(-0.2, 0, 0.8, 0.5),
        np.array([(0.45, 0), (1.05, -0.55), (0.92, 0), (1.05, 0.55)]),
        np.array([(-0.3, -0.35), (0.1, -0.8), (0.35, -0.25)]),
    ],
    "cross": [_box(-0.34, -1, 0.34, 1), _box(-1, -0.34, 1, 0.34)],
    "crescent": [_ellipse(0, 0, 1, points=64)],
    "key": [
        _ellipse(-0.55, 0, 0.52),
        _box(-0.2, -0.18, 1.05, 0.18),
        _box(0.42, 0, 0.64, 0.5),
        _box(0.83, 0, 1.05, 0.5),
    ],
    "house": [np.array(_WALLS), _box(0.4, -0.9, 0.68, -0.3)],
    "mushroom": [_mirrored(*_CAP), _mirrored((0.26, 0.05), (0.26, 0.6), (0.42, 0.95))],
    "heart": [_heart()],
    "arrow": [_mirrored((0, -1.05), (0.8, -0.15), (0.33, -0.15), (0.33, 1.0))],
    "hourglass": [_mirrored((0.72, -1), (0.72, -0.78), (0.14, 0), (0.72, 0.78), (0.72, 1))],
    "butterfly": [
        *(wing * (side, 1) for side in (-1, 1) for wing in (_UPPER_WING, _LOWER_WING)),
        _ellipse(0, 0, 0.13, 0.7),
    ],
    "crown": [_mirrored((0, -0.75), (0.3, -0.05), (0.95, -0.7), (0.75, 0.75))],
    "cloud": [
        *(_ellipse(-0.55, 0.15, 0.42), _ellipse(-0.1, -0.15, 0.5)),
        *(_ellipse(0.4, -0.05, 0.4), _ellipse(0.7, 0.25, 0.32)),
        _box(-0.55, 0.1, 0.7, 0.57),
    ],
    "bell": [
        _mirrored(*_DOME, (0.9, 0.58), (0.9, 0.72)),
        _ellipse(0, 0.75, 0.26),
        _ellipse(0, -0.92, 0.15),
    ],
    "boat": [
        np.array([(-1, 0.4), (1, 0.4), (0.62, 0.9), (-0.62, 0.9)]),
        np.array([(0.06, -1.0), (0.95, 0.25), (0.06, 0.25)]),
        np.array([(-0.08, -0.75), (-0.08, 0.25), (-0.75, 0.25)]),
        _box(-0.1, -1, 0.08, 0.5),
    ],
    "flower": [_polar(lambda angle: 0.72 + 0.28 * math.cos(5 * angle), 90)],
}
_HOLES = {
    "ring": _ellipse(0, 0, 0.5),
    "gear": _ellipse(0, 0, 0.27),
    "crescent": _ellipse(0.5, 0, 0.74, points=64),
    "key": _ellipse(-0.6, 0, 0.2),
}
