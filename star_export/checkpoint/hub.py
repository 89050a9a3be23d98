"""Models of the Hugging Face hub: their names, and how they get onto this disk."""

import difflib
import re
from pathlib import Path
from typing import Any

from star_export.checkpoint.aliases import ALIASES
from star_export.checkpoint.folder import no_weights
from star_export.errors import CheckpointError, PlatformError, option
from star_export.progress import Progress

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]
#: What says a model's shape.
_CONFIGS = ["config.json", "generation_config.json"]
#: Other layouts' copies of the weights, and folders below.
_OTHER_FILES = ["consolidated*", "*/*"]


def is_hub_id(name: str) -> bool:
    """Whether ``name`` can be a model of the hub: ``ORGANISATION/NAME``."""
    return _HUB_ID.fullmatch(name) is not None


def split_revision(model: str) -> tuple[str, str | None]:
    """``NAME@REVISION`` in its parts; the second is None without one."""
    name, _, revision = model.partition("@")
    return name, revision or None


def with_revision(model: str, revision: str | None) -> str:
    """A model's name that means this revision of it for ever; a folder has none."""
    return model if revision is None else f"{model}@{revision}"


def download(hub_id: str, revision: str | None, progress: Progress, *, weights: bool = True) -> Path:
    """The folder of a model, named as its commit; what is cached is not fetched again.

    Args:
        hub_id: ``ORGANISATION/NAME``.
        revision: Branch, tag or commit; the default branch when None.
        progress: Told how many bytes came.
        weights: Whether its weights are wanted, with all that a build reads, and not its config alone.

    Raises:
        CheckpointError: If there is no such model or revision, or it holds no config or safetensors.
        PlatformError: If it cannot be reached, or must not be read without a token.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        if weights:
            _announce(hub_id, revision, progress)
        folder = Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=_FILES if weights else _CONFIGS,
                ignore_patterns=_OTHER_FILES,
                tqdm_class=_bar(progress),
            )
        )
    except CheckpointError:
        raise
    except HfHubHTTPError as error:
        raise _refusal(hub_id, revision, error) from error
    except Exception as error:  # the hub client raises many unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PlatformError(
            f"could not get {hub_id} from the Hugging Face hub ({reason}); try again, what came is kept; "
            f"without network, copy the checkpoint here and give its folder: "
            f"{option('model', 'PATH/TO/FOLDER')}"
        ) from error
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{hub_id} has no config.json; expected a model of transformers, as llava-hf has them"
        )
    return folder


def _announce(hub_id: str, revision: str | None, progress: Progress) -> None:
    """Say how much there is to fetch; nothing when the hub cannot be asked, since all may be cached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    try:
        info = HfApi().model_info(hub_id, revision=revision, files_metadata=True)
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise
        return
    except Exception:  # no network: many unrelated types
        return
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if not any(name.endswith(".safetensors") for name in sizes):
        raise CheckpointError(f"{hub_id} {no_weights(sizes)}")
    wanted = filter_repo_objects(sizes, allow_patterns=_FILES, ignore_patterns=_OTHER_FILES)
    progress.start(f"download {hub_id}", sum(sizes[name] for name in wanted))


def _bar(progress: Progress) -> Any:
    """A bar for the hub client that shows nothing itself and hands the bytes on."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # Several bars count: files, bytes that came, bytes that were put together from them.
            self._counts = options.get("unit") == "B" and str(options.get("desc")).startswith("Downloading")
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if self._counts:
                progress.advance(int(n or 0))

    return Bar


def _refusal(hub_id: str, revision: str | None, error: Any) -> CheckpointError | PlatformError:
    """What the hub's answer means."""
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    page, status = f"https://huggingface.co/{hub_id}", error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(f"{hub_id} has no revision {revision}; its branches and tags are on {page}")
    if isinstance(error, GatedRepoError) or status == 403:
        return PlatformError(
            f"{hub_id} is gated: accept its licence on {page}, then set HF_TOKEN to a token that may read it "
            "(or run `hf auth login`)"
        )
    near = difflib.get_close_matches(hub_id, [alias.hub_id for alias in ALIASES.values()], n=1, cutoff=0.75)
    hint = f"did you mean {near[0]}?" if near else "check its name"
    if status in (401, 404):
        return CheckpointError(
            f"the Hugging Face hub has no model {hub_id} that may be read without a token: {hint}; if it is "
            f"private or gated, accept its licence on {page} and set HF_TOKEN"
        )
    return PlatformError(f"the Hugging Face hub answered {status} for {hub_id}; try again later")
