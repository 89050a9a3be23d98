"""One engine file: deserialised, compared with the contract, and run."""

import importlib
import logging
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from star_export.engines.tensorrt.bindings import Bindings, errors, first_error
from star_export.engines.tensorrt.cuda import DeviceBuffer, Graph, Stream
from star_export.engines.tensorrt.facts import Shape
from star_export.engines.tensorrt.shapes import EngineTensor, ShapeRules
from star_export.errors import BundleError, PlatformError

log = logging.getLogger("star_export.tensorrt")

#: Runtimes that must not be deleted. One that could not start wraps a null pointer, whose use or
#: deletion ends the process; one that loaded a lean runtime must outlive it.
_KEPT: list[Any] = []


def create_runtime(bindings: Bindings, built_by: str) -> Any:
    """What loads engines of the TensorRT version ``built_by``.

    Raises:
        PlatformError: If TensorRT cannot start, on a driver that is too old for it say, or if
            version-compatible engines lack the lean runtime that they need here.
    """
    heard = len(bindings.messages)
    runtime = bindings.trt.Runtime(bindings.logger)
    if errors(bindings, heard):
        _KEPT.append(runtime)
        raise PlatformError(
            f"{bindings.backend} {bindings.version} cannot start: {first_error(bindings, heard)}"
        )
    if built_by == bindings.version:
        return runtime
    _KEPT.append(runtime)
    lean = runtime.load_runtime(str(lean_library(built_by)))
    if lean is None:
        raise PlatformError(f"the lean runtime {built_by} does not load: {first_error(bindings, heard)}")
    return lean


def lean_library(version: str) -> Path:
    """The lean runtime that version-compatible engines of another TensorRT run on.

    It comes from its own package rather than out of the engine: a plan that brings its runtime
    along is code, which a loader would have to trust.

    Args:
        version: The TensorRT that built them.

    Raises:
        PlatformError: If it is not installed, or another version is.
    """
    try:
        found = metadata.version("tensorrt-lean")
        folder = Path(str(importlib.import_module("tensorrt_lean_libs").__file__)).parent
    except (metadata.PackageNotFoundError, ImportError):
        found, folder = "none", Path()
    names = ("libnvinfer_lean.so*", "nvinfer_lean*.dll") if found == version else ()
    libraries = sorted(library for name in names for library in folder.glob(name))
    if not libraries:
        raise PlatformError(
            f"engines of tensorrt {version} need its lean runtime here, found {found}; "
            f"run: pip install tensorrt-lean=={version}"
        )
    return libraries[0]


def deserialize(bindings: Bindings, runtime: Any, path: Path, *, command: str) -> Any:
    """Load an engine file onto the GPU.

    Args:
        bindings: The TensorRT that loads it.
        runtime: Its runtime.
        path: The file.
        command: What to type to build it again.

    Returns:
        An ``ICudaEngine``.

    Raises:
        BundleError: If TensorRT refuses it, with what it said.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if bindings.is_rtx:
            _check_validity(bindings, runtime, content, path, command)
        heard = len(bindings.messages)
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        reason = first_error(bindings, heard)
        raise BundleError(
            f"{bindings.backend} {bindings.version} cannot load {path}: {reason}; run: {command}"
        )
    return engine


def describe(engine: Any, trt: Any) -> dict[str, EngineTensor]:
    """Inputs and outputs of an ``ICudaEngine``, by name."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
    return {
        name: EngineTensor(
            is_input=inputs[name],
            dtype=engine.get_tensor_dtype(name).name,
            shape=tuple(engine.get_tensor_shape(name)),
            alias=None if inputs[name] else engine.get_aliased_input_tensor(name),
            on_host=engine.get_tensor_location(name) == trt.TensorLocation.HOST,
        )
        for name in names
    }


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that passed every check.

    Attributes:
        bindings: The TensorRT that runs it.
        runtime: What loaded it; must outlive it.
        engine: Its ``ICudaEngine``.
        tensors: Its inputs and outputs.
        rules: The shapes it takes and gives.
        weights: Inputs that are weights.
    """

    bindings: Bindings
    runtime: Any
    engine: Any
    tensors: dict[str, EngineTensor]
    rules: ShapeRules
    weights: tuple[str, ...] = ()

    @property
    def scratch_bytes(self) -> int:
        """Device memory that a run needs for activations, at most."""
        return int(self.engine.device_memory_size_v2)


class Execution:
    """One execution context: shapes and addresses set, and perhaps a CUDA graph of it.

    With full TensorRT the first run after a change of shape or address is an ordinary one, which
    lets TensorRT do what it put off; the second is captured, later ones are replays. TensorRT-RTX
    captures by itself: a graph of ours would keep its generic kernels for ever, while it swaps in
    kernels for the shape at hand once they are compiled.

    Args:
        loaded: The engine.
        stream: Where it runs.
        scratch: Memory for activations, at least ``loaded.scratch_bytes``.
        weights: Addresses of the weights that the engine takes as inputs; they never change.
        capture: Whether to use a CUDA graph.

    Raises:
        PlatformError: If TensorRT cannot make a context.
    """

    def __init__(
        self,
        loaded: LoadedEngine,
        stream: Stream,
        scratch: DeviceBuffer,
        *,
        weights: Mapping[str, int],
        capture: bool,
    ) -> None:
        self._loaded, self._stream, self._scratch = loaded, stream, scratch
        self._capture = capture and not loaded.bindings.is_rtx
        self._context = _create_context(loaded, capture=capture)
        self._context.set_device_memory(scratch.pointer, scratch.size)
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._ran = False
        self._graph: Graph | None = None
        self._heard = len(loaded.bindings.messages)
        for name in loaded.weights:
            self._demand(self._context.set_tensor_address(name, weights[name]), f"the address of {name}")

    def run(
        self, shapes: Mapping[str, Shape], outputs: Mapping[str, Shape], addresses: Mapping[str, int]
    ) -> None:
        """Put one run on the stream, without waiting for it.

        Args:
            shapes: Of every input; checked against the profile already.
            outputs: Of every output, as the contract computes them.
            addresses: Of every input and output.

        Raises:
            PlatformError: If TensorRT refuses, or disagrees about the shape of an output.
        """
        self._heard = len(self._loaded.bindings.messages)
        self._bind(shapes, outputs, addresses)
        if self._capture and self._ran and self._graph is None:
            self._try_capture()
        if self._graph is not None:
            self._stream.launch(self._graph)
        else:
            self._enqueue()
        self._ran = True

    def close(self) -> None:
        """Free the context and its CUDA graph; nothing of it may be running."""
        if self._graph is not None:
            self._graph.close()
        del self._graph, self._context, self._loaded

    def _bind(
        self, shapes: Mapping[str, Shape], outputs: Mapping[str, Shape], addresses: Mapping[str, int]
    ) -> None:
        """Tell the context what changed since the last run."""
        if shapes == self._shapes and addresses == self._addresses:
            return
        context, self._graph, self._ran = self._context, None, False
        old_shapes, old_addresses = self._shapes, self._addresses
        self._shapes, self._addresses = {}, {}  # until all of the new ones are accepted
        for name, address in addresses.items():
            if old_addresses.get(name) != address:
                self._demand(context.set_tensor_address(name, address), f"the address of {name}")
        for name, shape in shapes.items():
            if old_shapes.get(name) != shape:
                self._demand(context.set_input_shape(name, shape), f"shape {shape} of {name}")
        try:
            unknown = context.infer_shapes()
        except RuntimeError:  # it says why in its log
            unknown = list(shapes)
        self._demand(not unknown, f"the shapes of {', '.join(unknown)}")
        for name, shape in outputs.items():  # a longer output would overwrite what lies behind its buffer
            found = tuple(context.get_tensor_shape(name))
            self._demand(found == shape, f"{shape} for output {name} and wants {found}")
        self._shapes, self._addresses = dict(shapes), dict(addresses)

    def _enqueue(self) -> None:
        context = self._context
        self._demand(context.execute_async_v3(self._stream.handle), "to run")

    def _try_capture(self) -> None:
        try:
            self._graph = self._stream.capture(self._enqueue)
        except PlatformError as error:
            log.warning("%s runs without a CUDA graph: %s", self._loaded.rules.graph, error)
            self._capture = False

    def _demand(self, accepted: bool, what: str) -> None:
        if not accepted:
            bindings = self._loaded.bindings
            reason = first_error(bindings, self._heard)
            raise PlatformError(f"{bindings.backend} refuses {what} ({self._loaded.rules.graph}): {reason}")


def _create_context(loaded: LoadedEngine, *, capture: bool) -> Any:
    trt, engine = loaded.bindings.trt, loaded.engine
    config = engine.create_runtime_config()
    # Graphs of one session never run at once, so that all contexts share one scratch.
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if loaded.bindings.is_rtx and capture:
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    heard = len(loaded.bindings.messages)
    context = engine.create_execution_context(config)
    if context is None:
        reason = first_error(loaded.bindings, heard)
        raise PlatformError(f"{loaded.bindings.backend} cannot prepare {loaded.rules.graph}: {reason}")
    return context


def _check_validity(bindings: Bindings, runtime: Any, content: mmap.mmap, path: Path, command: str) -> None:
    """TensorRT-RTX's own word on whether an engine file fits this machine."""
    trt = bindings.trt
    validity, flags = runtime.get_engine_validity(content)
    if validity == trt.EngineValidity.VALID:
        return
    known = trt.EngineInvalidityDiagnostics.__members__.items()
    found = ", ".join(name for name, flag in known if int(flag) & flags) or "no diagnostics"
    said = f"{path} does not fit {bindings.backend} {bindings.version} on this GPU ({found})"
    if validity == trt.EngineValidity.INVALID:
        raise BundleError(f"{said}; build the engines again: {command}")
    log.warning("%s; it runs, but slower than one built here: %s", said, command)
