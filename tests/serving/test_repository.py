"""The model repository."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from star_export.bundle import open_bundle
from star_export.cli.app import app
from star_export.errors import SettingsError
from star_export.serving.repository import ServeOptions, server_command, write_repository


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
