"""The page in a real Chromium: what a user uploads, paints, clicks, sees and downloads.

These tests are skipped without gradio, playwright, or a Chromium of the system.
"""

import io
import json
import re
import shutil
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from segmenter import FewShotSegmenter, Support
from tests.small_model import SIZE, small_episodes, small_net
from util.data.label_maps import COLOURS

pytest.importorskip("gradio", reason="gradio is not installed (requirements-app.txt)")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)"
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
if BROWSER is None:
    pytest.skip("there is no Chromium to open the page with", allow_module_level=True)

LAPTOP, PHONE = {"width": 1366, "height": 768}, {"width": 390, "height": 844}
WIDTH, HEIGHT, RADIUS = 320, 240, 50
# Painting needs WebGL, which Chromium computes itself where there is no GPU.
FLAGS = ("--no-sandbox", "--enable-unsafe-swiftshader")


@pytest.fixture(scope="module")
def seg(tiny_voc, tmp_path_factory):
    net = small_net(small_episodes(tiny_voc, tmp_path_factory.mktemp("lists")))
    return FewShotSegmenter(net, SIZE, "resnet18", "cpu")


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
        page.set_default_timeout(60_000)
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
        image = rng.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
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


def upload(page, file):
    """Upload a picture to mark, and wait until it can be painted or clicked."""
    if page.locator("#upload button[aria-label='Clear']").count():
        page.locator("#upload button[aria-label='Clear']").click()
    page.set_input_files("#upload input[type=file]", file)


def paint(page, points):
    """Paint a line through pixels of the picture, which lies in the middle of the canvas."""
    canvas = page.locator("#editor canvas").first
    page.locator("#editor button[aria-label=Undo]").wait_for()
    page.wait_for_timeout(1500)
    zoom = int(re.search(r"(\d+)\s*%", page.locator("#editor").inner_text())[1]) / 100
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    left = box["x"] + box["width"] / 2 - zoom * WIDTH / 2
    top = box["y"] + box["height"] / 2 - zoom * HEIGHT / 2
    screen = [(left + zoom * x, top + zoom * y) for x, y in points]
    page.mouse.move(*screen[0])
    page.mouse.down()
    for x, y in screen[1:]:
        page.mouse.move(x, y, steps=4)
    page.mouse.up()


def click(page, *points):
    """Click on pixels of the picture."""
    image = page.locator("#clicked img")
    for number, (x, y) in enumerate(points):
        image.scroll_into_view_if_needed()
        box = image.bounding_box()
        before = image.get_attribute("src")
        page.mouse.click(
            box["x"] + (x + 0.5) * box["width"] / WIDTH, box["y"] + (y + 0.5) * box["height"] / HEIGHT
        )
        page.wait_for_function(
            "before => document.querySelector('#clicked img').src != before", arg=before
        )


def image_of(page, selector):
    """The picture that an element shows, uint8 (H, W, 3)."""
    source = page.locator(selector).evaluate("image => image.src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB"))


def supports_of(page, number):
    """The masks that the page shows for supports, once there are so many."""
    page.wait_for_function(
        "n => document.querySelectorAll('#supports .thumbnail-item img').length == n", arg=number
    )


def test_explore(open_page, files):
    page = open_page()
    upload(page, files / "a.png")
    paint(page, [(140, 120), (180, 120), (160, 100), (160, 140)])
    page.wait_for_timeout(500)
    page.locator("#refine input").click()
    page.locator("#add").click()
    page.wait_for_timeout(3000)
    page.screenshot(path="/tmp/app_demo/shots/t1.png", full_page=True)
    print(page.locator("#supports").inner_html()[:3000])
    print(page.locator("#upload").inner_html()[:1500])
    page.locator("#way label").nth(1).click()
    page.locator("#clicked img").wait_for()
    click(page, (105, 65), (215, 175))
    page.screenshot(path="/tmp/app_demo/shots/t2.png", full_page=True)
    page.locator("#add").click()
    page.wait_for_timeout(3000)
    page.set_input_files("#queries input[type=file]", [files / "query.png", files / "notes.png"])
    page.wait_for_timeout(1000)
    page.locator("#find").click()
    page.locator("#view4 img").wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path="/tmp/app_demo/shots/t3.png", full_page=True)
    page.locator("#write").click()
    page.wait_for_timeout(2000)
    print(page.locator("#files").inner_html()[:3000])
    page.screenshot(path="/tmp/app_demo/shots/t4.png", full_page=True)
