"""A LLaVA checkpoint on disk: where it is, what it is, and its tensors.

Reading the config needs the ``export`` extra (transformers fills in the
defaults that published configs leave out); tensors are read from safetensors
one at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from star_export.checkpoint.config import read_model
from star_export.checkpoint.locate import Location, locate
from star_export.checkpoint.scheme import Scheme, read_scheme
from star_export.checkpoint.tensors import StoredTensor, Tensors, index_tensors, read_tensor
from star_export.errors import CheckpointError
from star_export.files import sha256
from star_export.progress import NoProgress, Progress
from star_export.specs import ModelSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose config and tensor headers were read and checked.

    Attributes:
        folder: Local folder in Hugging Face layout.
        source: What the user asked for: an absolute path or a hub id.
        revision: Commit of the hub snapshot, None for a local folder.
        model: Shape of the model.
        tensors: Where each tensor is, by canonical name.
        scheme: How its linear layers are packed; None if it is not quantised.
        packed: Of each packed layer, by canonical name, where its tensors are, by what follows its name.
    """

    folder: Path
    source: str
    revision: str | None
    model: ModelSpec
    tensors: Mapping[str, StoredTensor]
    scheme: Scheme | None = None
    packed: Mapping[str, Mapping[str, StoredTensor]] = field(default_factory=dict)

    def tensor(self, name: str) -> "torch.Tensor":
        """Read one tensor.

        Raises:
            CheckpointError: If no tensor has that name.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder} has no tensor {name}; is the checkpoint complete?")
        return read_tensor(self.tensors[name])

    def file_hashes(self) -> dict[str, str]:
        """SHA-256 of the config and of every tensor file, by file name."""
        parts = (part for layer in self.packed.values() for part in layer.values())
        files = {stored.path for stored in (*self.tensors.values(), *parts)} | {self.folder / "config.json"}
        return {path.name: sha256(path) for path in sorted(files)}


def open_checkpoint(
    model: str, *, revision: str | None = None, progress: Progress | None = None
) -> Checkpoint:
    """Find, read and check a checkpoint.

    Args:
        model: An alias (``llava-1.5-7b``), a hub id, or a local folder; after the first two ``@REVISION``.
        revision: Branch, tag or commit on the hub; its default branch when neither is given.
        progress: Told about a download; nobody by default.

    Raises:
        CheckpointError: If it is missing, damaged or of an unsupported architecture.
        SettingsError: If a revision is given for a folder, or twice.
        PlatformError: If it would have to be downloaded and cannot be.
    """
    found = locate(model, revision, progress or NoProgress())
    shape, scheme = read_model(found.folder), read_scheme(found.folder)
    tensors = index_tensors(found.folder, shape.model_type, scheme)
    return checkpoint_of(found, shape, scheme, tensors)


def checkpoint_of(found: Location, shape: ModelSpec, scheme: Scheme | None, tensors: Tensors) -> Checkpoint:
    """A checkpoint from where it was found, its shape, how it is packed and its tensors."""
    return Checkpoint(
        folder=found.folder,
        source=found.source,
        revision=found.revision,
        model=shape,
        tensors=tensors.whole,
        scheme=scheme,
        packed=tensors.packed,
    )
