"""The ONNX Runtime backends: on the CPU, and on an NVIDIA GPU.

KV caches lie at addresses that are bound as input and as output of the same run,
which makes ``TensorScatter`` write in place instead of copying the cache.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import onnxruntime as ort

from star_export.arrays import to_device_dtype, to_float32
from star_export.bundle import Bundle
from star_export.contract import DECODE, GRAPHS, PREFILL, VISION, capacity_symbols, past_names
from star_export.dtypes import DTYPES
from star_export.engines.mapped import mapped_tensors
from star_export.engines.priority import in_yielding_thread
from star_export.engines.session import (
    Caches,
    DeviceArray,
    HostArray,
    Int64,
    Session,
    Tensor,
    refuse_closed,
)
from star_export.errors import BundleError, PlatformError
from star_export.memory import give_back

#: Execution providers of each device; what CUDA has no kernel for runs on the CPU.
PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}

#: Graphs whose weights are copied into ONNX Runtime's packed layout at load where batches are decoded:
#: products of a few rows gain much. Else all graphs read the bundle's files, which are in memory once: for
#: one row packing gains a quarter of the time and nearly doubles the memory (`make bench-session`).
#: Products of few bits are slow unpacked, so that a bundle with quantised weights packs all graphs.
PREPACKED_FOR_BATCHES = (DECODE,)

#: Graphs whose threads yield to those of decode where batches are decoded: they run beside it then.
YIELDING_TO_BATCHES = (VISION, PREFILL)

#: Caches have room for a multiple of so many tokens.
CAPACITY_STEP = 64

#: How long a thread waits busily for its part of the next operator; ONNX Runtime's own limit is longer.
#: On two quiet cores a token takes 0 to 7 % longer so, beside a busy process a third to a half less time
#: (`make bench-session`).
SPIN_MICROSECONDS = "10"

#: What holds bfloat16 in host memory.
_BITS = np.dtype(DTYPES["bfloat16"].host)

#: The first ONNX Runtime that makes a product of few bits of 8 bits too, not only of 4.
FIRST_QUICK_8_BITS = (1, 25)

log = logging.getLogger("star_export.onnxruntime")


def version_here() -> tuple[int, ...]:
    """Major and minor number of the installed ONNX Runtime."""
    return tuple(int(number) for number in ort.__version__.split(".")[:2])


@dataclass(frozen=True)
class OnnxRuntimeArray:
    """A tensor in ONNX Runtime's memory."""

    value: ort.OrtValue

    def numpy(self) -> HostArray:
        """Copy to host memory. OrtValue's own numpy() is a view that outlives what it shows."""
        return np.array(self.value.numpy())

    def argmax(self) -> Int64:
        """Index of the largest of each row, or -1, without copying the rows."""
        return best_of_rows(self.value.numpy())


def best_of_rows(rows: HostArray) -> Int64:
    """Index of the largest of each row, or -1; see :meth:`DeviceArray.argmax`."""
    best: Int64 = rows.argmax(axis=-1, keepdims=True)
    return np.where(np.isfinite(np.take_along_axis(rows, best, -1)), best, -1)[:, 0]


def check_device(device: str) -> None:
    """Refuse a device that this ONNX Runtime was not built for.

    Raises:
        PlatformError: With the package that has it.
    """
    if PROVIDERS[device][0] not in ort.get_available_providers():
        raise PlatformError(
            f"onnxruntime {ort.__version__} has no {PROVIDERS[device][0]}; "
            "run: pip uninstall onnxruntime; pip install onnxruntime-gpu"
        )


class OnnxRuntimeCaches:
    """KV caches of some sequences, with one binding per graph that stays valid until they are resized.

    Args:
        values: Caches by past name, ``[B, Hkv, capacity, D]``; shared by all rows of them.
        bindings: By graph and rows, and views of the memory; shared likewise.
        start: First of the sequences that these are the caches of.
        stop: The one after the last.
    """

    def __init__(
        self,
        values: dict[str, ort.OrtValue],
        bindings: dict[tuple[str, int, int], Any],
        start: int,
        stop: int,
    ) -> None:
        self.values, self.bindings, self.start, self.stop = values, bindings, start, stop

    def numpy(self, name: str) -> HostArray:
        """Copy of the cache with past name ``name``: ``[B, Hkv, capacity, D]``."""
        cache = np.array(self.values[name].numpy()[self.start : self.stop])
        return to_float32(cache, "bfloat16") if cache.dtype == _BITS else cache

    def fill(self, name: str, values: HostArray) -> None:
        """Overwrite the first tokens of a cache; on a GPU all sequences' travel to the host and back."""
        value, place = self.values[name], (slice(None), slice(values.shape[2]))
        bits = value.numpy().dtype == _BITS
        self._overwrite(value, place, to_device_dtype(values, "bfloat16") if bits else values)

    def rows(self, start: int, stop: int) -> "OnnxRuntimeCaches":
        """The caches of sequences ``start`` to ``stop - 1``, in the same memory."""
        return OnnxRuntimeCaches(self.values, self.bindings, self.start + start, self.start + stop)

    def zero(self) -> None:
        """Overwrite with zeros; on a GPU all sequences' caches travel to the host and back."""
        for value in self.values.values():
            self._overwrite(value, (), 0)

    def _overwrite(self, value: ort.OrtValue, place: tuple[slice, ...], values: HostArray | int) -> None:
        host = value.numpy()  # on the CPU, the memory itself
        host[(slice(self.start, self.stop), *place)] = values
        if value.device_name() != "cpu":
            value.update_inplace(host)

    def views(self) -> Mapping[str, HostArray]:
        """The caches themselves by past name, on the CPU; the same mapping until they are resized."""
        place = "views", self.start, self.stop
        if place not in self.bindings:
            whole = {name: value.numpy() for name, value in self.values.items()}
            self.bindings[place] = {name: cache[self.start : self.stop] for name, cache in whole.items()}
        return self.bindings[place]  # type: ignore[no-any-return]

    def close(self) -> None:
        """Let go of the memory, and of the graphs that are bound to it."""
        self.values.clear()
        self.bindings.clear()

    def bind(self, binding: ort.IOBinding, past: str, present: str) -> None:
        """Let a graph read and write one cache in place."""
        value = self.values[past]
        rows, *inner = value.shape()
        assert self.stop <= rows  # or these are rows that resizing took away
        address = value.data_ptr() + self.start * (value.tensor_size_in_bytes() // rows)
        place = value.device_name(), 0, value.element_type(), (self.stop - self.start, *inner), address
        binding.bind_input(past, *place)
        binding.bind_output(present, *place)


def _copy_rows(old: HostArray, rows: Sequence[int], new: HostArray) -> None:
    """Copy some sequences of one cache to the first ones of another, as far as both have room."""
    tokens = min(old.shape[2], new.shape[2])
    for place, row in enumerate(rows):
        new[place, :, :tokens] = old[row, :, :tokens]


class OnnxRuntimeSession(Session):
    """The three graphs of a bundle in ONNX Runtime.

    Args:
        bundle: An opened bundle.
        graphs: Those that it is to run.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads for one operator; all cores by default.
        prepacked: Graphs whose weights are packed at load: more memory.
        yielding: Graphs whose threads have a lower priority.
        spinning: Let threads wait for work busily, as ONNX Runtime does by itself, also those of a graph
            that is done. They take the cores from the next graph and from others (`make bench-session`).
        arena: Keep the memory of a run's tensors for the next, in each graph for itself; on a CPU.
        exact: See :class:`star_export.engines.backends.Runtime`.
        rounded_caches: Keep keys and values in bfloat16, for who runs prefill and decode elsewhere.

    Raises:
        BundleError: If ONNX Runtime cannot load a graph.
        PlatformError: If this ONNX Runtime, or this machine, has no such device.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        graphs: Collection[str] = GRAPHS,
        device: str = "cpu",
        threads: int | None = None,
        prepacked: Collection[str] = (),
        yielding: Collection[str] = (),
        spinning: bool = False,
        arena: bool = False,
        exact: bool = False,
        rounded_caches: bool = False,
    ) -> None:
        check_device(device)
        self.bundle, self.spec, self.contract = bundle, bundle.spec, bundle.contract
        self.device = device
        self.max_batch: int | None = None
        self.resizable = not self.spec.fixed_capacities
        self._threads, self._prepacked, self._spinning = threads, prepacked, spinning
        self._arena, self._exact = arena, exact
        layers = range(self.spec.model.text.num_layers) if rounded_caches else ()
        self._rounded = {name for layer in layers for name in past_names(layer)}
        self._plain_outputs = {
            graph: [tensor.name for tensor in io.plain_outputs] for graph, io in self.contract.items()
        }
        self._caches: WeakSet[OnnxRuntimeCaches] = WeakSet()
        if self.spec.quantization and version_here() < FIRST_QUICK_8_BITS:
            quick = "{}.{}".format(*FIRST_QUICK_8_BITS)
            log.warning(
                "ONNX Runtime %s is slow with weights of 8 bits; run: pip install 'onnxruntime>=%s'",
                ort.__version__,
                quick,
            )
        self._weights: dict[str, ort.OrtValue] = {}
        if device == "cpu" and graphs:
            mapped = [mapped_tensors(bundle.folder / file.path) for file in bundle.weights]
            tensors = {name: tensor for file in mapped for name, tensor in file.items()}
            self._weights = {name: ort.OrtValue.ortvalue_from_numpy(t) for name, t in tensors.items()}
        self._sessions = {
            graph: in_yielding_thread(partial(self._load, graph)) if graph in yielding else self._load(graph)
            for graph in graphs
        }
        self._closed = False

    def capacities(self, needed: Sequence[int]) -> tuple[int, ...]:
        """A little more than needed, so that few requests need other caches than the one before."""
        if self.spec.fixed_capacities:
            return self.spec.capacities
        pairs = zip(needed, self.spec.capacities, strict=True)
        return tuple(min(most, -(-tokens // CAPACITY_STEP) * CAPACITY_STEP) for tokens, most in pairs)

    def allocate_caches(self, batch: int = 1, capacities: Sequence[int] | None = None) -> OnnxRuntimeCaches:
        """Zeroed KV caches; see :meth:`star_export.engines.session.Session.allocate_caches`."""
        refuse_closed(closed=self._closed)
        caches = OnnxRuntimeCaches({}, {}, 0, batch)
        self._caches.add(caches)
        self.resize_caches(caches, batch, capacities or self.spec.capacities)
        return caches

    def resize_caches(
        self, caches: Caches, batch: int, capacities: Sequence[int], *, rows: Sequence[int] = ()
    ) -> None:
        """See :meth:`star_export.engines.session.Session.resize_caches`; on a GPU by way of the host."""
        assert isinstance(caches, OnnxRuntimeCaches)
        caches.bindings.clear()
        sizes = dict(zip(capacity_symbols(self.spec), capacities, strict=True))
        for name, tensor in self.contract[DECODE].caches().items():
            shape = [sizes.get(size, batch) if isinstance(size, str) else size for size in tensor.shape]
            dtype = _BITS if name in self._rounded else tensor.dtype
            new = np.zeros(shape, dtype)  # on the CPU, pages that nobody writes take no memory
            if rows:
                _copy_rows(caches.values[name].numpy(), rows, new)
            caches.values[name] = ort.OrtValue.ortvalue_from_numpy(new, self.device, 0)
        caches.stop = batch

    def run(
        self, graph: str, feeds: Mapping[str, Tensor], caches: Caches | None = None
    ) -> dict[str, DeviceArray]:
        """Run one graph; see :meth:`star_export.engines.session.Session.run`."""
        assert caches is None or isinstance(caches, OnnxRuntimeCaches)
        refuse_closed(closed=self._closed)
        binding = self._binding(graph, caches)
        for name, tensor in feeds.items():
            if isinstance(tensor, OnnxRuntimeArray):
                binding.bind_ortvalue_input(name, tensor.value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(tensor))
        names = self._plain_outputs[graph]
        for name in names:  # anew at every run: sizes change, and old results stay valid
            binding.bind_output(name, self.device)
        try:
            self._sessions[graph].run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime raises many unrelated types
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot run {self.bundle.graph_path(graph)}: {error}"
            ) from error
        binding.synchronize_outputs()
        outputs = binding.get_outputs()  # plain ones first
        return {name: OnnxRuntimeArray(value) for name, value in zip(names, outputs, strict=False)}

    def synchronize(self) -> None:
        """Nothing is pending: every run waits for its outputs."""

    def beside(self) -> Session | None:
        """This one, on a CPU: ONNX Runtime's sessions run in several threads."""
        return self if self.device == "cpu" else None

    def borrow(self, caches: Caches) -> Caches:
        """The same."""
        return caches

    def close(self) -> None:
        """Let go of the graphs, their weights and all caches; a result that is held keeps its graph."""
        self._closed = True
        self._sessions.clear()
        self._weights.clear()  # which the graphs read to the end
        for caches in self._caches:
            caches.close()

    def _load(self, graph: str) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; warnings about graphs that work are noise
        options.enable_cpu_mem_arena = self._arena
        if not self._spinning:
            options.add_session_config_entry("session.force_spinning_stop", "1")
            options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
        level = "1" if self._exact else "4"  # 4: activations are rounded to 8 bits, block by block
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        if graph not in self._prepacked and self.spec.quantization is None:  # unpacked, those are slow
            options.add_session_config_entry("session.disable_prepacking", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        path = self.bundle.graph_path(graph)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
        try:
            session = ort.InferenceSession(
                self._model(graph),
                options,
                providers=PROVIDERS[self.device],
                enable_fallback=int(self.device != "cpu"),  # to the CPU it would try twice, and print
                # It would turn each weight into a copy; what comes later lets products read them as they lie.
                disabled_optimizers=["ConstantFolding"] if self.spec.dtype == "float32" else [],
            )
        except Exception as error:  # ONNX Runtime raises many unrelated types
            raise BundleError(f"ONNX Runtime {ort.__version__} cannot load {path}: {error}") from error
        if session.get_providers()[0] != PROVIDERS[self.device][0]:  # it falls back without an error
            raise PlatformError(
                f"onnxruntime-gpu {ort.__version__} cannot use the GPU: CUDA or cuDNN does not load; "
                "run: pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        self._check_border(graph, session)
        if self.spec.quantization:
            give_back()  # the C library holds a good part of what packing took
        return session

    def _check_border(self, graph: str, session: ort.InferenceSession) -> None:
        """Refuse a graph that lacks inputs or outputs of the contract."""
        io = self.contract[graph]
        for found, expected in ((session.get_inputs(), io.inputs), (session.get_outputs(), io.outputs)):
            if missing := {tensor.name for tensor in expected} - {value.name for value in found}:
                raise BundleError(
                    f"{self.bundle.graph_path(graph)} lacks {', '.join(sorted(missing)[:4])}, "
                    "which the manifest says it has; build the bundle again"
                )

    def _model(self, graph: str) -> Path | bytes:
        """The graph, as a file or as a model whose weights lie beside that file."""
        return self.bundle.graph_path(graph)

    def _binding(self, graph: str, caches: OnnxRuntimeCaches | None) -> ort.IOBinding:
        """A binding with the caches in place; plain outputs come first, in contract order."""
        place = (graph, caches.start, caches.stop) if caches is not None else (graph, 0, 0)
        if caches is not None and place in caches.bindings:
            return caches.bindings[place]
        binding = ort.IOBinding(self._sessions[graph])
        for name in self._plain_outputs[graph]:
            binding.bind_output(name, self.device)
        if caches is not None:
            for present, past in self.contract[graph].aliases.items():
                caches.bind(binding, past, present)
            caches.bindings[place] = binding
            self._caches.add(caches)  # these may be rows of others
        return binding
