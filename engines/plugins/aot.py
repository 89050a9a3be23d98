"""``star::TopKGather`` as a quickly deployable plugin: the kernel becomes part of the engine.

Where such an engine runs, nothing has to be shipped or loaded. TensorRT's ONNX parser finds the
plugin by op type, version 1 and the node's attribute ``plugin_namespace``; it hands over only
the attributes a plugin declares, and this one declares none.
"""

import importlib
from typing import Any

from star_export.contract import STAR_DOMAIN, TOPK_GATHER
from star_export.engines.plugins.nvrtc import KERNEL, compile_ptx, launch_constant
from star_export.errors import PlatformError, SettingsError, option

PLUGIN_ID = f"{STAR_DOMAIN}::{TOPK_GATHER}"


def register(trt: Any, *, architecture: str) -> None:
    """Register the plugin with TensorRT, once per process.

    Registering again replaces the architecture. Compiles the kernel, so that nothing is left to
    go wrong inside TensorRT's callbacks.

    Args:
        trt: The ``tensorrt`` module.
        architecture: Virtual architecture of the PTX, such as ``compute_89``: that of the
            building GPU, or ``compute_80`` for a hardware compatible engine.

    Raises:
        PlatformError: If this TensorRT has no AOT plugins, or NVRTC is missing or fails.
        SettingsError: If ``architecture`` is malformed, or the C++ plugin is loaded already.
    """
    if not hasattr(trt, "QuickPluginCreationRequest"):
        raise PlatformError(
            f"{option('plugins', 'aot')} needs TensorRT 10.9 or newer, "
            f"found {trt.__name__} {trt.__version__}; "
            f"take {option('plugins', 'none')} (TensorRT-RTX has no plugins at all)"
        )
    ptx = compile_ptx(architecture)
    trtp = importlib.import_module(f"{trt.__name__}.plugin")
    if not hasattr(getattr(trtp.op, STAR_DOMAIN, None), TOPK_GATHER):
        _refuse_second_creator(trt)
        trtp.register(PLUGIN_ID)(_description(trtp, trt.int64))
    trtp.aot_impl(PLUGIN_ID)(_implementation(trtp, ptx))


def _refuse_second_creator(trt: Any) -> None:
    for creator in trt.get_plugin_registry().all_creators:
        if (creator.name, creator.plugin_namespace) == (TOPK_GATHER, STAR_DOMAIN):
            raise SettingsError(
                f"{PLUGIN_ID} is registered already, by a plugin library; "
                f"use {option('plugins', 'library')}, or do not load the library in this process"
            )


def _description(trtp: Any, int64: Any) -> Any:
    """Outputs from inputs: kept ``[B, k, C]`` like x, indices int64 ``[B, k]``."""

    def describe(x, scores, slots):  # type: ignore[no-untyped-def]  # noqa: ARG001
        batch, _, channels = x.shape_expr
        k = slots.shape_expr[0]
        kept = trtp.from_shape_expr((batch, k, channels), dtype=x.dtype)
        return kept, trtp.from_shape_expr((batch, k), dtype=int64)

    # tensorrt.plugin reads the signature, and its types exist only once it is imported.
    inputs = dict.fromkeys(("x", "scores", "slots"), trtp.TensorDesc)
    describe.__annotations__ = inputs | {"return": tuple[trtp.TensorDesc, trtp.TensorDesc]}
    return describe


def _implementation(trtp: Any, ptx: bytes) -> Any:
    """The kernel, its launch, and the integers between its input and its output pointers."""

    def implement(x, scores, slots, outputs, tactic):  # type: ignore[no-untyped-def]  # noqa: ARG001
        batch, rows, channels = x.shape_expr
        k = slots.shape_expr[0]
        launch = trtp.KernelLaunchParams(
            grid_x=batch * trtp.cdiv(k, launch_constant("STAR_ROWS_PER_BLOCK")),
            block_x=launch_constant("STAR_BLOCK_THREADS"),
        )
        integers = trtp.SymIntExprs.from_tuple((rows, k, channels * x.dtype.itemsize))
        return KERNEL, ptx, launch, integers

    result = tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]
    implement.__annotations__ = {"return": result}
    return implement
