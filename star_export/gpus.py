"""How fast GPUs can be: figures of NVIDIA's data sheets, for estimates."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from star_export.dtypes import DType
from star_export.errors import SettingsError, option


@dataclass(frozen=True, kw_only=True)
class Device:
    """What computes.

    Attributes:
        name: Of the GPU, or where the figures are from.
        bandwidth: Of its memory, in bytes per second.
        flops: Floating-point operations per second of dense matrix products.
        memory: Bytes of its memory; None where nobody says.
        dtypes: Element types of which its arithmetic is known.
    """

    name: str
    bandwidth: float
    flops: float
    memory: float | None = None
    dtypes: tuple[DType, ...] = ("float16", "bfloat16", "float32")


#: The name that means the machine itself; see `star_export.measure.machine`.
THIS = "this"

#: Memory bandwidth in GB/s; float16 without sparsity, accumulated in float32, in TFLOP/s; memory in GB.
_DATA_SHEETS = {
    "h200": (4800, 989, 141),
    "h100-sxm": (3350, 989, 80),
    "h100-pcie": (2000, 756, 80),
    "a100-80gb": (2039, 312, 80),
    "a100-40gb": (1555, 312, 40),
    "l40s": (864, 362, 48),
    "l4": (300, 121, 24),
    "a10": (600, 125, 24),
    "t4": (320, 65, 16),
    "rtx-5090": (1792, 209.5, 32),
    "rtx-4090": (1008, 165, 24),
    "rtx-3090": (936, 71, 24),
    "jetson-agx-orin": (204.8, 42.5, 64),
}

GPUS = {
    name: Device(
        name=name,
        bandwidth=bandwidth * 1e9,
        flops=flops * 1e12,
        memory=memory * 1e9,
        dtypes=("float16", "bfloat16"),
    )
    for name, (bandwidth, flops, memory) in _DATA_SHEETS.items()
}


def find_device(
    gpu: str | None, bandwidth: float | None, flops: float | None, *, measure: Callable[[], Device]
) -> Device | None:
    """What the options describe; None without any.

    Args:
        gpu: Name of a GPU; case, and spaces for dashes, make no difference.
        bandwidth: GB/s of a device of one's own, and
        flops: its TFLOP/s.
        measure: What measures this machine, if ``gpu`` is :data:`THIS`.

    Raises:
        SettingsError: If a number is missing or not above 0, or a name is not known.
    """
    own = {"bandwidth": bandwidth, "flops": flops}
    given = {name: value for name, value in own.items() if value is not None}
    if gpu is not None:
        if given:
            raise SettingsError(f"give either {option('gpu')} or {option(next(iter(given)))}, not both")
        return measure() if gpu == THIS else _named(gpu)
    if bandwidth is None or flops is None:
        for name in given:
            missing = next(other for other in own if other not in given)
            raise SettingsError(f"{option(name)} needs {option(missing)} beside it")
        return None
    for name, value in given.items():
        if not 0 < value < float("inf"):
            raise SettingsError(f"{option(name)} must be above 0, got {value:g}")
    return Device(name="given figures", bandwidth=bandwidth * 1e9, flops=flops * 1e12)


def _named(gpu: str) -> Device:
    name = gpu.lower().replace(" ", "-")
    if name in GPUS:
        return GPUS[name]
    near = [known for known in GPUS if name in known] or difflib.get_close_matches(name, GPUS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise SettingsError(
        f"{option('gpu', gpu)} is not known; {hint}GPUs are {', '.join(GPUS)}, or {THIS} for this machine's "
        f"CPU; for another give {option('bandwidth')} and {option('flops')}"
    )
