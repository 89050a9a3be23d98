"""Stand-ins for TensorRT's runtime objects: their engines are ONNX graphs, run by ONNX Runtime.

An engine file of the fake names the bundle and the graph that it stands for. Enumerations and the
logger are those of the installed TensorRT-RTX.
"""

import functools
import json
import math
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from star_export.bundle import Bundle, open_bundle
from star_export.dtypes import DTYPES
from star_export.engines.onnxruntime import OnnxRuntimeSession
from star_export.engines.tensorrt.bindings import TENSORRT_RTX
from star_export.engines.tensorrt.builder import SHARED
from star_export.engines.tensorrt.network import pin_sizes
from star_export.engines.tensorrt.profiles import engine_profiles
from star_export.engines.tensorrt.weights import StoredWeight, stored
from tests.fake_gpu.device import FakeGpu
from tests.fake_gpu.memory import POISON

tensorrt_rtx = pytest.importorskip("tensorrt_rtx")

VERSIONS = {"tensorrt": "10.16.0.0", TENSORRT_RTX: tensorrt_rtx.__version__}
#: TensorRT takes tensors at multiples of this only.
ALIGNMENT = 256
SCRATCH = 1 << 16
DEVICE, HOST = tensorrt_rtx.TensorLocation.DEVICE, tensorrt_rtx.TensorLocation.HOST
TYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(int8)": ("INT8", np.int8),
    "tensor(int4)": ("INT4", np.uint8),
}


def engine_file(bundle: Path, graph: str, weights: str, room: int | None = None) -> str:
    """Content of an engine file that stands for a graph of ``bundle``; its weights are shared or baked."""
    return json.dumps({"fake engine": graph, "of": str(bundle), "weights": weights, "room": room})


class _Networks(OnnxRuntimeSession):
    """A bundle's graphs with the sizes that the parser is given."""

    def __init__(self, bundle: Bundle, room: int | None) -> None:
        self.room = room
        super().__init__(bundle, threads=1)

    def _model(self, graph: str) -> bytes:
        model = onnx.load(self.bundle.graph_path(graph), load_external_data=False)
        pin_sizes(model, engine_profiles(self.spec, max_batch=2, room=self.room)[graph])
        return model.SerializeToString()


@functools.cache
def _networks(bundle: str, room: int | None) -> _Networks:
    """They stay, since their sessions read weights that are theirs."""
    return _Networks(open_bundle(bundle), room)


@functools.cache
def _weights(folder: str, graph: str) -> "dict[str, FakeWeight]":
    """What an engine with shared weights takes besides the graph's inputs."""
    bundle = open_bundle(folder)
    model = onnx.load(bundle.graph_path(graph), load_external_data=False)
    external = {tensor.name: tensor for tensor in model.graph.initializer if tensor.external_data}
    tensors = [tensor for file in bundle.weights for tensor in stored(bundle.path(file.path))]
    return {t.spec.name: FakeWeight(t, external[t.spec.name]) for t in tensors if t.spec.name in external}


class FakeWeight:
    """An input that is a weight: as ONNX Runtime describes inputs, and what must be bound to it."""

    def __init__(self, tensor: StoredWeight, of: onnx.TensorProto) -> None:
        self.name, self.shape = tensor.spec.name, tuple(of.dims)
        kind = next(
            name for name, row in DTYPES.items() if row.onnx == onnx.TensorProto.DataType.Name(of.data_type)
        )
        self.type = f"tensor({kind.replace('float32', 'float')})"
        self.data = np.fromfile(tensor.path, np.uint8, tensor.nbytes, offset=tensor.offset)


class FakeTensorRT(ModuleType):
    """``tensorrt`` or ``tensorrt_rtx``, without a builder."""

    def __init__(self, backend: str, gpu: FakeGpu) -> None:
        super().__init__(backend.replace("-", "_"))
        self.__version__ = VERSIONS[backend]
        self.Runtime = functools.partial(FakeRuntime, gpu)

    def __getattr__(self, name: str) -> Any:
        found = getattr(tensorrt_rtx, name)
        if name != "ILogger" and not hasattr(found, "__members__"):
            raise AttributeError(f"the fake TensorRT has no {name}")
        return found


class FakeRuntime:
    """``trt.Runtime``."""

    def __init__(self, gpu: FakeGpu, logger: Any) -> None:
        self._gpu, self._logger = gpu, logger

    def get_engine_validity(self, content: Any) -> tuple[Any, int]:
        return tensorrt_rtx.EngineValidity.VALID, 0

    def deserialize_cuda_engine(self, content: Any) -> "FakeEngine | None":
        try:
            entry = json.loads(bytes(content))
            graph, bundle = entry["fake engine"], entry["of"]
            weights = _weights(bundle, graph) if entry["weights"] == SHARED else {}
            session = _networks(bundle, entry["room"])._sessions[graph]
            return FakeEngine(self._gpu, self._logger, session, weights)
        except ValueError:
            self._logger.log(tensorrt_rtx.ILogger.ERROR, "not an engine of the fake GPU")
            return None


class FakeEngine:
    """``ICudaEngine``."""

    device_memory_size_v2 = SCRATCH
    streamable_weights_size = 0

    def __init__(
        self, gpu: FakeGpu, logger: Any, session: ort.InferenceSession, weights: dict[str, FakeWeight]
    ) -> None:
        self.gpu, self.logger, self.session, self.weights = gpu, logger, session, weights
        self.inputs = {value.name: value for value in session.get_inputs()} | weights
        self.outputs = {value.name: value for value in session.get_outputs()}
        self.tensors = self.inputs | self.outputs
        self.num_io_tensors = len(self.tensors)
        self._weights: tuple[int, int] | None = None
        self.weight_streaming_budget_v2 = min(self.streamable_weights_size, gpu.memory.free_bytes)

    @property
    def weight_streaming_budget_v2(self) -> int:
        """Bytes of streamed weights that lie on the device; at first as many as fit, as in TensorRT."""
        return self._weights[1] if self._weights else 0

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, size: int) -> None:
        if self._weights:
            self.gpu.memory.free(self._weights[0])
        self._weights = (self.gpu.memory.allocate(size), size) if size else None

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return getattr(tensorrt_rtx.TensorIOMode, "INPUT" if name in self.inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(tensorrt_rtx.DataType, TYPES[self.tensors[name].type][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in self.tensors[name].shape)

    def get_aliased_input_tensor(self, name: str) -> str | None:
        past = name.replace("present.", "past_key_values.")
        return past if name in self.outputs and past != name else None

    def get_tensor_location(self, name: str) -> Any:
        return DEVICE

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(set_execution_context_allocation_strategy=lambda strategy: None)

    def create_execution_context(self, config: Any) -> "FakeContext":
        return FakeContext(self)


class FakeContext:
    """``IExecutionContext``: what it is told when a run is queued holds for that run."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._scratch = (0, 0)
        self._shapes: dict[str, tuple[int, ...]] = {
            name: tuple(value.shape)
            for name, value in engine.inputs.items()
            if all(isinstance(dim, int) for dim in value.shape)
        }
        self._sizes: dict[str, int] = {}  # by symbol
        self._addresses: dict[str, int] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        self._scratch = memory, size

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self._engine.tensors or address == 0 or address % ALIGNMENT:
            return self._refuse(f"{name} cannot be at {address:#x}")
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        wanted = self._engine.inputs[name].shape
        if len(wanted) != len(shape) or any(
            isinstance(w, int) and w != got for w, got in zip(wanted, shape, strict=True)
        ):
            return self._refuse(f"{name} cannot be {shape}")
        self._shapes[name] = tuple(shape)
        self._sizes.update((dim, got) for dim, got in zip(wanted, shape, strict=True) if isinstance(dim, str))
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine.inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Symbolic sizes of outputs are sums and differences of those of the inputs."""
        known = self._sizes
        return tuple(
            dim if isinstance(dim, int) else known[dim] if dim in known else eval(dim, {}, known)
            for dim in self._engine.tensors[name].shape
        )

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, shapes = self._engine, {name: self.get_tensor_shape(name) for name in self._engine.tensors}
        if missing := engine.tensors.keys() - self._addresses.keys():
            return self._refuse(f"no address for {', '.join(sorted(missing))}")
        for name in engine.outputs:
            past = engine.get_aliased_input_tensor(name)
            if past and self._addresses[name] != self._addresses[past]:
                return self._refuse(f"{name} must share the address of {past}")
        if self._scratch[1] < engine.device_memory_size_v2:
            return self._refuse("too little device memory")
        addresses, scratch = dict(self._addresses), self._scratch
        with engine.gpu.lock:
            engine.gpu.queue(stream_handle, lambda: _run(engine, shapes, addresses, scratch))
        return True

    def _refuse(self, reason: str) -> bool:
        self._engine.logger.log(tensorrt_rtx.ILogger.ERROR, reason)
        return False


def _run(
    engine: FakeEngine,
    shapes: dict[str, tuple[int, ...]],
    addresses: dict[str, int],
    scratch: tuple[int, int],
) -> None:
    """Compute with the memory as it is now; the scratch holds nothing of use afterwards.

    With shared weights too, ONNX Runtime computes with constants, whose products round otherwise than
    those of inputs; where anything else is bound, the results are poison.
    """
    memory = engine.gpu.memory
    memory.view(*scratch).fill(POISON)
    bound = {name: memory.view(addresses[name], w.data.size) for name, w in engine.weights.items()}
    right = all(np.array_equal(bound[name], weight.data) for name, weight in engine.weights.items())
    binding = ort.IOBinding(engine.session)
    for name, value in engine.tensors.items():
        if name in engine.weights:
            continue
        dtype = np.dtype(TYPES[value.type][1])
        size, on_host = math.prod(shapes[name]) * dtype.itemsize, engine.get_tensor_location(name) == HOST
        data = memory.view(addresses[name], size, on_host=on_host)
        bind = binding.bind_input if name in engine.inputs else binding.bind_output
        bind(name, "cpu", 0, dtype, shapes[name], data.ctypes.data)
        if name in engine.outputs and not right:
            data.fill(POISON)
    if right:
        engine.session.run_with_iobinding(binding)
