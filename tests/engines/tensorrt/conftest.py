"""Bundles with real engines, built by the TensorRT that is installed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_export.bundle import MANIFEST, Bundle, open_bundle
from star_export.contract import GRAPHS, contract
from star_export.engines.tensorrt.bindings import Bindings, load_bindings
from star_export.engines.tensorrt.facts import EngineFacts, Profile, engine_path
from star_export.files import sha256, write_json
from star_export.specs import ExportSpec

MAX_BATCH = 4


def ranges(spec: ExportSpec) -> dict[str, tuple[int, int, int]]:
    """Smallest, typical and largest value of the contract's symbolic sizes."""
    visual, text = spec.image_tokens, spec.max_text_tokens
    found = {
        "B": (1, 1, MAX_BATCH),
        "S": (visual + 2, visual + 20, visual + text),
        "V": (visual, visual, visual),
        "Q": (1, 10, text),
    }
    if star := spec.star:
        found |= {"N1": (star.stage1_keep,) * 3, "N2": (1, star.keep, star.max_keep)}
    return found


def profiles(spec: ExportSpec) -> dict[str, dict[str, Profile]]:
    """The profile of every dynamic input."""
    sizes = ranges(spec)
    made: dict[str, dict[str, Profile]] = {}
    for graph, io in contract(spec).items():
        for tensor in io.inputs:
            if any(isinstance(dim, str) for dim in tensor.shape):
                shapes = [
                    tuple(sizes[d][i] if isinstance(d, str) else d for d in tensor.shape) for i in range(3)
                ]
                made.setdefault(graph, {})[tensor.name] = Profile(*shapes)
    return made


def build_engine(bindings: Bindings, bundle: Bundle, graph: str, capability: tuple[int, int]) -> bytes:
    """One engine for one GPU."""
    trt = bindings.trt
    builder = trt.Builder(bindings.logger)
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, bindings.logger)
    assert parser.parse_from_file(str(bundle.graph_path(graph))), parser.get_error(0).desc()
    config = builder.create_builder_config()
    if bindings.is_rtx:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, "SM{}{}".format(*capability)), 0)
    profile = builder.create_optimization_profile()
    for name, shapes in profiles(bundle.spec).get(graph, {}).items():
        profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, bindings.messages[-3:]
    return bytes(memoryview(engine))


def facts_of(
    bindings: Bindings, spec: ExportSpec, capability: tuple[int, int], **changes: Any
) -> EngineFacts:
    """The manifest's entry of such engines."""
    values: dict[str, Any] = {
        "backend": bindings.backend,
        "version": bindings.version,
        "targets": ("sm{}{}".format(*capability),),
        "plugins": "none",
        "version_compatible": False,
        "weight_streaming": False,
        "driver": None,
        "profiles": profiles(spec),
        "files": {graph: engine_path(bindings.backend, graph) for graph in GRAPHS},
    }
    return EngineFacts(**{**values, **changes})


def add_engines(folder: Path, facts: EngineFacts, engines: dict[str, bytes]) -> Bundle:
    """Write engines into a bundle and list them in its manifest."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest.setdefault("engines", {})[facts.backend] = facts.to_dict()
    for graph, content in engines.items():
        path = folder / facts.files[graph]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        manifest["files"] += [{"path": facts.files[graph], "bytes": len(content), "sha256": sha256(path)}]
    write_json(folder / MANIFEST, manifest)
    return open_bundle(folder)


@pytest.fixture(scope="session")
def engine_bundle(
    bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """``engine_bundle("tensorrt-rtx", "mha", capability)``: a float16 bundle with engines."""
    root = tmp_path_factory.mktemp("engines")

    def get(backend: str, preset: str, capability: tuple[int, int], *, prune: bool = True) -> Bundle:
        folder = root / f"{backend}-{preset}-{prune}"
        if folder.exists():
            return open_bundle(folder)
        bindings = load_bindings(backend)
        plain = open_bundle(shutil.copytree(bundle(preset, prune=prune, dtype="float16"), folder))
        engines = {graph: build_engine(bindings, plain, graph, capability) for graph in GRAPHS}
        return add_engines(folder, facts_of(bindings, plain.spec, capability), engines)

    return get
