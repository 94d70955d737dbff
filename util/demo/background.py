"""Backgrounds of the demo dataset: six kinds of texture and clutter that belongs to no class."""

import math

import cv2
import numpy as np
from numpy.random import RandomState


def draw_background(
    rng: RandomState, height: int, width: int, unit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a background of `height` × `width` pixels.

    The `unit` is the scale of the texture, 1 for a picture whose longer side is 220 pixels.

    Returns:
        The background, float32 (height, width, 3) RGB 0..255, and its mean colour (3,) before the
        clutter is drawn.
    """
    field = TEXTURES[rng.randint(len(TEXTURES))](rng, height, width, unit)
    far = random_colour(rng, (0.05, 0.5), (0.3, 0.85))
    near = np.clip(far + rng.uniform(-55, 55) + rng.uniform(-20, 20, 3), 20, 240)
    image = (far + field[..., None] * (near - far)).astype(np.float32)
    tone = image.mean(axis=(0, 1))
    _add_clutter(rng, image, tone)
    return image, tone


def random_colour(
    rng: RandomState,
    saturation: tuple[float, float],
    value: tuple[float, float],
    hue: tuple[float, float] = (0, 360),
) -> np.ndarray:
    """Draw an RGB colour, float32 (3,) 0..255; hue in degrees, the other ranges are shares of 1."""
    pixel = [rng.uniform(*hue) % 360, rng.uniform(*saturation), rng.uniform(*value)]
    return cv2.cvtColor(np.array([[pixel]], np.float32), cv2.COLOR_HSV2RGB)[0, 0] * 255


def _noise(rng: RandomState, height: int, width: int, cell_y: float, cell_x: float) -> np.ndarray:
    """Draw smooth noise in 0..1 with features about (cell_y, cell_x) pixels large."""
    grid = rng.uniform(0, 1, (int(height / cell_y) + 3, int(width / cell_x) + 3))
    large = cv2.resize(
        grid.astype(np.float32),
        (math.ceil(grid.shape[1] * cell_x), math.ceil(grid.shape[0] * cell_y)),
        interpolation=cv2.INTER_CUBIC,
    )
    return large[int(cell_y) :, int(cell_x) :][:height, :width]


def _clouds(rng: RandomState, height: int, width: int, unit: float) -> np.ndarray:
    cell = unit * rng.uniform(35, 70)
    parts = [_noise(rng, height, width, cell / 2**k, cell / 2**k) / 2**k for k in range(3)]
    return sum(parts) / 1.75


def _slope(rng: RandomState, height: int, width: int, unit: float) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    x, y = np.linspace(-0.5, 0.5, width)[None], np.linspace(-0.5, 0.5, height)[:, None]
    ramp = (0.5 + 0.7 * (x * math.cos(angle) + y * math.sin(angle))).astype(np.float32)
    return 0.85 * ramp + 0.15 * _noise(rng, height, width, 4 * unit, 4 * unit)


def _planks(rng: RandomState, height: int, width: int, unit: float) -> np.ndarray:
    upright = rng.uniform() < 0.5
    if upright:
        height, width = width, height
    thickness = unit * rng.uniform(34, 60)
    board = (np.arange(height) / thickness + rng.uniform()).astype(np.int64)
    tones = rng.uniform(0.2, 0.8, board.max() + 1)[board].astype(np.float32)
    tones[1:][np.diff(board) > 0] = 0.0
    field = 0.6 * tones[:, None] + 0.4 * _noise(rng, height, width, 3 * unit, 40 * unit)
    return field.T if upright else field


def _cells(rng: RandomState, height: int, width: int, unit: float) -> np.ndarray:
    sites = rng.uniform(-0.1, 1.1, (22, 2)) * (height, width)
    tones = rng.uniform(0, 1, 22).astype(np.float32)
    y, x = np.mgrid[0:height:4, 0:width:4]
    distance = (y[..., None] - sites[:, 0]) ** 2 + (x[..., None] - sites[:, 1]) ** 2
    return cv2.resize(tones[distance.argmin(axis=-1)], (width, height))


def _tiles(rng: RandomState, height: int, width: int, unit: float) -> np.ndarray:
    size = unit * rng.uniform(44, 66)
    shift = rng.uniform(0, 1, 2)
    x, y = np.arange(width) / size + shift[0], np.arange(height) / size + shift[1]
    gap_x, gap_y = np.abs(x - np.rint(x)) * size, np.abs(y - np.rint(y)) * size
    grout = np.minimum(gap_x[None], gap_y[:, None]) < 1.2 * unit
    tones = rng.uniform(0.3, 0.7, (int(y[-1]) + 1, int(x[-1]) + 1)).astype(np.float32)
    tiles = tones[y.astype(np.int64)[:, None], x.astype(np.int64)[None]]
    return np.where(grout, np.float32(0.1), tiles + 0.25 * _noise(rng, height, width, 9, 9) - 0.12)


def _gravel(rng: RandomState, height: int, width: int, unit: float) -> np.ndarray:
    fine = _noise(rng, height, width, 2.5 * unit, 2.5 * unit)
    return 0.55 * fine + 0.45 * _noise(rng, height, width, 50 * unit, 50 * unit)


TEXTURES = (_clouds, _slope, _planks, _cells, _tiles, _gravel)


def _add_clutter(rng: RandomState, image: np.ndarray, tone: np.ndarray) -> None:
    """Paint plain blobs, rods and scraps, none of them patterned, into `image`."""
    height, width = image.shape[:2]
    side = math.sqrt(height * width)
    sizes = [*rng.uniform(0.03, 0.085, rng.randint(3, 9)), *rng.uniform(0.1, 0.16, rng.randint(2))]
    for size in sizes:
        centre, angle = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0, 360)
        kind, half = rng.randint(3), size * side
        if kind == 0:
            axes = (half, half * rng.uniform(0.5, 1))
            circle = np.asarray(cv2.ellipse2Poly((0, 0), (100, 100), 0, 0, 360, 12))
            points = circle / 100 * axes
        elif kind == 1:
            long, short = half * 1.8, half * rng.uniform(0.2, 0.35)
            points = np.array([(-long, -short), (long, -short), (long, short), (-long, short)])
        else:
            turns = np.sort(rng.uniform(0, 2 * math.pi, 5))
            points = half * np.stack([np.cos(turns), np.sin(turns)], axis=1)
        turn = cv2.getRotationMatrix2D((0, 0), angle, 1)[:, :2]
        corners = np.rint((points @ turn.T + centre) * 16).astype(np.int32)
        cover = np.zeros((height, width), np.uint8)
        cv2.fillPoly(cover, [corners], 255, cv2.LINE_AA, shift=4)
        colour = tone + rng.uniform(0.45, 0.9) * (random_colour(rng, (0, 0.9), (0.15, 0.95)) - tone)
        image += (cover.astype(np.float32) / 255)[..., None] * (colour - image)
