"""ONNX -> something that runs: one module per backend, one interface for all."""

import difflib
from pathlib import Path

from star_export.bundle import Bundle
from star_export.engines.session import Caches, DeviceArray, Session
from star_export.errors import SettingsError

BACKENDS = ("onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")

__all__ = ["BACKENDS", "Caches", "DeviceArray", "Session", "free_device_memory", "open_session"]


def open_session(
    bundle: Bundle,
    backend: str = "onnxruntime",
    *,
    threads: int | None = None,
    plugin_library: Path | None = None,
) -> Session:
    """Load a bundle's graphs.

    Args:
        bundle: An opened bundle.
        backend: One of :data:`BACKENDS`.
        threads: CPU threads of ONNX Runtime; all cores by default.
        plugin_library: The plugin library of TensorRT engines that were built with one.

    Raises:
        SettingsError: If the backend is unknown.
        BundleError: If the backend cannot load a graph.
        PlatformError: If this machine lacks what the backend needs.
    """
    check_backend(backend)
    if backend.startswith("onnxruntime"):
        from star_export.engines.onnxruntime import OnnxRuntimeSession

        device = "cuda" if backend == "onnxruntime-cuda" else "cpu"
        return OnnxRuntimeSession(bundle, device=device, threads=threads)
    from star_export.engines.tensorrt.session import TensorRTSession

    return TensorRTSession(bundle, backend, plugin_library=plugin_library)


def free_device_memory() -> int:
    """Free bytes of the GPU that sessions use.

    Raises:
        PlatformError: If there is none.
    """
    from star_export.engines.tensorrt.cuda import require_device

    return require_device().free_memory


def check_backend(backend: str) -> None:
    """Refuse a backend that does not exist.

    Raises:
        SettingsError: With the nearest name.
    """
    if backend not in BACKENDS:
        near = difflib.get_close_matches(backend, BACKENDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"backends are {', '.join(BACKENDS)}"
        raise SettingsError(f"unknown backend {backend}; {hint}")
