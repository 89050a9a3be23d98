"""The model repository."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from star_export.bundle import open_bundle
from star_export.cli.commands import app
from star_export.engines import Runtime
from star_export.errors import SettingsError
from star_export.serving.triton.fields import INPUTS, OUTPUTS
from star_export.serving.triton.repository import (
    ServeOptions,
    model_config,
    parameters,
    server_command,
    write_repository,
)


def test_every_option_is_in_the_configuration(bundle, tmp_path: Path) -> None:
    options = ServeOptions(
        runtime=Runtime(backend="onnxruntime", threads=2),
        kv_cache_mib=5000,
        max_slots=7,
        queue=3,
        timeout_s=9.5,
        feature_cache_mib=11,
        prefix_cache_mib=12,
    )
    mha = open_bundle(bundle("mha"))
    write_repository(mha, tmp_path / "repository", options)
    config = (tmp_path / "repository/star_llava/config.pbtxt").read_text()
    found = dict(re.findall(r'key: "(\w+)" value: { string_value: "(.*?)" }', config))
    found["card"] = found["card"].replace('\\"', '"')
    assert found == {name: str(value) for name, value in parameters(mha, options).items()}
    card = json.loads(found["card"])
    assert [stage["keep"] for stage in card["stages"]] == [stage.tokens for stage in mha.spec.schedule]
    every = {f.name for f in (*fields(Runtime), *fields(ServeOptions))}
    assert every - {"runtime", "exact", "batches"} <= set(found)  # of which a server has no choice
    assert (found["threads"], found["queue"]) == ("2", "3")
    assert parameters(mha, ServeOptions()) == {
        "card": found["card"],
        "backend": "onnxruntime",
        "kv_cache_mib": 4096,
        "max_slots": 32,
        "queue": 64,
        "timeout_s": 120.0,
        "feature_cache_mib": 256,
        "prefix_cache_mib": 256,
        "threads": 0,
        "bundle": "bundle",
        "plugin_library": "",
    }
    for model, module in (("star_llava", "model"), ("star_llava_infer", "unary")):
        code = (tmp_path / "repository" / model / "1/model.py").read_text()
        compile(code, "model.py", "exec")
        assert f"from star_export.serving.triton.{module} import TritonPythonModel" in code


def test_a_plugin_library_comes_along(bundle, tmp_path: Path) -> None:
    library = tmp_path / "libstar.so"
    library.write_bytes(b"a library")
    output = tmp_path / "repository"
    options = ServeOptions(runtime=Runtime(plugin_library=library))
    write_repository(open_bundle(bundle("mha")), output, options)
    assert (output / "star_llava/1/plugin.so").read_bytes() == b"a library"
    config = (output / "star_llava/config.pbtxt").read_text()
    assert 'key: "plugin_library" value: { string_value: "plugin.so" }' in config


def test_a_bundle_on_another_disk_is_copied(bundle, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr("star_export.serving.triton.repository.os.link", refuse)
    write_repository(open_bundle(bundle("mha")), tmp_path / "repository", ServeOptions())
    open_bundle(tmp_path / "repository/star_llava/1/bundle", verify=True)


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


def test_documentation_and_configuration_have_the_same_tensors() -> None:
    page = (Path(__file__).parents[3] / "docs/triton.md").read_text()
    rows = re.findall(r"^\| (`.+`) \| (\w+) \[(\w)\](, optional|, last response)? \|", page, re.MULTILINE)
    documented = [
        (name, kind.replace("BYTES", "STRING"), length.replace("n", "-1"), bool(optional))
        for names, kind, length, optional in rows
        for name in re.findall(r"\w+", names)
    ]
    assert [(f.name, f.kind, str(f.length), f.optional) for f in (*INPUTS, *OUTPUTS)] == documented
    tensor = r'(?:in|out)put { name: "(\w+)" data_type: TYPE_(\w+) dims: \[ (-?1) \](?: (optional): true)? }'
    last_only = {field.name for field in OUTPUTS if field.optional}
    for model in ("star_llava", "star_llava_infer"):
        config = model_config(model, {"a": 1, "b": 'x"\\'})
        configured = re.findall(tensor, config)
        assert [(*rest, bool(flag) or rest[0] in last_only) for *rest, flag in configured] == documented
        assert f'name: "{model}"\nbackend: "python"\nmax_batch_size: 0\n' in config
        assert 'parameters { key: "a" value: { string_value: "1" } }\n' in config
        assert r'parameters { key: "b" value: { string_value: "x\"\\" } }' in config


def test_a_repository_is_replaced_only_when_asked_and_nothing_else_is(bundle, tmp_path: Path) -> None:
    source, output = open_bundle(bundle("mha")), tmp_path / "repository"
    write_repository(source, output, ServeOptions())
    with pytest.raises(SettingsError, match="give overwrite to"):
        write_repository(source, output, ServeOptions())
    write_repository(source, output, ServeOptions(queue=3), overwrite=True)
    assert 'key: "queue" value: { string_value: "3" }' in (output / "star_llava/config.pbtxt").read_text()
    for foreign in ("other_model/config.pbtxt", "star_llava/2/model.py", "notes.txt"):
        (output / foreign).parent.mkdir(exist_ok=True)
        (output / foreign).write_text("mine")
        named = foreign.removesuffix("/config.pbtxt").removesuffix("/model.py")
        with pytest.raises(SettingsError, match=f"also holds {named}, so overwrite will not replace it"):
            write_repository(source, output, ServeOptions(), overwrite=True)
        assert (output / foreign).read_text() == "mine"
        (output / foreign).unlink()
        if "/" in foreign:
            (output / foreign).parent.rmdir()
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
    ("options", "message"),
    [
        (ServeOptions(kv_cache_mib=1), "kv_cache_mib must be at least"),
        (
            ServeOptions(runtime=Runtime(plugin_library=Path("none.so"))),
            "plugin_library=none.so does not exist",
        ),
    ],
)
def test_settings_are_checked(bundle, tmp_path: Path, options, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        write_repository(open_bundle(bundle("mha")), tmp_path / "out", options)
    assert not list(tmp_path.iterdir())
