"""Every TensorRT and CUDA call in the code exists in the installed bindings.

Without a GPU most of these lines cannot run here: a misspelt call must fail in this test and
not on a user's machine. ``tensorrt_lean`` stands for full TensorRT, whose runtime API it has.
Objects of TensorRT are recognised by their names, which the code keeps to: ``context`` is
always an IExecutionContext.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import star_export.engines as engines
from star_export.engines.tensorrt.facts import Profile

rtx = pytest.importorskip("tensorrt_rtx")
lean = pytest.importorskip("tensorrt_lean")
runtime = pytest.importorskip("cuda.bindings.runtime")
driver = pytest.importorskip("cuda.bindings.driver")
nvrtc = pytest.importorskip("cuda.bindings.nvrtc")

FOLDER = Path(engines.__file__).parent
FILES = sorted(path for folder in ("tensorrt", "plugins") for path in FOLDER.joinpath(folder).glob("*.py"))
CUDA: dict[str, Any] = {
    "cudart": runtime,
    "driver": driver,
    "nvrtc": nvrtc,
    "properties": runtime.cudaDeviceProp,
}


#: Names, with or without a leading underscore, and the TensorRT class they stand for.
ROLES = {
    "runtime": ("Runtime",),
    "engine": ("ICudaEngine",),
    "context": ("IExecutionContext",),
    "config": ("IBuilderConfig", "IRuntimeConfig"),
    "builder": ("Builder",),
    "network": ("INetworkDefinition",),
    "parser": ("OnnxParser",),
    "profile": ("IOptimizationProfile",),
    "layer": ("ILayer",),
}

#: Roles that both backends run with; the others belong to building.
AT_RUN_TIME = {"runtime", "engine", "context"}

#: What only TensorRT-RTX has; uses are behind ``is_rtx``.
RTX_ONLY = {"get_engine_validity"}

#: Attributes of our own classes whose instances have a name of the table above.
OWN = {"profile": {field.name for field in fields(Profile)}}


@dataclass(frozen=True)
class Use:
    """One attribute of one object, and the call of it if it is called."""

    line: int
    root: str
    path: tuple[str, ...]
    call: ast.Call | None

    def __str__(self) -> str:
        return f"line {self.line}: {'.'.join((self.root, *self.path))}"


def uses(source: str) -> Iterator[Use]:
    """Longest attribute chains of known objects."""
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            root, path = _chain(node)
            if root:
                yield Use(node.lineno, root, path, calls.get(id(node)))


def _chain(node: ast.expr) -> tuple[str, tuple[str, ...]]:
    """Known root of a chain such as ``self._context.run``, and what follows it."""
    path: list[str] = []
    known = {*ROLES, *CUDA, "trt"}
    while isinstance(node, ast.Attribute):
        if path and node.attr.lstrip("_") in known:
            return node.attr.lstrip("_"), tuple(path)
        path.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id.lstrip("_") in known:
        return node.id.lstrip("_"), tuple(path)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "library":
        (name,) = node.args
        assert isinstance(name, ast.Constant)
        return {"runtime": "cudart"}.get(name.value, name.value), tuple(path)
    return "", ()


def faults(source: str) -> list[str]:
    """Every use that the bindings do not know, or that is called with other arguments than they take."""
    found = []
    for use in uses(source):
        if use.root in CUDA:
            candidates, needed = [CUDA[use.root]], 1
        elif use.root == "trt":
            candidates, needed = [rtx, lean], 1
        else:
            owners = [getattr(m, name, None) for name in ROLES[use.root] for m in (rtx, lean)]
            candidates = [owner for owner in owners if owner is not None]
            both = use.root in AT_RUN_TIME and use.path[0] not in RTX_ONLY
            needed = 2 if both else 1
        objects = [obj for obj in (_resolve(c, use.path) for c in candidates) if obj is not None]
        if len(objects) < needed and use.path[0] not in OWN.get(use.root, ()):
            found.append(f"{use} does not exist in {needed - len(objects)} of the bindings")
        elif use.call and objects and not any(_accepts(obj, use) for obj in objects):
            found.append(f"{use} is called with other arguments than it takes")
    return found


def _resolve(owner: Any, path: tuple[str, ...]) -> Any:
    """What ``owner`` has under ``path``, followed as long as modules and classes lead on."""
    for name in path:
        if not isinstance(owner, ModuleType | type):
            break
        owner = getattr(owner, name, None)
    return owner


def _accepts(function: Any, use: Use) -> bool:
    """Whether one of the signatures in a docstring takes the arguments of a call."""
    call, name = use.call, use.path[-1]
    assert call is not None
    signatures = re.findall(rf"^(?:\d+\. )?{name}\((.*?)\)(?: -> .*)?$", function.__doc__ or "", re.MULTILINE)
    if not signatures or (any(s.startswith("*args") for s in signatures[:1]) and len(signatures) == 1):
        return True  # a class, or no signature to compare with
    if name == "__init__" or any(isinstance(argument, ast.Starred) for argument in call.args):
        return True
    return any(_fits(_parameters(s), call) for s in signatures if not s.startswith("*args"))


def _fits(parameters: list[str], call: ast.Call) -> bool:
    names = [re.split(r"[:=]", p)[0].split()[-1].lstrip("*") for p in parameters]
    optional = [name for name, p in zip(names, parameters, strict=True) if "=" in p]
    given = names[: len(call.args)] + [keyword.arg or "" for keyword in call.keywords]
    required = set(names) - set(optional)
    return len(call.args) <= len(names) and required <= set(given) <= set(names)


def _parameters(signature: str) -> list[str]:
    """Parameters of a signature, split at the commas outside brackets, without ``self``."""
    parts, depth = [""], 0
    for character in signature:
        depth += (character in "[(<{") - (character in "])>}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip() and not part.strip().startswith("self")]


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_use_exists(path: Path) -> None:
    assert faults(path.read_text()) == []


def test_the_checker_sees_the_calls() -> None:
    seen = {(use.root, use.path[0]) for path in FILES for use in uses(path.read_text())}
    assert {
        ("context", "execute_async_v3"),
        ("context", "set_tensor_address"),
        ("config", "cuda_graph_strategy"),
        ("cudart", "cudaMemcpyAsync"),
        ("driver", "cuLaunchKernel"),
        ("engine", "get_aliased_input_tensor"),
        ("engine", "weight_streaming_budget_v2"),
        ("nvrtc", "nvrtcCompileProgram"),
        ("properties", "major"),
        ("runtime", "get_engine_validity"),
        ("trt", "TensorLocation"),
    } <= seen
    assert len(seen) > 50


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("engine", "context.execute_async_v3(", "context.execute_async_v4("),
        ("engine", "trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE", "trt.CudaGraphStrategy.WHOLE_GRAPH"),
        (
            "engine",
            "context.set_device_memory(scratch.pointer, scratch.size)",
            "context.set_device_memory(0)",
        ),
        (
            "engine",
            "context.set_tensor_address(name, address)",
            "context.set_tensor_address(name, at=address)",
        ),
        ("engine", "engine.num_io_tensors", "engine.nb_io_tensors"),
        # Exists in TensorRT-RTX only, and this use would be for both.
        ("engine", "context.infer_shapes()", "context.is_stream_capturable(0)"),
        ("loading", "loaded.engine.streamable_weights_size", "loaded.engine.streamable_weight_size"),
        ("cuda", "cudart.cudaMemcpyKind.cudaMemcpyHostToDevice", "cudart.cudaMemcpyKind.HostToDevice"),
        ("cuda", "cudaMemsetAsync(pointer, 0, size, self._stream)", "cudaMemsetAsync(pointer, size)"),
        ("cuda", "properties.major", "properties.compute_major"),
        ("plugins/nvrtc", "nvrtc.nvrtcGetProgramLog(program, log)", "nvrtc.nvrtcGetLog(program, log)"),
        ("argmax", "THREADS, 1, 1, 0, stream", "THREADS, 1, 0, stream"),
    ],
)
def test_a_planted_fault_is_found(file: str, right: str, wrong: str) -> None:
    source = FOLDER.joinpath(f"{file}.py" if "/" in file else f"tensorrt/{file}.py").read_text()
    assert right in source
    assert len(faults(source.replace(right, wrong))) == 1
