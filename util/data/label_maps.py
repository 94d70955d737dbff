"""Label maps, uint8 (H, W), as pictures: 0 is no class, 1 the first class, 2 the second, …"""

import cv2
import numpy as np
from PIL import Image

# Colours that stay apart under the common colour-vision deficiencies (Okabe and Ito).
COLOURS = np.array(
    [(204, 121, 167), (0, 158, 115), (230, 159, 0), (86, 180, 233), (213, 94, 0), (0, 114, 178)],
    np.uint8,
)


def index_image(label_map: np.ndarray) -> Image.Image:
    """Return a label map as an image of indices, with a palette by which viewers show colours."""
    image = Image.fromarray(label_map)
    palette = np.zeros((256, 3), np.uint8)
    palette[1:] = COLOURS[np.arange(255) % len(COLOURS)]
    image.putpalette(palette.tobytes())
    return image


def draw_overlay(image: np.ndarray, label_map: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """Return a picture, uint8 (H, W, 3), with each class in a colour and a line around it."""
    mixed = image.copy()
    thickness = max(1, round(max(label_map.shape) / 300))
    for label in np.unique(label_map[label_map > 0]).tolist():
        region, colour = label_map == label, COLOURS[(label - 1) % len(COLOURS)]
        mixed[region] = (1 - opacity) * mixed[region] + opacity * colour
        outlines, _ = cv2.findContours(
            region.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(mixed, outlines, -1, colour.tolist(), thickness)
    return Image.fromarray(mixed)
