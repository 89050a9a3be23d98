"""The page's picture in the documentation: ``python -m tests.serving.page.shot BUNDLE docs/page.png``."""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.serving.page.conftest import CHROMIUM, SHAPES, serving


def shoot(bundle: Path, output: Path) -> None:
    """A question about docs/shapes.png, answered from the bundle's own budget and from 24 tokens."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(bundle, log=Path(folder) / "log") as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1100, "height": 860}, reduced_motion="reduce")
        tab.goto(address)
        for _ in range(2):  # first so that the picture's features are cached: both answers then do the same
            if tab.locator("#new").is_visible():
                tab.click("#new")
            tab.set_input_files("#files", SHAPES)
            tab.fill("#question", "What number is written?")
            tab.keyboard.press("Enter")
            tab.locator(".dropped").wait_for()
        tab.locator("#keep").fill("24")
        tab.locator(".answer:nth-child(2) .dropped").wait_for()
        tab.mouse.move(0, 0)
        tab.evaluate("document.activeElement.blur()")
        tab.screenshot(path=output)
        browser.close()


if __name__ == "__main__":
    shoot(Path(sys.argv[1]), Path(sys.argv[2]))
