"""The weights of a bundle on the GPU, once for all engines that take them as inputs.

TensorRT keeps constants inside each engine: prefill and decode would then hold the decoder's
weights twice, on disk and on the GPU. As inputs they are bound like any other tensor.
"""

import importlib
import itertools
import logging
import math
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from star_export.bundle import Bundle
from star_export.contract import TensorSpec
from star_export.dtypes import DTYPES
from star_export.engines.tensorrt import cuda
from star_export.engines.tensorrt.facts import EngineFacts
from star_export.engines.tensorrt.shapes import EngineTensor
from star_export.errors import BundleError, PlatformError

log = logging.getLogger("star_export.tensorrt")

#: Pinned memory, twice: one piece is read from the disk while the other goes to the GPU.
PIECE_BYTES = 32 << 20

_NAMES = {row.safetensors: name for name, row in DTYPES.items() if row.packed == 1}

#: Those in use, by the hashes of their files: sessions of one process share them.
LOADED: "WeakValueDictionary[frozenset[str], SharedWeights]" = WeakValueDictionary()
_LOADING = threading.Lock()


class StoredWeight(NamedTuple):
    """A tensor of a weights file and where its bytes lie there."""

    spec: TensorSpec
    path: Path
    offset: int
    nbytes: int


class SharedWeights:
    """Tensors of weights files in one allocation, filled while the caller does other things.

    Args:
        tensors: What to upload, in the order of the files.

    Attributes:
        specs: Name, type and shape of each, by name.

    Raises:
        PlatformError: If the GPU has no room.
    """

    def __init__(self, tensors: list[StoredWeight]) -> None:
        self.specs = {tensor.spec.name: tensor.spec for tensor in tensors}
        ends = itertools.accumulate(map(_aligned, tensors))
        self._buffer = cuda.DeviceBuffer(sum(map(_aligned, tensors)), "the weights")
        self._addresses = {
            tensor.spec.name: self._buffer.pointer + end - _aligned(tensor)
            for tensor, end in zip(tensors, ends, strict=True)
        }
        log.info("weights: %.2f GB on the GPU for all engines", self._buffer.size / 1e9)
        pool = ThreadPoolExecutor(1, "weights")
        # The thread holds the buffer too: nobody frees it under a copy.
        self._filled = pool.submit(_fill, self._buffer, self._addresses, tensors)
        pool.shutdown(wait=False)

    def addresses(self) -> dict[str, int]:
        """Where each tensor is, by name; waits until all are there.

        Raises:
            BundleError: If a file cannot be read to its end.
            PlatformError, DeviceError: If the GPU refuses a copy.
        """
        self._filled.result()
        return self._addresses


def shared_weights(bundle: Bundle, facts: EngineFacts) -> SharedWeights:
    """The weights that a bundle's engines take as inputs, on their way to the GPU or there already.

    Raises:
        BundleError: If a file is damaged.
        PlatformError: If the GPU has no room, or safetensors is not installed.
    """
    with _LOADING:
        key = frozenset(facts.weights_files.values())
        if (weights := LOADED.get(key)) is None:
            files = [bundle.path(name) for name in sorted(facts.weights_files)]
            LOADED[key] = weights = SharedWeights([tensor for file in files for tensor in stored(file)])
        return weights


def stored(path: Path) -> list[StoredWeight]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        BundleError: If it is damaged.
        PlatformError: If safetensors is not installed.
    """
    try:
        safetensors: Any = importlib.import_module("safetensors")
    except ImportError as error:
        raise PlatformError("shared weights need safetensors; run: pip install safetensors") from error
    try:
        with safetensors.safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            specs = [
                TensorSpec(name, _NAMES[tensor.get_dtype()], tuple(tensor.get_shape()))
                for name, tensor in slices.items()
            ]
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path} is no weights file ({error}); copy or build the bundle again") from error
    sizes = [math.prod(map(int, spec.shape)) * DTYPES[spec.dtype].itemsize for spec in specs]
    offsets = itertools.accumulate(sizes, initial=path.stat().st_size - sum(sizes))  # there are no gaps
    return [StoredWeight(s, path, offset, n) for s, offset, n in zip(specs, offsets, sizes, strict=False)]


def as_taken(stored: TensorSpec, by_engine: EngineTensor) -> TensorSpec:
    """A weight as an engine takes it: where two integers share a byte, the file has the bytes."""
    elements = math.prod(by_engine.shape)
    if by_engine.dtype != DTYPES["int4"].tensorrt or stored.shape != (DTYPES["int4"].nbytes(elements),):
        return stored
    return TensorSpec(stored.name, "int4", by_engine.shape)


def _aligned(tensor: StoredWeight) -> int:
    return -(-tensor.nbytes // cuda.ALIGNMENT) * cuda.ALIGNMENT


def _fill(buffer: cuda.DeviceBuffer, addresses: Mapping[str, int], tensors: list[StoredWeight]) -> None:
    """Copy every tensor to its address in ``buffer``, a piece at a time."""
    stream = cuda.Stream()
    pieces = itertools.cycle([(cuda.PinnedBuffer(PIECE_BYTES), cuda.Event()) for _ in range(2)])
    for path, of_file in itertools.groupby(tensors, key=lambda tensor: tensor.path):
        with path.open("rb", buffering=0) as file:
            for tensor in of_file:
                file.seek(tensor.offset)
                for start in range(0, tensor.nbytes, PIECE_BYTES):
                    piece, copied = next(pieces)
                    copied.synchronize()
                    size = min(PIECE_BYTES, tensor.nbytes - start)
                    _read(file, piece.array[:size].data, path)
                    stream.upload(addresses[tensor.spec.name] + start, piece.pointer, size)
                    stream.record(copied)
    stream.synchronize()
    del buffer


def _read(file: FileIO, into: memoryview, path: Path) -> None:
    while into:
        if not (count := file.readinto(into)):
            raise BundleError(f"{path} ends early; copy or build the bundle again")
        into = into[count:]
