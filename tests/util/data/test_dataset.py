import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.util.voc_files import mask_of, write_dataset
from util.data.dataset import BaseDataset, base_label_dir, read_pair
from util.data.folds import Fold
from util.data.images import read_image, read_mask
from util.data.lists import read_entries
from util.data.transform import EvalTransform, base_train_transform
from util.get_mulway_base_data import main, write_base_labels
from util.runtime.errors import UserError

FOLD = Fold(base=(1, 3), novel=(2,))


def test_images_are_rgb(tmp_path):
    path = str(tmp_path / "red.png")
    cv2.imwrite(path, np.full((4, 5, 3), (0, 10, 255), np.uint8))
    image = read_image(path)
    assert image.shape == (4, 5, 3) and image.dtype == np.uint8
    assert image[0, 0].tolist() == [255, 10, 0]


def test_missing_and_unreadable_files_are_named(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    for reader, kind, problem in (
        (read_image, "image", "cannot be read"),
        (read_mask, "mask", "is damaged or truncated"),
    ):
        with pytest.raises(UserError, match=rf"{kind} .*broken\.png {problem}"):
            reader(str(broken))
        with pytest.raises(UserError, match=rf"{kind} .*absent\.png does not exist"):
            reader(str(tmp_path / "absent.png"))


def test_file_names_may_be_any_bytes(tmp_path):
    """cv2.imread of OpenCV 5 ends the process at such a name."""
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (tmp_path / name).write_bytes(cv2.imencode(".png", np.full((2, 3), 3, np.uint8))[1])
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert (read_mask(str(tmp_path / name)) == 3).all()
    assert read_image(str(tmp_path / name)).shape == (2, 3, 3)
    with pytest.raises(UserError, match="does not exist"):
        read_image(str(tmp_path / os.fsdecode(b"th\xe9.png")))
    labels = str(tmp_path / "labels")
    assert write_base_labels(str(tmp_path), [("image.jpg", name)], FOLD, labels) == 1
    assert (read_mask(os.path.join(labels, name)) == 2).all()


def test_sizes_that_differ_are_named(tmp_path):
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((40, 50, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "mask.png"), np.zeros((50, 40), np.uint8))
    with pytest.raises(UserError, match=r"image\.png is 50×40 pixels but .*mask\.png is 40×50"):
        read_pair(str(tmp_path), ("image.png", "mask.png"))


@pytest.fixture
def data(tmp_path):
    """Folder and entries of three images: base and held-out, held-out only, background."""
    masks = {
        "both": mask_of((3, 1000), (2, 500), (255, 64), height=60, width=70),
        "held out": mask_of((2, 800)),
        "nothing": mask_of(),
    }
    list_file = write_dataset(tmp_path, masks, folder="some folder/")
    return tmp_path, read_entries(str(tmp_path), list_file)


def val_dataset(data, folder=None, ignored=(), fold=FOLD):
    root, entries = data
    return BaseDataset(entries, fold, "val", str(root), EvalTransform((33, 33)), folder, ignored)


def test_base_dataset_keeps_every_image_and_maps_labels(data):
    root, entries = data
    dataset = val_dataset(data)
    assert len(dataset) == 3
    item = dataset[0]
    assert item["image"].shape == (3, 33, 33) and item["image"].dtype == torch.float32
    assert item["label"].shape == (60, 70) and item["label"].dtype == torch.uint8
    assert np.bincount(item["label"].ravel(), minlength=256)[[1, 2, 255]].tolist() == [0, 1000, 64]
    assert dataset[1]["label"].sum() == 0

    transform = base_train_transform((33, 41), (0.5, 2.0), (-10, 10))
    item = BaseDataset(entries, FOLD, "train", str(root), transform)[0]
    assert item["image"].shape == (3, 33, 41)
    assert item["label"].shape == (33, 41) and item["label"].dtype == torch.uint8
    assert set(item["label"].unique().tolist()) <= {0, 2, 255}


def test_held_out_classes_can_be_ignored_in_computed_and_stored_labels(data, tmp_path):
    root, entries = data
    folder = base_label_dir(str(tmp_path / "base"), "train", 0)
    write_base_labels(str(root), entries, FOLD, folder)
    for place in (None, folder):
        label = val_dataset(data, place, ignored=(2,))[0]["label"]
        assert np.bincount(label.ravel(), minlength=256)[[1, 2, 255]].tolist() == [0, 1000, 564]


def test_base_dataset_refuses_unknown_classes(data):
    dataset = val_dataset(data, fold=Fold((1,), (2,)))
    with pytest.raises(UserError, match=r"both mask\.png holds the value 3; classes are 1\.\.2"):
        dataset[0]


def test_stored_base_labels_equal_computed_ones(data, tmp_path):
    root, entries = data
    folder = base_label_dir(str(tmp_path / "base"), "val", 0)
    assert write_base_labels(str(root), entries, FOLD, folder) == 3
    stored = read_mask(str(tmp_path / "base" / "val" / "0" / "both mask.png"))
    assert np.bincount(stored.ravel(), minlength=256)[[2, 255]].tolist() == [1000, 64]
    computed, read = val_dataset(data), val_dataset(data, folder)
    for i in range(3):
        assert torch.equal(computed[i]["label"], read[i]["label"])
    # what is read is the file, not the mask
    cv2.imwrite(f"{folder}/nothing mask.png", np.ones((64, 64), np.uint8))
    assert read[2]["label"].min() == 1
    # Writing continues where it stopped.
    os.remove(f"{folder}/both mask.png")
    Path(folder, "nothing mask.png").write_bytes(b"half a file")
    for written in (2, 0):
        assert write_base_labels(str(root), entries, FOLD, folder) == written
    other = Fold(base=(1, 2), novel=(3,))
    assert write_base_labels(str(root), entries, other, folder) == 2
    assert [name[-4:] for name in os.listdir(folder)] == [".png"] * 3


def test_base_labels_that_are_missing_or_mis_sized_are_named(data, tmp_path):
    folder = tmp_path / "base"
    with pytest.raises(UserError, match="base does not exist; write it with python -m"):
        val_dataset(data, str(folder))
    folder.mkdir()
    dataset = val_dataset(data, str(folder))
    with pytest.raises(UserError, match=r"both mask\.png does not exist"):
        dataset[0]
    cv2.imwrite(str(folder / "both mask.png"), np.zeros((70, 60), np.uint8))
    with pytest.raises(UserError, match=r"70×60 pixels but .* is 60×70"):
        dataset[0]


def test_masks_of_one_name_cannot_be_stored(tmp_path):
    entries = [("a.png", "x/m.png"), ("b.png", "y/m.png"), ("c.png", "x/m.png")]
    with pytest.raises(UserError, match=r"masks x/m\.png and y/m\.png share a file name"):
        write_base_labels(str(tmp_path), entries, FOLD, str(tmp_path))
    with pytest.raises(UserError, match="share a file name"):
        BaseDataset(entries, FOLD, "val", str(tmp_path), None, str(tmp_path))


def test_the_command_writes_both_parts(data, tmp_path, error_line):
    root, _ = data
    val_list = write_dataset(root, {"v": mask_of((1, 5))}, "val.txt")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"Data:\n  data_root: {root}\n  train_list: {root}/train.txt\n  val_list: {val_list}\n"
        "  num_classes: 3\n  folds: [[1], [2]]\nTrain:\n  data_set: mine\n  split: 1\n"
    )
    assert "base_data_root is not set" in error_line(main, ["--config", str(config)])
    out = tmp_path / "out"
    main(["--config", str(config), "--opts", "base_data_root", str(out)])
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.png")) == [
        "train/1/both mask.png",
        "train/1/held out mask.png",
        "train/1/nothing mask.png",
        "val/1/v mask.png",
    ]
    assert np.unique(read_mask(str(out / "train/1/both mask.png"))).tolist() == [0, 2, 255]
