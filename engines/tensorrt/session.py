"""The TensorRT and TensorRT-RTX backend: a bundle's engines on one GPU.

Everything but KV caches is allocated at load: inputs and outputs at the largest shapes of
the engines' profiles, one scratch, for the engines of every size of caches alike. Addresses
never change, so the CUDA graph of a decode step stays valid. Work of a session is queued on one stream and
nothing waits for it but reading a result: the next token in greedy decoding, else the logits.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from weakref import WeakSet, finalize

import numpy as np
import numpy.typing as npt

from star_export.bundle import Bundle
from star_export.contract import DECODE, GRAPHS, TensorSpec
from star_export.dtypes import DTYPES
from star_export.engines.session import Caches, DeviceArray, HostArray, Session, Tensor, refuse_closed
from star_export.engines.tensorrt import cuda
from star_export.engines.tensorrt.argmax import Argmax
from star_export.engines.tensorrt.bindings import load_bindings
from star_export.engines.tensorrt.caches import TensorRTCaches
from star_export.engines.tensorrt.engine import Execution
from star_export.engines.tensorrt.facts import Shape, check_runnable, read_facts, rebuild_command
from star_export.engines.tensorrt.loading import BySize, load_engines, load_plugins, set_weight_budgets
from star_export.engines.tensorrt.shapes import EngineTensor, ShapeRules
from star_export.engines.tensorrt.transfers import Transfers
from star_export.engines.tensorrt.weights import shared_weights
from star_export.errors import DeviceError, InputError, PlatformError, SettingsError

log = logging.getLogger("star_export.tensorrt")

#: Device memory that streamed weights leave free, on top of one sequence's caches.
STREAMING_RESERVE = 1 << 30


class TensorRTArray:
    """An engine's output where the engine wrote it, until the engine runs again."""

    def __init__(self, owner: "_Graph", spec: TensorSpec, shape: Shape) -> None:
        self._owner, self._spec, self._run = owner, spec, owner.runs
        self.shape, self.dtype = shape, spec.dtype

    @property
    def session(self) -> "TensorRTSession":
        """The session whose memory it lies in."""
        return self._owner.session

    @property
    def address(self) -> int:
        """Where it lies on the GPU.

        Raises:
            InputError: If a later run has overwritten it, or the session is closed.
        """
        self.session.refuse_closed()
        if self._owner.runs != self._run:
            raise InputError(
                f"{self._spec.name} was overwritten by a later run of {self._owner.name}; "
                "read it with numpy() before that"
            )
        return self._owner.outputs.address(self._spec.name)

    def numpy(self) -> HostArray:
        """Copy to host memory; bfloat16 becomes float32."""
        return self.session.fetch(self.address, self.dtype, self.shape)

    def argmax(self) -> npt.NDArray[np.int64]:
        """Index of the largest of each row, or -1, found on the GPU."""
        if self.dtype != "float32" or len(self.shape) != 2:
            raise TypeError(f"argmax takes float32 [B, N], {self._spec.name} is {self.dtype} {self.shape}")
        return self.session.argmax(self.address, *self.shape)


class TensorRTSession(Session):
    """The engines of a bundle on the first visible GPU.

    Args:
        bundle: An opened bundle with engines of this backend.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        cuda_graph: Whether decode steps run as a CUDA graph.
        plugin_library: The plugin library of engines that were built with one.
        weight_budget: Bytes of weights to keep on the GPU, for engines that stream them;
            as many as fit by default.

    Raises:
        PlatformError: If TensorRT, the driver, the GPU or its memory is missing.
        BundleError: If the engines are missing, or do not fit this machine or the contract.
        SettingsError: If the engines need a plugin library and none is given.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        *,
        cuda_graph: bool = True,
        plugin_library: Path | None = None,
        weight_budget: int | None = None,
    ) -> None:
        self.bundle, self.spec, self.contract = bundle, bundle.spec, bundle.contract
        self.facts = read_facts(bundle, backend)
        self.max_batch: int | None = self.facts.max_batch
        self.resizable = False  # a decode step's CUDA graph holds addresses and shapes
        bindings, device = load_bindings(backend), cuda.require_device()
        check_runnable(bundle, self.facts, version=bindings.version, capability=device.capability)
        load_plugins(bindings, self.facts, plugin_library)
        self._open(cuda.Stream(), device.capability)
        self._weights = shared_weights(bundle, self.facts) if self.facts.weights_files else None
        specs = self._weights.specs if self._weights else {}
        engines = load_engines(bundle, self.facts, bindings, specs)  # while the weights are on their way
        if self.facts.weight_streaming:
            streamed = {graph: by_size[self.spec.capacities] for graph, by_size in engines.items()}
            set_weight_budgets(streamed, weight_budget, reserve=STREAMING_RESERVE + self.spec.slot_bytes)
        self._engines, self._cuda_graph = engines, cuda_graph
        self._beside: TensorRTSession | None = None
        self._allocate()
        log.info("session ready: %.2f GB of GPU memory free", cuda.memory()[0] / 1e9)

    def _open(self, stream: cuda.Stream, capability: tuple[int, int]) -> None:
        """A stream, and what brings back results of its work."""
        self.stream, self._transfers, self._capability = stream, Transfers(stream), capability
        self.argmax = Argmax(stream, capability, max_rows=self.facts.max_batch)

    def _allocate(self) -> None:
        """Memory and contexts for the stream's work."""
        engines = self._engines
        scratch_bytes = max(loaded.scratch_bytes for sizes in engines.values() for loaded in sizes.values())
        self._scratch = cuda.DeviceBuffer(scratch_bytes, "the engines' activations")
        self._closed = False
        self._cache_memory: WeakSet[cuda.DeviceBuffer] = WeakSet()
        self._graphs = {graph: _Graph(self, dict(by_size)) for graph, by_size in engines.items()}
        self._executions: list[Execution] = []
        self._idle: dict[tuple[int, ...], list[Execution]] = {size: [] for size in engines[DECODE]}
        self._shared = {
            (graph, size): self._execution(graph, size)
            for graph in GRAPHS
            if graph != DECODE
            for size in engines[graph]
        }

    def beside(self) -> "TensorRTSession":
        """The same engines and weights with a stream, contexts and memory of their own; made once."""
        if self._beside is None:
            twin = copy(self)
            twin._open(cuda.Stream(yielding=True), self._capability)
            twin._allocate()
            self._beside = twin
        return self._beside

    def borrow(self, caches: Caches) -> TensorRTCaches:
        """See :meth:`star_export.engines.session.Session.borrow`."""
        assert isinstance(caches, TensorRTCaches)
        return TensorRTCaches(self, caches.batch, caches.capacities, whole=caches)

    def capacities(self, needed: Sequence[int]) -> tuple[int, ...]:
        """The smallest that there are engines for."""
        fitting = (
            size for size in self._idle if all(n <= most for n, most in zip(needed, size, strict=True))
        )
        return next(fitting, self.spec.capacities)

    def allocate_caches(self, batch: int = 1, capacities: Sequence[int] | None = None) -> TensorRTCaches:
        """Zeroed KV caches for ``batch`` sequences; see :meth:`star_export.engines.session.Session`.

        Raises:
            SettingsError: If the engines take fewer sequences.
            PlatformError: If the GPU has no room.
        """
        self.refuse_closed()
        size = self.spec.capacities if capacities is None else tuple(capacities)
        assert size in self._idle
        if not 1 <= batch <= self.facts.max_batch:
            raise SettingsError(
                f"the decode engine takes 1 to {self.facts.max_batch} sequences, got {batch}; for more, "
                f"build the engines again: {rebuild_command(self.bundle.folder, self.facts.backend)}"
            )
        caches = TensorRTCaches(self, batch, size)
        self._cache_memory.add(caches._memory.buffer)
        return caches

    def resize_caches(
        self, caches: Caches, batch: int, capacities: Sequence[int], *, rows: Sequence[int] = ()
    ) -> None:
        """Nobody asks for it: these caches are not resizable."""
        raise NotImplementedError

    def run(
        self, graph: str, feeds: Mapping[str, Tensor], caches: Caches | None = None
    ) -> dict[str, DeviceArray]:
        """Run one graph; see :meth:`star_export.engines.session.Session.run`.

        Raises:
            SettingsError: If a shape is outside the engine's profile.
            InputError: If an output of an earlier run was overwritten before it is used here, or
                the session is closed.
        """
        self.refuse_closed()
        assert caches is None or isinstance(caches, TensorRTCaches)
        own, size = self._graphs[graph], self.spec.capacities if caches is None else caches.capacities
        loaded = own.engines[size]
        local = {name: self._localise(tensor) for name, tensor in feeds.items()}
        shapes: dict[str, Shape] = {name: tensor.shape for name, tensor in local.items()}
        addresses = {name: own.outputs.address(name) for name in own.outputs.offsets}
        if caches is not None:
            shapes |= caches.shapes
            addresses |= caches.addresses
        outputs = own.output_shapes(shapes, loaded.rules)
        addresses |= own.feed(local, loaded.tensors)
        own.runs += 1  # from here on, results of earlier runs are gone
        execution = self._shared[graph, size] if caches is None or graph != DECODE else caches.execution
        execution.run(shapes, outputs, addresses)
        return {spec.name: TensorRTArray(own, spec, outputs[spec.name]) for spec in own.plain_outputs}

    def synchronize(self) -> None:
        """Wait for the stream."""
        self.refuse_closed()
        self.stream.synchronize()

    def close(self) -> None:
        """Free all of its GPU memory, in the order in which things use each other."""
        if self._closed:
            return
        self._closed = True
        if self._beside is not None:
            self._beside.close()
        try:
            self.stream.synchronize()  # the GPU may still be using what is freed
        except (DeviceError, PlatformError) as error:  # of work whose result nobody has read
            log.warning("closing a session: %s", error)
        for execution in self._executions:
            execution.close()
        frees: list[Callable[[], object]] = [part.close for part in self._graphs.values()]
        frees += [memory.close for memory in self._cache_memory]
        frees += [self._scratch.close, self._transfers.close, self.argmax.close, self.stream.close]
        for free in frees:
            free()
        self._engines = {}
        self._weights = None  # the last session that uses them frees them

    def refuse_closed(self) -> None:
        """Refuse to go on after :meth:`close`.

        Raises:
            InputError: If it is closed.
        """
        refuse_closed(closed=self._closed)

    def fetch(self, address: int, dtype: str, shape: Shape) -> HostArray:
        """Copy a tensor to host memory; waits for the stream. bfloat16 becomes float32."""
        self.refuse_closed()
        return self._transfers.fetch(address, dtype, shape)

    def store(self, address: int, values: HostArray) -> None:
        """Copy a tensor from host memory; waits for the stream."""
        self.refuse_closed()
        self._transfers.store(address, values)

    def decode_execution(self, caches: TensorRTCaches) -> Execution:
        """A context for decode steps on some caches, and on others of their size when these are gone.

        To make one takes TensorRT long, and TensorRT-RTX compiles kernels for it.
        """
        idle = self._idle[caches.capacities]
        execution = idle.pop() if idle else self._execution(DECODE, caches.capacities)
        finalize(caches, idle.append, execution).atexit = False
        return execution

    def _localise(self, tensor: Tensor) -> "HostArray | TensorRTArray":
        """A tensor of this session as it is, anything else in host memory."""
        if isinstance(tensor, np.ndarray) or (isinstance(tensor, TensorRTArray) and tensor.session is self):
            return tensor
        return tensor.numpy()

    def _execution(self, graph: str, capacities: tuple[int, ...]) -> Execution:
        capture = self._cuda_graph and graph == DECODE  # prefill's length differs from run to run
        weights = self._weights.addresses() if self._weights else {}
        loaded = self._graphs[graph].engines[capacities]
        execution = Execution(loaded, self.stream, self._scratch, weights=weights, capture=capture)
        self._executions.append(execution)
        return execution


class _Graph:
    """The engines of one graph with the memory of their inputs and outputs, the caches aside."""

    def __init__(self, session: TensorRTSession, engines: BySize) -> None:
        self.session, self.engines = session, engines
        rules = engines[session.spec.capacities].rules  # no other takes or gives more
        self.name, io = rules.graph, rules.io
        self.runs = 0
        self.plain_outputs = io.plain_outputs
        self._specs = {tensor.name: tensor for tensor in io.plain_inputs}
        inputs = {name: rules.largest(tensor) for name, tensor in self._specs.items()}
        outputs = {tensor.name: rules.largest(tensor) for tensor in self.plain_outputs}
        self.outputs = cuda.Tensors(outputs, f"the outputs of {self.name}")
        self._inputs = cuda.Tensors(inputs, f"the inputs of {self.name}")
        self._staging = cuda.PinnedBuffer(self._inputs.buffer.size)
        self._copied = cuda.Event()
        self._checked: tuple[dict[str, Shape], dict[str, Shape]] = ({}, {})

    def close(self) -> None:
        """Free its memory and let go of the engines."""
        for part in (self.outputs.buffer, self._inputs.buffer, self._staging, self._copied):
            part.close()
        self.engines.clear()

    def output_shapes(self, shapes: dict[str, Shape], rules: ShapeRules) -> dict[str, Shape]:
        """Shape of every output; refuses input shapes outside the profile.

        Checking a hundred caches takes long next to a decode step, whose shapes stay as they are.
        """
        if shapes != self._checked[0]:
            self._checked = (shapes, rules.output_shapes(rules.check(shapes)))
        return self._checked[1]

    def feed(
        self, feeds: Mapping[str, "HostArray | TensorRTArray"], tensors: Mapping[str, EngineTensor]
    ) -> dict[str, int]:
        """Bring every input to the GPU, without waiting; where each one lies."""
        self._copied.synchronize()  # the run before may still be reading the staging memory
        addresses = {
            name: self._place(self._specs[name], tensor, on_host=tensors[name].on_host)
            for name, tensor in feeds.items()
        }
        self.session.stream.record(self._copied)
        return addresses

    def _place(self, spec: TensorSpec, tensor: "HostArray | TensorRTArray", *, on_host: bool) -> int:
        if tensor.dtype != (spec.dtype if isinstance(tensor, TensorRTArray) else DTYPES[spec.dtype].host):
            raise TypeError(f"{self.name}: {spec.name} must be {spec.dtype}, got {tensor.dtype}")
        if isinstance(tensor, TensorRTArray):
            return tensor.address
        offset = self._inputs.offsets[spec.name]
        staged = self._staging.array[offset : offset + tensor.nbytes]
        staged.view(tensor.dtype).reshape(tensor.shape)[...] = tensor
        if on_host:
            return self._staging.pointer + offset
        address = self._inputs.address(spec.name)
        self.session.stream.upload(address, self._staging.pointer + offset, tensor.nbytes)
        return address
