"""Load the C++ plugin library, built from CMakeLists.txt in this folder, into TensorRT."""

import ctypes
from pathlib import Path
from typing import Any

from star_export.contract import STAR_DOMAIN, TOPK_GATHER
from star_export.errors import PlatformError, SettingsError, option

_BUILD = "build it as docs/kernels.md says"


def load(trt: Any, path: Path, logger: Any) -> None:
    """Register the creators of a plugin library with TensorRT, once per process.

    Args:
        trt: The ``tensorrt`` module.
        path: ``libstar_export_plugins.so``.
        logger: A ``trt.ILogger``; told which library was loaded.

    Raises:
        SettingsError: If the file is missing, or the AOT plugin is registered already.
        PlatformError: If it is no shared library that loads here, or has no creator of
            ``star::TopKGather``.
    """
    if not path.is_file():
        raise SettingsError(f"no plugin library at {path}; {_BUILD}, or use {option('plugins', 'aot')}")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise PlatformError(f"{path} does not load as a shared library ({error}); {_BUILD}") from None
    if not hasattr(library, "getCreators"):
        raise PlatformError(f"{path} is no TensorRT plugin library: it exports no getCreators; {_BUILD}")
    if (found := _creator(trt)) is not None:
        if isinstance(found, trt.IPluginCreatorV3One):
            return
        raise SettingsError(
            f"{STAR_DOMAIN}::{TOPK_GATHER} is registered as an AOT plugin; use one of the two"
        )
    trt.get_plugin_registry().load_library(str(path))
    if _creator(trt) is None:
        raise PlatformError(f"{path} has no creator of {STAR_DOMAIN}::{TOPK_GATHER}; {_BUILD}")
    logger.log(trt.ILogger.Severity.INFO, f"{STAR_DOMAIN}::{TOPK_GATHER} from {path}")


def _creator(trt: Any) -> Any:
    for creator in trt.get_plugin_registry().all_creators:
        if (creator.name, creator.plugin_namespace) == (TOPK_GATHER, STAR_DOMAIN):
            return creator
    return None
