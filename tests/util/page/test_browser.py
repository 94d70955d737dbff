"""The page in a real Chromium: what a user uploads, paints, clicks, sees and downloads.

These tests are skipped without gradio, playwright, or a Chromium of the system.
"""

import io
import json
import re
import shutil
import zipfile
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from PIL import Image

from segmenter import Support

if find_spec("gradio") is None:
    pytest.skip("gradio is not installed (requirements-app.txt)", allow_module_level=True)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)"
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
if BROWSER is None:
    pytest.skip("there is no Chromium to open the page with", allow_module_level=True)

pytestmark = pytest.mark.slow
LAPTOP, PHONE = {"width": 1366, "height": 768}, {"width": 390, "height": 844}
WIDTH, HEIGHT, RADIUS = 320, 240, 50
# Painting needs WebGL, which Chromium computes itself where there is no GPU.
FLAGS = ("--no-sandbox", "--enable-unsafe-swiftshader")


@pytest.fixture(scope="module")
def server(seg, tmp_path_factory):
    """The page as the command serves it, and its address."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        from util.page.layout import build_page, serve

        blocks = build_page(seg)
        yield blocks, serve(blocks, "127.0.0.1", None), folder
        blocks.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, server):
    """Opens the page in a session of its own, at a size of the window."""
    contexts, elsewhere = [], []

    def open_page(size=LAPTOP):
        contexts.append(browser.new_context(viewport=size))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(server[1])
        page.locator("#upload input[type=file]").wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    allowed = (server[1], "data:", "blob:")
    assert [url for url in elsewhere if not url.startswith(allowed)] == []


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures of a red disk on a blue texture: two to mark and one to search in; and no picture."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, name in enumerate(("a", "b", "query")):
        image = rng.integers(0, 20, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        image[..., 2] += 120
        image[disk(number) > 0] = (200, 30, 30)
        Image.fromarray(image).save(folder / f"{name}.png")
    (folder / "notes.png").write_text("no picture")
    return folder


def disk(number=0):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    return cv2.circle(mask, (160 + 20 * number, 120 - 10 * number), RADIUS, 1, cv2.FILLED)


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def mark(page, file, way):
    """Upload a picture that is to be marked by a brush, a box or points."""
    page.locator(f"#way input[value={way}]").click()
    if page.locator("#upload button[aria-label=Clear]").count():
        page.locator("#upload button[aria-label=Clear]").click()
        page.locator("#upload input[type=file]").wait_for(state="attached")
    page.set_input_files("#upload input[type=file]", file)
    if way == "Brush":
        page.locator("#editor button[aria-label=Brush].highlight").wait_for()
    else:
        page.locator("#clicked img").wait_for()
    page.wait_for_timeout(1000)


def paint(page, points):
    """Paint a line through pixels of the picture, which lies in the middle of the canvas."""
    canvas = page.locator("#editor canvas").first
    canvas.scroll_into_view_if_needed()
    zoom = int(re.search(r"(\d+)\s*%", page.locator("#editor").inner_text())[1]) / 100
    box = canvas.bounding_box()
    left = box["x"] + (box["width"] - zoom * WIDTH) / 2
    top = box["y"] + (box["height"] - zoom * HEIGHT) / 2
    for number, (x, y) in enumerate(points):
        # The canvas follows the mouse only as fast as it is drawn.
        page.mouse.move(left + zoom * x, top + zoom * y, steps=5 if number else 1)
        page.wait_for_timeout(200)
        if not number:
            page.mouse.down()
            page.wait_for_timeout(200)
    page.mouse.up()
    page.wait_for_timeout(500)


def click(page, *points):
    """Click on pixels of the picture, again where a click got lost while the page was being laid out."""
    for point in points:
        assert any(_is_clicked(page, *point) for _ in range(3))


def _is_clicked(page, x, y):
    image = page.locator("#clicked img")
    image.scroll_into_view_if_needed()
    box, before = image.bounding_box(), image.get_attribute("src")
    scale = box["width"] / WIDTH
    page.mouse.click(box["x"] + (x + 0.5) * scale, box["y"] + (y + 0.5) * scale)
    changed = "before => document.querySelector('#clicked img').src != before"
    try:
        page.wait_for_function(changed, arg=before)
    except playwright.TimeoutError:
        return False
    return True


def picture_in(page, selector):
    """The picture that an element shows, as int (H, W, 3)."""
    response = page.request.get(page.locator(selector).get_attribute("src"))
    return np.asarray(Image.open(io.BytesIO(response.body())).convert("RGB")).astype(int)


def add(page, number, file):
    """Add the support number `number` and return the mask that the page shows for it."""
    page.locator("#add").click()
    shown = page.locator("#supports .thumbnail-item img")
    counted = "n => document.querySelectorAll('#supports .thumbnail-item img').length == n"
    page.wait_for_function(counted, arg=number)
    response = page.request.get(shown.last.get_attribute("src"))
    overlay = np.asarray(Image.open(io.BytesIO(response.body())).convert("RGB")).astype(int)
    differs = np.abs(overlay - np.asarray(Image.open(file))).sum(axis=2) > 60
    # The page shows a lossy picture, which differs in thin lines at edges, too.
    square = np.ones((5, 5), np.uint8)
    return cv2.morphologyEx(differs.astype(np.uint8), cv2.MORPH_OPEN, square) > 0


def find(page, *files):
    page.set_input_files("#queries input[type=file]", files)
    page.locator("#queries td.filename").nth(len(files) - 1).wait_for()
    page.locator("#find").click()
    page.locator("#view4 img").wait_for()


def download(page):
    """The label maps of the queries, the names of the classes, and the COCO file."""
    page.locator("#write").click()
    links = page.locator("#files a")
    links.nth(1).wait_for()
    contents = [page.request.get(links.nth(n).get_attribute("href")).body() for n in (0, 1)]
    with zipfile.ZipFile(io.BytesIO(contents[0])) as archive:
        maps = {
            name: np.asarray(Image.open(io.BytesIO(archive.read(name))))
            for name in archive.namelist()
            if name.endswith(".png")
        }
        names = archive.read("classes.txt").decode().split()
    return maps, names, json.loads(contents[1])


def message(page, text):
    """The whole message that holds a text."""
    toast = page.locator("[data-testid=toast-text]", has_text=text).first
    toast.wait_for()
    return toast.inner_text()


def test_what_is_painted_is_the_support(open_page, files):
    page = open_page()
    mark(page, files / "a.png", "Brush")
    line = [(130, 110), (190, 110), (190, 130), (130, 130)]
    paint(page, line)
    page.locator("#refine input").click()
    painted = add(page, 1, files / "a.png")
    drawn = [
        cv2.polylines(np.zeros((HEIGHT, WIDTH), np.uint8), [np.array(line)], False, 1, width) > 0
        for width in range(4, 40)
    ]
    assert max(iou(painted, one) for one in drawn) > 0.85
    page.locator("#remove").click()
    page.locator("#refine input").click()
    page.locator("#supports .thumbnail-item").wait_for(state="detached")
    assert iou(add(page, 1, files / "a.png"), disk() > 0) > 0.95
    find(page, files / "query.png")
    maps, names, _ = download(page)
    assert names == ["object"] and maps["query.png"].shape == (HEIGHT, WIDTH)


def test_two_classes_have_the_masks_of_the_segmenter(open_page, files, seg, server):
    page = open_page()
    page.locator("#name textarea, #name input").fill("round <b>")
    mark(page, files / "a.png", "Box")
    click(page, (215, 175), (105, 65))
    assert iou(add(page, 1, files / "a.png"), disk() > 0) > 0.95
    page.locator("#name textarea, #name input").fill("ring")
    mark(page, files / "b.png", "Points")
    click(page, (180, 110), (20, 20))
    page.locator("#undo").click()
    page.wait_for_timeout(500)
    assert iou(add(page, 2, files / "b.png"), disk(1) > 0) > 0.95
    find(page, files / "query.png", files / "b.png")
    assert page.locator("#legend").inner_text().split("\n") == ["round <b>ring"]
    supports = seg.fit(
        {
            "round <b>": Support(files / "a.png", box=(105, 65, 216, 176)),
            "ring": Support(files / "b.png", points=(180, 110)),
        }
    )
    expected = seg.segment([files / "query.png", files / "b.png"], supports)
    maps, names, coco = download(page)
    assert "".join(names) == "round<b>ring"
    for name, result in zip(("query.png", "b.png"), expected, strict=True):
        assert np.array_equal(maps[name], result.label_map)
    assert [one["name"] for one in coco["categories"]] == ["round <b>", "ring"]
    assert sum(a["area"] for a in coco["annotations"]) == sum(r.mask.sum() for r in expected)

    # The slider moves the mask, and the probability stays.
    before = [picture_in(page, f"#view{n} img") for n in (0, 1)]
    source = page.locator("#view0 img").get_attribute("src")
    page.locator("#threshold input[type=number]").fill("0.95")
    page.locator("#threshold input[type=number]").press("Enter")
    changed = "before => document.querySelector('#view0 img').src != before"
    page.wait_for_function(changed, arg=source)
    after = [picture_in(page, f"#view{n} img") for n in (0, 1)]
    assert (before[0] != after[0]).any() and np.array_equal(before[1], after[1])
    # All of it is gone with the session.
    blocks, _, folder = server
    assert list(folder.rglob("masks.zip"))
    for number in list(blocks.app.state_holder.session_data):
        blocks.app.state_holder.delete_state(number)
    assert not list(folder.rglob("masks.zip"))


def test_mistakes_are_one_line_and_sessions_are_apart(open_page, files):
    page, other = open_page(), open_page(PHONE)
    page.set_input_files("#upload input[type=file]", files / "notes.png")
    unreadable = "notes.png is no JPEG, PNG, WebP, BMP or TIFF that can be read"
    assert message(page, "notes.png") == unreadable
    mark(page, files / "a.png", "Box")
    page.locator("#add").click()
    assert message(page, "click") == "click two opposite corners of a box around the object first"
    # Nothing else says that there was an error, over what was on the page before.
    error = page.locator("#supports [data-testid=status-tracker] > .error")
    error.wait_for(state="attached")
    assert not error.is_visible()
    click(page, (105, 65), (215, 175))
    add(page, 1, files / "a.png")
    for close in page.locator("[data-testid=toast-close]").all():
        close.click()
    find(page, files / "notes.png", files / "query.png")
    assert message(page, "notes.png") == unreadable
    other.set_input_files("#queries input[type=file]", files / "query.png")
    other.locator("#queries td.filename").wait_for()
    other.locator("#find").click()
    assert message(other, "add").startswith("add a support first")
    for shown in (page, other):
        assert "Traceback" not in shown.content()
    # On a phone and on a laptop, nothing is wider than the window.
    for size in (PHONE, LAPTOP):
        page.set_viewport_size(size)
        page.wait_for_timeout(500)
        widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1]
