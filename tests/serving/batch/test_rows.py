"""Rows as queries: every form of a picture, every slip."""

import base64
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from star_export.errors import InputError, SettingsError
from star_export.serving.batch.options import Defaults
from star_export.serving.batch.rows import Rows
from star_export.serving.query import Query, image_bytes
from star_export.serving.remote import fetch

PICTURE = (Path(__file__).parents[3] / "docs/shapes.png").read_bytes()
TEXT = base64.b64encode(PICTURE).decode()


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Rows]:
    """``rows(prompt="?")``: with defaults, beside a picture ``a.png``."""
    (tmp_path / "a.png").write_bytes(PICTURE)
    (tmp_path / ("a" * 80)).write_bytes(PICTURE)
    (tmp_path / "note.txt").write_text("text " * 40)
    (tmp_path / "plain.ppm").write_bytes(b"P3 1 1 255 255 0 0")

    def make(columns: dict[str, str] | None = None, **defaults: Any) -> Rows:
        return Rows(columns or {}, tmp_path, Defaults(**defaults))

    return make


@pytest.mark.parametrize(
    "image",
    [
        "a.png",
        "a" * 80,
        PICTURE,
        TEXT,
        f"data:image/png;base64,{TEXT}",
        {"bytes": PICTURE, "path": "elsewhere.png"},
        {"bytes": PICTURE},
        {"path": "a.png"},
    ],
    ids=["path", "long-path", "bytes", "base64", "data-url", "datasets", "datasets-bytes", "datasets-path"],
)
def test_forms_of_a_picture(rows: Callable[..., Rows], image: object) -> None:
    query = rows().query({"image": [image, image], "prompt": "?"})
    assert [image_bytes(picture) for picture in query.images] == [PICTURE, PICTURE]


def test_a_plain_picture_is_text_too(rows: Callable[..., Rows]) -> None:
    assert rows().query({"image": "plain.ppm", "prompt": "?"}).images == (b"P3 1 1 255 255 0 0",)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("b.png", "b.png is no file; give the path of a picture"),
        (".", "is no file"),
        ("a\0.png", "is no file"),
        ("b." + "b" * 5000, "is no file"),
        ("note.txt", "is not a picture that Pillow can read"),
        ("https://example.org/a.png", "is a web address; download the picture"),
        ("s3://bucket/a.png", "is a web address"),
        (7, "image must be a path, encoded bytes"),
        ({"url": "a.png"}, "image must be a path"),
        ({}, "image must be a path"),
        ([["a.png"]], "image must be a path"),
    ],
)
def test_no_picture(rows: Callable[..., Rows], image: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rows().query({"image": image, "prompt": "?"})


def test_a_row_comes_before_the_defaults(rows: Callable[..., Rows]) -> None:
    made = rows(prompt="given", keep=29, seed=1, stop=("\n",))
    assert made.query({"image": PICTURE}) == Query(
        image=PICTURE, prompt="given", keep=29, seed=1, stop=("\n",)
    )
    own = {"prompt": "own", "keep": [128, 14], "temperature": 0.5, "top_p": 0.9, "seed": 2, "stop": []}
    found = made.query({"image": PICTURE, "max_new_tokens": 5, "timeout_s": 3.5, **own})
    assert found == Query(
        image=PICTURE, prompt="own", keep=(128, 14), temperature=0.5, top_p=0.9, seed=2, max_new_tokens=5,
        timeout_s=3.5,
    )  # fmt: skip


def test_a_conversation_is_a_list_or_json(rows: Callable[..., Rows]) -> None:
    messages = [{"role": "user", "content": "?"}]
    for given in (messages, '[{"role": "user", "content": "?"}]'):
        assert rows().query({"image": PICTURE, "messages": given}).prompt == tuple(messages)
    assert rows(prompt="default").query({"image": PICTURE, "messages": messages}).prompt == tuple(messages)
    for bad in ("no json", "{}", 7):
        with pytest.raises(InputError, match="messages"):
            rows().query({"image": PICTURE, "messages": bad})


def test_names_of_the_inputs_own(rows: Callable[..., Rows]) -> None:
    made = rows({"image": "path", "prompt": "question", "id": "question_id"})
    values = {"path": "a.png", "question": "?", "question_id": "q7", "image": 7, "answer": "red", "id": 8}
    made.check(values)
    assert made.identity(values) == "q7"
    assert made.query(values) == Query(image=PICTURE, prompt="?")


@pytest.mark.parametrize(
    ("columns", "found", "message"),
    [
        ({}, ["prompt", "picture"], "there are prompt, picture; say which it is: column=image=NAME"),
        ({}, ["image", "question"], "no column prompt"),
        ({}, [], "no column image, there are none"),
        ({"image": "path"}, ["image", "prompt"], "no column path, there are image, prompt"),
        ({"keep": "budget"}, ["image", "prompt"], "no column budget"),
        ({}, ["image", "prompt", "max_new_token"], "column max_new_token would not be read; did you"),
        ({}, ["image", "prompt", "messages", "stops"], "did you mean stop"),
        ({}, ["image", "prompt", "top_logprobs"], "top_logprobs would not be read: logprobs are not written"),
        ({"imag": "x"}, [], "column knows no field imag; did you mean image?"),
        ({"picture": "image"}, [], "column knows no field picture; fields are id, messages, image, prompt"),
    ],
)  # fmt: skip
def test_columns_that_are_not_there(
    rows: Callable[..., Rows], columns: dict[str, str], found: list[str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        rows(columns).check(found)


def test_other_columns_are_nobodys_business(rows: Callable[..., Rows]) -> None:
    rows().check(["image", "prompt", "image_id", "question_id", "answer", "split", "top_k"])
    rows().check(["image", "messages"])
    rows(prompt="?").check(["image"])


def test_slips_and_ids_of_one_row(rows: Callable[..., Rows]) -> None:
    with pytest.raises(InputError, match="did you mean temperature"):
        rows().query({"image": PICTURE, "prompt": "?", "temperatur": 1.0})
    for bad in (1.5, True, ["a"]):
        with pytest.raises(InputError, match="id must be a text or an integer"):
            rows().identity({"id": bad})


def test_a_row_may_ask_for_json_and_go_on_in_a_conversation(rows: Callable[..., Rows]) -> None:
    said = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]
    values = {
        "image": "a.png",
        "messages": said,
        "schema": {"enum": [1]},
        "reprune": False,
    }
    query = rows().query(values)
    assert (query.prompt, query.schema, query.reprune) == (tuple(said), {"enum": [1]}, False)


def test_pictures_are_fetched_where_that_is_allowed(
    rows: Callable[..., Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows()  # writes a.png
    found = Rows({}, tmp_path, Defaults(prompt="?"), remote=True)
    served = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        for address, message in (
            (url, "127.0.0.1 is no public address"),
            ("s3://bucket/a.png", "must begin with http:// or https://"),
        ):
            with pytest.raises(InputError, match=message):
                found.query({"image": address})
        anywhere = partial(fetch, allowed=lambda _address: True)
        monkeypatch.setattr("star_export.serving.batch.rows.fetch", anywhere)
        assert found.query({"image": [url, "a.png"]}).images == (PICTURE, PICTURE)
        server.shutdown()
