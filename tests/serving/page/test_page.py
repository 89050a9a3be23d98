"""The page, as somebody uses it."""

import base64
import json
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from PIL import Image

from tests.serving.page.conftest import SHAPES, Visit, serving

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright").expect

QUESTION = "What number is written?"

#: How much has moved by itself since the page was opened; see https://web.dev/articles/cls.
LAYOUT_SHIFT = """() => new Promise((resolve) => new PerformanceObserver((list) => resolve(
    list.getEntries().reduce((sum, one) => sum + (one.hadRecentInput ? 0 : one.value), 0)
)).observe({ type: "layout-shift", buffered: true }))"""


@pytest.fixture
def shapes(visit: Callable[..., Visit], address: str) -> Visit:
    """The page with a picture chosen, and the model that was trained for it."""
    page = visit(address)
    page.set_input_files("#files", SHAPES)
    return page


def whole(address: str, body: dict) -> dict:
    """The API's own answer to what the page asked."""
    body = {key: value for key, value in body.items() if not key.startswith("stream")}
    return api(f"{address}/v1/chat/completions", body)


def api(url: str, body: dict | None = None) -> Any:
    """What the server says; its words where it refuses."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except HTTPError as refused:
        return json.load(refused)


def text(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


def test_an_answer_is_the_apis_and_every_stage_is_drawn(shapes: Visit, address: str) -> None:
    shapes.ask(QUESTION)
    (body,) = shapes.asked()
    answer = whole(address, body)
    expect(shapes.locator(".text")).to_have_text(text(answer))
    sent = body["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(sent.partition(",")[2]) == SHAPES.read_bytes()
    for stage in answer["star"]["stages"]:
        shapes.show(stage["name"])
        assert shapes.drawn() == len(stage["kept"])
        expect(shapes.locator("figcaption")).to_have_text(f"{len(stage['kept'])} of 576 visual tokens kept")
    shapes.show("picture")
    expect(shapes.locator(".dropped")).to_have_count(0)
    facts = shapes.locator(".answer dd").all_inner_texts()
    for fact, form in zip(facts, (r" m?s\b", r" m?s$", r"tokens/s$", r"[kM]B, \d+ %$"), strict=True):
        assert re.search(form, fact), fact


def test_kept_patches_are_the_bright_ones(visit: Callable[..., Visit], address: str, tmp_path: Path) -> None:
    page = visit(address, reduced_motion="reduce")
    page.set_input_files("#files", SHAPES)
    page.ask(QUESTION)
    cells = []
    for stage in ("stage 2", "picture"):
        page.show(stage)
        page.locator("svg[role=img]").screenshot(path=tmp_path / "seen.png")
        seen = Image.open(tmp_path / "seen.png").convert("L")
        side = seen.width / 24
        middles = [(int((n % 24 + 0.5) * side), int((n // 24 + 0.5) * side)) for n in range(576)]
        cells.append([seen.getpixel(middle) for middle in middles])
    assert sum(shown == plain for shown, plain in zip(*cells, strict=True)) == 64


def test_another_budget_is_asked_beside_the_first(shapes: Visit, address: str) -> None:
    shapes.ask(QUESTION)
    first = shapes.locator(".answer").first.inner_text()
    shapes.locator("#keep").fill("16")
    shapes.locator(".answer:nth-child(2) .dropped").wait_for()
    one, other = shapes.asked()
    assert "keep" not in one
    assert other == one | {"keep": 16}
    assert shapes.locator(".answer").first.inner_text() == first
    expect(shapes.locator(".text").last).to_have_text(text(whole(address, other)))
    assert (shapes.drawn(0), shapes.drawn(1)) == (64, 16)
    shapes.show("stage 1")
    assert shapes.drawn(0) == shapes.drawn(1) == 518
    left, right = (box.bounding_box() for box in shapes.locator(".answer").all())
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]


def test_a_conversation_goes_on_and_begins_anew(shapes: Visit, address: str) -> None:
    shapes.ask(QUESTION)
    shapes.ask("What color is the <b>star</b>?")
    expect(shapes.locator(".turn h2").last).to_have_text("What color is the <b>star</b>?")
    expect(shapes.locator(".frame").last).to_be_in_viewport(ratio=0.99)
    first, second = shapes.asked()
    question, answer, following = second["messages"]
    assert question == first["messages"][0]
    assert answer == {"role": "assistant", "content": text(whole(address, first))}
    assert following["content"] == [{"type": "text", "text": "What color is the <b>star</b>?"}]
    expect(shapes.locator(".text").last).to_have_text(text(whole(address, second)))
    shapes.get_by_role("button", name="New conversation").click()
    expect(shapes.locator(".turn")).to_have_count(0)
    shapes.set_input_files("#files", SHAPES)
    shapes.ask(QUESTION)
    assert shapes.asked()[-1] == first


def test_what_follows_may_keep_the_same_patches(shapes: Visit) -> None:
    expect(shapes.get_by_label("Keep the same patches")).to_be_hidden()
    shapes.ask(QUESTION)
    shapes.show("stage 2")
    shown = [shapes.locator(".dropped").last.get_attribute("d")]
    shapes.get_by_label("Keep the same patches").check()
    for question in ("Where is the star?", "How many shapes are there?"):
        shapes.ask(question)
        shown.append(shapes.locator(".dropped").last.get_attribute("d"))
    assert len(set(shown)) == 1
    assert ["reprune" in body for body in shapes.asked()] == [False, True, True]


def test_a_picture_too_many_begins_a_conversation(shapes: Visit) -> None:
    shapes.ask(QUESTION)
    shapes.set_input_files("#files", SHAPES)
    shapes.ask(QUESTION)
    expect(shapes.locator(".turn")).to_have_count(2)
    assert len(shapes.asked()[-1]["messages"]) == 1


def test_tiles_and_several_pictures(visit: Callable[..., Visit], address: str, tmp_path: Path) -> None:
    for name, size in (("wide.png", (96, 40)), ("high.png", (40, 96))):
        Image.open(SHAPES).resize(size).save(tmp_path / name)
    page = visit(address, model=_named(address, "next"))
    page.set_input_files("#files", [tmp_path / "wide.png", tmp_path / "high.png"])
    page.ask("Which is larger?")
    star = whole(address, page.asked()[0])["star"]
    names = ["1 whole", "1 tiles", "2 whole", "2 tiles"]
    assert page.locator(".views label").all_inner_texts() == [name.title() for name in names]
    for name, view in zip(names, star["views"], strict=True):
        page.show(name)
        for stage in star["stages"]:
            page.show(stage["name"])
            kept = set(stage["kept"])
            assert page.drawn() == sum(token in kept for row in view["tokens"] for token in row)


def test_an_answer_streams_and_stops(visit: Callable[..., Visit], address: str) -> None:
    name = _named(address, "mha")
    page = visit(address, model=name)
    page.set_input_files("#files", SHAPES)
    page.evaluate(
        "window.lengths = new Set(); new MutationObserver(() => lengths.add(document.querySelector('.text')"
        "?.textContent.length)).observe(document.body, {subtree: true, childList: true})"
    )
    page.fill("#question", "Go on")
    page.keyboard.press("Enter")
    expect(page.locator(".text")).to_have_text(re.compile(".{40}", re.DOTALL))
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer")).to_contain_text("Stopped.")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    seen = page.locator(".text").inner_text()
    assert page.evaluate("lengths.size") > 5
    assert len(seen) < len(text(whole(address, page.asked()[0])))
    metrics = urllib.request.urlopen(f"{address}/metrics").read().decode()
    assert f'star_requests_finished_total{{model="{name}",outcome="cancelled"}} 1' in metrics
    assert page.locator(".text").inner_text() == seen


def test_the_servers_words_when_it_refuses(visit: Callable[..., Visit], address: str, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    page = visit(address)
    page.set_input_files("#files", tmp_path / "broken.png")
    page.fill("#question", QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".error")).not_to_be_empty()
    refused = api(f"{address}/v1/chat/completions", page.asked()[0])
    expect(page.locator(".error")).to_have_text(refused["error"]["message"])
    expect(page.locator("#question")).to_have_value(QUESTION)
    page.get_by_role("button", name="Remove picture 1").click()
    page.set_input_files("#files", SHAPES)
    page.ask(QUESTION)
    assert len(page.asked()[-1]["messages"]) == 1


def test_a_key_and_a_server_that_is_gone(
    visit: Callable[..., Visit], bundle: Callable[..., Path], tmp_path: Path
) -> None:
    with serving(bundle("mini"), log=tmp_path / "log", key="open sesame") as address:
        page = visit(address)
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#notice")).to_contain_text("the API key is missing or wrong")
        page.set_input_files("#files", SHAPES)
        page.fill("#question", QUESTION)
        page.keyboard.press("Enter")
        for wrong in ("wrong", "schlüssel"):  # the latter no header can hold
            page.get_by_label("API key").fill(wrong)
            page.keyboard.press("Enter")
            expect(page.locator("#key-reason")).not_to_be_empty()
        page.get_by_label("API key").fill("open sesame")
        page.keyboard.press("Enter")
        page.locator(".dropped").first.wait_for()
        assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]
    page.fill("#question", "And now?")
    page.keyboard.press("Enter")
    expect(page.locator(".error").last).to_have_text("the server cannot be reached")


def test_the_keyboard_is_enough(visit: Callable[..., Visit], address: str) -> None:
    page = visit(address)

    def tab_to(selector: str) -> None:
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches({selector!r})"):
                outline = page.evaluate(
                    "(({outlineStyle: o}, {boxShadow: s}) => o !== 'none' || s !== 'none')("
                    "getComputedStyle(document.activeElement.nextElementSibling ?? document.activeElement),"
                    "getComputedStyle(document.activeElement.parentElement))"
                )
                own = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline or own != "none", f"{selector} does not show that it has the focus"
                return
        raise AssertionError(f"Tab does not reach {selector}")

    with page.expect_file_chooser() as chooser:  # begun before Tab, not as Enter is pressed
        tab_to(".welcome .choose")
        page.keyboard.press("Enter")
    chooser.value.set_files(SHAPES)
    page.wait_for_selector("#pending img")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector(".dropped")
    for _ in ("add", "stay", "keep"):
        page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "keep"
    page.keyboard.press("Home")
    page.wait_for_selector(".answer:nth-child(2) .dropped")
    assert page.asked()[-1]["keep"] == 1
    page.evaluate("document.activeElement.blur()")
    tab_to("#new")
    tab_to(".stages input")
    page.keyboard.press("ArrowLeft")
    assert page.drawn(1) == 518


def test_pictures_are_dropped_and_pasted(visit: Callable[..., Visit], address: str) -> None:
    page = visit(address, model=_named(address, "next"))
    encoded = base64.b64encode(SHAPES.read_bytes()).decode()
    send = """([data, kind]) => {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], "shapes.png", { type: "image/png" }));
        const held = kind === "drop" ? { dataTransfer: files } : { clipboardData: files };
        const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
        document.body.dispatchEvent(new Kind(kind, { bubbles: true, cancelable: true, ...held }));
    }"""
    for count, kind in enumerate(("drop", "paste"), 1):
        page.evaluate(send, [encoded, kind])
        expect(page.locator("#pending img")).to_have_count(count)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_accessibility(visit: Callable[..., Visit], address: str, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = visit(address, width=width, color_scheme=scheme, reduced_motion="reduce")
    assert axe.Axe().run(page.tab).response["violations"] == []
    page.set_input_files("#files", SHAPES)
    page.ask(QUESTION)
    page.locator("#keep").fill("16")
    page.locator(".answer:nth-child(2) .dropped").wait_for()
    assert axe.Axe().run(page.tab).response["violations"] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(LAYOUT_SHIFT) < 0.01


def _named(address: str, preset: str) -> str:
    """A model's name, which is its folder's."""
    models = api(f"{address}/v1/models")["data"]
    return next(model["id"] for model in models if model["id"].startswith(f"{preset}-"))
