"""The AOT plugin in TensorRT's own plugin code, as far as that runs without a driver and a builder.

``tensorrt_lean`` brings the real registry and the real ``plugin`` package; the few names that only
the full ``tensorrt`` has are added, and symbolic dimensions are numbers.
"""

import operator
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from star_export.engines.plugins import aot
from star_export.engines.plugins.nvrtc import KERNEL, launch_constant
from star_export.errors import PlatformError, SettingsError

lean = pytest.importorskip("tensorrt_lean", reason="tensorrt_lean is not installed")
pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")


@dataclass(frozen=True)
class Number:
    """Stands in for ``IDimensionExpr``, which Python cannot make."""

    value: int

    def is_constant(self) -> bool:
        return False

    def get_constant_value(self) -> int:
        raise AssertionError("read the value of a symbolic dimension")


class Builder:
    """Stands in for ``IExprBuilder``: evaluates at once."""

    _OPERATIONS = types.MappingProxyType(
        {
            lean.DimensionOperation.PROD: operator.mul,
            lean.DimensionOperation.SUM: operator.add,
            lean.DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
        }
    )

    def constant(self, value: int) -> Number:
        return Number(value)

    def operation(self, operation: Any, first: Number, second: Number) -> Number:
        return Number(self._OPERATIONS[operation](first.value, second.value))


class Dims(list[Any]):
    """Stands in for ``DimsExprs``, which takes real dimensions only."""

    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class SymExpr:
    """Stands in for ``ISymExpr``, likewise."""


class SymExprs(dict[int, Any]):
    """Stands in for ``ISymExprs``, likewise."""

    nbSymExprs = 0  # noqa: N815


class Desc:
    """Stands in for ``PluginTensorDesc``, whose format ``tensorrt_lean`` cannot hold."""

    type = format = None
    scale = 1.0
    dims = (-1,)


class DynamicDesc:
    """Stands in for ``DynamicPluginTensorDesc``, likewise."""

    min = opt = max = (1,)

    def __init__(self, type_: Any) -> None:
        self.desc = Desc()
        self.desc.type = type_


@pytest.fixture(scope="module")
def trt() -> Iterator[types.ModuleType]:
    """``tensorrt``, made of ``tensorrt_lean``."""
    module = types.ModuleType("tensorrt_lean")  # so that `.plugin` of it is the real package
    module.__dict__.update(lean.__dict__)
    missing = {name: type(name, (), {"LINEAR": "linear"}) for name in ("TensorFormat", "ITensor")}
    stands_in = {"IDimensionExpr": Number, "DimsExprs": Dims, "ISymExpr": SymExpr}
    stands_in |= {"PluginTensorDesc": Desc, "DynamicPluginTensorDesc": DynamicDesc}
    module.__dict__.update(missing, **stands_in)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", module)
        aot.register(module, architecture="compute_80")
        yield module
    registry = lean.get_plugin_registry()
    registry.deregister_creator(registry.get_creator("TopKGather", "1", "star"))
    for name in [name for name in sys.modules if name.startswith("tensorrt_lean") and "plugin" in name]:
        del sys.modules[name]


@pytest.fixture
def plugin(trt: types.ModuleType) -> Any:
    """What the parser gets when it meets a TopKGather node of namespace star."""
    creator = trt.get_plugin_registry().get_creator("TopKGather", "1", "star")
    assert list(creator.field_names) == []  # the parser copies no attribute of the node
    fields = trt.PluginFieldCollection([])
    request = trt.QuickPluginCreationRequest.UNKNOWN  # no flag of the network asks for AOT or JIT
    return creator.create_plugin("TopKGather", "star", fields, trt.TensorRTPhase.BUILD, request)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_output_types(dtype: str, plugin: Any, trt: types.ModuleType) -> None:
    inputs = [getattr(trt, dtype), trt.float32, trt.int64]
    assert plugin.get_num_outputs() == 2
    assert plugin.get_output_data_types(inputs, [3, 2, 1]) == [getattr(trt, dtype), trt.int64]
    assert plugin.aliased_map == {0: -1, 1: -1}


def shapes(batch: int, rows: int, channels: int, k: int) -> list[list[Number]]:
    sizes = ((batch, rows, channels), (batch, rows), (k,))
    return [[Number(size) for size in shape] for shape in sizes]


def test_output_shapes(plugin: Any, trt: types.ModuleType) -> None:
    plugin.get_output_data_types([trt.float16, trt.float32, trt.int64], [3, 2, 1])
    outputs = plugin.get_output_shapes(shapes(2, 576, 1024, 518), [], Builder())
    assert [[size.value for size in shape] for shape in outputs] == [[2, 518, 1024], [2, 518]]


def launch(plugin: Any, trt: types.ModuleType, ios: list[Any], sizes: list[list[Number]]) -> tuple[Any, ...]:
    """What TensorRT's builder asks, in its order: launch parameters, integers, kernel name and PTX."""
    plugin.get_output_data_types(ios[:3], [3, 2, 1])
    plugin.get_output_shapes(sizes, [], Builder())
    tensors = [DynamicDesc(io) for io in ios]
    formats = plugin.get_supported_format_combinations(tensors, 3)
    assert [(desc.type, desc.format) for desc in formats] == [(io, "linear") for io in ios]
    for one, chosen in zip(tensors, formats, strict=True):
        one.desc = chosen
    plugin.configure_plugin(tensors[:3], tensors[3:])
    assert plugin.get_valid_tactics() == []
    plugin.set_tactic(0)
    parameters, integers = types.SimpleNamespace(), SymExprs()
    plugin.get_launch_params(None, tensors, 3, parameters, integers, Builder())
    return parameters, integers, *plugin.get_kernel(formats[:3], formats[3:])


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_launch(dtype: str, size: int, plugin: Any, trt: types.ModuleType) -> None:
    """The grid covers every kept row, and the integers are in the kernel's order."""
    batch, rows, channels, k = 3, 577, 1024, 65
    ios = [getattr(trt, dtype), trt.float32, trt.int64, getattr(trt, dtype), trt.int64]
    found, integers, name, ptx = launch(plugin, trt, ios, shapes(batch, rows, channels, k))
    blocks = batch * -(-k // launch_constant("STAR_ROWS_PER_BLOCK"))
    assert [found.grid_x.expr.value, found.grid_y.expr.value, found.grid_z.expr.value] == [blocks, 1, 1]
    assert found.block_x.expr.value == launch_constant("STAR_BLOCK_THREADS")
    assert found.shared_mem.expr.value == 0
    assert integers.nbSymExprs == 3
    assert [integers[i].expr.value for i in range(3)] == [rows, k, channels * size]
    assert {integers[i].dtype for i in range(3)} == {trt.PluginArgDataType.INT32}
    assert name == KERNEL
    assert b".target sm_80" in ptx


def test_registering_again_takes_the_new_architecture(plugin: Any, trt: types.ModuleType) -> None:
    creators = len(trt.get_plugin_registry().all_creators)
    aot.register(trt, architecture="compute_90")
    assert len(trt.get_plugin_registry().all_creators) == creators
    request = trt.QuickPluginCreationRequest.STRICT_AOT
    creator = trt.get_plugin_registry().get_creator("TopKGather", "1", "star")
    fields = trt.PluginFieldCollection([])
    again = creator.create_plugin("TopKGather", "star", fields, trt.TensorRTPhase.BUILD, request)
    ios = [trt.float16, trt.float32, trt.int64, trt.float16, trt.int64]
    *_, ptx = launch(again, trt, ios, shapes(1, 9, 8, 4))
    assert b".target sm_90" in ptx


def test_refuses_tensorrt_rtx() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    with pytest.raises(PlatformError, match=r"found tensorrt_rtx .*plugins=none"):
        aot.register(rtx, architecture="compute_89")


def test_refuses_malformed_architectures(trt: types.ModuleType) -> None:
    with pytest.raises(SettingsError, match="sm_89"):
        aot.register(trt, architecture="sm_89")
