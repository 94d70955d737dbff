"""VOC 2012 and SBD in little: the folders and formats of the real ones, a few images."""

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from tests.util.prepare_files import noise, write_image
from util.data.lists import read_entries
from util.preparation.pascal import voc_colour

HEIGHT, WIDTH = 48, 64
ODD = "2008_ü 1"  # an id with a letter beyond ASCII and a blank


def area(class_id, rows=40):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2 : 2 + rows, 3:60] = class_id
    return mask


def outlined(class_id):
    mask = area(255)
    mask[3:41, 4:59] = class_id
    return mask


VOC = {
    "2007_1": outlined(3),  # train, also in SBD
    "2007_2": outlined(15),  # train, not in SBD
    ODD: outlined(20),  # train, not in SBD, a true-colour mask
    "2007_4": outlined(1),  # val, also in SBD
    "2007_5": outlined(7),  # val
}
SBD = {
    "2007_1": area(3),
    "2007_4": area(1),
    "2008_3": area(12),
    "2008_2": area(9),
    "2008_9": area(10),  # val of VOC's detection task only
}
TRAIN = ["2007_1", "2008_2", "2008_3", "2007_2", ODD]
VAL = ["2007_4", "2007_5"]


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_palette_png(path, mask, mode="P"):
    image = Image.fromarray(mask)
    image.putpalette([value for class_id in range(256) for value in voc_colour(class_id)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path)


def write_mat(path, mask, field="Segmentation", name="GTcls"):
    """As in SBD: a structure with an array of sparse boundaries, the mask, the classes present."""
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = csc_matrix(mask == index + 1, dtype=np.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    present = np.unique(mask[(mask > 0) & (mask < 255)])[:, None]
    content = {"Boundaries": boundaries, field: mask, "CategoriesPresent": present}
    savemat(path, {name: content}, do_compression=True)


def write_voc_and_sbd(folder):
    """Write FOLDER/VOCdevkit/VOC2012 and FOLDER/benchmark_RELEASE/dataset."""
    voc, sbd = folder / "VOCdevkit" / "VOC2012", folder / "benchmark_RELEASE" / "dataset"
    for stem, mask in VOC.items():
        path = voc / "SegmentationClass" / f"{stem}.png"
        write_palette_png(path, mask, "RGB" if stem == ODD else "P")
        write_image(voc / "JPEGImages" / f"{stem}.jpg", noise((HEIGHT, WIDTH)))
    for stem, mask in SBD.items():
        write_mat(sbd / "cls" / f"{stem}.mat", mask)
        write_image(sbd / "img" / f"{stem}.jpg", noise((HEIGHT, WIDTH)))
    write_image(voc / "JPEGImages" / "2008_2.jpg", noise((HEIGHT, WIDTH)))
    lists = voc / "ImageSets"
    write_lines(lists / "Segmentation" / "train.txt", ["2007_2", ODD, "2007_1", ""])
    write_lines(lists / "Segmentation" / "val.txt", ["2007_5", "2007_4"])
    write_lines(lists / "Main" / "val.txt", ["2007_5", "2007_4", "2008_9"])
    write_lines(sbd / "train.txt", ["2008_3", "2007_4", "2007_1"])
    write_lines(sbd / "val.txt", ["2008_9", "2008_2", "2007_1"])


def stems(root, part):
    """The image ids of ROOT/lists/PART.txt."""
    return [
        image.removeprefix("JPEGImages/").removesuffix(".jpg")
        for image, _ in read_entries(str(root), str(root / "lists" / f"{part}.txt"))
    ]
