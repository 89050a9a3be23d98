"""ONNX -> something that runs: one interface for every backend."""

from star_export.bundle import Bundle
from star_export.engines.backends import BACKENDS, Runtime
from star_export.engines.session import Caches, DeviceArray, Session

__all__ = ["BACKENDS", "Caches", "DeviceArray", "Runtime", "Session", "free_device_memory", "open_session"]


def open_session(bundle: Bundle, runtime: Runtime | None = None) -> Session:
    """Load a bundle's graphs.

    Args:
        bundle: An opened bundle.
        runtime: What runs them and how; ONNX Runtime on all CPU cores by default.

    Raises:
        SettingsError: If the engines need a plugin library that is not given.
        BundleError: If the backend cannot run the bundle, or cannot load a graph.
        PlatformError: If this machine lacks what the backend needs.
    """
    runtime = runtime or Runtime()
    return runtime.entry.open(bundle, runtime)


def free_device_memory() -> int:
    """Free bytes of the GPU that sessions use.

    Raises:
        PlatformError: If there is none.
    """
    from star_export.engines.tensorrt.cuda import require_device

    return require_device().free_memory
