"""`star_run` answers what `star-export run` answers, and refuses what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests.cli.conftest import Cli, cli  # noqa: F401
from tests.conftest import MAX_KEEP
from tests.cpp.talker import BUILD

LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
SHAPES = Path(__file__).parents[2] / "docs/shapes.png"
QUESTIONS = [
    "What color is the square?",
    "What number is written?",
    "How many circles are there?",
    "Welche Farbe hat das Quadrat? 🟦\n  Ein Wort.",
    "USER: <image>\nWhat shape is at the left? ASSISTANT:",
]

Run = subprocess.CompletedProcess[str]
StarRun = Callable[..., Run]
Same = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def star_run() -> StarRun:
    program = BUILD / "star_run"
    if not program.is_file():
        pytest.skip(
            f"{program} is not there: run `make test-cpp`, or set STAR_EXPORT_CPP to its build folder"
        )

    def call(*arguments: object) -> Run:
        environment = {**os.environ, "STAR_ONNXRUNTIME": str(LIBRARY)}
        command = [str(program), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, check=False
        )

    return call


@pytest.fixture
def same(star_run: StarRun, cli: Cli) -> Same:  # noqa: F811
    """The answer of both to the same command line, but for its timings."""

    def get(folder: Path, *arguments: object) -> dict[str, Any]:
        command = (folder, *arguments, "--threads", 1, "--json")
        found, expected = star_run(*command), cli("run", *command)
        assert (found.returncode, found.stderr) == (0, "") == (expected.code, expected.err)
        before, expected_before = (out.partition('"timings_ms"')[0] for out in (found.stdout, expected.out))
        assert before == expected_before
        answer, wanted = json.loads(found.stdout), json.loads(expected.out)
        spent, expected_spent = answer.pop("timings_ms"), wanted.pop("timings_ms")
        assert list(spent) == list(expected_spent)
        assert len(spent["decode"]) == len(expected_spent["decode"])
        assert answer == wanted
        return answer

    return get


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of several sizes and kinds."""
    folder, chance = tmp_path_factory.mktemp("pictures"), np.random.default_rng(8)
    paths = []
    for name, size in (
        ("a.png", (400, 300)),
        ("b.jpg", (120, 500)),
        ("c.png", (64, 64)),
        ("d.jpg", (900, 200)),
    ):
        small = Image.fromarray(chance.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        paths.append(folder / name)
        small.resize(size, resample=3).save(paths[-1])
    return paths


def images(*paths: Path) -> list[object]:
    return [word for path in paths for word in ("--image", path)]


def test_mini(same: Same, bundle: Any, pictures: list[Path]) -> None:
    folder = bundle("mini", max_images=3)
    for question in QUESTIONS:
        assert same(folder, *images(SHAPES), "--prompt", question)["text"]
    three = images(SHAPES, pictures[0], pictures[1])
    same(folder, *three, "-p", "Which is larger?")
    same(folder, *three, "-p", "<image> and <image>, then <image>: which is larger?", "--keep", 40)
    for keep in ("1", "29", "288", "200,29", "2,1"):
        same(folder, "-i", SHAPES, "-p", QUESTIONS[0], "--keep", keep, "--max-new-tokens", 8)


def test_sampling(same: Same, bundle: Any) -> None:
    folder, asked = bundle("mini", max_images=3), (*images(SHAPES), "-p", QUESTIONS[0])
    answers = set()
    for seed in (0, 1, 2, 1 << 40, (1 << 64) - 1):
        for how in (("--temperature", 1.7), ("--temperature", 5, "--top-p", 0.97)):
            answers.add(same(folder, *asked, "--seed", seed, *how, "--max-new-tokens", 12)["text"])
    assert len(answers) > 1


def test_ends(same: Same, bundle: Any) -> None:
    folder, asked = bundle("mha"), (*images(SHAPES), "-p", "What is in it?")
    whole = same(folder, *asked)
    text = whole["text"]
    for stop in (text[:1], text[3:5], text[-2:], "never there", text[4:6] + "x"):
        same(folder, *asked, "--stop", stop)
    same(folder, *asked, "--stop", "[never, there]", "--stop", text[6:9])
    assert same(folder, *asked, "--end-token", "<unk>", "--max-new-tokens", 1)["finish_reason"] == "length"
    assert same(folder, *asked, "--stop", text[:1])["finish_reason"] == "stop"


@pytest.mark.parametrize("quantize", ["int4", "int8"])
def test_quantized(same: Same, bundle: Any, pictures: list[Path], quantize: str) -> None:
    for picture in pictures[:2]:
        same(bundle("mha", quantize=quantize), *images(picture), "-p", "What is in it?")


def _in_all_ways(same: Same, folder: Path, pictures: list[Path]) -> None:
    for picture in (*pictures, SHAPES):
        same(folder, *images(picture), "-p", "What is in the picture?", "--max-new-tokens", 12)
    same(folder, *images(*pictures[:3]), "-p", "Which is larger?", "--max-new-tokens", 12)
    same(folder, *images(pictures[0]), "-p", "Was ist das? 😀", "--keep", 5, "--max-new-tokens", 12)
    same(
        folder, *images(pictures[0]), "-p", "Why?", "--seed", 7, "--temperature", 1.5, "--max-new-tokens", 12
    )


@pytest.mark.parametrize("preset", ["next", "onevision"])
def test_families(same: Same, bundle: Any, pictures: list[Path], preset: str) -> None:
    _in_all_ways(same, bundle(preset, max_images=3), pictures)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [preset for preset in MAX_KEEP if preset != "mini"])
def test_every_checkpoint(same: Same, bundle: Any, pictures: list[Path], preset: str) -> None:
    _in_all_ways(same, bundle(preset, max_images=3), pictures)


def test_streaming(star_run: StarRun, cli: Cli, bundle: Any) -> None:  # noqa: F811
    command = (bundle("mini", max_images=3), *images(SHAPES), "-p", QUESTIONS[0])
    found = star_run(*command)
    assert (found.returncode, found.stdout) == (0, cli("run", *command).out)
    assert found.stderr.startswith("518 -> 64 visual tokens, vision ")


MINI_REFUSED: dict[str, tuple[object, ...]] = {
    "no such picture": (*images(Path("nowhere.png")), "-p", "What?"),
    "web address": ("--image", "https:/example.org/x.png", "-p", "What?"),
    "too many pictures": (*images(*[SHAPES] * 4), "-p", "What?"),
    "empty prompt": (*images(SHAPES), "-p", " \n"),
    "long prompt": (*images(SHAPES), "-p", "word " * 300),
    "places": (*images(SHAPES), "-p", "<image> <image> What?"),
    "no text": (*images(SHAPES), "-p", "What is <image>"),
    "nothing kept": (*images(SHAPES), "-p", "What?", "--keep", 0),
    "too much kept": (*images(SHAPES), "-p", "What?", "--keep", 517),
    "over stage 1": (*images(SHAPES), "-p", "What?", "--keep", 9999),
    "wrong stages": (*images(SHAPES), "-p", "What?", "--keep", "3,2,1"),
    "rising stages": (*images(SHAPES), "-p", "What?", "--keep", "14,64"),
    "no new tokens": (*images(SHAPES), "-p", "What?", "--max-new-tokens", 0),
    "too many new tokens": (*images(SHAPES), "-p", "What?", "--max-new-tokens", 99999),
    "temperature": (*images(SHAPES), "-p", "What?", "--temperature", -1),
    "small temperature": (*images(SHAPES), "-p", "What?", "--temperature", 1e-5),
    "top-p": (*images(SHAPES), "-p", "What?", "--top-p", 1.5),
    "seed": (*images(SHAPES), "-p", "What?", "--seed", -3),
    "stop": (*images(SHAPES), "-p", "What?", "--stop", "x" * 257),
    "empty stop": (*images(SHAPES), "-p", "What?", "--stop", "it's", "--stop", ""),
    "end token": (*images(SHAPES), "-p", "What?", "--end-token", "no token"),
}


@pytest.mark.parametrize("case", MINI_REFUSED)
def test_refused(star_run: StarRun, cli: Cli, bundle: Any, case: str) -> None:  # noqa: F811
    _refused_alike(star_run, cli, bundle("mini", max_images=3), *MINI_REFUSED[case])


def _refused_alike(star_run: StarRun, cli: Cli, *command: object) -> None:  # noqa: F811
    found, expected = star_run(*command), cli("run", *command)
    assert (found.returncode, found.stdout, found.stderr) == (2, "", expected.err)
    assert expected.code == 2


def test_unpruned_refused(star_run: StarRun, cli: Cli, bundle: Any) -> None:  # noqa: F811
    _refused_alike(star_run, cli, bundle("mha", prune=False), *images(SHAPES), "-p", "What?", "--keep", 3)


def test_damaged_bundles(star_run: StarRun, cli: Cli, bundle: Any, tmp_path: Path) -> None:  # noqa: F811
    command = (*images(SHAPES), "-p", "What?")
    _refused_alike(star_run, cli, tmp_path / "nowhere", *command)
    folder = Path(shutil.copytree(bundle("mha"), tmp_path / "bundle"))
    manifest = json.loads((folder / "manifest.json").read_text())
    for key, value in (
        ("spec", {**manifest["spec"], "max_new_tokens": "many"}),
        ("spec", {**manifest["spec"], "odd": 1}),
        ("files", [file for file in manifest["files"] if file["path"] != "tokenizer.json"]),
        ("files", [{**manifest["files"][0], "bytes": 3}, *manifest["files"][1:]]),
    ):
        (folder / "manifest.json").write_text(json.dumps({**manifest, key: value}))
        _refused_alike(star_run, cli, folder, *command)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    found = star_run(folder, *command)
    assert found.returncode == 2
    assert f"{folder} has bundle format 99, this runtime reads " in found.stderr
    (folder / "manifest.json").write_text("{")
    found = star_run(folder, *command)
    assert found.returncode == 2
    assert "manifest.json is not a bundle manifest (it is not JSON: " in found.stderr


def test_damaged_pictures(star_run: StarRun, cli: Cli, bundle: Any, tmp_path: Path) -> None:  # noqa: F811
    folder, picture = bundle("mha"), tmp_path / "picture.png"
    for content, reason in (
        (b"no picture", "picture.png is not a picture that"),
        (b"", "picture.png is not a picture that"),
        (SHAPES.read_bytes()[:900], "picture.png cannot be decoded: "),
    ):
        picture.write_bytes(content)
        command = (folder, *images(picture), "-p", "What?")
        found, expected = star_run(*command), cli("run", *command)
        assert (found.returncode, found.stdout) == (2, "") == (expected.code, expected.out)
        assert reason in found.stderr
        assert reason in expected.err


@pytest.mark.parametrize(
    "command",
    [("--nope",), ("--keep", "few"), ("--max-new-tokens", "x"), ("--threads", "0"), ("--seed", str(1 << 64))],
)
def test_usage(star_run: StarRun, tmp_path: Path, command: tuple[str, ...]) -> None:
    found = star_run(tmp_path, *images(SHAPES), "-p", "What?", *command)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: ")
    assert command[0] in found.stderr
    assert star_run().returncode == 2


def test_help(star_run: StarRun) -> None:
    import star_export

    assert star_run("--version").stdout == f"star_run {star_export.__version__}\n"


def test_options_are_those_of_run(star_run: StarRun, cli: Cli) -> None:  # noqa: F811
    """Those that lack and those that are more, docs/cpp.md names."""
    row = re.compile(r"^(?:│ [* ])?  (?:-\w,)?(--[a-z-]+)", re.MULTILINE)  # not what is said of it
    texts = (star_run("--help").stdout, cli("run", "--help").out)
    found, wanted = (set(row.findall(text)) for text in texts)
    assert len(wanted) > 12
    page = (SHAPES.parent / "cpp.md").read_text()

    def named(begin: str) -> set[str]:
        return set(re.findall(r"--[a-z-]+", page.partition(begin)[2].partition("\n\n")[0]))

    assert found - wanted == named("What `star_run` has beside them:")
    assert wanted - found == named("What only Python has:")


def test_libraries(star_run: StarRun, bundle: Any, tmp_path: Path) -> None:
    command = (bundle("mha"), *images(SHAPES), "-p", "What?", "--json")
    assert star_run(*command, "--onnxruntime", LIBRARY).returncode == 0
    found = star_run(*command, "--onnxruntime", tmp_path / "libonnxruntime.so")
    assert found.returncode == 2
    assert "ONNX Runtime does not load" in found.stderr
    assert "unknown backend tensorflow" in star_run(*command, "--backend", "tensorflow").stderr


def test_bench(star_run: StarRun, bundle: Any) -> None:
    command = (bundle("mini", max_images=3), *images(SHAPES), "-p", QUESTIONS[0], "--bench", "--repeats", 2)
    measured = json.loads(star_run(*command, "--json").stdout)
    assert (measured["repeats"], measured["ttft_ms"] > measured["decode_ms"] > 0) == (2, True)
    assert star_run(*command).stdout.startswith("TTFT ")


def test_interrupted(star_run: StarRun, bundle: Any) -> None:
    asked = (*images(SHAPES), "-p", "What?", "--bench", "--repeats", 1_000_000)
    command = [BUILD / "star_run", bundle("mha"), *asked, "--onnxruntime", LIBRARY]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "interrupted\n"
    assert process.returncode == 130


def test_reader_that_left(bundle: Any, star_run: StarRun) -> None:
    command = [BUILD / "star_run", bundle("mha"), *images(SHAPES), "-p", "What?", "--onnxruntime", LIBRARY]
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(list(map(str, command)), stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (process.returncode, process.stderr) == (2, b"")
