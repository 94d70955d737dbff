"""segmenter.py: the numbers of test.py, every kind of input, and errors that name the support."""

import io
import threading

import cv2
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from model import build_hdmnet
from model.backbone import find_backbone
from segmenter import FewShotSegmenter, Result, Support, SupportSet
from tests.paths import ROOT
from tests.small_model import SIZE, small_episodes, small_net
from util.checkpoints.io import load_backbone
from util.checkpoints.published_names import to_published
from util.config import dump_config, load_config
from util.data.draws import draw_test_episodes
from util.evaluation.plan import plan_units
from util.evaluation.predictor import Predictor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def episodes(tiny_voc, tmp_path_factory):
    return {
        shot: small_episodes(tiny_voc, tmp_path_factory.mktemp("lists"), shot) for shot in (1, 2)
    }


@pytest.fixture(scope="module")
def nets(episodes):
    return {shot: small_net(episodes[shot]) for shot in (1, 2)}


@pytest.fixture(scope="module")
def seg(nets):
    return FewShotSegmenter(nets[1], SIZE, "resnet18", "cpu")


@pytest.fixture(scope="module")
def pair():
    """A picture of a red disk on a blue texture, and the mask of the disk."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 60, (80, 120, 3), dtype=np.uint8)
    image[..., 2] += 120
    mask = np.zeros((80, 120), np.uint8)
    cv2.circle(mask, (60, 40), 25, 1, cv2.FILLED)
    image[mask == 1] = (200, 30, 30)
    return image, mask == 1


def supports_of(episodes, draw):
    """The supports of a drawn episode in the order in which the model gets them."""
    entries = [episodes.lists.entries[index] for index in reversed(draw.supports)]
    root = f"{episodes.data_root}/"
    return [
        Support(root + image, mask=np.asarray(Image.open(root + mask)) == draw.class_id)
        for image, mask in entries
    ]


def query_of(episodes, draw):
    return f"{episodes.data_root}/{episodes.lists.entries[draw.index][0]}"


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


@pytest.mark.slow
@pytest.mark.parametrize(("trained", "shot"), [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_masks_are_those_of_the_test(episodes, nets, trained, shot):
    of_shot, net = episodes[shot], nets[trained]
    draws = draw_test_episodes(of_shot.lists, shot, 6, 3, 0)
    tested = net
    if trained != shot:
        tested = build_hdmnet("resnet18", 15, shot=shot, trained_shot=trained, kshot_trans_dim=None)
        state = {k: v for k, v in net.state_dict().items() if "shot_weights" not in k}
        tested.load_state_dict(state)
    predictor = Predictor(tested, of_shot, CPU)
    units = plan_units(draws, 1, range(len(draws)))
    predictions = {p.position: p for unit in predictor.predict(draws, units) for p in unit}
    seg = FewShotSegmenter(net, SIZE, device="cpu")
    seen = set()
    for position, draw in enumerate(draws):
        result = seg.segment(query_of(of_shot, draw), seg.fit(supports_of(of_shot, draw)))
        assert np.array_equal(result.mask, predictions[position].final == 1)
        for own, tests in zip(
            result.correlations["object"], predictions[position].correlations, strict=True
        ):
            assert np.array_equal(own, tests.numpy())
        seen |= set(np.unique(result.mask))
    assert seen == {False, True}


@pytest.fixture(scope="module")
def two_classes(episodes, seg):
    """Supports of two classes, one and two of them, and some queries."""
    one, two = draw_test_episodes(episodes[2].lists, 2, 40, 0, 0)[:40:20]
    given = {"first": supports_of(episodes[2], one)[:1], "second": supports_of(episodes[2], two)}
    return given, [query_of(episodes[2], one), query_of(episodes[2], two)]


def test_classes_share_one_pass_of_the_backbone(seg, two_classes, monkeypatch):
    given, queries = two_classes
    supports, passes = seg.fit(given), []
    alone = {name: seg.segment(queries[0], seg.fit(given[name])) for name in given}
    encode = seg.net.encode_query
    monkeypatch.setattr(seg.net, "encode_query", lambda images: passes.append(1) or encode(images))
    result = seg.segment(queries[0], supports)
    assert len(passes) == 1 and result.classes == supports.classes == ("first", "second")
    for label, name in enumerate(given):
        assert torch.equal(result.logits[label], alone[name].logits[0])
        assert np.abs(result.probabilities[name] - alone[name].probability).max() < 1e-6
    probabilities = np.stack(list(result.probabilities.values()))
    assert np.array_equal(result.probability, probabilities.max(0))
    found = probabilities.max(0) > 0.5
    assert np.array_equal(result.label_map, np.where(found, probabilities.argmax(0) + 1, 0))
    assert np.array_equal(result.mask, found)


def test_one_gives_one_a_list_a_list_and_an_iterator_streams(seg, two_classes):
    given, queries = two_classes
    supports, read = seg.fit(given["first"]), []
    listed = seg.segment(queries, supports)
    assert isinstance(listed, list) and len(listed) == 2
    assert np.array_equal(seg.segment(queries[1], supports).mask, listed[1].mask)

    def stream():
        for number in range(10**9):
            read.append(number)
            yield queries[number % 2]

    results = seg.segment(stream(), supports, batch_size=2)
    assert not read
    for one in listed:
        assert np.abs(next(results).probability - one.probability).max() < 1e-5
    assert read == [0, 1]


@pytest.mark.slow
def test_threads_share_a_segmenter(seg, two_classes):
    given, queries = two_classes
    sets = [seg.fit(given["first"]), seg.fit(given["second"]), seg.fit(given)]
    expected = [seg.segment(queries[0], supports).label_map for supports in sets]
    found: dict = {}

    def work(number):
        supports = seg.fit([given["first"], given["second"], given][number % 3])
        found[number] = seg.segment(queries[0], supports).label_map

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[number], expected[number % 3]) for number in range(6))


@pytest.mark.slow
def test_supports_are_saved_and_loaded(seg, two_classes, tmp_path):
    given, queries = two_classes
    supports = seg.fit(given)
    supports.save(tmp_path / "supports.safetensors")
    again = SupportSet.load(tmp_path / "supports.safetensors")
    assert again.classes == supports.classes and again.size == SIZE
    for name in given:
        for mask, other in zip(supports.masks[name], again.masks[name], strict=True):
            assert np.array_equal(mask, other)
    first, second = (seg.segment(queries[1], one) for one in (supports, again))
    assert torch.equal(first.logits, second.logits)
    torch.manual_seed(1)
    other = FewShotSegmenter(build_hdmnet("resnet18", 15), SIZE, device="cpu")
    with pytest.raises(ValueError, match="encoded by other weights"):
        other.segment(queries[1], again)
    (tmp_path / "text").write_text("no supports")
    safetensors.torch.save_file({}, tmp_path / "other", {"classes": "no JSON"})
    for name in ("text", "missing", "other"):
        with pytest.raises(ValueError, match=f"{name} is no file of SupportSet.save"):
            SupportSet.load(tmp_path / name)
    with pytest.raises(ValueError, match="x cannot be written: "):
        supports.save(tmp_path / "text" / "x")


@pytest.mark.slow
def test_weights_come_from_files_runs_and_folders(nets, tmp_path):
    net, folder = nets[2], tmp_path / "run" / "snapshot"
    folder.mkdir(parents=True)
    state = net.state_dict()
    cfg = load_config("config/demo/demo_split0_resnet18.yaml", ["shot=2", "val_size=41"])
    dump_config(cfg, tmp_path / "run" / "config.yaml")
    torch.save({"state_dict": state, "shot": 2}, folder / "best_epoch_1_0.5000.pth")
    own = {"state_dict": state, "shot": 2, "backbone": "resnet18", "size": 65}
    torch.save(own | {"kshot_order": "restored"}, tmp_path / "own.pth")
    torch.save({"state_dict": to_published(state)}, tmp_path / "published.pth")
    sizes = {"run": 41, "own.pth": 65, "published.pth": 473}
    for name, size in sizes.items():
        seg = FewShotSegmenter.from_pretrained(tmp_path / name, device="cpu")
        assert (seg.size, seg.backbone, seg.net.ensemble.shot) == (size, "resnet18", 2)
        order = "restored" if name == "own.pth" else "sorted"
        assert seg.net.ensemble.kshot_order == order
        assert all(torch.equal(value, state[key]) for key, value in seg.net.state_dict().items())
    seg = FewShotSegmenter.from_pretrained(tmp_path / "own.pth", device="cpu")
    seg.save_pretrained(tmp_path / "shared")
    again = FewShotSegmenter.from_pretrained(tmp_path / "shared", device="cpu", size=57)
    assert (again.size, again.weights) == (57, seg.weights)
    assert again.net.ensemble.kshot_order == "restored"
    assert "| backbone | resnet18 |" in (tmp_path / "shared" / "README.md").read_text("utf-8")
    with pytest.raises(ValueError, match=r"weights a/b/c.pth: there is no such file"):
        FewShotSegmenter.from_pretrained("a/b/c.pth")
    with pytest.raises(ValueError, match=r"weights owner/name: .* the Hugging Face Hub gave none"):
        FewShotSegmenter.from_pretrained("owner/name", local_files_only=True)
    torch.save({"state_dict": net.base.state_dict()}, tmp_path / "base.pth")
    with pytest.raises(ValueError, match="another kind, base learner; needed here: HDMNet"):
        FewShotSegmenter.from_pretrained(tmp_path / "base.pth")


@pytest.mark.slow
def test_weights_come_from_the_hub(seg, tmp_path, hub):
    seg.save_pretrained(tmp_path / "shared")
    for file, name in (("config.json", "/config.json"), ("model.safetensors", "")):
        hub.files[f"owner/name{name}"] = (tmp_path / "shared" / file).read_bytes()
    again = FewShotSegmenter.from_pretrained("owner/name", device="cpu")
    assert (again.size, again.backbone, again.weights) == (SIZE, "resnet18", seg.weights)


@pytest.mark.slow
def test_a_backbone_whose_licence_forbids_sharing_is_saved_by_reference(tmp_path, hub, monkeypatch):
    entry = find_backbone("timm:test_vit")._replace(licence="dinov3-license")
    monkeypatch.setattr("util.checkpoints.trained.find_backbone", lambda name: entry)
    public = timm.create_model("test_vit").state_dict()
    hub.files["timm/test_vit.r160_in1k"] = safetensors.torch.save(public)
    net = build_hdmnet("timm:test_vit", 0)
    seg = FewShotSegmenter(net, 160, "timm:test_vit", "cpu")
    with pytest.raises(ValueError, match=r"has learned, .* dinov3-license, restricts"):
        seg.save_pretrained(tmp_path / "shared")
    file = tmp_path / "public.safetensors"
    file.write_bytes(hub.files["timm/test_vit.r160_in1k"])
    load_backbone(net.base.backbone, file)
    seg = FewShotSegmenter(net, 160, "timm:test_vit", "cpu")
    seg.save_pretrained(tmp_path / "shared")
    saved = safetensors.torch.load_file(tmp_path / "shared" / "model.safetensors")
    assert saved and not any("backbone" in key for key in saved)
    again = FewShotSegmenter.from_pretrained(tmp_path / "shared", device="cpu")
    assert again.weights == seg.weights
    with pytest.raises(ValueError, match=r"size 161: timm:test_vit takes .* the nearest is 160"):
        seg.fit(Support(np.zeros((8, 8, 3), np.uint8), mask=np.ones((8, 8))), size=161)
    hub.files["timm/test_vit.r160_in1k"] = safetensors.torch.save(
        timm.create_model("test_vit").state_dict()
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="trained with other weights of the backbone"):
        FewShotSegmenter.from_pretrained(tmp_path / "shared", device="cpu")


def test_torch_hub_finds_it(nets, tmp_path):
    torch.save({"state_dict": nets[1].state_dict(), "size": SIZE}, tmp_path / "weights.pth")
    seg = torch.hub.load(str(ROOT), "hdmnet", source="local", weights=tmp_path / "weights.pth")
    assert isinstance(seg, FewShotSegmenter) and seg.size == SIZE


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ({}, "exactly one of mask, box, points and scribble, not none of them"),
        ({"box": (1, 2, 3, 4), "points": (5, 6)}, "not box and points"),
        ({"mask": np.zeros((80, 120))}, "the mask is empty"),
        ({"mask": np.ones((120, 80))}, "the mask is 80×120 pixels and its picture 120×80; if the"),
        ({"mask": np.ones((80, 120, 3))}, r"an array of a mask or scribble is \(H, W\)"),
        ({"mask": "missing.png"}, "missing.png cannot be read as a mask: .*No such file"),
        ({"box": (10, 10, 130, 50)}, "box 10,10,130,50 is no x0,y0,x1,y1 within the picture of"),
        ({"box": (50, 10, 20, 50)}, "box 50,10,20,50 is no x0,y0,x1,y1"),
        ({"box": (1, 2, 3)}, "a box is 4 numbers"),
        ({"points": [(5, 90)]}, "point 5,90 is outside the picture of 120×80 pixels"),
        ({"points": [(5, 6)], "labels": [1, 1]}, "one label, 0 or 1, for each of 1 points"),
        ({"points": [(5, 6)], "labels": [0]}, "no pixel of the object is marked by the points"),
        ({"mask": np.ones((80, 120)), "labels": [1]}, "labels belong to points"),
        ({"mask": np.full((80, 120), np.nan)}, "holds values that are no finite numbers"),
        ({"scribble": np.full((80, 120), 2)}, "no pixel of the object is marked by the scribble"),
    ],
)
def test_a_wrong_support_is_named(seg, pair, marks, message):
    image, mask = pair
    good = Support(image, mask=mask)
    with pytest.raises(ValueError, match=rf"^supports\[1\]: .*{message}"):
        seg.fit([good, Support(image, **marks)])
    with pytest.raises(ValueError, match=rf"^supports\['b'\]\[0\]: .*{message}"):
        seg.fit({"a": good, "b": [Support(image, **marks)]})


def test_wrong_pictures_and_settings_are_named(seg, pair, tmp_path):
    image, mask = pair
    (tmp_path / "text.jpg").write_text("no picture")
    supports = seg.fit(Support(image, mask=mask))
    for picture, message in (
        (tmp_path / "text.jpg", "text.jpg is damaged or truncated, or of a kind that is not read"),
        (str(tmp_path / "missing.jpg"), "there is no file .*missing.jpg"),
        (image[..., :2], r"uint8 \(H, W, 3\), RGB, not uint8 \(80, 120, 2\)"),
        (image.astype(float), "not float64"),
        (torch.zeros(80, 120, 3), r"\(3, H, W\), RGB, not \(80, 120, 3\)"),
        (torch.randn(3, 8, 8), r"lies in \[0, 1\], without normalisation"),
    ):
        with pytest.raises(ValueError, match=message):
            seg.segment(picture, supports)
    with pytest.raises(ValueError, match="supports is of type ndarray, not what fit returned"):
        seg.segment(supports, image)
    with pytest.raises(ValueError, match="a picture is a path"):
        seg.segment([5], supports)
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG")
    with pytest.raises(ValueError, match="the PIL image is damaged or truncated"):
        seg.segment(Image.open(io.BytesIO(data.getvalue()[:-400])), supports)
    whole = torch.tensor(image).permute(2, 0, 1) / 255
    assert seg.segment(whole.bfloat16(), supports).shape == (80, 120)
    for given in ("a.jpg", ["a.jpg"], [(image, mask)]):
        with pytest.raises(
            ValueError, match=r"supports\[0\] is of type (str|tuple), not a Support"
        ):
            seg.fit(given)
    for options in ({"threshold": 0}, {"threshold": 1.5}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=r"the (threshold|batch size) "):
            seg.segment(image, supports, **options)
    for nothing in ([], {}, {"a": []}):
        with pytest.raises(ValueError, match=r"is empty|0 classes"):
            seg.fit(nothing)
    speck = np.zeros((80, 120))
    speck[41, 61] = 1
    with pytest.raises(
        ValueError, match=r"supports\[0\]: the object is too small, 1 of 9600 pixels"
    ):
        seg.fit([Support(image, mask=speck)])


def test_a_box_points_and_a_scribble_become_the_object(pair):
    image, mask = pair
    scribble = np.zeros(mask.shape, np.uint8)
    scribble[35:45, 50:70], scribble[5:8, 5:100] = 255, 2
    for marks, least in (
        ({"box": (33, 13, 87, 67)}, 0.95),
        ({"box": [(33, 13, 87, 67), (32, 12, 88, 68)]}, 0.95),
        ({"points": (60, 40)}, 0.95),
        ({"points": [(60, 40), (5, 5)], "labels": [1, 0]}, 0.95),
        ({"scribble": scribble}, 0.95),
    ):
        found = [Support(image, **marks).load()[1] for _ in range(2)]
        assert iou(found[0], mask) > least and np.array_equal(*found)
    boxes = Support(image, box=[(33, 13, 87, 67), (0, 0, 4, 5)], refine=False).load()[1]
    assert boxes.sum() == 54 * 54 + 20 and boxes[13:67, 33:87].all() and boxes[:5, :4].all()
    assert Support(image, scribble=scribble, refine=False).load()[1].sum() == 200
    disk = Support(image, points=(60, 40), refine=False).load()[1]
    assert disk[40, 60] and 90 < disk.sum() < 130
    # Where GrabCut has no colours to tell apart, the box itself is left.
    plain = np.full((40, 40, 3), 90, np.uint8)
    for region in ((5, 5, 20, 20), (0, 0, 40, 40)):
        x0, y0, x1, y1 = region
        assert Support(plain, box=region).load()[1].sum() == (x1 - x0) * (y1 - y0)


def test_pictures_of_all_kinds_are_read_as_a_viewer_shows_them(pair, tmp_path):
    image, _ = pair
    Image.fromarray(image).save(tmp_path / "rgb.png")
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    alike = [tmp_path / "rgb.png", str(tmp_path / "rgb.png"), Image.fromarray(image), image, tensor]
    alike.append(tensor / 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: the file holds the picture lying on its side.
    for suffix in ("png", "jpg"):
        path = tmp_path / f"turned.{suffix}"
        Image.fromarray(np.rot90(image)).save(path, exif=exif, quality=100, subsampling=0)
    alike += [tmp_path / "turned.png", Image.open(tmp_path / "turned.png")]
    rgba = np.dstack([image, np.full(image.shape[:2], 9, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    alike += [tmp_path / "rgba.png", Image.fromarray(rgba)]
    mask = np.ones(image.shape[:2])
    for picture in alike:
        assert np.array_equal(Support(picture, mask=mask).load()[0], image)
    turned = Support(tmp_path / "turned.jpg", mask=mask).load()[0]
    assert np.abs(turned.astype(int) - image).mean() < 4

    grey = Image.fromarray(image).convert("L")
    palette = Image.fromarray(image // 64 * 64).quantize(64)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for name, written in {"grey": grey, "palette": palette, "sixteen": sixteen}.items():
        written.save(tmp_path / f"{name}.png")
        shown = np.asarray((grey if name == "sixteen" else written).convert("RGB"))
        for picture in (tmp_path / f"{name}.png", written):
            assert np.array_equal(Support(picture, mask=mask).load()[0], shown), name
    with pytest.raises(ValueError, match="mode F has no fixed range"):
        Support(Image.fromarray(np.ones((8, 8), np.float32)), mask=np.ones((8, 8))).load()


def test_a_file_that_marks_several_things_is_an_error(pair, tmp_path):
    image, mask = pair
    several = mask.astype(np.uint8)
    several[0, 0] = 2
    Image.fromarray(several).save(tmp_path / "several.png")
    for given in (tmp_path / "several.png", Image.fromarray(several)):
        with pytest.raises(ValueError, match="holds 2 values besides 0; a binary mask holds one"):
            Support(image, mask=given).load()
    assert (
        Support(image, mask=several).load()[1].sum() == mask.sum() + 1
    )  # an array is taken as it is


def test_marks_drawn_on_the_stored_pixels_are_turned_like_their_picture(pair, tmp_path):
    image, mask = pair
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(image)).save(tmp_path / "turned.png", exif=exif)
    stored = np.ascontiguousarray(np.rot90(mask)).astype(np.uint8)
    for picture in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        for marks in ({"mask": stored}, {"scribble": stored, "refine": False}, {"mask": mask}):
            loaded = Support(picture, **marks).load()
            assert np.array_equal(loaded[0], image) and np.array_equal(loaded[1], mask)


def test_masks_of_all_kinds_mark_what_is_not_zero(pair, tmp_path):
    """The forms of files are tested with `MaskFile`."""
    image, mask = pair
    values = 7 * mask.astype(np.uint8)
    file = Image.fromarray(values)
    file.save(tmp_path / "grey.png")
    masks = [values, mask, values.astype(float) / 10, torch.from_numpy(mask)]
    for given in (*masks, file, tmp_path / "grey.png", str(tmp_path / "grey.png")):
        assert np.array_equal(Support(image, mask=given).load()[1], mask)
    Image.fromarray(255 * mask.astype(np.uint8)).save(tmp_path / "lossy.jpg", quality=60)
    assert iou(Support(image, mask=tmp_path / "lossy.jpg").load()[1], mask) > 0.97


def test_results_are_saved_and_drawn(seg, two_classes, tmp_path):
    given, queries = two_classes
    supports = seg.fit(given)
    low, middle, high = (seg.segment(queries[0], supports, threshold=t) for t in (0.2, 0.5, 0.9))
    assert low.mask.all() and not high.mask.any()
    assert 0 < high.uncertainty <= 1 and 0 < middle.uncertainty <= 1
    middle.save(tmp_path / "new" / "labels.png")
    with Image.open(tmp_path / "new" / "labels.png") as saved:
        assert saved.mode == "P" and np.array_equal(np.asarray(saved), middle.label_map)
        assert len(set(map(tuple, np.asarray(saved.convert("RGB")).reshape(-1, 3)))) > 1
    with pytest.raises(ValueError, match=r"labels\.jpg: the label map is saved as a PNG"):
        middle.save(tmp_path / "labels.jpg")
    overlay = np.asarray(middle.overlay())
    picture = np.asarray(Image.open(queries[0]))
    assert overlay.shape == picture.shape
    assert np.array_equal(np.asarray(high.overlay()), picture)
    assert (overlay != picture).any(axis=2)[middle.mask].mean() > 0.9
    assert (picture == np.asarray(Image.open(queries[0]))).all()


def test_a_soft_outline_is_uncertain_and_a_sharp_one_is_not():
    distance = torch.linspace(-60, 60, 121)[:, None].expand(121, 121)  # of an outline, in pixels
    sharp, soft = (
        Result("", (121, 121), ("bolt",), torch.stack([-d, d])[None], {}).uncertainty
        for d in (2 * distance, distance / 20)
    )
    assert sharp < 0.2 and 0.9 < soft < 1


def test_mixed_precision_is_chosen(nets, pair):
    image, mask = pair
    seg = FewShotSegmenter(nets[1], SIZE, device="cpu", amp="bf16")
    exact = FewShotSegmenter(nets[1], SIZE, device="cpu")
    maps = [s.segment(image, s.fit(Support(image, mask=mask))).probability for s in (seg, exact)]
    assert 0 < np.abs(maps[0] - maps[1]).max() < 0.1
    with pytest.raises(ValueError, match="amp half: expected off, auto, bf16 or fp16"):
        FewShotSegmenter(nets[1], SIZE, device="cpu", amp="half")
    with pytest.raises(ValueError, match="amp fp16 needs a CUDA device"):
        FewShotSegmenter(nets[1], SIZE, device="cpu", amp="fp16")
