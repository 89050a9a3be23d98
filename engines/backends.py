"""The backends, each in one entry that answers all that is asked about it, and how one is to run.

Nothing else compares the names of backends: what differs between them is asked of the entry.
"""

import difflib
import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from star_export.bundle import Bundle
from star_export.engines.parts import Part, gpu, missing
from star_export.engines.session import Session
from star_export.engines.tensorrt.bindings import PRODUCTS, TENSORRT, TENSORRT_RTX, load_bindings
from star_export.engines.tensorrt.cuda import require_device
from star_export.engines.tensorrt.facts import EngineFacts, read_facts
from star_export.errors import BundleError, PlatformError, SettingsError, option
from star_export.specs import DType, ExportSpec

#: What runs a bundle's graphs as they are, everywhere.
ONNXRUNTIME = "onnxruntime"

#: What runs them on CPUs that multiply in bfloat16.
OPENVINO = "openvino"

_OPENVINO = "pip install 'star-export[openvino]'"

#: The first ONNX Runtime that runs opset 24 on the CPU.
OLDEST_ONNXRUNTIME = (1, 24)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How a bundle is to run.

    Args:
        backend: One of :data:`BACKENDS`.
        threads: CPU threads of ONNX Runtime and OpenVINO; all cores by default.
        plugin_library: The plugin library of TensorRT engines that were built with one.
        exact: Multiply quantised weights by activations as they are, not rounded to 8 bits too: slower. In
            OpenVINO, everything in float32.
        batches: Several sequences are decoded at once: ONNX Runtime copies decode's weights for that.

    Raises:
        SettingsError: If the backend does not exist, with the nearest name.
    """

    backend: str = ONNXRUNTIME
    threads: int | None = None
    plugin_library: Path | None = None
    exact: bool = False
    batches: bool = False

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            near = difflib.get_close_matches(self.backend, BACKENDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"backends are {', '.join(BACKENDS)}"
            raise SettingsError(f"unknown backend {self.backend}; {hint}")

    @property
    def entry(self) -> "Backend":
        """The backend's description."""
        return BACKENDS[self.backend]

    def check(self, bundle: Bundle) -> None:
        """Refuse a bundle that cannot run here, before minutes of other work; loads nothing.

        Raises:
            SettingsError, BundleError: As :meth:`Backend.check_bundle`.
            PlatformError: As :meth:`Backend.check_machine`.
        """
        self.entry.check_bundle(bundle, self)
        self.entry.check_machine()


@dataclass(frozen=True, kw_only=True)
class Backend(ABC):
    """What one backend is and can do.

    Attributes:
        name: As in ``backend="tensorrt"``.
        device: Where the graphs run.
        dtypes: Element types of bundles that it runs; a build for it takes the first by default.
        builds_engines: Whether it runs engines that are built from the graphs, or the graphs themselves.
    """

    name: str
    device: Literal["cpu", "cuda"]
    dtypes: tuple[DType, ...]
    builds_engines: ClassVar[bool]

    @abstractmethod
    def open(self, bundle: Bundle, runtime: Runtime) -> Session:
        """Load the graphs; see :func:`star_export.engines.open_session`."""

    @abstractmethod
    def check_bundle(self, bundle: Bundle, runtime: Runtime) -> None:
        """Refuse a bundle that it cannot run on any machine.

        Raises:
            BundleError: If the bundle has the wrong element type, or lacks engines.
            SettingsError: If its engines need a plugin library that is not given.
        """

    @abstractmethod
    def check_machine(self) -> None:
        """Refuse a machine without the device that it runs on.

        Raises:
            PlatformError: With what is missing.
        """

    def rounding(self, spec: ExportSpec) -> str | None:
        """What is rounded unless it is to be exact: the type of the weights in few bits, or of products."""
        return spec.quantization.type if spec.quantization else None

    @abstractmethod
    def facts(self, bundle: Bundle) -> EngineFacts | None:
        """What the bundle says about its engines; None for a backend that needs none.

        Raises:
            BundleError: If it has none, or says nonsense.
        """

    @abstractmethod
    def examine(self) -> list[Part]:
        """Whether this machine can build for it and run it."""


@dataclass(frozen=True, kw_only=True)
class OnnxRuntime(Backend):
    """ONNX Runtime on one of its devices."""

    builds_engines = False
    dtypes: tuple[DType, ...] = ("float32", "float16")

    def open(self, bundle: Bundle, runtime: Runtime) -> Session:
        """See :class:`Backend`."""
        from star_export.engines.onnxruntime import (
            PREPACKED_FOR_BATCHES,
            YIELDING_TO_BATCHES,
            OnnxRuntimeSession,
        )

        self.check_bundle(bundle, runtime)
        return OnnxRuntimeSession(
            bundle,
            device=self.device,
            threads=runtime.threads,
            prepacked=PREPACKED_FOR_BATCHES if runtime.batches else (),
            yielding=YIELDING_TO_BATCHES if runtime.batches else (),
            exact=runtime.exact,
        )

    def check_bundle(self, bundle: Bundle, runtime: Runtime) -> None:
        """See :class:`Backend`."""
        del runtime
        if bundle.spec.dtype not in self.dtypes:
            raise BundleError(
                f"{bundle.folder} is {bundle.spec.dtype}, which ONNX Runtime cannot run; "
                f"build with {option('dtype', self.dtypes[0])}, or run it on TensorRT"
            )

    def check_machine(self) -> None:
        """See :class:`Backend`."""
        if self.device == "cuda":
            require_device()
        from star_export.engines.onnxruntime import check_device

        check_device(self.device)

    def facts(self, bundle: Bundle) -> EngineFacts | None:
        """None."""
        del bundle
        return None

    def examine(self) -> list[Part]:
        """One part: it builds nothing."""
        name = f"backend {self.name}"
        try:
            self.check_machine()
        except (ImportError, PlatformError) as error:
            return [missing(name, error, "pip install onnxruntime" if self.device == "cpu" else "")]
        import onnxruntime as ort

        from star_export.engines.onnxruntime import PROVIDERS, version_here

        new = version_here() >= OLDEST_ONNXRUNTIME
        oldest = "{}.{}".format(*OLDEST_ONNXRUNTIME)
        remedy = "" if new else f"pip install 'onnxruntime>={oldest}'"
        return [Part(name, new, f"{ort.__version__}: {PROVIDERS[self.device][0]}", remedy)]


@dataclass(frozen=True, kw_only=True)
class OpenVino(Backend):
    """OpenVINO on the CPU, with ONNX Runtime beside it."""

    builds_engines = False
    device: Literal["cpu", "cuda"] = "cpu"
    dtypes: tuple[DType, ...] = ("float32",)

    def open(self, bundle: Bundle, runtime: Runtime) -> Session:
        """See :class:`Backend`."""
        self.check_bundle(bundle, runtime)
        self.check_machine()
        from star_export.engines.openvino import OpenVinoSession

        return OpenVinoSession(bundle, threads=runtime.threads, exact=runtime.exact, batches=runtime.batches)

    def check_bundle(self, bundle: Bundle, runtime: Runtime) -> None:
        """See :class:`Backend`."""
        del runtime
        if bundle.spec.dtype not in self.dtypes:
            raise BundleError(
                f"{bundle.folder} is {bundle.spec.dtype}, which OpenVINO cannot run here; "
                f"build with {option('dtype', self.dtypes[0])}: it multiplies in bfloat16 all the same"
            )
        if bundle.spec.quantization and bundle.spec.quantization.embedding:
            raise BundleError(
                f"{bundle.folder} has an embedding in few bits, which OpenVINO cannot run; "
                f"build without {option('quantize_embedding')}, or run it on ONNX Runtime"
            )

    def rounding(self, spec: ExportSpec) -> str | None:
        """bfloat16 of float weights, where the machine has it."""
        return super().rounding(spec) or "bfloat16"

    def check_machine(self) -> None:
        """See :class:`Backend`."""
        try:
            importlib.import_module("openvino.frontend.onnx")
        except ImportError as error:
            raise PlatformError(f"backend openvino is not installed ({error}); run: {_OPENVINO}") from error

    def facts(self, bundle: Bundle) -> EngineFacts | None:
        """None."""
        del bundle
        return None

    def examine(self) -> list[Part]:
        """One part: it builds nothing."""
        name = f"backend {self.name}"
        try:
            self.check_machine()
        except PlatformError as error:
            return [missing(name, error, _OPENVINO)]
        from star_export.engines.openvino import describe

        return [Part(name, True, describe())]


@dataclass(frozen=True, kw_only=True)
class TensorRT(Backend):
    """One of NVIDIA's two TensorRTs; :data:`PRODUCTS` says how they differ."""

    builds_engines = True
    device: Literal["cpu", "cuda"] = "cuda"
    dtypes: tuple[DType, ...] = ("float16", "bfloat16")

    def open(self, bundle: Bundle, runtime: Runtime) -> Session:
        """See :class:`Backend`."""
        from star_export.engines.tensorrt.session import TensorRTSession

        return TensorRTSession(bundle, self.name, plugin_library=runtime.plugin_library)

    def check_bundle(self, bundle: Bundle, runtime: Runtime) -> None:
        """See :class:`Backend`."""
        self.facts(bundle).check_library(runtime.plugin_library)

    def check_machine(self) -> None:
        """See :class:`Backend`."""
        require_device()

    def facts(self, bundle: Bundle) -> EngineFacts:
        """See :class:`Backend`."""
        return read_facts(bundle, self.name)

    def examine(self) -> list[Part]:
        """Building and running: TensorRT needs a GPU for both, TensorRT-RTX for running only."""
        build, run = f"build {self.name} engines", f"backend {self.name}"
        product = PRODUCTS[self.name]
        try:
            bindings = load_bindings(self.name)
            importlib.import_module("onnx")
        except (PlatformError, ImportError) as error:
            return [missing(name, error, product.install) for name in (build, run)]
        works = gpu().works
        found = f"{bindings.version}{'' if works else ', which needs a GPU'}"
        runs = Part(run, works, found)
        if product.targets:
            targets = ", ".join(product.targets)
            return [Part(build, True, f"{bindings.version}, without a GPU, for {targets}"), runs]
        return [Part(build, works, found), runs]


#: Every backend by its name.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        OnnxRuntime(name=ONNXRUNTIME, device="cpu"),
        OnnxRuntime(name="onnxruntime-cuda", device="cuda"),
        OpenVino(name=OPENVINO),
        TensorRT(name=TENSORRT),
        TensorRT(name=TENSORRT_RTX),
    )
}


def default_backend(bundle: Bundle) -> str:
    """The first backend whose engines a bundle has, else ONNX Runtime on the CPU."""
    engines = bundle.manifest.get("engines", {})
    return next((name for name in BACKENDS if name in engines), ONNXRUNTIME)
