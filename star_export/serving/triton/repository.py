"""A model repository that a stock ``tritonserver`` serves."""

import json
import os
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from star_export.bundle import MANIFEST, Bundle
from star_export.engines import Runtime
from star_export.errors import SettingsError, option
from star_export.files import staging_folder
from star_export.serving.card import Card
from star_export.serving.options import ServiceOptions
from star_export.serving.triton.fields import INPUTS, MODEL, OUTPUTS, UNARY_MODEL, Field
from star_export.serving.triton.tritonserver import Server

VERSION, BUNDLE, PLUGIN_LIBRARY = "1", "bundle", "plugin.so"


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ServiceOptions):
    """How a bundle is served.

    Attributes:
        runtime: What runs the graphs; its plugin library is copied.
    """

    runtime: Runtime = field(default_factory=Runtime)


def write_repository(bundle: Bundle, output: Path, options: ServeOptions, *, overwrite: bool = False) -> None:
    """Write a repository with the bundle in it; large files are linked where the disk allows it.

    Args:
        bundle: What is served.
        output: Folder to make.
        options: How it is served.
        overwrite: Replace an older repository.

    Raises:
        SettingsError: If ``output`` exists and may not be replaced, or a setting makes no sense.
        BundleError: If the backend cannot run the bundle.
        PlatformError: If the disk is full or the folder cannot be written.
    """
    _check(bundle, output, options, overwrite=overwrite)
    library = options.runtime.plugin_library
    with staging_folder(output, overwrite=overwrite) as folder:
        version = folder / MODEL / VERSION
        version.mkdir(parents=True)
        if library is not None:
            shutil.copyfile(library, version / PLUGIN_LIBRARY)
        (version / "model.py").write_text(_MODEL_PY.format(module="model"))
        (folder / MODEL / "config.pbtxt").write_text(model_config(MODEL, parameters(bundle, options)))
        _link(bundle, version / BUNDLE)
        unary = folder / UNARY_MODEL / VERSION
        unary.mkdir(parents=True)
        (unary / "model.py").write_text(_MODEL_PY.format(module="unary"))
        (folder / UNARY_MODEL / "config.pbtxt").write_text(model_config(UNARY_MODEL, {}))
        (folder / "README.md").write_text(_README.format(command=server_command(output)))


def parameters(bundle: Bundle, options: ServeOptions) -> dict[str, Any]:
    """The parameters of the model's configuration; empty or 0 for what is not given.

    The card is for front doors on other machines, which have no bundle.
    """
    own = asdict(options)
    runtime: dict[str, Any] = own.pop("runtime")
    del runtime["exact"], runtime["batches"]  # a server never asks for the one, always for the other
    runtime |= {"bundle": BUNDLE, "threads": runtime["threads"] or 0}
    runtime["plugin_library"] = PLUGIN_LIBRARY if runtime["plugin_library"] is not None else ""
    return {**own, **runtime, "card": json.dumps(asdict(Card.of(bundle.spec)))}


def _check(bundle: Bundle, output: Path, options: ServeOptions, *, overwrite: bool) -> None:
    library = options.runtime.plugin_library
    if output.exists() and not overwrite:
        raise SettingsError(
            f"{output} exists; give {option('overwrite')} to replace it, or another {option('output')}"
        )
    if output.exists():
        _check_replaceable(output)
    if options.kv_cache_mib << 20 < bundle.spec.slot_bytes:
        needed = -(-bundle.spec.slot_bytes >> 20)
        raise SettingsError(
            f"{option('kv_cache_mib')} must be at least {needed} MiB for one sequence of this bundle, "
            f"got {options.kv_cache_mib}"
        )
    options.runtime.entry.check_bundle(bundle, options.runtime)
    if library is not None and not library.is_file():
        raise SettingsError(
            f"{option('plugin_library', library)} does not exist; give the path of the .so file"
        )


def _check_replaceable(repository: Path) -> None:
    """Refuse to replace a folder that is no repository of ours, or that holds other models and files."""
    models = [repository / name for name in (MODEL, UNARY_MODEL)]
    if not (models[0] / "config.pbtxt").is_file():
        raise SettingsError(
            f"{repository} is not such a model repository, so {option('overwrite')} will not replace it"
        )
    inside = {model / name for model in models for name in ("config.pbtxt", VERSION)}
    own = {repository / "README.md", *models, *inside}
    found = {path for folder in (repository, *filter(Path.is_dir, models)) for path in folder.iterdir()}
    if foreign := sorted(path.relative_to(repository).as_posix() for path in found - own):
        raise SettingsError(
            f"{repository} also holds {', '.join(foreign[:3])}{' ...' if foreign[3:] else ''}, "
            f"so {option('overwrite')} will not replace it; move what is not its own elsewhere"
        )


def server_command(repository: Path) -> str:
    """The command that serves a repository."""
    return shlex.join(Server(Path("tritonserver"), (), {}).command(repository))


def model_config(model: str, parameters: dict[str, Any]) -> str:
    """``config.pbtxt`` of one of the two models."""
    return _CONFIG.format(
        name=model,
        decoupled="true" if model == MODEL else "false",
        inputs=_tensors("input", INPUTS),
        outputs=_tensors("output", OUTPUTS),
        parameters="\n".join(
            f'parameters {{ key: "{name}" value: {{ string_value: "{_escaped(str(value))}" }} }}'
            for name, value in parameters.items()
        ),
    )


def _tensors(kind: str, fields: Iterable[Field]) -> str:
    optional = " optional: true" if kind == "input" else ""
    return "\n".join(
        f'{kind} {{ name: "{field.name}" data_type: TYPE_{field.kind} dims: [ {field.length} ]'
        f"{optional if field.optional else ''} }}"
        for field in fields
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _link(bundle: Bundle, target: Path) -> None:
    """The bundle's files under ``target``, as links to the same data where possible."""
    for name in (MANIFEST, *(file.path for file in bundle.files)):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(bundle.path(name).resolve(), path)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(bundle.path(name), path)


_MODEL_PY = '''"""Serves the bundle beside this file with the star-export that is installed."""

import os
import site
import sys

# The Python inside Triton ignores PYTHONPATH, which names the environment that star-export is in.
paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
sys.path[:0] = paths
for path in paths:
    site.addsitedir(path)  # editable installs

from star_export.serving.triton.{module} import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
'''

_CONFIG = """# Inputs and outputs are explained in docs/triton.md of star-export.
name: "{name}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: {decoupled} }}
instance_group {{ count: 1 kind: KIND_CPU }}
{inputs}
{outputs}
{parameters}
"""

_README = """# LLaVA with STAR pruning, for Triton Inference Server

Install star-export for the Python that Triton's Python backend uses, then serve this folder:

```
pip install star-export
{command}
```

It is ready when `curl localhost:8000/v2/health/ready` succeeds. Then, where
`pip install 'star-export[client]'` was run:

```
star-export client localhost:8001 --image picture.png --prompt "What is this?"
```
"""
