"""The shape of a model without its weights: built in, or from its config alone."""

import logging

from star_export.checkpoint.config import read_model
from star_export.checkpoint.locate import locate
from star_export.checkpoint.published import SHAPES
from star_export.checkpoint.scheme import read_scheme
from star_export.progress import NoProgress, Progress
from star_export.specs import ModelSpec

log = logging.getLogger("star_export.checkpoint.shape")


def built_in(model: str) -> ModelSpec | None:
    """The shape of an alias; None for anything else, a revision of an alias included."""
    return SHAPES.get(model)


def read_shape(model: str, *, revision: str | None = None, progress: Progress | None = None) -> ModelSpec:
    """The shape that a config says; the log names the bits of a quantised checkpoint, which it leaves out.

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
    folder = locate(model, revision, progress or NoProgress(), weights=False).folder
    if scheme := read_scheme(folder):
        log.warning(
            "%s has linear layers in %s (%s), which its bundle keeps; what follows counts them as whole",
            model,
            scheme.type,
            scheme.method,
        )
    return read_model(folder)
