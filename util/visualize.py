"""Pictures of episodes: supports with their masks, query, truth and prediction side by side."""

import cv2
import numpy as np

from util.files import write_atomically
from util.folds import IGNORE
from util.metrics import confusion

# Colours (RGB) that stay apart under the common colour-vision deficiencies (Okabe and Ito).
SUPPORT_COLOUR = (230, 159, 0)
TRUTH_COLOUR = (0, 158, 115)
PREDICTION_COLOUR = (204, 121, 167)

PANEL_HEIGHT = 220
GAP = 8
CAPTION = 24
_PANEL_WIDTHS = (110, 440)  # a panel's width stays in this range; the picture is padded to it
_PER_ROW = 5
_TITLE = 32
_PAPER, _PADDING, _INK = 255, 225, 30
_FONT = cv2.FONT_HERSHEY_SIMPLEX


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


def draw_episode(path, query, supports, support_masks, truth, prediction, title=""):
    """Write an episode as one PNG; missing folders on the way to `path` are made.

    `query`: uint8 (H, W, 3) RGB; `supports`: one or more such images, each of its own size;
    `support_masks`: one (H, W) mask for each; `truth`, `prediction`: (H, W) masks of the query.
    Masks hold 1 = the class, 0 = other, 255 = ignore. The panels have one height and run from the
    supports to the prediction, in several rows where they are many; the prediction's caption holds
    its foreground IoU. Raises ValueError for no support and for a mask of another size than its
    image.
    """
    if not len(supports) or len(supports) != len(support_masks):
        raise ValueError(f"{len(supports)} supports with {len(support_masks)} masks")
    query, truth, prediction = np.asarray(query), np.asarray(truth), np.asarray(prediction)
    images = [np.asarray(image) for image in supports]
    masks = [np.asarray(mask) for mask in support_masks]
    for image, mask in [*zip(images, masks, strict=True), (query, truth), (query, prediction)]:
        if image.shape != (*mask.shape, 3):
            raise ValueError(f"image {image.shape} and mask {mask.shape} do not belong together")
    shots = [
        _panel(image, f"support {number}" if len(images) > 1 else "support", mask, SUPPORT_COLOUR)
        for number, (image, mask) in enumerate(zip(images, masks, strict=True), 1)
    ]
    rest = [
        _panel(query, "query"),
        _panel(query, "truth", truth, TRUTH_COLOUR),
        _panel(query, _prediction_caption(prediction, truth), prediction, PREDICTION_COLOUR),
    ]
    rows = [shots[k : k + _PER_ROW] for k in range(0, len(shots), _PER_ROW)]
    rows = [[*rows[0], *rest]] if len(shots) + len(rest) <= _PER_ROW else [*rows, rest]
    data = cv2.imencode(".png", _assemble(rows, title)[..., ::-1])[1]
    write_atomically(path, data.tobytes())


def _prediction_caption(prediction, truth):
    counts = confusion(prediction == 1, truth, 2)
    union = counts.sum() - counts[0, 0]
    return f"prediction, IoU {100 * counts[1, 1] / union:.1f}" if union else "prediction"


def _panel(image, caption, mask=None, colour=None):
    """A caption over the image scaled to PANEL_HEIGHT, with its mask scaled and laid over it."""
    height, width = image.shape[:2]
    low, high = _PANEL_WIDTHS
    scale = min(PANEL_HEIGHT / height, high / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = cv2.resize(np.ascontiguousarray(image), size, interpolation=shrink)
    if mask is not None:
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        picture = overlay(picture, small, colour)
    panel_width = max(low, size[0], _text_width(caption, 0.5) + 4)
    panel = np.full((CAPTION + PANEL_HEIGHT, panel_width, 3), _PAPER, np.uint8)
    panel[CAPTION:] = _PADDING
    left, top = (panel_width - size[0]) // 2, CAPTION + (PANEL_HEIGHT - size[1]) // 2
    panel[top : top + size[1], left : left + size[0]] = picture
    _write(panel, caption, 2, CAPTION - 8, 0.5)
    return panel


def _assemble(rows, title):
    widths = [sum(panel.shape[1] + GAP for panel in row) + GAP for row in rows]
    top = _TITLE if title else GAP
    height = top + len(rows) * (CAPTION + PANEL_HEIGHT + GAP)
    sheet = np.full((height, max(widths), 3), _PAPER, np.uint8)
    if title:
        _write_title(sheet, title)
    for number, row in enumerate(rows):
        y, x = top + number * (CAPTION + PANEL_HEIGHT + GAP), GAP
        for panel in row:
            sheet[y : y + panel.shape[0], x : x + panel.shape[1]] = panel
            x += panel.shape[1] + GAP
    return sheet


def _write_title(sheet, title):
    """The title on the first line: smaller if it is long, and cut with dots if that is not enough."""
    room = sheet.shape[1] - 2 * GAP
    scale = max(0.45, min(0.65, 0.65 * room / max(1, _text_width(title, 0.65))))
    shown = title
    while shown and _text_width(shown, scale) > room:
        shown = f"{shown.removesuffix('...')[:-1]}..." if len(shown) > 4 else ""
    _write(sheet, shown, GAP, _TITLE - 10, scale)


def _text_width(text, scale):
    return cv2.getTextSize(text, _FONT, scale, 1)[0][0]


def _write(image, text, x, y, scale):
    cv2.putText(image, text, (x, y), _FONT, scale, (_INK,) * 3, 1, cv2.LINE_AA)
