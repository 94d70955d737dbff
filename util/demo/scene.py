"""Pictures of the demo dataset: patterned objects in front of a textured background, with a mask.

Everything random comes from the `numpy.random.RandomState` that is passed in (NumPy's legacy
generator, whose stream is frozen). Pictures may differ in the last bit between OpenCV versions.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import RandomState

from util.data.folds import IGNORE
from util.demo.background import draw_background, random_colour
from util.demo.shapes import SAMPLES, coverage, silhouette

Hues = tuple[float, float]

_LUMA = np.array([0.30, 0.59, 0.11], np.float32)
# Range of an object's area as a share of the picture, by the number of objects in it.
_AREAS = {1: (0.12, 0.34), 2: (0.11, 0.23), 3: (0.085, 0.14)}
_ODD_COLOURS = 0.05  # share of the objects that come in any colours
_HUE_SPREAD = 15  # degrees around a usual hue
_MIN_PIXELS = 2300  # labelled pixels every object keeps: the protocol counts a class from 2048


class SceneObject(NamedTuple):
    """An object to draw."""

    class_id: int  # its value in the mask
    pattern: str  # a key of PATTERNS
    shape: str  # a key of SILHOUETTES
    hues: Hues  # the usual hues of the pattern's two colours, in degrees


class _Placement(NamedTuple):
    """Where an object is drawn: `alpha`, float32 (height, width), is its share of each pixel."""

    drawn: SceneObject
    matrix: np.ndarray
    centre: np.ndarray
    alpha: np.ndarray


def draw_scene(
    rng: RandomState, objects: list[SceneObject], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw objects, later ones in front.

    The first of the one to three objects is always drawn; another one is left out where there is
    no room for it.

    Returns:
        The RGB image, uint8 (height, width, 3), and the mask, uint8 (height, width): 0, class ids,
        and 255 along the outlines.
    """
    placements, label = _place(rng, objects, height, width)
    unit = max(height, width) / 220
    image, tone = draw_background(rng, height, width, unit)
    light = rng.uniform(0, 2 * math.pi)
    for placement in placements:
        _shade_shadow(rng, image, placement.alpha, light, unit)
        surface = _surface(rng, placement, tone, light, unit)
        image += placement.alpha[..., None] * (surface - image)
    return _photograph(rng, image, light, unit), label


def _place(
    rng: RandomState, objects: list[SceneObject], height: int, width: int
) -> tuple[list[_Placement], np.ndarray]:
    label = np.zeros((height, width), np.uint8)
    placements: list[_Placement] = []
    for drawn in objects:
        area = height * width * rng.uniform(*_AREAS[len(objects)])
        area = max(area, 1.4 * _MIN_PIXELS)
        pose = _pose(rng)
        for attempt in range(60):
            if attempt % 10 == 0:
                matrix = pose * math.sqrt(area)
                sprite = _sprite(drawn.shape, matrix)
                area *= 0.85
            far = 0.35 * rng.uniform(0, 1, 2) ** 0.7  # away from the middle: room for the others
            share = np.where(rng.uniform(0, 1, 2) < 0.5, 0.5 - far, 0.5 + far)
            centre = np.rint(share * (width, height)).astype(np.int64)
            samples = _paste(sprite, centre, height, width)
            if samples.sum(dtype=np.int64) < 0.92 * sprite.sum(dtype=np.int64):
                continue  # too much of it would lie outside the picture
            trial = _paint(label, samples, drawn.class_id)
            if _all_visible(trial, drawn.class_id, label):
                label = trial
                alpha = samples.astype(np.float32) / SAMPLES**2
                placements.append(_Placement(drawn, matrix, centre, alpha))
                break
    return placements, label


def _sprite(shape: str, matrix: np.ndarray) -> np.ndarray:
    """Return the samples of a silhouette, its origin in the middle of a square of even side."""
    parts = silhouette(shape)
    reach = max(np.abs(polygon @ matrix.T).max() for _, polygon in parts)
    half = math.ceil(reach) + 1
    return coverage(parts, matrix, (half, half), 2 * half, 2 * half)


def _paste(sprite: np.ndarray, centre: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return an empty (height, width) canvas with the sprite's middle at the corner `centre`."""
    half, (x, y) = len(sprite) // 2, centre
    canvas = np.zeros((height + 2 * half, width + 2 * half), np.uint8)
    canvas[y : y + 2 * half, x : x + 2 * half] = sprite
    return canvas[half:-half, half:-half]


def _pose(rng: RandomState) -> np.ndarray:
    """Draw a rotation, shear, aspect and mirroring of determinant ±1, (2, 2)."""
    angle, shear = rng.uniform(-0.85, 0.85), rng.uniform(-0.25, 0.25)
    stretch = math.sqrt(rng.uniform(0.8, 1.25))
    mirror = 1 if rng.uniform() < 0.5 else -1
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn @ np.array([[mirror * stretch, shear], [0, 1 / stretch]])


def _paint(label: np.ndarray, samples: np.ndarray, class_id: int) -> np.ndarray:
    """Return the mask with one more object in front, its outline two pixels of IGNORE."""
    inside = (2 * samples.astype(np.int32) > SAMPLES**2).astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    painted = label.copy()
    painted[cv2.dilate(inside, kernel) == 1] = IGNORE
    painted[cv2.erode(inside, kernel) == 1] = class_id
    return painted


def _all_visible(trial: np.ndarray, class_id: int, label: np.ndarray) -> bool:
    """Return whether the new object is large enough and the earlier ones keep 85% of their area."""
    before, after = np.bincount(label.ravel(), minlength=256), np.bincount(trial.ravel())
    earlier = [c for c in np.flatnonzero(before) if c not in (0, IGNORE)]
    kept = all(after[c] >= max(_MIN_PIXELS, 0.85 * before[c]) for c in earlier)
    return kept and bool(after[class_id] >= _MIN_PIXELS)


def _stripe(phase: np.ndarray, width: float = 0.5) -> np.ndarray:
    return width / 2 - np.abs(phase - np.floor(phase) - 0.5)


def _checked(u: np.ndarray, v: np.ndarray, depth: np.ndarray) -> np.ndarray:
    a, b = _stripe(u / 1.3), _stripe(v / 1.3)
    return 1.3 * np.sign(a * b) * np.minimum(np.abs(a), np.abs(b))


# Each takes object coordinates u, v in periods and the depth below the outline in periods, and
# returns the signed distance in periods to the border between the two colours (positive: second).
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "striped": lambda u, v, depth: _stripe(u),
    "dotted": lambda u, v, depth: 0.33 - np.hypot(u - np.rint(u), v - np.rint(v)),
    "checked": _checked,
    "netted": lambda u, v, depth: (
        1.15 * np.maximum(_stripe(u / 1.15, 0.36), _stripe(v / 1.15, 0.36))
    ),
    "zigzag": lambda u, v, depth: 0.75 * _stripe(v + 1.4 * np.abs(u / 1.6 - np.rint(u / 1.6))),
    "ringed": lambda u, v, depth: _stripe(np.hypot(u, v)),
    "rayed": lambda u, v, depth: (
        np.hypot(u, v) * (2 * math.pi / 9) * _stripe(np.arctan2(u, v) * 9 / (2 * math.pi))
    ),
    "rimmed": lambda u, v, depth: 0.55 - depth,
}
_CENTRED = ("ringed", "rayed")  # patterns about the object's centre, which no shift may move


def _surface(
    rng: RandomState, placement: _Placement, tone: np.ndarray, light: float, unit: float
) -> np.ndarray:
    """Draw the object's colours at every pixel of the picture, float32 (height, width, 3)."""
    (_, pattern, _, hues), matrix, centre, alpha = placement
    height, width = alpha.shape
    scale = math.sqrt(abs(np.linalg.det(matrix)))
    period = unit * float(np.clip(scale / unit / 5, 15, 21)) * rng.uniform(0.92, 1.08)
    inverse = np.linalg.inv(matrix) * scale / period
    x = (np.arange(width) + 0.5 - centre[0]).astype(np.float32)[None]
    y = (np.arange(height) + 0.5 - centre[1]).astype(np.float32)[:, None]
    shift = np.zeros(2) if pattern in _CENTRED else rng.uniform(0, 1, 2)
    u = np.float32(inverse[0, 0]) * x + np.float32(inverse[0, 1]) * y + np.float32(shift[0])
    v = np.float32(inverse[1, 0]) * x + np.float32(inverse[1, 1]) * y + np.float32(shift[1])
    inside = (alpha > 0.5).astype(np.uint8)
    depth = cv2.distanceTransform(np.pad(inside, 1, mode="edge"), cv2.DIST_L2, 5)[1:-1, 1:-1]
    share = np.clip(PATTERNS[pattern](u, v, depth / period) * period + 0.5, 0, 1)[..., None]
    first, second = _object_colours(rng, hues, tone)
    slope = (x * math.cos(light) + y * math.sin(light)) / scale
    shade = 1 - rng.uniform(0.1, 0.3) * np.clip(slope, -1, 1)[..., None]
    return (first + share * (second - first)) * shade.astype(np.float32)


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return how different two colours look, 0..1: mostly by brightness, partly by hue."""
    delta = (one - other) / 255
    return 0.7 * abs(float(delta @ _LUMA)) + 0.3 * float(np.abs(delta).max())


def _object_colours(
    rng: RandomState, hues: Hues, tone: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw two colours that differ clearly from each other and, the first more, from `tone`."""
    if rng.uniform() < _ODD_COLOURS:
        hues = rng.uniform(0, 360), rng.uniform(0, 360)
    ranges = [(hue - _HUE_SPREAD, hue + _HUE_SPREAD) for hue in hues]

    def contrast(pair: list[np.ndarray]) -> float:
        to_tone = _difference(pair[0], tone) / 0.26, _difference(pair[1], tone) / 0.14
        return min(_difference(*pair) / 0.38, *to_tone, 1.0)

    pairs = [[random_colour(rng, (0.45, 1), (0.3, 1), hue) for hue in ranges] for _ in range(12)]
    first, second = max(pairs, key=contrast)
    return first, second


def _shade_shadow(
    rng: RandomState, image: np.ndarray, alpha: np.ndarray, light: float, unit: float
) -> None:
    """Darken `image` where the object's soft shadow falls, away from the light."""
    reach = unit * rng.uniform(2, 6)
    move = np.array([[1, 0, reach * math.cos(light)], [0, 1, reach * math.sin(light)]], np.float32)
    cast = cv2.warpAffine(alpha, move, alpha.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    soft = cv2.GaussianBlur(cast, (0, 0), 2.5 * unit)
    image *= 1 - (rng.uniform(0.2, 0.45) * soft)[..., None]


def _photograph(rng: RandomState, image: np.ndarray, light: float, unit: float) -> np.ndarray:
    """Add uneven light, a tint, a little blur and sensor noise; returns uint8."""
    height, width = image.shape[:2]
    x, y = np.linspace(-0.5, 0.5, width)[None], np.linspace(-0.5, 0.5, height)[:, None]
    fall = 1 - rng.uniform(0, 0.35) * (x * math.cos(light) + y * math.sin(light))
    gain = rng.uniform(0.82, 1.15) * rng.uniform(0.94, 1.06, 3)
    lit = image * (fall[..., None] * gain).astype(np.float32)
    if rng.uniform() < 0.3:
        lit = cv2.GaussianBlur(lit, (0, 0), 0.8 * unit)
    grain = rng.randint(-128, 128, image.shape).astype(np.float32)
    return np.clip(np.rint(lit + grain * rng.uniform(0.01, 0.07)), 0, 255).astype(np.uint8)
