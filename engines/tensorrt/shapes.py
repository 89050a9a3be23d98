"""What an engine accepts, checked before TensorRT is asked: names, dtypes, shapes, profiles.

Nothing here needs a GPU or TensorRT. Every output size of the contract is an
expression of input sizes, so shapes and the largest buffers are known up front.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from star_export.contract import Dim, GraphSpec, TensorSpec
from star_export.dtypes import DTYPES
from star_export.engines.tensorrt.facts import Profile, Shape
from star_export.errors import BundleError, SettingsError


@dataclass(frozen=True)
class EngineTensor:
    """One input or output as a deserialised engine describes it.

    Attributes:
        is_input: Whether it is an input.
        dtype: TensorRT's name, such as ``HALF``.
        shape: -1 where it is dynamic.
        alias: For an output that is written in place, the input it must share its address with.
        on_host: Whether TensorRT reads it from host memory.
    """

    is_input: bool
    dtype: str
    shape: Shape
    alias: str | None
    on_host: bool


def check_engine(
    found: Mapping[str, EngineTensor],
    io: GraphSpec,
    *,
    weights: Mapping[str, TensorSpec],
    engine: str,
    command: str,
) -> None:
    """Refuse an engine whose inputs and outputs are not the contract's.

    Args:
        found: What the engine has, by name.
        io: What the contract says.
        weights: Further inputs, by name.
        engine: The engine's file, for the message.
        command: What to type to build it again.

    Raises:
        BundleError: With the first difference.
    """
    inputs = {tensor.name: tensor for tensor in io.inputs} | dict(weights)
    wanted = inputs | {tensor.name: tensor for tensor in io.outputs}
    for name in sorted(wanted.keys() | found.keys()):
        if name not in wanted or name not in found:
            fault = f"has {name}, the contract has not" if name in found else f"lacks {name}"
        else:
            fault = _tensor_fault(wanted[name], found[name], name in inputs, io.aliases.get(name))
        if fault:
            raise BundleError(f"{engine} {fault}; build the engines again: {command}")


def _tensor_fault(wanted: TensorSpec, found: EngineTensor, is_input: bool, alias: str | None) -> str:
    """What is wrong with one tensor; empty when nothing is."""
    name = wanted.name
    if found.is_input != is_input:
        return f"has {name} as {'an input' if found.is_input else 'an output'}"
    dtype = DTYPES[wanted.dtype].tensorrt
    if found.dtype != dtype:
        return f"has {name} in {found.dtype}, the contract says {dtype}"
    if found.alias != alias:
        return f"writes {name} in place of {found.alias}, not of {alias}"
    sizes = zip(wanted.shape, found.shape, strict=False)
    if len(wanted.shape) != len(found.shape) or any(isinstance(w, int) and w != f for w, f in sizes):
        return f"has {name} as {found.shape}, the contract says {wanted.shape}"
    return ""


@dataclass(frozen=True)
class ShapeRules:
    """The shapes that one engine takes and gives.

    Attributes:
        graph: ``vision``, ``prefill`` or ``decode``.
        io: Its tensors.
        profiles: The range of every dynamic input, from the manifest.
        command: What to type to build the engines again.
    """

    graph: str
    io: GraphSpec
    profiles: Mapping[str, Profile]
    command: str

    def check(self, shapes: Mapping[str, Shape]) -> dict[str, int]:
        """Refuse shapes that the engine does not take.

        Args:
            shapes: Of every input, by name.

        Returns:
            The contract's symbolic sizes, such as ``{"S": 560, "V": 518}``.

        Raises:
            SettingsError: With the input, its shape and what the engine takes.
        """
        names = {tensor.name for tensor in self.io.inputs}
        if names != shapes.keys():
            raise SettingsError(f"{self.graph} takes {sorted(names)}, got {sorted(shapes)}")
        sizes: dict[str, int] = {}
        for tensor in self.io.inputs:
            self._check_input(tensor, shapes[tensor.name], sizes)
        return sizes

    def output_shapes(self, sizes: Mapping[str, int]) -> dict[str, Shape]:
        """Shape of every output for the symbolic sizes that :meth:`check` found."""
        return {
            tensor.name: tuple(_value(dim, sizes, sizes) for dim in tensor.shape)
            for tensor in self.io.outputs
        }

    def largest(self, tensor: TensorSpec) -> int:
        """Bytes of an input or output at the largest shapes that the engine takes.

        Raises:
            BundleError: If the manifest has no range for one of its sizes.
        """
        low, high = self._ranges()
        try:
            elements = int(np.prod([_value(dim, high, low) for dim in tensor.shape]))
        except KeyError as error:
            raise BundleError(
                f"the manifest has no range for {error} of {self.graph}'s {tensor.name}; "
                f"build the engines again: {self.command}"
            ) from error
        return elements * DTYPES[tensor.dtype].itemsize

    def _check_input(self, tensor: TensorSpec, shape: Shape, sizes: dict[str, int]) -> None:
        """Check one input and note its symbolic sizes."""
        expected = [sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in tensor.shape]
        pairs = list(zip(expected, shape, strict=False))
        if len(expected) != len(shape) or any(isinstance(want, int) and want != got for want, got in pairs):
            raise SettingsError(f"{self.graph}: {tensor.name} must be {tuple(expected)}, got {shape}")
        sizes.update({dim: got for dim, got in pairs if isinstance(dim, str)})
        profile = self.profiles.get(tensor.name)
        if profile is None:
            return
        ranges = zip(profile.min, shape, profile.max, strict=True)
        if any(not low <= got <= high for low, got, high in ranges):
            raise SettingsError(
                f"{self.graph}: {tensor.name} has shape {shape}, the engine takes {profile.min} to "
                f"{profile.max}; for others, build the engines again: {self.command}"
            )

    def _ranges(self) -> tuple[dict[str, int], dict[str, int]]:
        """Smallest and largest value of every symbolic size."""
        low: dict[str, int] = {}
        high: dict[str, int] = {}
        for tensor in self.io.inputs:
            if profile := self.profiles.get(tensor.name):
                for dim, least, most in zip(tensor.shape, profile.min, profile.max, strict=True):
                    if isinstance(dim, str):
                        low[dim] = max(least, low.get(dim, least))
                        high[dim] = min(most, high.get(dim, most))
        return low, high


def _value(dim: Dim, plus: Mapping[str, int], minus: Mapping[str, int]) -> int:
    """A size such as ``S - V + N2``; its subtracted symbols are looked up in ``minus``."""
    if isinstance(dim, int):
        return dim
    terms = re.findall(r"([+-]?)\s*(\w+)", dim)
    return sum(-minus[name] if sign == "-" else plus[name] for sign, name in terms)
