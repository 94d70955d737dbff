"""Small datasets for tests: masks of given content, blank images, a list file."""

import cv2
import numpy as np


def write_dataset(root, masks, name="train.txt", folder=""):
    """Write masks (file stem → (H, W) uint8) with images of their size; returns the list file."""
    lines = []
    for stem, mask in masks.items():
        image_name, mask_name = f"{folder}{stem} image.png", f"{folder}{stem} mask.png"
        (root / image_name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / image_name), np.zeros((*mask.shape, 3), np.uint8))
        cv2.imwrite(str(root / mask_name), mask)
        lines.append(f"{image_name}\t{mask_name}\n")
    list_file = root / name
    list_file.write_text("".join(lines))
    return str(list_file)


def mask_of(*areas, height=64, width=64):
    """A mask whose first areas[i][1] pixels are class areas[i][0], one after the other."""
    flat = np.zeros(height * width, np.uint8)
    start = 0
    for class_id, pixels in areas:
        flat[start : start + pixels] = class_id
        start += pixels
    return flat.reshape(height, width)
