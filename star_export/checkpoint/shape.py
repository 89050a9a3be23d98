"""The shape of a model without its weights: built in, or from its config alone."""

from star_export.checkpoint.checkpoint import Checkpoint, checkpoint_of
from star_export.checkpoint.config import read_model
from star_export.checkpoint.locate import locate
from star_export.checkpoint.published import SHAPES
from star_export.checkpoint.scheme import read_scheme
from star_export.checkpoint.tensors import Tensors, index_tensors
from star_export.progress import NoProgress, Progress
from star_export.specs import ModelSpec


def built_in(model: str) -> ModelSpec | None:
    """The shape of an alias; None for anything else, a revision of an alias included."""
    return SHAPES.get(model)


def read_shape(model: str, *, revision: str | None = None, progress: Progress | None = None) -> Checkpoint:
    """A checkpoint of which the config alone is needed: it has tensors only if it is quantised and a folder.

    Args:
        model: A folder that holds a config, or an alias or hub id, of which the config alone is downloaded;
            after the last two ``@REVISION``.
        revision: Branch, tag or commit on the hub; its default branch when neither is given.
        progress: Told about a download; nobody by default.

    Raises:
        CheckpointError: If there is no such model, or it is not supported.
        SettingsError: If a revision is given for a folder, or twice.
        PlatformError: If a config would have to be downloaded and cannot be.
    """
    found = locate(model, revision, progress or NoProgress(), weights=False)
    shape, scheme, tensors = read_model(found.folder), read_scheme(found.folder), Tensors({}, {})
    if scheme is not None and any(found.folder.glob("*.safetensors")):
        tensors = index_tensors(found.folder, shape.model_type, scheme)
    return checkpoint_of(found, shape, scheme, tensors)
