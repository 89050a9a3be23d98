"""A real server on real bundles, and a real Chromium before it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

SHAPES = Path(__file__).parents[3] / "docs/shapes.png"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


@contextmanager
def serving(*folders: Path, log: Path, key: str = "") -> Iterator[str]:
    """The address of a server that is one process, on the bundles under their folders' names."""
    command = [sys.executable, "-c", "from star_export.cli import main; main()", "serve", *map(str, folders)]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*command, "--port", "0", "--threads", "1", "--json"],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"STAR_EXPORT_API_KEY": key},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield _first_value(process.stdout, log)["address"]
        finally:
            process.terminate()


def _first_value(lines: IO[bytes], log: Path) -> Any:
    """The JSON that a process prints, which may take several lines, while it goes on."""
    text = b""
    for line in lines:
        text += line
        with suppress(json.JSONDecodeError):
            return json.loads(text)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def address(bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on the trained model, on one that cuts pictures into tiles, and on one that never ends."""
    pytest.importorskip("uvicorn", reason="needs the serve extra")
    bundles = bundle("mini"), bundle("next", max_images=2), bundle("mha", max_new_tokens=1024)
    with serving(*bundles, log=tmp_path_factory.mktemp("page") / "log") as found:
        yield found


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium or google-chrome on PATH")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@dataclass
class Visit:
    """The page in a tab of its own, and what it sent."""

    tab: "Page"
    requests: "list[Request]"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tab, name)

    def ask(self, question: str) -> None:
        """Ask, and wait for the whole answer, drawn."""
        turns = self.tab.locator(".turn").count()
        self.tab.fill("#question", question)
        self.tab.keyboard.press("Enter")
        self.tab.locator(f".turn:nth-of-type({turns + 1}) .dropped").first.wait_for()

    def show(self, label: str) -> None:
        """Choose a stage or a view of the last turn."""
        self.tab.locator(".turn").last.locator(".choice label", has_text=label).click()

    def drawn(self, answer: int = 0) -> int:
        """Cells of the last turn's drawing that are not dimmed."""
        svg = self.tab.locator(".turn").last.locator(".answer").nth(answer).locator("svg")
        columns, rows = map(int, (svg.get_attribute("viewBox") or "").split()[2:])
        path = svg.locator(".dropped").get_attribute("d") or ""
        return columns * rows - path.count("M")

    def asked(self) -> list[dict[str, Any]]:
        """Bodies that the page sent."""
        return [json.loads(r.post_data) for r in self.requests if r.method == "POST" and r.post_data]


@pytest.fixture
def visit(browser: "Browser") -> Iterator[Callable[..., Visit]]:
    """``visit(address, width=390, color_scheme="dark")``: the page, open.

    At the end it must have asked nobody else, and broken neither itself nor its security policy.
    """
    contexts, faults = [], []

    def get(address: str, *, width: int = 1200, model: str = "", **options: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": 860}, **options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        tab, requests = context.new_page(), []
        tab.on("request", lambda request: requests.append(request))
        tab.on("request", lambda r: r.url.startswith((f"{address}/", "data:")) or faults.append(r.url))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("console", lambda m: "Security Policy" in m.text and faults.append(m.text))
        tab.goto(address)
        tab.wait_for_load_state("networkidle")  # its modules are there, and what it asked of the server
        if model:
            tab.select_option("#model", label=model)
        return Visit(tab, requests)

    yield get
    for context in contexts:
        context.close()
    assert not faults
