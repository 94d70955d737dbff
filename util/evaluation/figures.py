"""Pictures of episodes: supports with masks, query, truth, prediction and correlation maps.

Colours stay apart under the common colour-vision deficiencies: those of Okabe and Ito for the masks,
viridis for the maps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from util.data.folds import IGNORE
from util.evaluation.metrics import confusion, foreground_iou
from util.evaluation.sheet import grid_block, make_panel, paint, rows_block
from util.runtime.files import write_atomically

SUPPORT_COLOUR = (230, 159, 0)
TRUTH_COLOUR = (0, 158, 115)
PREDICTION_COLOUR = (204, 121, 167)

PANEL_HEIGHT = 220
CONTACT_HEIGHT = 130
_HEAT = 0.65  # share of the map's colour over the grey query
_PER_ROW = 5


class EpisodePicture(NamedTuple):
    """What there is to see of an episode.

    query: uint8 (H, W, 3) RGB; supports: one or more such images, each of its own size;
    support_masks: one (H, W) mask for each; truth, prediction: (H, W) masks of the query. Masks hold
    1 = the class, 0 = other, 255 = ignore. title: the class, and what else to say, of any length.
    correlations: maps (h, w) over the whole query, coarsest first, in the order of
    `HDMNetOutput.correlations`; arrays or tensors on the CPU.
    """

    query: np.ndarray
    supports: Sequence[np.ndarray]
    support_masks: Sequence[np.ndarray]
    truth: np.ndarray
    prediction: np.ndarray
    title: str = ""
    correlations: Sequence[np.ndarray] = ()


def overlay(image, mask, colour):
    """A copy of `image`, uint8 (H, W, 3) RGB, tinted where `mask` (H, W) is 1, ignored pixels hatched.

    The tint has a contour of full colour inside the mask; where the mask is 255 there are grey
    diagonal stripes; everywhere else the pixels stay as they are.
    """
    mask = np.asarray(mask)
    painted = np.array(image, np.uint8)
    inside = (mask == 1).astype(np.uint8)
    thickness = 2 * max(1, round(min(mask.shape) / 110)) + 1
    core = cv2.erode(inside, np.ones((thickness, thickness), np.uint8))
    tint = 0.5 * painted[core == 1] + 0.5 * np.array(colour)
    painted[core == 1] = np.rint(tint).astype(np.uint8)
    painted[(inside == 1) & (core == 0)] = colour
    y, x = np.nonzero(mask == IGNORE)
    painted[y, x] = np.where(((x + y) // 3 % 2 == 0)[:, None], 128, 200)
    return painted


def heat_map(image, values):
    """`values` (h, w) as colours over the grey `image`, uint8 (H, W, 3) RGB, of the same extent.

    The map is stretched to the image; its lowest value is dark blue, its highest yellow (viridis).
    """
    values = np.asarray(values, np.float32)
    height, width = image.shape[:2]
    values = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
    low, high = values.min(), values.max()
    levels = np.rint(255 * (values - low) / (high - low or 1)).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[..., None]
    return np.rint(_HEAT * colours + (1 - _HEAT) * grey).astype(np.uint8)


def draw_episode(
    path, query, supports, support_masks, truth, prediction, title="", correlations=()
):
    """Write an episode as one PNG; missing folders on the way to `path` are made.

    The arguments are those of `EpisodePicture`. The panels have one height and run from the supports
    to the prediction, in several rows where they are many, with the correlation maps below; the
    prediction's caption holds its foreground IoU, those of the maps their size and highest value.
    Raises ValueError for no support and for a mask of another size than its image.
    """
    episode = EpisodePicture(query, supports, support_masks, truth, prediction, title, correlations)
    _write_png(path, _episode_block(episode, PANEL_HEIGHT))


def draw_contact_sheet(path, episodes, title=""):
    """Write several `EpisodePicture` as one PNG, in reading order, each under its title.

    Raises ValueError for no episode and as `draw_episode`.
    """
    if not episodes:
        raise ValueError("no episodes to draw")
    blocks = [_episode_block(episode, CONTACT_HEIGHT) for episode in episodes]
    _write_png(path, grid_block(blocks, title))


def _write_png(path, block):
    data = cv2.imencode(".png", paint(block)[..., ::-1])[1]
    write_atomically(path, data.tobytes())


def _episode_block(episode, height):
    supports, support_masks = episode.supports, episode.support_masks
    if not len(supports) or len(supports) != len(support_masks):
        raise ValueError(f"{len(supports)} supports with {len(support_masks)} masks")
    maps = (episode.query, episode.truth, episode.prediction)
    query, truth, prediction = map(np.asarray, maps)
    images = [np.asarray(image) for image in supports]
    masks = [np.asarray(mask) for mask in support_masks]
    for image, mask in [*zip(images, masks, strict=True), (query, truth), (query, prediction)]:
        if image.shape != (*mask.shape, 3):
            raise ValueError(f"image {image.shape} and mask {mask.shape} do not belong together")
    shots = [
        _panel(
            image,
            f"support {number}" if len(images) > 1 else "support",
            height,
            mask,
            SUPPORT_COLOUR,
        )
        for number, (image, mask) in enumerate(zip(images, masks, strict=True), 1)
    ]
    rest = [
        _panel(query, "query", height),
        _panel(query, "truth", height, truth, TRUTH_COLOUR),
        _panel(
            query, _prediction_caption(prediction, truth), height, prediction, PREDICTION_COLOUR
        ),
    ]
    rows = [shots[k : k + _PER_ROW] for k in range(0, len(shots), _PER_ROW)]
    rows = [[*rows[0], *rest]] if len(shots) + len(rest) <= _PER_ROW else [*rows, rest]
    if len(episode.correlations):
        rows.append([_correlation_panel(query, values, height) for values in episode.correlations])
    return rows_block(rows, episode.title)


def _prediction_caption(prediction, truth):
    counts = confusion(prediction == 1, truth, 2)
    union = counts.sum() - counts[0, 0]
    return f"prediction, IoU {100 * foreground_iou(counts):.1f}" if union else "prediction"


def _panel(image, caption, height, mask=None, colour=None):
    """The image scaled to the panel's height, with its mask scaled and laid over it."""
    picture = _scaled(image, height)
    if mask is not None:
        size = picture.shape[1::-1]
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        picture = overlay(picture, small, colour)
    return make_panel(picture, caption, height)


def _correlation_panel(query, values, height):
    values = np.asarray(values, np.float32)
    caption = f"correlation {values.shape[1]}×{values.shape[0]}, max {values.max():.1f}"
    return make_panel(heat_map(_scaled(query, height), values), caption, height)


def _scaled(image, height):
    """The image at the height of its panel, or lower so that it is at most twice as wide as that."""
    scale = min(height / image.shape[0], 2 * height / image.shape[1])
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=interpolation)
