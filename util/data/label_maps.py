"""Label maps, uint8 (H, W), as pictures: 0 is no class, 1 the first class, 2 the second, …"""

import cv2
import numpy as np
from PIL import Image

# Colours that stay apart under the common colour-vision deficiencies (Okabe and Ito).
_SIX = ((204, 121, 167), (0, 158, 115), (230, 159, 0), (86, 180, 233), (213, 94, 0), (0, 114, 178))
# The colour of each label, uint8 (256, 3): black, then the six again and again.
COLOURS = np.array([(0, 0, 0), *_SIX * 43], np.uint8)[:256]


def index_image(label_map: np.ndarray) -> Image.Image:
    """Return a label map as an image of indices, with a palette by which viewers show colours."""
    image = Image.fromarray(label_map)
    image.putpalette(COLOURS.tobytes())
    return image


def draw_overlay(image: np.ndarray, label_map: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """Return a picture, uint8 (H, W, 3), with each class in a colour and a line around it."""
    mixed = cv2.addWeighted(image, 1 - opacity, COLOURS[label_map], opacity, 0)
    np.copyto(mixed, image, where=label_map[..., None] == 0)
    thickness = max(1, round(max(label_map.shape) / 300))
    for label in np.unique(label_map[label_map > 0]).tolist():
        region = (label_map == label).astype(np.uint8)
        outlines, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(mixed, outlines, -1, COLOURS[label].tolist(), thickness)
    return Image.fromarray(mixed)
