"""From what ``--model`` says to a checkpoint folder on this disk."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from star_export.checkpoint.aliases import ALIASES
from star_export.checkpoint.hub import download, is_hub_id, split_revision
from star_export.errors import CheckpointError, SettingsError, option
from star_export.progress import Progress

_WEB = re.compile(r"https?://(?:[^/]*/([\w.-]+/[\w.-]+))?")


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a checkpoint is.

    Attributes:
        folder: Local folder in Hugging Face layout.
        source: What the user asked for: an absolute path or a hub id.
        revision: Commit of the hub snapshot, None for a local folder.
    """

    folder: Path
    source: str
    revision: str | None


def locate(model: str, revision: str | None, progress: Progress, *, weights: bool = True) -> Location:
    """Find a checkpoint; an alias comes before a folder of its name, which ``./NAME`` means.

    Args:
        model: An alias, a hub id, or a local folder; after the first two ``@REVISION``.
        revision: Branch, tag or commit on the hub; its default branch when neither is given.
        progress: Told about a download.
        weights: Whether a download brings the weights, and not the config alone.

    Raises:
        CheckpointError: If nothing is called that, or it is a file.
        SettingsError: If a revision is given for a folder, or twice.
        PlatformError: If it would have to be downloaded and cannot be.
    """
    if web := _WEB.match(model):
        raise CheckpointError(
            f"{model} is a web address; give the model's id: {option('model', web[1] or 'ORGANISATION/NAME')}"
        )
    name, tagged = split_revision(model)
    path = Path(model).expanduser()
    if name not in ALIASES and path.is_dir():
        if revision is not None:
            raise SettingsError(f"{option('revision')} belongs to a model of the hub; {model} is a folder")
        return Location(folder=path, source=str(path.resolve()), revision=None)
    if name not in ALIASES and path.exists():
        kind = "a GGUF file, made for llama.cpp" if path.suffix == ".gguf" else "a file"
        raise CheckpointError(f"{model} is {kind}; give the checkpoint's folder")
    if revision is not None and tagged is not None:
        raise SettingsError(f"give a revision once: {option('revision', revision)}, or {model}")
    hub_id = ALIASES[name].hub_id if name in ALIASES else name
    if not is_hub_id(hub_id):
        raise CheckpointError(f"no folder, alias or hub id is called {model}; {_hint(name)}")
    folder = download(hub_id, revision or tagged, progress, weights=weights)
    return Location(folder=folder, source=hub_id, revision=folder.name)


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, ALIASES, n=1)
    return f"did you mean {near[0]}?" if near else f"aliases are {', '.join(ALIASES)}"
