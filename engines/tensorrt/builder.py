"""All three engines of a bundle, each built in a process of its own."""

import difflib
import importlib.util
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from star_export.contract import DECODE, GRAPHS, PREFILL, is_slots
from star_export.engines.plugins import PLUGIN_CHOICES
from star_export.engines.tensorrt.bindings import (
    PRODUCTS,
    TENSORRT,
    TENSORRT_RTX,
    Bindings,
    load_bindings,
    log,
)
from star_export.engines.tensorrt.cuda import require_device
from star_export.engines.tensorrt.facts import AMPERE_PLUS, EngineFacts, SmallerEngines, engine_path
from star_export.engines.tensorrt.profiles import check_rooms, check_topk, engine_profiles
from star_export.engines.tensorrt.request import EngineRequest
from star_export.errors import BundleError, PlatformError, SettingsError, option
from star_export.specs import ExportSpec

#: Stages inside the decoder of which TensorRT-RTX 1.7.1 builds decode; of one more it says "uses before def".
MOST_RTX_STAGES = 5

#: Where engines have their weights: once for all of them, as inputs, or as constants inside each.
WEIGHTS_CHOICES = SHARED, BAKED = ("shared", "baked")

#: Memory of a builder, as a multiple of the weights that an engine holds.
BUILDER_COPIES = 3

_UNUSED_TENSOR = re.compile(r"Tensor (\S+) is unused")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What ``star-export build --backend`` was asked for; see its help for each."""

    backend: str
    targets: tuple[str, ...] = ()
    max_batch: int = 8
    plugins: str | None = None
    plugin_library: Path | None = None
    weights: str | None = None
    capacities: tuple[int, ...] = ()
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    weight_streaming: bool = False
    workspace: int | None = None


def options_like(facts: EngineFacts) -> EngineOptions:
    """What builds the same engines from the graphs of another bundle, without a plugin."""
    return EngineOptions(
        backend=facts.backend,
        targets=facts.targets if PRODUCTS[facts.backend].targets else (),
        max_batch=facts.max_batch,
        plugins="none",
        hardware_compatible=AMPERE_PLUS in facts.targets,
        version_compatible=facts.version_compatible,
        weight_streaming=facts.weight_streaming,
        weights=SHARED if facts.weights_files else BAKED,
        capacities=tuple(engines.room for engines in facts.smaller),
    )


def build_engines(
    folder: Path,
    spec: ExportSpec,
    options: EngineOptions,
    *,
    weights: Mapping[str, str],
    output: Path,
    step: Callable[[str], Any],
) -> EngineFacts:
    """Build the engines of ``folder``'s graphs.

    Args:
        folder: A bundle, or one in the making: ``graphs/*.onnx``.
        spec: What was exported.
        options: For which backend, GPUs and sizes.
        weights: SHA-256 in hex of the weights files, by their paths in ``folder``.
        output: Folder that gets the ``*.engine`` files.
        step: Called with each engine's step name; what it returns is entered while it is built.

    Raises:
        SettingsError: If the options contradict the backend or the bundle.
        BundleError: If a graph is refused.
        PlatformError: If TensorRT or a GPU is missing, or a build fails.
    """
    check_options(options, spec)
    bindings = load_builder(options.backend)
    facts = _facts(bindings, options, spec, weights=weights if weights_of(options) == SHARED else {})
    for engines in facts.by_capacities(spec).values():
        for graph, file in engines.files.items():
            path = output / Path(file).name
            request = _request(options, facts, folder / "graphs" / f"{graph}.onnx", path)
            with step(f"{options.backend} {path.stem} engine"):
                build_apart(replace(request, profiles=engines.profiles[graph]), path.stem)
    return facts


def _request(options: EngineOptions, facts: EngineFacts, graph: Path, output: Path) -> EngineRequest:
    """What builds ``graph``, but for its profiles."""
    return EngineRequest(
        backend=options.backend,
        graph=str(graph),
        output=str(output),
        profiles={},
        targets=facts.targets if PRODUCTS[options.backend].targets else (),
        plugins=facts.plugins,
        plugin_library=str(options.plugin_library) if options.plugin_library else None,
        timing_cache=str(options.timing_cache.resolve()) if options.timing_cache else None,
        hardware_compatible=options.hardware_compatible,
        version_compatible=options.version_compatible,
        weight_streaming=options.weight_streaming,
        shared_weights=bool(facts.weights_files),
        workspace=options.workspace << 20 if options.workspace else None,
    )


def load_builder(backend: str) -> Bindings:
    """TensorRT with all that building needs.

    Raises:
        PlatformError: If it, or onnx, is not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        raise PlatformError(f"building engines needs onnx; run: {PRODUCTS[backend].install}")
    return load_bindings(backend)


def check_options(options: EngineOptions, spec: ExportSpec) -> None:
    """Refuse options that the backend or the bundle does not allow.

    Raises:
        SettingsError: With what to type instead.
    """
    if spec.dtype == "float32":
        raise SettingsError(
            "TensorRT has no float32 attention kernel, and this bundle is float32; "
            f"build it with {option('dtype', 'float16')}"
        )
    if spec.quantization and spec.quantization.type.startswith("u"):
        signed = option("quantize", spec.quantization.type.removeprefix("u"))
        given = spec.quantization.layers is not None
        raise SettingsError(
            f"TensorRT takes no zero points, which {spec.quantization.type} has; "
            f"{'give the original float weights and ' if given else 'build the bundle with '}{signed}"
        )
    if spec.quantization and spec.quantization.embedding and weights_of(options) == BAKED:
        raise SettingsError(
            f"this bundle has {option('quantize_embedding', True)}, and TensorRT takes no such table as a "
            f"constant; give {option('weights', SHARED)}"
        )
    if targets := PRODUCTS[options.backend].targets:
        _check_rtx_options(options, targets)
        _check_rtx_stages(spec)
    elif options.targets:
        raise SettingsError(
            f"{option('targets')} is for {option('backend', TENSORRT_RTX)}; tensorrt builds for the GPU of "
            f"this machine ({option('hardware_compatible', True)}: for every one from sm80)"
        )
    if options.plugins == "library" and options.plugin_library is None:
        raise SettingsError(
            f"{option('plugins', 'library')} needs {option('plugin_library', 'PATH')}; "
            "docs/kernels.md says how to make it"
        )
    if options.plugin_library is not None and not options.plugin_library.is_file():
        raise SettingsError(
            f"{option('plugin_library', options.plugin_library)} does not exist; see docs/kernels.md"
        )
    if options.plugins not in (None, *PLUGIN_CHOICES):
        raise SettingsError(f"{option('plugins')} must be {', '.join(PLUGIN_CHOICES)}, got {options.plugins}")
    if options.weights not in (None, *WEIGHTS_CHOICES):
        raise SettingsError(
            f"{option('weights')} must be {' or '.join(WEIGHTS_CHOICES)}, got {options.weights}"
        )
    if options.weight_streaming and options.weights == SHARED:
        raise SettingsError(
            f"{option('weight_streaming', True)} streams weights that are inside an engine; "
            f"leave it out, or give {option('weights', BAKED)}"
        )
    if options.capacities and weights_of(options) == BAKED:
        raise SettingsError(
            f"{option('capacities')} would put the decoder's weights into every engine once more; "
            f"leave it out, or share them: {option('weights', SHARED)}"
        )
    check_rooms(spec, options.capacities)
    if plugins_of(options) == "none":
        check_topk(spec)


def _check_rtx_options(options: EngineOptions, targets: tuple[str, ...]) -> None:
    for target in options.targets:
        if target not in targets:
            near = difflib.get_close_matches(target, targets, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise SettingsError(f"unknown target {target}; {hint}targets are {', '.join(targets)}")
    refused = {
        "plugins": options.plugins not in (None, "none"),
        "timing_cache": options.timing_cache is not None,
        "hardware_compatible": options.hardware_compatible,
        "version_compatible": options.version_compatible,
    }
    if names := [option(name) for name, given in refused.items() if given]:
        raise SettingsError(
            f"tensorrt-rtx has no {', '.join(names)}; leave it out, or use {option('backend', TENSORRT)}"
        )


def _check_rtx_stages(spec: ExportSpec) -> None:
    if (count := len(spec.decoder_stages)) > MOST_RTX_STAGES:
        raise SettingsError(
            f"this schedule has {count} stages inside the decoder, TensorRT-RTX builds decode of at most "
            f"{MOST_RTX_STAGES}; give fewer in {option('schedule')}, or use {option('backend', TENSORRT)}"
        )


def plugins_of(options: EngineOptions) -> str:
    """Where ``TopKGather`` comes from: baked in by default, the function body for TensorRT-RTX."""
    return PRODUCTS[options.backend].plugins if options.plugins is None else options.plugins


def weights_of(options: EngineOptions) -> str:
    """Where engines have their weights: once beside them by default, inside them to be streamed."""
    if options.weights is None:
        return BAKED if options.weight_streaming else SHARED
    return options.weights


def _facts(
    bindings: Bindings, options: EngineOptions, spec: ExportSpec, *, weights: Mapping[str, str]
) -> EngineFacts:
    driver, targets = None, options.targets or PRODUCTS[options.backend].targets
    if not targets:
        device = require_device()
        driver = device.driver
        targets = (AMPERE_PLUS,) if options.hardware_compatible else ("sm{}{}".format(*device.capability),)
    return EngineFacts(
        backend=options.backend,
        version=bindings.version,
        targets=tuple(dict.fromkeys(targets)),
        plugins=plugins_of(options),
        version_compatible=options.version_compatible,
        weight_streaming=options.weight_streaming,
        driver=driver,
        profiles=engine_profiles(spec, max_batch=options.max_batch),
        files={graph: engine_path(options.backend, graph) for graph in GRAPHS},
        weights_files=dict(weights),
        smaller=tuple(smaller_engines(options, spec, n) for n in options.capacities if n < spec.room),
    )


def smaller_engines(options: EngineOptions, spec: ExportSpec, room: int) -> SmallerEngines:
    """What the manifest says of engines with less room for text and answer than the bundle has."""
    profiles = engine_profiles(spec, max_batch=options.max_batch, room=room)
    return SmallerEngines(
        room=room,
        profiles={graph: profiles[graph] for graph in (PREFILL, DECODE)},
        files={graph: engine_path(options.backend, graph, room) for graph in (PREFILL, DECODE)},
    )


def build_apart(request: EngineRequest, graph: str) -> None:
    """Build one engine in a process of its own, and pass on what TensorRT says.

    Raises:
        BundleError, SettingsError, PlatformError: What the build raised; PlatformError if it died.
    """
    command = [sys.executable, "-m", "star_export.engines.tensorrt.worker", request.to_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        complaints: list[str] = []
        drain = threading.Thread(target=complaints.extend, args=(process.stderr,))  # a full pipe would block
        drain.start()
        try:
            outcome = _relay(process.stdout)
        except BaseException:
            process.kill()
            raise
        finally:
            drain.join()
    if outcome is None:
        reason = (complaints or ["no message"])[-1].strip()
        raise PlatformError(
            f"the {request.backend} builder died on the {graph} graph (exit {process.returncode}: {reason}); "
            f"nothing was kept: free memory or lower {option('max_text_tokens')}, and report it if it goes on"
        )
    if "error" in outcome:
        kinds = {error.__name__: error for error in (BundleError, SettingsError)}
        raise kinds.get(outcome["error"], PlatformError)(outcome["reason"])
    if (peak := outcome["peak_memory"]) is not None:
        log.info("%s engine: builder peak %d MiB", graph, peak >> 20)


def _relay(lines: Iterable[str]) -> dict[str, Any] | None:
    """Log every message; return the outcome, or None when there was none."""
    outcome = None
    for line in lines:
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if not isinstance(data, dict):  # a library that prints on its own
            log.info("%s", line.rstrip())
        elif "level" in data:
            log.log(_demoted(data["level"], data["text"]), "%s", data["text"])
        else:
            outcome = data
    return outcome


def _demoted(level: int, text: str) -> int:
    """Warnings that say what the contract means are no warnings; errors reach the user as the outcome."""
    unused = _UNUSED_TENSOR.search(text)
    expected = "Int64 binding" in text or (unused is not None and is_slots(unused[1]))
    expected |= "A node named node_of_" in text  # of a function's body, which each stage's call brings along
    return logging.INFO if expected or level >= logging.ERROR else level
