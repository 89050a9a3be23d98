"""``star-export chat``."""

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.facts import chat_stats
from star_export.cli.flags import with_flags
from star_export.cli.options import parse_keep
from star_export.cli.output import check_figure
from star_export.errors import EXIT_COULD_NOT_RUN, InputError, SettingsError, StarExportError

if TYPE_CHECKING:
    from star_export.answer.chat import Chat
    from star_export.answer.pipeline import Pipeline

EPILOG = """
**Examples**

`star-export chat llava-7b --image dog.png`

`star-export chat llava-7b --image dog.png --keep 29 --reprune`
"""

#: Digits of a number; Python refuses to read thousands of them.
_MAX_DIGITS = 20


@app.command(epilog=EPILOG)
def chat(
    folder: opt.BundleArgument,
    image: opt.ChatImagesOption = None,
    keep: opt.RunKeepOption = None,
    reprune: opt.RepruneOption = False,
    max_new_tokens: opt.RunNewTokensOption = None,
    temperature: opt.TemperatureOption = 0.0,
    top_p: opt.TopPOption = 1.0,
    seed: opt.SeedOption = None,
    end_token: opt.EndTokensOption = None,
    backend: opt.BackendOption = "onnxruntime",
    plugin_library: opt.PluginLibraryOption = None,
    threads: opt.ThreadsOption = None,
    verify: opt.VerifyOption = False,
) -> None:
    """Ask about pictures in turns, at a prompt or from a pipe with one question a line."""
    from star_export.answer.pipeline import open_pipeline
    from star_export.answer.sampling import Sampling
    from star_export.engines import Runtime

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    runtime = Runtime(backend=backend, threads=threads, plugin_library=plugin_library)
    pipeline = open_pipeline(folder, runtime, verify=verify)
    talk = pipeline.chat(
        images=image or (),
        keep=keep,
        reprune=reprune,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        end_tokens=end_token or (),
    )
    live = sys.stdin.isatty()
    if live:
        _say("/help shows the commands; Ctrl-C stops an answer, Ctrl-D quits")
    failures = _converse(_Commands(pipeline, talk), _typed() if live else _piped(), live=live)
    if failures and not live:
        raise typer.Exit(EXIT_COULD_NOT_RUN)


def _converse(commands: "_Commands", lines: Iterator[str], *, live: bool) -> int:
    """Answer line after line; how many could not be."""
    failures = 0
    for line in map(str.strip, lines):
        try:
            if line == "/quit":
                break
            if line.startswith("/"):
                commands.run(line)
            elif line:
                _answer(commands.chat, line)
        except KeyboardInterrupt:
            if not live:
                raise
        except (StarExportError, OSError) as error:
            failures += 1
            reason = with_flags(error) if isinstance(error, StarExportError) else str(error)
            _say(f"error: {' '.join(reason.split())}")
    return failures


def _answer(chat: "Chat", question: str) -> None:
    generation = chat.send(question)
    try:
        for piece in generation:
            print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        generation.close()
        print(flush=True)
        raise


def _typed() -> Iterator[str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (what was typed before can be called back and edited)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:  # leaves the line
            print()


def _piped() -> Iterator[str]:
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise InputError(f"the questions on stdin are not UTF-8 text: {error}") from error


def _say(text: str) -> None:
    """What is no answer."""
    print(text, file=sys.stderr, flush=True)


class _Commands:
    """What a line that begins with a slash does."""

    def __init__(self, pipeline: "Pipeline", chat: "Chat") -> None:
        self.pipeline, self.chat = pipeline, chat
        self._known: dict[str, tuple[Callable[[str], None], str]] = {
            "/image": (self._image, "FILE     add a picture to the next question"),
            "/keep": (self._keep, "[N]      visual tokens after the last stage, from the next question on"),
            "/stats": (self._stats, "         what the conversation holds, and what it would unpruned"),
            "/show": (self._show, "[FILE]   draw what was kept, into show.png or FILE (.png, .html)"),
            "/save": (self._save, "FILE     write the conversation as JSON messages"),
            "/help": (self._help, "         show this"),
            "/quit": (lambda _: None, "         end; so does Ctrl-D"),
        }

    def run(self, line: str) -> None:
        """Run one command.

        Raises:
            SettingsError: If there is none of this name, with the nearest.
        """
        name, _, argument = line.partition(" ")
        if name not in self._known:
            near = difflib.get_close_matches(name, self._known, n=1)
            hint = f"did you mean {near[0]}?" if near else "/help shows all"
            raise SettingsError(f"unknown command {name}; {hint}")
        self._known[name][0](argument.strip())

    def _image(self, file: str) -> None:
        self.chat.attach(_path("/image", file))

    def _keep(self, count: str) -> None:
        if not all(part.isdecimal() and len(part) < _MAX_DIGITS for part in count.split(",") if count):
            raise SettingsError(f"/keep takes a number of visual tokens, or one for each stage, got {count}")
        self.chat.keep = parse_keep(count) if count else None

    def _stats(self, _: str) -> None:
        _say(chat_stats(self.chat.stats()))

    def _show(self, file: str) -> None:
        from star_export.show.draw import draw

        output = _path("/show", file or "show.png")
        check_figure("/show", output)
        if not self.chat.asked:
            raise InputError("/show draws what was kept for a question; ask one first")
        bundle, keep = self.pipeline.bundle, (self.chat.keep,)
        draw(bundle, self.chat.images, self.chat.asked, output, keep=keep)
        _say(f"drawn in {output}")

    def _save(self, file: str) -> None:
        from star_export.files import write_json

        path = _path("/save", file)
        try:
            write_json(path, self.chat.messages)
        except OSError as error:
            raise InputError(
                f"/save {path} cannot be written ({error.strerror}); give a file in a folder that exists"
            ) from error
        _say(f"saved in {path}")

    def _help(self, _: str) -> None:
        _say("\n".join(f"  {name:<7}{what}" for name, (_, what) in self._known.items()))


def _path(command: str, file: str) -> Path:
    if not file or "\0" in file:
        raise SettingsError(f"{command} needs a file, such as {command} dog.png")
    try:
        return Path(file).expanduser()
    except RuntimeError:  # nobody of that name
        return Path(file)
