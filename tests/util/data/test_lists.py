import gzip
import json
import multiprocessing
import os
from hashlib import sha256

import cv2
import numpy as np
import pytest

import util.data.list_cache
from tests.paths import DATA, ROOT
from tests.util.voc_files import mask_of, write_dataset
from util.config import load_config
from util.data.cells import Grid
from util.data.folds import Fold, fold_classes
from util.data.list_cache import load_counts
from util.data.lists import (
    ImageLists,
    Rules,
    check_enough,
    existing_entries,
    filter_entries,
    load_lists,
    read_entries,
)
from util.data.loaders import config_fold, list_rules
from util.runtime.errors import UserError

GOLDEN = json.loads((DATA / "golden_data.json").read_text())["lists"]
PASCAL_LISTS = json.loads((DATA / "pascal_lists.json").read_text())
FOLD = Fold(base=(2, 3), novel=(1,))
SEEN = fold_classes(3, "seen", 0)
GRID = Grid(64, 8, 8)  # the corner of each 8×8 block of the masks here


@pytest.fixture
def masks_read(monkeypatch):
    """Paths of the masks read so far."""
    paths = []
    read = util.data.list_cache.read_labels

    def counting(root, entry, **options):
        paths.append(os.path.join(root, entry[1]))
        return read(root, entry, **options)

    monkeypatch.setattr(util.data.list_cache, "read_labels", counting)
    return paths


def load(root, list_file, part="train", fold=FOLD, min_pixels=100, grid=GRID, **rules):
    rules = Rules(min_pixels, **rules)
    return load_lists(str(root), list_file, fold, part, str(root / "lists"), rules, grid)


@pytest.mark.parametrize("key", GOLDEN)
def test_lists_equal_the_published_ones(key, tiny_lists):
    part, split = key.split("_")
    _, lists = tiny_lists(part, int(split))
    assert [list(entry) for entry in lists.entries] == GOLDEN[key]["data_list"]
    files = {
        str(class_id): [list(lists.entries[i]) for i in indices]
        for class_id, indices in lists.class_files.items()
    }
    assert files == GOLDEN[key]["sub_class_file_list"]


def test_filter_rules(tmp_path):
    list_file = write_dataset(
        tmp_path,
        {
            "exactly enough": mask_of((2, 100)),
            "too small": mask_of((2, 99)),
            "with a speck of a held-out class": mask_of((2, 500), (1, 1)),
            "one big one small": mask_of((3, 200), (2, 5), (255, 50)),
            "held out and base": mask_of((1, 100), (3, 300)),
            "background": mask_of(),
        },
    )
    train = load(tmp_path, list_file)
    assert [image for image, _ in train.entries] == [
        "exactly enough image.png",
        "one big one small image.png",
    ]
    assert train.present == [(2,), (2, 3)]
    assert train.class_files == {2: [0], 3: [1]}
    val = load(tmp_path, list_file, "val")
    assert val.entries == [("held out and base image.png", "held out and base mask.png")]
    assert val.present == [(1,)]
    assert val.class_files == {1: [0]}


@pytest.mark.parametrize("rule", ["background", "ignore"])
def test_images_that_also_hold_held_out_classes_can_be_kept(rule, tmp_path):
    masks = {
        "mixed": mask_of((1, 500), (2, 100), (3, 5)),
        "too small": mask_of((1, 500), (2, 99)),
        "held out": mask_of((1, 500)),
        "pure": mask_of((3, 200)),
    }
    list_file = write_dataset(tmp_path, masks)
    assert [image for image, _ in load(tmp_path, list_file).entries] == ["pure image.png"]
    train = load(tmp_path, list_file, mixed_images=rule)
    assert [image for image, _ in train.entries] == ["mixed image.png", "pure image.png"]
    assert (train.present, train.class_files) == ([(2, 3), (3,)], {2: [0], 3: [1]})
    assert load(tmp_path, list_file, "val", mixed_images=rule) == load(tmp_path, list_file, "val")


def test_a_class_has_to_cover_cells_of_the_grid_too(tmp_path, masks_read):
    square, stripes = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    square[:17, :9], square[40, 40] = 2, 1  # six cells of class 2
    stripes[1::8] = 2  # 512 pixels between the cells
    stripes[0, 0] = 3
    list_file = write_dataset(tmp_path, {"square": square, "stripes": stripes})
    train = load(tmp_path, list_file, mixed_images="background")
    assert train.class_files == {2: [0, 1], 3: []} and len(masks_read) == 2
    for least, files in ((1, [0]), (6, [0])):
        rules = {"mixed_images": "background", "min_cells": least}
        train = load(tmp_path, list_file, **rules)
        assert train.class_files == {2: files, 3: []} and train.present == [(2,)]
    # Each grid has a cache of its own, beside that of the pixels.
    assert len(masks_read) == 4
    with pytest.raises(UserError, match="no image"):
        load(tmp_path, list_file, **rules | {"min_cells": 7})
    finer = load(tmp_path, list_file, **rules | {"min_cells": 7, "grid": Grid(64, 16, 16)})
    assert finer.class_files == {2: [0], 3: []} and len(masks_read) == 6
    names = sorted(path.name[18:] for path in (tmp_path / "lists").glob("*.json"))
    assert names == ["-64-16x16.json", "-64-8x8.json", ".json"]
    # Images of small objects are still queries of the classes that count in them.
    train = load(tmp_path, list_file, min_pixels=0, **rules | {"min_cells": 1})
    assert (train.present, train.class_files) == ([(2,), (2, 3)], {2: [0], 3: [1]})


@pytest.mark.parametrize("part", ["train", "val"])
def test_no_class_held_out_drops_no_image_with_a_counting_class(part, tmp_path):
    masks = {
        "two classes": mask_of((1, 200), (3, 1)),
        "one class": mask_of((3, 100)),
        "too small": mask_of((2, 99)),
    }
    lists = load(tmp_path, write_dataset(tmp_path, masks), part, SEEN)
    assert [image for image, _ in lists.entries] == ["two classes image.png", "one class image.png"]
    assert lists.present == [(1, 3), (3,)]
    assert lists.class_files == {1: [0], 2: [], 3: [1]}


def test_no_usable_image_is_an_error(tmp_path):
    list_file = write_dataset(tmp_path, {"a": mask_of((2, 99))})
    dropped = r"\(classes 2, 3\) and no held-out class; mixed_images background takes those too"
    for fold, ending in ((FOLD, dropped), (SEEN, r"1, 2, 3\)")):
        with pytest.raises(UserError, match=rf"no image of .*train\.txt .*100 pixels.*{ending}$"):
            load(tmp_path, list_file, fold=fold)
    with pytest.raises(UserError, match=r"100 pixels or more on 2 cells .*\(classes 2, 3\)$"):
        load(tmp_path, list_file, mixed_images="background", min_cells=2)


def test_black_and_white_masks_without_preparation_are_named(tmp_path):
    list_file = write_dataset(tmp_path, {"a": mask_of((255, 300)), "b": mask_of()})
    with pytest.raises(UserError, match=r"no mask of .*train\.txt holds a class, only 0 \(back"):
        load(tmp_path, list_file)


def test_a_value_beyond_the_classes_and_an_unreadable_mask_are_named(tmp_path):
    list_file = write_dataset(tmp_path, {"a": mask_of((2, 300)), "b": mask_of((4, 1))})
    with pytest.raises(UserError, match=r"b mask\.png holds the value 4; classes are 1\.\.3"):
        load(tmp_path, list_file)
    (tmp_path / "b mask.png").write_text("no picture")
    with pytest.raises(UserError, match=r"b mask\.png is damaged or truncated"):
        load(tmp_path, list_file)


def test_one_scan_serves_every_fold_and_later_calls(tmp_path, masks_read):
    list_file = write_dataset(tmp_path, {"a": mask_of((2, 300)), "b": mask_of((1, 300))})
    first = load(tmp_path, list_file)
    load(tmp_path, list_file, "val")
    load(tmp_path, list_file, fold=Fold(base=(1, 3), novel=(2,)))
    assert len(masks_read) == 2
    assert load(tmp_path, list_file) == first


def test_masks_whose_counts_are_known_are_not_read(tmp_path, masks_read):
    masks = {name: mask_of((2, 300)) for name in "abc"}
    list_file = write_dataset(tmp_path, masks)
    entries = read_entries(str(tmp_path), list_file)
    place = (str(tmp_path), list_file, entries, str(tmp_path / "lists"))
    known = {entries[0][1]: {3: 7}, entries[2][1]: {2: 300}}
    assert load_counts(*place, known=known) == [{3: 7}, {2: 300}, {2: 300}]
    assert masks_read == [str(tmp_path / "b mask.png")]
    assert load_counts(*place) == [{3: 7}, {2: 300}, {2: 300}] and len(masks_read) == 1


def test_processes_count_as_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(util.data.list_cache, "MASKS_OF_PROCESS", 2)
    masks = {str(number): mask_of((1 + number % 3, 300 + number)) for number in range(9)}
    list_file = write_dataset(tmp_path, masks)
    entries = read_entries(str(tmp_path), list_file)
    found = load_counts(str(tmp_path), list_file, entries, str(tmp_path / "lists"), workers=3)
    assert found == [{1 + number % 3: 300 + number} for number in range(9)]


def test_a_changed_mask_is_read_again_alone(tmp_path, masks_read):
    list_file = write_dataset(tmp_path, {"a": mask_of((2, 300)), "b": mask_of((2, 300))})
    load(tmp_path, list_file)
    masks_read.clear()
    changed = tmp_path / "b mask.png"
    size = changed.stat().st_size
    cv2.imwrite(str(changed), mask_of((3, 300)))
    assert changed.stat().st_size == size, "the size alone must not give the change away"
    os.utime(changed, ns=(0, 1))
    assert load(tmp_path, list_file).class_files == {2: [0], 3: [1]}
    assert masks_read == [str(changed)]


def test_a_changed_list_is_read_again_and_the_cache_moves_with_the_data(tmp_path, masks_read):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    load(here, write_dataset(here, {"a": mask_of((2, 300)), "b": mask_of((3, 300))}))
    list_file = write_dataset(here, {"b": mask_of((3, 300)), "c": mask_of((3, 400))})
    lists = load(here, list_file)
    assert [image for image, _ in lists.entries] == ["b image.png", "c image.png"]
    masks_read.clear()
    here.rename(there)
    assert load(there, str(there / "train.txt")) == lists
    assert masks_read == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1, "masks": [[1, 2]]}'])
def test_a_damaged_cache_is_made_anew(tmp_path, content):
    list_file = write_dataset(tmp_path, {"a": mask_of((2, 300))})
    lists = load(tmp_path, list_file)
    (cache,) = (tmp_path / "lists").glob("*.json")
    good = cache.read_text()
    cache.write_text(content)
    assert load(tmp_path, list_file) == lists
    assert cache.read_text() == good


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    list_file = write_dataset(tmp_path, {"a": mask_of((2, 300))})
    (tmp_path / "lists").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"cannot write the cache .*lists.*list_dir"):
        load(tmp_path, list_file)


def _load_counting(root, list_file, barrier, results):
    reads, bars = [], []
    read, work = util.data.list_cache.read_labels, util.data.list_cache.run_parallel
    util.data.list_cache.read_labels = lambda *words, **_: reads.append(words) or read(*words)
    util.data.list_cache.run_parallel = lambda *words: bars.append(words) or work(*words)
    barrier.wait()
    lists = load(root, list_file)
    results.put((len(reads), len(bars), lists))


def test_of_several_processes_at_once_one_scans(tmp_path):
    masks = {f"{index}": mask_of((2 + index % 2, 300)) for index in range(40)}
    list_file = write_dataset(tmp_path, masks)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=_load_counting, args=(tmp_path, list_file, barrier, results))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    # Those that only waited show no progress bar, either.
    assert sorted(outcome[:2] for outcome in outcomes) == [(0, 0), (0, 0), (40, 1)]
    assert all(lists == load(tmp_path, list_file) for *_, lists in outcomes)
    assert not list((tmp_path / "lists").glob("*.tmp"))


def test_lines_with_blanks_are_cut_where_both_files_exist(tmp_path):
    names = ["my image.png", "my mask.png", "a.png", "b.png", "c  c.png"]
    for name in names:
        (tmp_path / name).touch()
    lines = tmp_path / "list.txt"
    lines.write_text(
        "my image.png my mask.png\n\n a.png   b.png \r\na.png\tmy mask.png\nc  c.png b.png"
    )
    assert read_entries(str(tmp_path), str(lines)) == [
        ("my image.png", "my mask.png"),
        ("a.png", "b.png"),
        ("a.png", "my mask.png"),
        ("c  c.png", "b.png"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png", 'line 2 is not "IMAGE MASK"'),
        ("a b c.png", "line 2 is not .*at no blank"),
        ("a.png\tb.png\tc.png", "line 2 is not .*at no blank"),
        ("a b c", "line 2 is not .*at several blanks"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path, line, message):
    for name in ["a", "b c", "a b", "c"]:
        (tmp_path / name).touch()
    lines = tmp_path / "list.txt"
    lines.write_text(f"x.png y.png\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_entries(str(tmp_path), str(lines))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_lists_may_have_comments_and_be_written_in_other_encodings(tmp_path, encoding):
    (tmp_path / "#1.png").touch()
    lines = ["# IMAGE MASK", "é.png mask.png", "", "#x.png y.png", "#1.png y.png"]
    (tmp_path / "list.txt").write_bytes("\r\n".join(lines).encode(encoding))
    entries = read_entries(str(tmp_path), str(tmp_path / "list.txt"))
    assert entries == [("é.png", "mask.png"), ("#1.png", "y.png")]
    (tmp_path / "list.txt").write_bytes(b"\xff\xfea\0b")
    with pytest.raises(UserError, match=r"list\.txt is no text in UTF-8 or UTF-16: save it as"):
        read_entries(str(tmp_path), str(tmp_path / "list.txt"))


def test_missing_files_are_named_before_any_mask_is_read(tmp_path, masks_read):
    masks = {stem: mask_of((2, 300)) for stem in "abc"}
    list_file = write_dataset(tmp_path, masks)
    (tmp_path / "b image.png").unlink()
    (tmp_path / "c mask.png").unlink()
    for reader in (load, lambda root, path: existing_entries(str(root), path)):
        with pytest.raises(UserError, match=r"b image\.png \(2 of 3 lines\)"):
            reader(tmp_path, list_file)
    assert masks_read == []


def test_missing_list_and_root_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        read_entries(str(tmp_path), str(tmp_path / "nowhere.txt"))
    with pytest.raises(UserError, match=r"data_root .*absent"):
        read_entries(str(tmp_path / "absent"), str(tmp_path / "nowhere.txt"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"empty\.txt is empty"):
        read_entries(str(tmp_path), str(tmp_path / "empty.txt"))


ENTRIES = [("a", "A"), ("b", "B"), ("c", "C")]


def test_a_class_needs_one_file_more_than_supports():
    lists = ImageLists(ENTRIES, [(2,)] * 3, {2: [0, 1, 2], 3: []})
    check_enough(lists, 2)
    text = r"class 2 \(cat\) has 3 usable images in x .*shot 3.*4; it is in 3 of the images that queries"
    with pytest.raises(UserError, match=text):
        check_enough(lists, 3, ["ant", "cat"], where="x")


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (ImageLists(ENTRIES, [(2, 3), (2,), (2,)], {2: [0, 1, 2], 3: []}), "class 3 has 0 usable"),
        (ImageLists([("a", "A")] * 3, [(2,)] * 3, {2: [0, 1, 2]}), "class 2 has 1 usable image in"),
    ],
    ids=["only small in queries", "one image listed twice"],
)
def test_images_that_do_not_count_are_no_supports(lists, message):
    with pytest.raises(UserError, match=message):
        check_enough(lists, 1)


@pytest.fixture(scope="module")
def pascal_masks():
    """Per part the name and the pixels per class of every real mask of PASCAL-5^i, in list order."""
    with gzip.open(DATA / "pascal_masks.json.gz", "rt") as handle:
        return {
            part: [(name, {int(c): n for c, n in pixels.items()}) for name, pixels in masks]
            for part, masks in json.load(handle).items()
        }


@pytest.mark.parametrize("split", range(4))
@pytest.mark.parametrize("part", ["train", "val"])
def test_lists_of_the_real_pascal_equal_those_in_circulation(part, split, pascal_masks):
    cfg = load_config(str(ROOT / f"config/pascal/pascal_split{split}_resnet50.yaml"), [])
    names, counts = zip(*pascal_masks[part], strict=True)
    entries = [(f"{name}.jpg", f"{name}.png") for name in names]
    lists = filter_entries(entries, counts, config_fold(cfg), part, list_rules(cfg))
    names = [image.removesuffix(".jpg") for image, _ in lists.entries]
    files = {c: [names[i] for i in indices] for c, indices in lists.class_files.items()}
    lines = (" ".join([str(c), *files[c]]) for c in sorted(files))
    assert PASCAL_LISTS[f"{part}{split}"] == {
        "images": len(names),
        "sha256": sha256("\n".join(names).encode()).hexdigest(),
        "classes": {str(c): len(of_class) for c, of_class in files.items()},
        "classes_sha256": sha256("\n".join(lines).encode()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [("drop", [4208, 3726, 2752, 4510]), ("background", [4760, 4588, 4097, 5108])],
)
def test_training_images_of_the_real_pascal_are_as_many_as_the_pages_say(rule, sizes, pascal_masks):
    names, counts = zip(*pascal_masks["train"], strict=True)
    entries = [(name, name) for name in names]
    folds = [fold_classes(20, "contiguous", split) for split in range(4)]
    lists = [
        filter_entries(entries, counts, fold, "train", Rules(mixed_images=rule)) for fold in folds
    ]
    assert [len(of_fold.entries) for of_fold in lists] == sizes
    page = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    assert f"| {', '.join(f'{size:,}' for size in sizes)} |" in page
