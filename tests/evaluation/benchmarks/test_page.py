"""What docs/benchmarks.md says."""

import re
from pathlib import Path

from typer.main import get_command

from star_export.cli.commands import app
from star_export.evaluation.tasks import BENCHMARKS
from star_export.preprocessing.prompts import PromptSpec, render
from tests.evaluation.benchmarks.folders import FOLDERS

PAGE = (Path(__file__).parents[3] / "docs/benchmarks.md").read_text()


def test_the_prompt_is_that_of_llavas_evaluation() -> None:
    [template] = re.findall(r"```jinja\n(.*?)\n```", PAGE, re.DOTALL)
    spec = PromptSpec(image_token="<image>", image_token_id=32000, chat_template=template, special_tokens={})
    assert render("What is it?\nAnswer.", spec) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nWhat is it?\nAnswer. ASSISTANT:"
    )


def test_every_benchmark_and_its_files_are_named(tmp_path: Path) -> None:
    for name, open_benchmark in BENCHMARKS.items():
        FOLDERS[name](tmp_path)
        task = open_benchmark(tmp_path)
        assert f"| `{name}` |" in PAGE
        for split in task.splits:
            assert f"`{split}`" in PAGE
            task.size(split)
        for file in task.files:
            assert name in ("pope", "mme") or f"`{file}`" in PAGE, file


def test_every_option_of_the_commands_exists() -> None:
    commands = get_command(app).commands
    used = [commands[name] for name in ("build", "compare", "eval")]
    known = {flag for command in used for option in command.params for flag in option.opts}
    known |= {flag for option in commands["build"].params for flag in option.secondary_opts}
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    flags = {
        flag for block in blocks if "lmms-eval" not in block for flag in re.findall(r" (--[\w-]+)", block)
    }
    assert flags
    assert flags <= known
