"""A tiny PASCAL-VOC-shaped dataset, the same on every machine: `python -m tests.tiny_voc FOLDER`.

Writes FOLDER/JPEGImages/*.png (lossless on purpose), FOLDER/SegmentationClassAug/*.png (index masks:
0 background, 1..20 classes, 255 ignore) and FOLDER/train.txt, FOLDER/val.txt in the list format
"IMAGE MASK" per line, both relative to FOLDER.
"""

import os
import sys

import cv2
import numpy as np


def make(folder, train=240, val=200, seed=20):
    rng = np.random.RandomState(seed)
    os.makedirs(f"{folder}/JPEGImages", exist_ok=True)
    os.makedirs(f"{folder}/SegmentationClassAug", exist_ok=True)
    for part, count in (("train", train), ("val", val)):
        lines = []
        for index in range(count):
            height, width = int(rng.randint(96, 150)), int(rng.randint(110, 170))
            yy, xx = np.mgrid[0:height, 0:width]
            image = rng.randint(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
            mask = np.zeros((height, width), np.uint8)
            # cycle through the classes so that each has several images in both parts
            classes = [index % 20 + 1] + ([int(rng.randint(1, 21))] if rng.rand() < 0.5 else [])
            for cls in classes:
                cy, cx = rng.uniform(0.3, 0.7) * height, rng.uniform(0.25, 0.75) * width
                ry, rx = rng.uniform(0.22, 0.38) * height, rng.uniform(0.22, 0.38) * width
                distance = ((yy - cy) / ry) ** 2 + ((xx - cx) / rx) ** 2
                mask[distance <= 1.25] = 255
                mask[distance <= 1.0] = cls
                colour = np.array([37 * cls % 256, 91 * cls % 256, 151 * cls % 256], np.float64)
                inside = distance <= 1.1
                image[inside] = (0.3 * image[inside] + 0.7 * colour).astype(np.uint8)
            name = f"{part}_{index:04d}"
            cv2.imwrite(f"{folder}/JPEGImages/{name}.png", image)
            cv2.imwrite(f"{folder}/SegmentationClassAug/{name}.png", mask)
            lines.append(f"JPEGImages/{name}.png SegmentationClassAug/{name}.png\n")
        with open(f"{folder}/{part}.txt", "w") as handle:
            handle.writelines(lines)


if __name__ == "__main__":
    make(sys.argv[1])
