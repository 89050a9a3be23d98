"""The tensors of a checkpoint: which file holds each, and the one name it has here."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from star_export.checkpoint.families import FAMILIES
from star_export.checkpoint.folder import find_shards
from star_export.checkpoint.scheme import Scheme
from star_export.checkpoint.supported import require_supported
from star_export.dtypes import DTYPES, DType
from star_export.errors import CheckpointError

if TYPE_CHECKING:
    import torch

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


class Tensors(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        whole: Tensors of a float type, by canonical name.
        packed: Linear layers in few bits, by canonical name: the tensors of each, by what follows its name.
    """

    whole: dict[str, StoredTensor]
    packed: dict[str, dict[str, StoredTensor]]


def index_tensors(folder: Path, model_type: str, scheme: Scheme | None = None) -> Tensors:
    """Every tensor of a checkpoint folder; reads headers only.

    Args:
        folder: Checkpoint folder.
        model_type: Its family.
        scheme: How its linear layers are packed, if they are.

    Raises:
        CheckpointError: If a file is missing or damaged, or a tensor is there twice or of no float type.
    """
    found: dict[str, StoredTensor] = {}
    tensors = Tensors({}, {})
    for path in find_shards(folder):
        for tensor, is_part in _read_header(path, scheme):
            name = canonical_name(tensor.name, model_type)
            if name in found:
                files = f"{found[name].path.name} and {path.name}"
                raise CheckpointError(f"{folder} has {name} twice, in {files}; get the files again")
            found[name] = tensor
            module, _, leaf = name.rpartition(".")
            if is_part:
                tensors.packed.setdefault(module, {})[leaf] = tensor
            else:
                tensors.whole[name] = tensor
    return tensors


def read_tensor(stored: StoredTensor) -> "torch.Tensor":
    """The values of a tensor; its file is mapped only while this call runs."""
    from safetensors import safe_open

    with safe_open(stored.path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(stored.name)
        return tensor


def _read_header(path: Path, scheme: Scheme | None) -> Iterator[tuple[StoredTensor, bool]]:
    """Each tensor of a file, and whether it is a part of a packed layer."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (a file, not a dict)
                if name.endswith(_NO_WEIGHTS):
                    continue
                stored = file.get_slice(name)
                dtype = stored.get_dtype()
                is_part = scheme is not None and scheme.is_part(name.rpartition(".")[2], dtype)
                if not is_part:
                    require_supported(f"dtype of {name}", dtype, _DTYPES)
                yield StoredTensor(path, name, tuple(stored.get_shape())), is_part
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is truncated or not safetensors ({error}); get the file again"
        ) from error
