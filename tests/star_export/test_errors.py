"""What errors say: in the API's words, and on the command line with its flags."""

import copy
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.core
import typer.main

from star_export.cli.commands import app
from star_export.cli.flags import flag, with_flags
from star_export.errors import SettingsError, StarExportError, marked, option, spelled

ERRORS = [
    (option("keep"), "keep", "--keep"),
    (option("max_keep", 64), "max_keep=64", "--max-keep 64"),
    (option("prune", False), "prune=False", "--no-prune"),
    (option("overwrite", True), "overwrite=True", "--overwrite"),
    (option("end_tokens", "'</s>'"), "end_tokens='</s>'", "--end-token '</s>'"),
    (option("kv_cache_mib"), "kv_cache_mib", "--kv-cache"),
    (f"{option('keep')} or {option('max_keep', 3)}", "keep or max_keep=3", "--keep or --max-keep 3"),
]


@pytest.mark.parametrize(("text", "api", "command_line"), ERRORS)
def test_an_option_in_both_words(text: str, api: str, command_line: str) -> None:
    error = SettingsError(f"{text} is wrong")
    assert (str(error), error.args) == (f"{api} is wrong", (f"{api} is wrong",))
    assert with_flags(error) == f"{command_line} is wrong"


@pytest.mark.parametrize("name", ["keep", "keep=1", "max_keep", "{keep}", "--keep", "prune=False"])
def test_a_users_own_text_is_left_alone(name: str) -> None:
    error = StarExportError(f"{name}/keep_ratio is no folder; give {option('model', Path(name) / 'keep')}")
    assert with_flags(error) == f"{name}/keep_ratio is no folder; give --model {name}/keep"
    assert str(error) == f"{name}/keep_ratio is no folder; give model={name}/keep"


def test_errors_travel_whole() -> None:
    error = SettingsError(f"lower {option('keep')}")
    for copied in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert (str(copied), with_flags(copied)) == ("lower keep", "lower --keep")
    around = SettingsError(f"{error.marked} (or not)")
    assert (str(around), with_flags(around)) == ("lower keep (or not)", "lower --keep (or not)")
    assert spelled(marked(error)) == marked(KeyError("x")).replace("'x'", "lower keep")


def sources() -> Iterator[str]:
    """The library's code."""
    root = Path(__file__).parents[2]
    for folder in ("star_export", "graphs", "engines"):
        yield from (path.read_text() for path in (root / folder).rglob("*.py"))


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Every flag of every command."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    parameters = [parameter for command in group.commands.values() for parameter in command.params]
    return {text for parameter in parameters for text in (*parameter.opts, *parameter.secondary_opts)}


def test_every_named_option_has_a_flag(flags: set[str]) -> None:
    """One that no command has is told wrongly on the command line."""
    call = re.compile(r"""\boption\(\s*['"](\w+)['"](?:, (True|False))?""")
    found = {"=".join(filter(None, pair)) for source in sources() for pair in call.findall(source)}
    assert {"keep", "prune=False", "kv_cache_mib"} <= found
    assert {name for name in found if flag(name) not in flags} == set()


def test_the_library_writes_no_flags(flags: set[str]) -> None:
    """Its messages name options; only a command that is given whole has flags."""
    command = re.compile(r"star-export \w+|build with|check --polygraphy|\{command\} --target|add_argument")
    for source in sources():
        for line in re.sub(r'"""(?s:.*?)"""', "", source).splitlines():
            if not command.search(line) and not line.lstrip().startswith("#"):
                assert not flags & set(re.findall(r"--[a-z][a-z-]*", line)), line
