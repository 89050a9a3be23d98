"""A LLaVA checkpoint on disk: where it is, what it is, and its tensors.

Reading the config needs the ``export`` extra (transformers fills in the
defaults that published configs leave out); tensors are read from safetensors
one at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from star_export.checkpoint.config import read_model
from star_export.checkpoint.locate import locate
from star_export.checkpoint.tensors import StoredTensor, index_tensors
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
    """

    folder: Path
    source: str
    revision: str | None
    model: ModelSpec
    tensors: Mapping[str, StoredTensor]

    def tensor(self, name: str) -> "torch.Tensor":
        """Read one tensor; the file is mapped only while this call runs.

        Raises:
            CheckpointError: If no tensor has that name.
        """
        from safetensors import safe_open

        if name not in self.tensors:
            raise CheckpointError(f"{self.folder} has no tensor {name}; is the checkpoint complete?")
        stored = self.tensors[name]
        with safe_open(stored.path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(stored.name)
            return tensor

    def file_hashes(self) -> dict[str, str]:
        """SHA-256 of the config and of every tensor file, by file name."""
        files = {stored.path for stored in self.tensors.values()} | {self.folder / "config.json"}
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
    shape = read_model(found.folder)
    return Checkpoint(
        folder=found.folder,
        source=found.source,
        revision=found.revision,
        model=shape,
        tensors=index_tensors(found.folder, shape.model_type),
    )
