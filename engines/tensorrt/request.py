"""What a worker process is asked to build."""

import json
from dataclasses import asdict, dataclass

from star_export.engines.tensorrt.facts import Profile


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """Everything one build needs; plain values, so that it can cross to another process.

    Attributes:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        graph: The ONNX file.
        output: The engine file to write.
        profiles: ``[min, opt, max]`` shapes per dynamic input.
        targets: ``sm89``, ... for TensorRT-RTX; empty for TensorRT, which builds for its own GPU.
        plugins: ``aot``, ``library`` or ``none``.
        plugin_library: The shared library, when ``plugins`` is ``library``.
        timing_cache: File of kernel timings to read and write.
        hardware_compatible: Run on every GPU from compute capability 8.0.
        version_compatible: Run on newer versions of the same major number.
        weight_streaming: Let weights stay in host memory at run time.
        shared_weights: Take the weights as inputs, instead of keeping them inside the engine.
        workspace: Scratch memory a kernel may take, in bytes; no limit by default.
    """

    backend: str
    graph: str
    output: str
    profiles: dict[str, Profile]
    targets: tuple[str, ...] = ()
    plugins: str = "none"
    plugin_library: str | None = None
    timing_cache: str | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    weight_streaming: bool = False
    shared_weights: bool = False
    workspace: int | None = None

    def to_json(self) -> str:
        """One line of JSON, the inverse of :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "EngineRequest":
        """Read what :meth:`to_json` wrote."""
        data = json.loads(text)
        profiles = {name: Profile(**profile) for name, profile in data["profiles"].items()}
        return cls(**{**data, "profiles": profiles, "targets": tuple(data["targets"])})
