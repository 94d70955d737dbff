"""More than 254 classes, a folder of binary masks per class, and classes of each part."""

import random

import numpy as np
import pytest

from tests.util.prepare_files import write_image
from util.config import load_config
from util.data.dataset import read_pair
from util.data.folds import Fold, base_label_table, fold_classes
from util.data.images import check_labels
from util.data.lists import MaskForm, load_lists, parse_entries, read_entries
from util.data.loaders import build_base_data, build_episodes, learner_classes, mask_form
from util.evaluation.episode_parts import EpisodeParts
from util.runtime.errors import UserError

SIZE = (40, 56)
SIZES = ("train_h", "train_w", "val_size", "base_h", "base_w")
OPTS = ["backbone", "resnet18", "workers", "0", *(word for key in SIZES for word in (key, "33"))]


def region(top, left, height=16, width=20):
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def config(root, *settings):
    """The settings of lists and images under a folder."""
    (root / "one.yaml").write_text("Train: {data_set: mine}\n")
    places = ["data_root", str(root), "list_dir", str(root / "cache"), "min_pixels", "1"]
    places += [word for part in ("train", "val") for word in (f"{part}_list", f"{root}/list.txt")]
    return load_config(root / "one.yaml", [*OPTS, *places, *settings])


@pytest.fixture
def wide(tmp_path):
    """Index masks of 300 classes; 65,535 is ignored, and 255 is a class."""
    lines = []
    for number in range(6):
        write_image(tmp_path / f"i/{number}.png", np.full((*SIZE, 3), 40 * number, np.uint8))
        mask = np.zeros(SIZE, np.uint16)
        mask[region(2, 4)] = (255, 300)[number % 2]
        mask[region(22, 30)] = (7, 65535)[number % 2]
        write_image(tmp_path / f"m/{number}.png", mask)
        lines.append(f"i/{number}.png m/{number}.png\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    """Images of a cat (class 2) and, in every second one, an ant (class 1) in front of it."""
    lines = []
    for number in range(6):
        write_image(tmp_path / f"i/{number}.png", np.full((*SIZE, 3), 40 * number, np.uint8))
        write_image(tmp_path / f"m/cat/{number}.png", region(2, 4) * np.uint8(255))
        lines.append(f"i/{number}.png m/cat/{number}.png\n")
        if number % 2:
            write_image(tmp_path / f"m/ant/{number}.png", region(10, 14).astype(np.uint8))
            lines.append(f"i/{number}.png m/ant/{number}.png\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    return tmp_path


def test_more_than_254_classes_are_index_masks_of_16_bits(wide):
    cfg = config(wide, "num_classes", "300", "folds", "[[7, 255], [300]]", "base_learner", "none")
    episodes = build_episodes(cfg, "test", testing=True)
    assert episodes.lists.present == [(7, 255)] * 3
    for class_id, place in ((255, (2, 4)), (7, (22, 30))):
        label = episodes.load(0, class_id, [1], None)["label"].numpy()
        assert (label == region(*place)).all()
    item = build_episodes(cfg, "train", testing=False).load(0, 300, [1], random)
    assert {*item["query_mask"].unique().tolist()} == {0, 1, 255}
    assert {*item["base_mask"].unique().tolist()} == {0, 255}
    with pytest.raises(UserError, match=r"299 base classes .* at most 254: set base_learner none"):
        learner_classes(config(wide, "num_classes", "300", "folds", "[[7]]"))


@pytest.mark.parametrize("resized", [True, False])
def test_queries_keep_class_ids_of_16_bits_at_either_size(wide, resized):
    settings = ("num_classes", "300", "folds", "seen", "resized_val", str(resized))
    episodes = build_episodes(config(wide, *settings), "test", testing=True)
    query = EpisodeParts(episodes, original_size=False).query(1)
    assert query.classes == 1 and query.mask.shape == (33, 33)
    assert {*np.unique(query.mask).tolist()} == {0, 300, 65535}
    assert resized or (query.mask[query.fitted[0] :] == 65535).all()
    _, support = EpisodeParts(episodes).annotated(1, 300)
    assert (support == np.where(region(22, 30), 255, region(2, 4))).all()


def test_values_beyond_the_classes_are_named_with_what_is_ignored(wide):
    place = (str(wide), str(wide / "list.txt"), fold_classes(299, "seen", 0), "val", str(wide))
    with pytest.raises(UserError, match=r"1\.png holds the value 300; .*1\.\.299, .*65535 is ign"):
        load_lists(*place, form=MaskForm(299))
    with pytest.raises(UserError, match=r"holds the value 300; class ids are 0\.\.255"):
        load_lists(*place)
    check_labels(np.array([[255, 65535]], np.uint16), 299, "")


FOLDERS = ["num_classes", "2", "class_names", "[ant,cat]", "masks", "folders"]


def test_folders_of_binary_masks_need_no_index_masks(folders):
    cfg = config(folders, *FOLDERS, "folds", "seen")
    entries = read_entries(cfg.data_root, cfg.val_list, mask_form(cfg))
    assert len(entries) == 9 and entries[1] == ("i/1.png", "m/cat/1.png")
    cat, ant = (read_pair(cfg.data_root, entry)[1] for entry in entries[1:3])
    # Where they overlap, the class of the line is on top.
    assert (cat == np.where(region(2, 4), 2, region(10, 14))).all()
    assert (ant == np.where(region(10, 14), 1, 2 * region(2, 4))).all()
    lists = build_episodes(cfg, "test", testing=True).lists
    assert lists.present == [(2,), (2,), (1,), (2,), (2,), (1,), (2,), (2,), (1,)]
    cfg = config(folders, *FOLDERS, "folds", "seen", "base_batch_size", "2")
    _, images = build_base_data(cfg)
    assert len(images) == 6
    assert {*images[1]["label"].unique().tolist()} == {0, 1, 2}


@pytest.mark.parametrize(("rule", "images"), [("drop", (0, 2, 4)), ("background", range(6))])
def test_other_lines_of_an_image_tell_whether_it_is_mixed(folders, rule, images):
    cfg = config(folders, *FOLDERS, "folds", "[[1], [2]]", "mixed_images", rule)
    episodes = build_episodes(cfg, "train", testing=False)
    assert [image for image, _ in episodes.lists.entries] == [f"i/{n}.png" for n in images]
    if rule == "background":
        ignoring = build_episodes(
            config(folders, *FOLDERS, "folds", "[[1], [2]]", "mixed_images", "ignore"),
            "train",
            False,
        )
        assert ignoring.ignored == (1,)


def test_another_order_of_the_classes_counts_again(folders):
    for names, present in (("[ant,cat]", (2,)), ("[cat,ant]", (1,))):
        cfg = config(folders, *FOLDERS, "folds", "seen", "class_names", names)
        assert build_episodes(cfg, "val", testing=True).lists.present[0] == present


def test_a_mask_in_no_folder_of_a_class_is_named(folders):
    entries, problems = parse_entries(str(folders), str(folders / "list.txt"), MaskForm(1, ["cat"]))
    assert len(entries) == 6
    assert problems[0] == "mask m/ant/1.png is in no folder of a class; see class_names"


def test_classes_of_each_part_are_a_fold():
    folds = {"train": [3, 1], "val": [2], "test": [5, 4]}
    fold = fold_classes(5, folds, 0)
    assert fold == Fold(base=(1, 3), novel=(4, 5), val=(2,)) and fold.num_classes == 5
    assert [fold.classes(part) for part in ("train", "val", "test")] == [(1, 3), (2,), (4, 5)]
    assert fold.held_out == (2, 4, 5)
    assert base_label_table(fold)[[1, 2, 3, 4, 255]].tolist() == [1, 0, 2, 0, 255]
    del folds["val"]
    assert fold_classes(4, folds | {"test": [2, 4]}, 0).classes("val") == (2, 4)
    for wrong in ({"train": [1, 2]}, {"train": [1], "test": [1, 2]}, {"train": [1], "test": [3]}):
        with pytest.raises(UserError, match=r"train, val and test have to hold the classes 1\.\.2"):
            fold_classes(2, wrong, 0)
