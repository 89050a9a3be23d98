"""``star-export chat`` in a pipe and at a terminal: answers on stdout, all else on stderr."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from star_export.answer.pipeline import load
from star_export.engines.onnxruntime import OnnxRuntimeSession
from star_export.validation.probes import make_probes

from .conftest import Cli, Outcome, refused

COLOR, PLACE = "what color is it?", "where is the circle?"
Ask = Callable[..., Outcome]


@pytest.fixture(scope="module")
def folder(bundle: Callable[..., Path]) -> Path:
    return bundle("mini", max_images=3)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes") / "two words.png"
    make_probes(1)[0].pictures[0].save(path)
    return path


@pytest.fixture
def ask(cli: Cli, folder: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """``ask("What?", "/stats")``: a conversation about a picture, in a pipe."""

    def call(*lines: str, options: tuple[object, ...] = ("--image", shapes)) -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return cli("chat", folder, "--threads", 1, *options)

    return call


def errors(outcome: Outcome) -> list[str]:
    return [line for line in outcome.err.splitlines() if line.startswith("error:")]


def test_each_line_is_a_question(ask: Ask, folder: Path, shapes: Path) -> None:
    with load(folder, threads=1) as pipeline:
        chat = pipeline.chat(images=[shapes])
        expected = [chat.send(question).result().text for question in (COLOR, PLACE)]
    outcome = ask(COLOR, "", PLACE, "/quit", "never asked")
    assert outcome == Outcome(0, "".join(f"{text}\n" for text in expected), "")


def test_pictures_budgets_and_statistics(ask: Ask, shapes: Path) -> None:
    outcome = ask(f"/image {shapes}", COLOR, "/stats", "/keep 8", PLACE, "/stats", "/keep", options=())
    assert (outcome.code, len(outcome.out.splitlines())) == (0, 2)
    assert "2 turns, 1 picture of 576 visual tokens" in outcome.err
    assert outcome.err.count("tokens in the KV caches") == 2
    assert "read from its start 1 time\n" in outcome.err
    assert "read from its start 2 times" in outcome.err
    assert "last answer: vision" in outcome.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/imgae a.png", "unknown command /imgae; did you mean /image?"),
        ("/xyzzy", "unknown command /xyzzy; /help shows all"),
        ("/image", "/image needs a file, such as /image dog.png"),
        ("/image nowhere.png", "nowhere.png does not exist"),
        ("/image ~nobody-of-this-name/a.png", "~nobody-of-this-name/a.png does not exist"),
        ("/image a\0b.png", "/image needs a file"),
        (f"/keep {'9' * 5000}", "/keep takes a number of visual tokens, or one for each stage, got 999"),
        ("/keep many", "/keep takes a number of visual tokens, or one for each stage, got many"),
        ("/keep 518,x", "/keep takes a number of visual tokens, or one for each stage, got 518,x"),
        ("/keep 9,8,7", "--keep 9,8,7 has 3 budgets; give one number for the last stage, or 2, one for each"),
        ("/keep 289", "--keep 289 is over this bundle's maximum of 288; build it again with --max-keep 289"),
        ("/save", "/save needs a file"),
        (
            "/save /nowhere/at/all.json",
            "/nowhere/at/all.json cannot be written (No such file or directory); give",
        ),
        ("/save /", "/save / cannot be written"),
        ("/show out.gif", "/show must end in .png or .html, got out.gif"),
        ("why? " * 500, "build it again with --max-text-tokens"),
        ("what is <image>?", "has 2 places of pictures, expected 1"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_the_chat_goes_on(ask: Ask, line: str, message: str) -> None:
    outcome = ask(COLOR, line, PLACE)
    assert (outcome.code, len(outcome.out.splitlines())) == (2, 2)
    assert len(errors(outcome)) == 1
    assert message in errors(outcome)[0]
    assert "Traceback" not in outcome.err


def test_one_picture_too_many(ask: Ask, shapes: Path) -> None:
    outcome = ask(*[f"/image {shapes}"] * 3, COLOR)
    assert errors(outcome) == [
        "error: this bundle takes at most 3 pictures, got 4; build it again with --max-images 4"
    ]
    assert len(outcome.out.splitlines()) == 1


def test_nothing_to_ask_about(ask: Ask) -> None:
    assert "no picture is given" in ask(COLOR, options=()).err


def test_a_conversation_is_saved(ask: Ask, tmp_path: Path) -> None:
    outcome = ask(COLOR, PLACE, f"/save {tmp_path / 'chat.json'}")
    messages = json.loads((tmp_path / "chat.json").read_text())
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": COLOR}]
    assert [message["content"][0]["text"] for message in messages[1::2]] == outcome.out.splitlines()


def test_the_overlay(ask: Ask, shapes: Path, tmp_path: Path) -> None:
    png, page = tmp_path / "seen.png", tmp_path / "seen.html"
    several = tmp_path / "several.png"
    drawn = [f"/show {path}" for path in (png, page, several)]
    outcome = ask(drawn[0], COLOR, PLACE, *drawn[:2], f"/image {shapes}", PLACE, drawn[2])
    assert errors(outcome) == ["error: /show draws what was kept for a question; ask one first"]
    assert Image.open(png).size[0] > 336
    assert Image.open(several).size[1] > Image.open(png).size[1]
    assert COLOR in page.read_text()  # what decided which tokens stay


def test_help_names_every_command(ask: Ask) -> None:
    outcome = ask("/help")
    assert outcome.code == 0
    for command in ("/image FILE", "/keep [N]", "/stats", "/show [FILE]", "/save FILE", "/help", "/quit"):
        assert command in " ".join(outcome.err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep", 0), "--keep must be at least 1"),
        (("--image", "nowhere.png"), "nowhere.png does not exist"),
        (("--max-new-tokens", 33), "--max-new-tokens must be from 1 to 32, got 33"),
        (("--end-token", "<|eot_id|>"), "is no token of this model"),
    ],
)
def test_options(ask: Ask, options: tuple[object, ...], message: str) -> None:
    refused(ask(COLOR, options=options), message)


def test_questions_that_are_no_text(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    refused(cli("chat", folder), "the questions on stdin are not UTF-8 text")


def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the first token is decoded, and at no other time."""
    run, left = OnnxRuntimeSession.run, [1]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it

    def press(self: Any, graph: str, *rest: Any) -> Any:
        if graph == "decode" and left:
            left.pop()
            signal.raise_signal(signal.SIGINT)
        return run(self, graph, *rest)

    monkeypatch.setattr(OnnxRuntimeSession, "run", press)


def test_ctrl_c_ends_a_pipe(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch)
    assert ask(COLOR, PLACE).code == 130


def test_ctrl_c_stops_an_answer_at_a_terminal(
    cli: Cli, folder: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        """A fake one."""

        def isatty(self) -> bool:
            return True

    interrupted(monkeypatch)
    monkeypatch.setattr(sys, "stdin", Terminal(f"{PLACE}\n{COLOR}\n/stats\n"))
    outcome = cli("chat", folder, "--image", shapes, "--threads", 1)
    assert outcome.code == 0
    assert "/help shows the commands" in outcome.err
    assert "4 turns" in outcome.err
    assert "read from its start 1 time\n" in outcome.err


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_real_terminal(folder: Path, shapes: Path) -> None:
    """Streams, keeps on after Ctrl-C at the prompt, ends with Ctrl-D."""
    main, side = pty.openpty()
    # What was started in the background ignores Ctrl-C, and so would the chat.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = f"{heed}; from star_export.cli import main; main()"
    command = [sys.executable, "-c", start, "chat", folder, "--image", shapes, "--threads", "1"]
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, start_new_session=True)
    os.close(side)
    try:
        shown = read_until(main, "> ")
        # Python misses a signal that comes after the prompt is shown and before it waits for a key.
        for _ in range(30):
            if select.select([main], [], [], 2)[0]:
                break
            process.send_signal(signal.SIGINT)
        shown += read_until(main, "> ")
        os.write(main, f"{COLOR}\n".encode())
        shown += read_until(main, "> ")
        os.write(main, b"\x04")
        assert process.wait(timeout=60) == 0, shown
    finally:
        process.kill()
        process.wait()
        os.close(main)
    assert COLOR in shown


def read_until(terminal: int, end: str) -> str:
    shown = ""
    while not shown.endswith(end):
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, f"nothing comes after {shown}"
        shown += os.read(terminal, 4096).decode()
    return shown
