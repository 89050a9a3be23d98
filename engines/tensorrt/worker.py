"""One engine, built in this process.

Run as ``python -m star_export.engines.tensorrt.worker REQUEST``, which is what
`star_export.engines.tensorrt.builder` does: a builder that dies takes only its
own process with it, and its memory is given back before the next one starts.
Prints one JSON object per line: what TensorRT says, then the outcome.
"""

import contextlib
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any, BinaryIO

from star_export.contract import is_slots
from star_export.engines.tensorrt.bindings import Bindings, errors, first_error, load_bindings, log
from star_export.engines.tensorrt.cuda import require_device
from star_export.engines.tensorrt.network import parse
from star_export.engines.tensorrt.request import EngineRequest
from star_export.errors import BundleError, PlatformError, StarExportError, marked
from star_export.files import atomic_open
from star_export.memory import resident_bytes

_UNUSED_INPUT = re.compile(r"Unused Input: (\S+)")


def build_engine(request: EngineRequest) -> None:
    """Parse, build and write one engine.

    Raises:
        BundleError: If the graph is refused, or loses something on the way.
        PlatformError: If TensorRT, a plugin or a GPU is missing, or the build fails.
    """
    bindings = load_bindings(request.backend)
    trt, path = bindings.trt, Path(request.graph)
    _load_plugins(request, bindings)
    builder = trt.Builder(bindings.logger)
    if errors(bindings):  # the bindings wrap a null pointer then
        raise PlatformError(f"{bindings.backend} cannot start: {first_error(bindings)}")
    network = parse(
        bindings,
        builder,
        path,
        profiles=request.profiles,
        with_plugin=request.plugins != "none",
        shared_weights=request.shared_weights,
    )
    config = _configure(request, bindings, builder)
    cache = _open_timing_cache(request, config)
    _log_memory("before")
    with atomic_open(Path(request.output)) as file:
        writer = _make_writer(trt, file)
        built = builder.build_serialized_network_to_stream(network, config, writer)
        if writer.error is not None:
            raise writer.error
        if not built:
            raise PlatformError(f"{bindings.backend} {bindings.version}: {path}: {first_error(bindings)}")
        _refuse_unused_inputs(path, bindings)
    _log_memory("after")
    if cache is not None and request.timing_cache:
        with atomic_open(Path(request.timing_cache)) as file:
            file.write(memoryview(cache.serialize()))


def _load_plugins(request: EngineRequest, bindings: Bindings) -> None:
    """Make ``TopKGather`` known to the parser. Never for TensorRT-RTX, whose parser then aborts."""
    if request.plugins == "none":
        return
    from star_export.engines.plugins import aot, library

    if request.plugins == "aot":
        aot.register(bindings.trt, architecture=_architecture(request))
    else:
        library.load(bindings.trt, Path(request.plugin_library or ""), bindings.logger)


def _architecture(request: EngineRequest) -> str:
    """What the kernel is compiled for: the GPU here, or the oldest one that may run it."""
    if request.hardware_compatible:
        return "compute_80"
    return "compute_{}{}".format(*require_device().capability)


def _configure(request: EngineRequest, bindings: Bindings, builder: Any) -> Any:
    trt = bindings.trt
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shapes in request.profiles.items():
        profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
    config.add_optimization_profile(profile)
    if request.targets:
        config.num_compute_capabilities = len(request.targets)
        for index, target in enumerate(request.targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
    if request.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        # A lean runtime inside the plan is code that a loader would have to trust; see lean_library.
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if request.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if request.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)
    return config


def _make_writer(trt: Any, file: BinaryIO) -> Any:
    """Takes the engine piece by piece: in one piece it would be in memory once more."""

    class _Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:  # must not cross TensorRT's C++
                self.error = error
                return 0

    return _Writer()


def _open_timing_cache(request: EngineRequest, config: Any) -> Any:
    """The timing cache in use, or None without one."""
    if request.timing_cache is None:
        return None
    path = Path(request.timing_cache)
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise PlatformError(
            f"{path} is no timing cache of this TensorRT and GPU; name another file or remove it"
        )
    return cache


def _refuse_unused_inputs(path: Path, bindings: Bindings) -> None:
    for message in bindings.messages:
        match = _UNUSED_INPUT.search(message.text)
        if match and not is_slots(match[1]):
            raise BundleError(
                f"{path}: {bindings.backend} {bindings.version} made an engine that ignores the input "
                f"{match[1]}; it would compute something else, so it was not kept"
            )


class _JsonLines(logging.Handler):
    """Hands every message to the parent process."""

    def emit(self, record: logging.LogRecord) -> None:
        _say({"level": record.levelno, "text": record.getMessage()})


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _log_memory(moment: str) -> None:
    """Say how much host and GPU memory is in use."""
    parts = []
    if (resident := resident_bytes("now")) is not None:
        parts.append(f"{resident >> 20} MiB resident")
    with contextlib.suppress(PlatformError):  # TensorRT-RTX builds without a GPU
        parts.append(f"{require_device().free_memory >> 20} MiB free on the GPU")
    log.info("memory %s the build: %s", moment, ", ".join(parts) or "unknown")


def _main(text: str) -> None:
    log.addHandler(_JsonLines())
    log.setLevel(logging.INFO)
    try:
        build_engine(EngineRequest.from_json(text))
    except (StarExportError, OSError, MemoryError) as error:
        _say({"error": type(error).__name__, "reason": marked(error)})
    else:
        _say({"peak_memory": resident_bytes("peak")})


if __name__ == "__main__":
    _main(sys.argv[1])
