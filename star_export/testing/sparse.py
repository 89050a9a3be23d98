"""Checkpoints of full size whose weights are zeros that take no room on the disk: for the cost of builds."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from star_export.dtypes import DTYPES


def write_zeros(path: Path, model: nn.Module, dtype: torch.dtype) -> None:
    """A safetensors file of a model's parameters, all zero: a header, and one hole behind it.

    Args:
        path: File to write.
        model: Its parameters may be on the meta device; those that are tied are written once.
        dtype: Element type in the file.
    """
    name = str(dtype).removeprefix("torch.")
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor, parameter in model.named_parameters():
        begin, end = end, end + parameter.numel() * DTYPES[name].itemsize
        entries[tensor] = {
            "dtype": DTYPES[name].safetensors,
            "shape": list(parameter.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
