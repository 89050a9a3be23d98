"""Checkpoints with the chat templates and tokenizer files that people publish: they work, or are refused."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer

from star_export.answer.pipeline import load
from star_export.baseline import baseline_options
from star_export.build import BuildOptions, build
from star_export.bundle import open_bundle, write_manifest
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.engines import Runtime
from star_export.errors import CheckpointError, SettingsError
from star_export.preprocessing import PromptSpec, render, tokenize
from star_export.preprocessing.convert import fit_content, prompt_spec
from star_export.preprocessing.processor import read_processor
from star_export.validation.check import check_bundle
from star_export.validation.expected import compare_tokenized, expected_input
from star_export.validation.probes import make_probes

QUESTION = "What is on the sign?"
CheckpointOf = Callable[[str], Path]
Edit = Callable[[Path], object]

TURN = "{%- for m in messages -%}{{ m['role'] | upper ~ ': ' }}"
END = "{%- endfor -%}{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
IMAGES = "{%- for part in m['content'] if part['type'] == 'image' -%}{{ '<image>\n' }}{%- endfor -%}"
TEXTS = "{%- for part in m['content'] if part['type'] == 'text' -%}{{ part['text'] ~ ' ' }}{%- endfor -%}"
PARTS = TURN + IMAGES + TEXTS + END
HUB = TURN + IMAGES + "{%- generation -%}" + TEXTS + "{%- endgeneration -%}" + END
JOINS = "{%- for m in messages -%}{{ m['role'] | upper + ': ' + m['content'] + ' ' }}" + END
PRINTS = "{%- for m in messages -%}{{ '[' ~ m['role'] ~ ']' ~ (m['content'] | trim) ~ '[end]' }}" + END
SKIPS = TURN + "{%- if m['content'] is string -%}{{ m['content'] ~ ' ' }}{%- endif -%}" + END
LOSES = (
    TURN
    + "{%- if m['content'] is string -%}{{ m['content'] ~ ' ' }}{%- else -%}"
    + IMAGES
    + "{%- endif -%}"
    + END
)
LLAVA = f"USER: <image>\n{QUESTION} ASSISTANT:"


def write(name: str, content: object) -> Edit:
    """A file of text, or of JSON."""

    def edit(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))

    return edit


def change(name: str, **values: object) -> Edit:
    """Keys of a JSON file."""
    return lambda folder: write(name, json.loads((folder / name).read_text()) | values)(folder)


TRUNCATION = {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 400},
    "direction": "Right",
    "pad_to_multiple_of": 8,
    "pad_id": 2,
    "pad_type_id": 0,
    "pad_token": "</s>",
}
NAMED = [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": PRINTS}]

#: What is changed in a checkpoint without a chat template, and the prompt it gives then.
CASES: dict[str, tuple[list[Edit], str]] = {
    "no template": ([], LLAVA),
    "hub template": ([write("chat_template.json", {"chat_template": HUB})], LLAVA),
    "template that takes text alone": ([write("chat_template.jinja", JOINS)], LLAVA),
    "template that skips lists": ([write("chat_template.jinja", SKIPS)], LLAVA),
    "template that loses the text of lists": ([write("chat_template.jinja", LOSES)], LLAVA),
    "template that prints the list": (
        [write("chat_template.jinja", PRINTS)],
        f"[user]<image>\n{QUESTION}[end]ASSISTANT:",
    ),
    "template of the tokenizer": (
        [change("tokenizer_config.json", chat_template=PRINTS)],
        f"[user]<image>\n{QUESTION}[end]ASSISTANT:",
    ),
    "named templates of the tokenizer": (
        [change("tokenizer_config.json", chat_template=NAMED)],
        f"[user]<image>\n{QUESTION}[end]ASSISTANT:",
    ),
    "the processor's before the tokenizer's": (
        [
            write("chat_template.json", {"chat_template": PARTS}),
            change("tokenizer_config.json", chat_template=PRINTS),
        ],
        LLAVA,
    ),
    "several files": (
        [write("chat_template.jinja", PARTS), write("additional_chat_templates/tool_use.jinja", "{{ 1 }}")],
        LLAVA,
    ),
    "truncation": ([change("tokenizer.json", truncation=TRUNCATION)], LLAVA),
    "padding": ([change("tokenizer.json", padding=PADDING)], LLAVA),
}


@pytest.fixture
def published(checkpoint: CheckpointOf, tmp_path: Path) -> Callable[..., Path]:
    """``published(*edits)``: a copy of the small Vicuna checkpoint with these edits."""

    def make(*edits: Edit) -> Path:
        folder = shutil.copytree(checkpoint("vicuna"), tmp_path / "checkpoint")
        for edit in edits:
            edit(folder)
        return folder

    return make


def prepared(folder: Path) -> tuple[PromptSpec, Tokenizer]:
    """What a build makes of tokenizer and template."""
    processor = read_processor(folder)
    tokenizer = processor.tokenizer.backend_tokenizer
    spec = prompt_spec(processor, open_checkpoint(str(folder)).model)
    return fit_content(spec, tokenizer, max_text_tokens=128), tokenizer


@pytest.mark.parametrize("case", CASES)
def test_a_published_checkpoint_asks_as_transformers_does(published: Callable[..., Path], case: str) -> None:
    edits, prompt = CASES[case]
    folder = published(*edits)
    spec, tokenizer = prepared(folder)
    assert render(QUESTION, spec) == prompt
    picture = Image.new("RGB", (80, 60))
    expected = expected_input(read_processor(folder), [picture], QUESTION)
    found = tokenize(prompt, tokenizer, spec, tokens_per_image=[58])
    assert compare_tokenized(found, expected.prompt([64], [58])) is None
    assert QUESTION in tokenizer.decode(found.input_ids[0, found.query_positions[0]])


def test_only_a_checkpoint_without_template_gets_a_notice(
    published: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = published()
    with caplog.at_level(logging.WARNING, logger="star_export"):
        prepared(folder)
        assert "no chat template: prompts take LLaVA-1.5's form 'USER: <image>" in caplog.text
        assert "star-export build --chat-template FILE" in caplog.text
        caplog.clear()
        write("chat_template.jinja", PARTS)(folder)
        prepared(folder)
        assert not caplog.records


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([write("chat_template.jinja", "{% nonsense %}")], "unknown tag 'nonsense'"),
        ([write("chat_template.jinja", "Ask me! ASSISTANT:")], "leaves the question out"),
        ([write("chat_template.jinja", TURN + TEXTS + END)], "has 0 <image> tokens"),
        ([write("chat_template.jinja", "<image>" + JOINS)], "has 2 <image> tokens"),
        (
            [write("chat_template.jinja", TURN + TEXTS + IMAGES.replace("\n", "") + "{%- endfor -%}")],
            "no text follows",
        ),
        ([write("additional_chat_templates/tool_use.jinja", PARTS)], "tool_use and none is called default"),
    ],
)
def test_what_cannot_work_is_refused_before_any_graph(
    published: Callable[..., Path], tmp_path: Path, edits: list[Edit], message: str
) -> None:
    folder = published(*edits)
    steps: list[str] = []

    class Steps:
        def start(self, step: str, total_bytes: int | None = None) -> None:
            steps.append(step)

        def advance(self, done_bytes: int) -> None:
            raise AssertionError(done_bytes)

    output = tmp_path / "out" / "bundle"
    output.parent.mkdir()
    with pytest.raises(CheckpointError, match=rf"{message}.*chat_template=FILE"):
        build(BuildOptions(model=str(folder), output=output, keep=8), Steps())
    assert steps == ["read checkpoint", "tokenizer and preprocessing"]
    assert not list(output.parent.iterdir())


def test_a_prompt_that_never_fits_is_refused(published: Callable[..., Path], tmp_path: Path) -> None:
    options = BuildOptions(
        model=str(published(write("chat_template.jinja", "Be brief. " * 20 + PARTS))),
        output=tmp_path / "bundle",
        keep=8,
        max_text_tokens=64,
    )
    with pytest.raises(SettingsError, match="max_text_tokens=64 has no room for any"):
        build(options)


@pytest.fixture(scope="module")
def built(checkpoint: CheckpointOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the headline model's kind, with a template of the user's instead of the checkpoint's."""
    folder = shutil.copytree(checkpoint("vicuna"), tmp_path_factory.mktemp("published") / "checkpoint")
    write("chat_template.json", {"chat_template": HUB.replace("ASSISTANT", "A")})(folder)
    options = BuildOptions(
        model=str(folder),
        output=folder.parent / "bundle",
        keep=8,
        max_text_tokens=128,
        max_new_tokens=32,
        chat_template=HUB,
        end_tokens=("<pad>",),
    )
    return build(options).folder


def with_prompt(bundle: Path, folder: Path, **values: Any) -> Path:
    """A copy of a bundle with other prompt parameters."""
    shutil.copytree(bundle, folder)
    parameters = json.loads((folder / "preprocessor.json").read_text())
    parameters["prompt"] |= values
    (folder / "preprocessor.json").write_text(json.dumps(parameters))
    opened = open_bundle(bundle)
    write_manifest(
        folder, opened.spec, source=opened.manifest["source"], versions=opened.manifest["versions"]
    )
    return folder


def test_the_headline_model_answers_and_checks(built: Path, picture: Path) -> None:
    pipeline = load(built)
    assert render(QUESTION, pipeline.prompt_spec) == LLAVA
    assert pipeline.end_token_ids == (2, pipeline.tokenizer.token_to_id("<pad>"))
    answer = pipeline.generate(picture, QUESTION)
    pieces = list(answer)
    assert "".join(pieces) == answer.result().text == pipeline.tokenizer.decode(answer.result().token_ids)
    report = check_bundle(built, probes=make_probes(1), max_new_tokens=4)
    assert report.passed, report


def test_a_template_that_nobody_gave_is_checked_against_the_checkpoints(built: Path, tmp_path: Path) -> None:
    other = with_prompt(built, tmp_path / "bundle", given_template=False)
    report = check_bundle(other, probes=make_probes(1), max_new_tokens=1)
    assert [(stage.stage, stage.status) for stage in report.cases[0].stages] == [("preprocessing", "fail")]


def test_end_tokens_of_build_run_and_check(built: Path, picture: Path, tmp_path: Path) -> None:
    probe = make_probes(1)[0]
    pipeline = load(built)
    whole = pipeline.generate(probe.pictures, probe.prompt, max_new_tokens=8).result().token_ids
    end = next(token for token in whole[1:] if token != whole[0])
    text, ended = pipeline.tokenizer.id_to_token(end), whole[: whole.index(end) + 1]
    asked = pipeline.generate(probe.pictures, probe.prompt, max_new_tokens=8, end_tokens=[text]).result()
    assert (asked.token_ids, asked.finish_reason) == (ended, "stop")
    with pytest.raises(
        SettingsError, match="end_tokens='<|eot_id|>' is no token of this model".replace("|", r"\|")
    ):
        pipeline.request(picture, QUESTION, end_tokens=["<|eot_id|>"])

    other = with_prompt(built, tmp_path / "bundle", end_tokens=[text])
    stored = load(other).generate(probe.pictures, probe.prompt, max_new_tokens=8).result()
    assert (stored.token_ids, stored.finish_reason) == (ended, "stop")
    report = check_bundle(other, probes=[probe], max_new_tokens=8)
    assert report.passed
    assert f"{len(ended)} tokens agree" in report.cases[0].stages[-1].detail


def test_an_unknown_end_token_is_refused_at_build(published: Callable[..., Path], tmp_path: Path) -> None:
    options = BuildOptions(model=str(published()), output=tmp_path / "b", keep=8, end_tokens=("<|eot_id|>",))
    with pytest.raises(SettingsError, match=r"end_tokens='<\|eot_id\|>' is no token"):
        build(options)
    assert not (tmp_path / "b").exists()


def test_the_baseline_has_the_bundles_template_and_ends(built: Path, tmp_path: Path) -> None:
    options = baseline_options(open_bundle(built), tmp_path, source="any", runtime=Runtime())
    assert (options.prune, options.chat_template, options.end_tokens) == (False, HUB, ("<pad>",))
    own = with_prompt(built, tmp_path / "bundle", given_template=False)
    assert baseline_options(open_bundle(own), tmp_path, source="any", runtime=Runtime()).chat_template is None
