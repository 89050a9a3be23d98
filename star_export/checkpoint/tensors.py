"""The tensors of a checkpoint: which file holds each, and the one name it has here."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

from star_export.checkpoint.families import FAMILIES
from star_export.checkpoint.folder import find_shards
from star_export.checkpoint.supported import require_supported
from star_export.dtypes import DTYPES, DType
from star_export.errors import CheckpointError

_DTYPES = tuple(DTYPES[name].safetensors for name in get_args(DType))

#: Integers that old versions of transformers saved beside the weights.
_NO_WEIGHTS = ".position_ids"


class StoredTensor(NamedTuple):
    """Where a tensor is: its file, its name in there, its shape."""

    path: Path
    name: str
    shape: tuple[int, ...]


def canonical_name(name: str, model_type: str) -> str:
    """The tensor name used here for any spelling of any transformers version.

    Args:
        name: The tensor's name in a file, or in a model of transformers.
        model_type: The checkpoint's family, a key of :data:`~star_export.checkpoint.families.FAMILIES`.
    """
    for canonical, spelled in FAMILIES[model_type].tensor_prefixes.items():
        if match := spelled.match(name):
            return canonical + name[match.end() :]
    return name


def canonical_module(name: str, model_type: str) -> str:
    """The module name used here for any spelling of any transformers version."""
    return canonical_name(f"{name}.", model_type).removesuffix(".")


def index_tensors(folder: Path, model_type: str) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder by its canonical name; reads headers only.

    Raises:
        CheckpointError: If a file is missing or damaged, or a tensor is there twice or of no float type.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in find_shards(folder):
        for tensor in _read_header(path):
            name = canonical_name(tensor.name, model_type)
            if name in tensors:
                files = f"{tensors[name].path.name} and {path.name}"
                raise CheckpointError(f"{folder} has {name} twice, in {files}; get the files again")
            tensors[name] = tensor
    return tensors


def _read_header(path: Path) -> Iterator[StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (a file, not a dict)
                if name.endswith(_NO_WEIGHTS):
                    continue
                stored = file.get_slice(name)
                require_supported(f"dtype of {name}", stored.get_dtype(), _DTYPES)
                yield StoredTensor(path, name, tuple(stored.get_shape()))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is truncated or not safetensors ({error}); get the file again"
        ) from error
