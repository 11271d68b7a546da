"""Draw docs/lab.png: the lab's page as Chromium shows it. Needs playwright and Chromium.

python docs/lab_picture.py quickstart/lab.html
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

STEPS = 6  # action blocks before the picture is taken


def main(page_file: Path, out: Path) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(
            viewport={"width": 900, "height": 700}, reduced_motion="reduce", device_scale_factor=1
        )
        page.goto(page_file.resolve().as_uri() + "#agent=62,168&goal=176,110&planner=waypoints")
        page.wait_for_selector("body[data-complete]", state="attached")
        for step in range(1, STEPS + 1):
            page.click("#step")
            page.get_by_text(f"step {5 * step},").wait_for()
        shown = page.locator(".world").screenshot()
        browser.close()
    Image.open(io.BytesIO(shown)).convert("RGB").quantize(48).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_name("lab.png"))
