"""The model repository and the client, as far as they need no server."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from star_export.bundle import open_bundle
from star_export.cli.app import app
from star_export.errors import InputError, PlatformError, SettingsError
from star_export.serving.client import collect, stream
from star_export.serving.fields import image_bytes, scalars
from star_export.serving.repository import ServeOptions, server_command, write_repository

PICTURE = Path(__file__).parents[2] / "docs/shapes.png"


def test_a_repository_holds_the_whole_bundle(bundle, tmp_path: Path) -> None:
    source = open_bundle(bundle("mha"))
    output = tmp_path / "repository"
    write_repository(source, output, ServeOptions(max_slots=7))
    copy = open_bundle(output / "star_llava/1/bundle", verify=True)
    assert copy.manifest == source.manifest
    graph = "graphs/decode.onnx"
    assert copy.path(graph).samefile(source.path(graph))  # no second copy of the weights
    config = (output / "star_llava/config.pbtxt").read_text()
    assert 'key: "max_slots" value: { string_value: "7" }' in config
    assert "decoupled: true" in config
    assert "decoupled: false" in (output / "star_llava_infer/config.pbtxt").read_text()
    assert server_command(output) in (output / "README.md").read_text()


def test_a_repository_is_replaced_only_when_asked_and_nothing_else_is(bundle, tmp_path: Path) -> None:
    source, output = open_bundle(bundle("mha")), tmp_path / "repository"
    write_repository(source, output, ServeOptions())
    with pytest.raises(SettingsError, match="--overwrite"):
        write_repository(source, output, ServeOptions())
    write_repository(source, output, ServeOptions(queue=3), overwrite=True)
    assert 'key: "queue" value: { string_value: "3" }' in (output / "star_llava/config.pbtxt").read_text()
    (tmp_path / "photos").mkdir()
    with pytest.raises(SettingsError, match="not such a model repository"):
        write_repository(source, tmp_path / "photos", ServeOptions(), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "repository"]


def test_the_triton_command_writes_a_repository(bundle, tmp_path: Path) -> None:
    output = tmp_path / "repository"
    command = ["triton", str(bundle("mha")), "-o", str(output), "--queue", "5", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == {
        "repository": str(output),
        "backend": "onnxruntime",
        "command": f"tritonserver --model-repository={output} --model-control-mode=none "
        "--exit-timeout-secs=120",
    }
    assert 'key: "queue" value: { string_value: "5" }' in (output / "star_llava/config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("options", "library", "message"),
    [
        (ServeOptions(kv_cache_mib=1), None, "--kv-cache must be at least"),
        (ServeOptions(backend="onnxrt"), None, "did you mean onnxruntime"),
        (ServeOptions(), Path("none.so"), "--plugin-library none.so does not exist"),
    ],
)
def test_settings_are_checked(bundle, tmp_path: Path, options, library, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        write_repository(open_bundle(bundle("mha")), tmp_path / "out", options, plugin_library=library)
    assert not list(tmp_path.iterdir())


def test_pictures_come_as_bytes_as_base64_or_as_data_urls() -> None:
    data = PICTURE.read_bytes()
    text = base64.b64encode(data)
    assert image_bytes(data) == data
    assert image_bytes(text) == data
    assert image_bytes(b"data:image/png;base64," + text) == data


def test_inputs_become_python_values() -> None:
    given = {
        "prompt": np.array([b"caf\xc3\xa9"], object),
        "stop": np.array([b"a", b"b"], object),
        "keep": np.array([29], np.int32),
        "image": np.array([b"\xff"], object),
    }
    assert scalars(given) == {"image": b"\xff", "prompt": "café", "keep": 29, "stop": ("a", "b")}
    with pytest.raises(InputError, match="stop must be UTF-8"):
        scalars({"stop": np.array([b"a", b"\xff"], object)})


def test_the_client_tells_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        list(stream("localhost:1", tmp_path / "none.png", "What?"))
    with pytest.raises(PlatformError, match="no answer from localhost:1"):
        list(stream("localhost:1", PICTURE, "What?"))


def test_responses_are_put_together() -> None:
    last = {"text": "", "token_ids": [2], "finish_reason": "stop", "usage": "{}", "timings_ms": '{"ttft": 1}'}
    with pytest.raises(PlatformError, match="broke off"):
        collect(iter([{"text": "a", "token_ids": [5, 6]}]))
    whole = collect(iter([{"text": "a", "token_ids": [5, 6]}, last]))
    assert whole == {
        "text": "a",
        "token_ids": [5, 6, 2],
        "finish_reason": "stop",
        "usage": {},
        "timings_ms": {"ttft": 1},
    }
