"""The page in Chromium, from file://: it is opened, dragged, broken, and read in every scheme.

Chromium is the system's: nothing is downloaded. The model is trained for some seconds, enough to
walk about in one room.
"""

import base64
import io
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

import lewm
from lewm.lab.page import render
from lewm.runs.run import open_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

EASY = "agent=160,170&goal=170,60"
"""A way that a model of some seconds walks too."""
PATIENCE = 60_000


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    lewm.collect("two-room", folder / "e.h5", episodes=60, image_size=64, seed=0)
    lewm.train("two-room-tiny", folder / "e.h5", folder / "run", updates=40)
    lewm.fit_heads(folder / "run", updates=150)
    run = open_run(folder / "run", device="cpu")
    with run.episodes:
        (folder / "lab.html").write_text(render(run, "run", "lewm lab RUN"), encoding="utf-8")
    return folder / "lab.html"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, file):
    """Open the page; at the end it must have said nothing and asked for nothing."""
    contexts, said, asked = [], [], []

    def opened(fragment="", wait="body[data-complete]", at=file, **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(at.as_uri() + (f"#{fragment}" if fragment else ""))
        page.wait_for_selector(wait, state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "blob:"))] == []
    assert sum(url.startswith("file:") for url in asked) == len(contexts)


def until(condition, seconds=PATIENCE / 1000):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def says(page, what, where="#said"):
    until(lambda: re.search(what, page.inner_text(where)))


def place(page, name="goal"):
    """Of agent or goal, as the link has it."""
    fragment = page.evaluate("location.hash")
    return [float(x) for x in re.search(rf"{name}=([\d.]+),([\d.]+)", fragment).groups()]


def on_screen(page, x, y):
    box = page.locator("#scene").bounding_box()
    return box["x"] + x * box["width"] / 224, box["y"] + y * box["width"] / 224


def pixel(page, x, y):
    shown = page.evaluate("document.getElementById('scene').toDataURL()").partition(",")[2]
    picture = Image.open(io.BytesIO(base64.b64decode(shown))).convert("RGB")
    return picture.getpixel((x * picture.width // 224, y * picture.height // 224))


def test_it_opens_and_agrees_with_pytorch(visit, record_property):
    page = visit()
    ready = int(page.evaluate("document.body.dataset.ready"))
    record_property("ms to ready", ready)
    print(f"ready after {ready} ms")
    says(page, "equal to PyTorch to .* with weights of 16 bits", "#check")
    assert page.is_hidden("#refusal")
    says(page, "ms to see and to plan", "#loop")
    says(page, "times the usual", "#surprise-said")


def test_the_goal_is_dragged_and_reached(visit):
    page = visit("agent=160,170&goal=190,190&planner=amortised")
    page.locator("#scene").scroll_into_view_if_needed()
    page.mouse.move(*on_screen(page, 190, 190))
    page.mouse.down()
    page.mouse.move(*on_screen(page, 185, 120), steps=4)
    page.mouse.move(*on_screen(page, 170, 60), steps=4)
    page.mouse.up()
    assert np.abs(np.subtract(place(page), [170, 60])).max() < 2
    says(page, r"^There, after \d+ steps")
    page.click("#link")
    assert np.hypot(*np.subtract(place(page, "agent"), [170, 60])) < 40


@pytest.mark.parametrize("planner", ["waypoints", "cem"])
def test_every_planner_goes(visit, planner):
    page = visit(f"{EASY}&planner={planner}")
    assert page.is_checked(f"input[value={planner}]")
    says(page, "step [1-9]|There")
    assert "Waypoints" in page.inner_text("#planner-words") or planner == "cem"


def test_keys_do_what_hands_do(visit):
    page = visit("agent=60,190&goal=60,40&planner=amortised", reduced_motion="reduce")
    page.focus("#scene")
    page.keyboard.press("Space")
    says(page, "^Going")
    page.keyboard.press("Space")
    says(page, "^Paused")
    page.keyboard.press("ArrowDown")
    assert place(page) == [60, 46]
    page.keyboard.press("Shift+ArrowRight")
    assert place(page) == [84, 46]
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    assert place(page) == [84, 94]
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert place(page)[0] > 120, "through the wall in one go"
    page.keyboard.press("Enter")
    says(page, "step 5,")
    page.keyboard.press("n")
    says(page, "^Ready")
    page.focus("#cloud")
    page.keyboard.press("ArrowRight")
    says(page, "Turn", "#turn")


def test_what_is_paused_stands_still(visit):
    page = visit("agent=60,190&goal=60,40", reduced_motion="reduce")
    page.click("#play")
    says(page, "^Going")
    page.click("#play")
    says(page, "^Paused")

    def pictures():
        return [
            page.evaluate(f"document.getElementById('{name}').toDataURL()")
            for name in ("scene", "cloud", "shadow", "latent")
        ]

    time.sleep(0.5)  # a block that was under way
    first = pictures()
    time.sleep(0.5)
    assert pictures() == first
    page.click("#turn")
    until(lambda: pictures()[1] != first[1])
    assert pictures()[0] == first[0]


def test_a_broken_world_surprises(visit):
    page = visit("agent=60,170&goal=60,40&planner=amortised")
    page.click("[data-break=teleport]")
    says(page, "surprised", "#surprise-said")
    page.click("[data-break=colour]")
    assert page.get_attribute("[data-break=colour]", "aria-pressed") == "true"
    page.click("[data-break=drawn]")
    says(page, "surprised", "#surprise-said")
    page.click("#mend")
    assert page.is_disabled("#mend")
    assert page.get_attribute("[data-break=colour]", "aria-pressed") == "false"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_alone(visit, scheme):
    page = visit(
        viewport={"width": 375, "height": 700}, color_scheme=scheme, has_touch=True, is_mobile=True
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.evaluate("innerWidth") <= 375
    page.locator("#scene").scroll_into_view_if_needed()
    page.touchscreen.tap(*on_screen(page, 60, 60))
    page.click("#link")
    assert np.abs(np.subtract(place(page), [60, 60])).max() < 2


def test_canvases_know_the_dark(visit):
    """The floor between map and ways, in both schemes and after a change."""
    page = visit("agent=60,170&goal=60,40&map=off", color_scheme="dark")
    dark = pixel(page, 180, 180)
    assert max(dark) < 60
    page.emulate_media(color_scheme="light")
    until(lambda: min(pixel(page, 180, 180)) > 200)
    assert min(pixel(page, 180, 18)) > 200
    assert max(pixel(page, 112, 120)) < 90, "the wall"


def test_reduced_motion_goes_by_steps(visit):
    page = visit(EASY, reduced_motion="reduce")
    says(page, "Press Step")
    time.sleep(0.4)
    says(page, "Press Step")
    assert page.inner_text("#turn") == "Turn"
    angle = page.input_value("#angle")
    page.click("#step")
    says(page, "step 5,")
    page.click("#turn-step")
    assert page.input_value("#angle") != angle


def test_a_collapsed_cloud_is_seen(visit):
    page = visit(reduced_motion="reduce")
    before = float(page.inner_text("#statistic"))
    page.fill("#collapse", "1")
    page.fill("#shift", "3")
    after = float(page.inner_text("#statistic"))
    assert after > 3 * before
    assert "standard deviation 0.00" in page.inner_text("#shadow-said")
    page.click("#undo")
    assert float(page.inner_text("#statistic")) == before
    page.click("#widest")
    says(page, "in which it is widest", "#cloud-said")


def test_the_bill_and_its_measure(visit):
    page = visit(reduced_motion="reduce")
    assert page.inner_text("#bill tbody tr:first-child").split("\t")[:3] == ["LeWM", "1", "45 k"]
    page.fill("#candidates", "1")
    page.fill("#iterations", "2")
    says(page, "10 x 5 x 2 = 100 imagined frames", "#bill-said")
    page.click("#measure")
    says(page, r"10 x 5 x 2 imagined by this page's model: [\d.]+ s", "#measured")


def test_a_link_is_opened_and_a_damaged_one_is_no_harm(visit):
    page = visit(f"{EASY}&planner=cem&map=off", reduced_motion="reduce")
    assert page.is_checked("input[value=cem]")
    assert not page.is_checked("#map")
    page.click("#link")
    assert place(page) == [170, 60]
    assert place(page, "agent") == [160, 170]
    again = visit("agent=1e9,nan&goal=,&planner=%&x", reduced_motion="reduce")
    says(again, "Press Step")


def test_pictures_are_saved(visit):
    page = visit(EASY, reduced_motion="reduce")
    for i in range(3):
        page.click("#step")
        says(page, f"step {5 * (i + 1)},")
    for button, kind, frames in (("#png", "PNG", 1), ("#gif", "GIF", 3)):
        with page.expect_download() as download:
            page.click(button)
        with open(download.value.path(), "rb") as saved:
            picture = Image.open(io.BytesIO(saved.read()))
        assert picture.format == kind
        assert getattr(picture, "n_frames", 1) == frames
        assert len(set(picture.convert("RGB").resize((40, 40)).getdata())) > 5, "not blank"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (r'"wasm": "[^"]*"', '"wasm": "AGFzbQEAAABj"', "WebAssembly SIMD"),
        (r'"tolerance": [\d.]+', '"tolerance": 1e-9', "expected what PyTorch computes"),
    ],
)
def test_it_refuses_rather_than_be_wrong(visit, file, tmp_path, old, new, words):
    text, changed = re.subn(old, new, file.read_text(encoding="utf-8"), count=1)
    assert changed == 1
    (tmp_path / "lab.html").write_text(text, encoding="utf-8")
    page = visit(wait="#refusal:not([hidden])", at=tmp_path / "lab.html")
    assert words in page.inner_text("#refusal")
    assert page.is_disabled("#step")
