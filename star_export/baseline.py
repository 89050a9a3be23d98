"""The unpruned bundle that a pruned one is compared with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from star_export.build import BuildOptions, build
from star_export.bundle import PREPROCESSOR, Bundle, open_bundle
from star_export.engines import Runtime
from star_export.engines.tensorrt.builder import options_like
from star_export.errors import SettingsError, option
from star_export.files import scratch_folder
from star_export.preprocessing.parameters import read_preprocessing


@contextmanager
def unpruned_baseline(
    bundle: Bundle, given: Path | None, *, source: str, runtime: Runtime, progress: Callable[[str], None]
) -> Iterator[Path]:
    """The folder of an unpruned bundle: ``given``, or one that is built and removed after.

    Args:
        bundle: The pruned bundle; the baseline has its settings.
        given: A bundle that exists already.
        source: The checkpoint to build from.
        runtime: How it will run.
        progress: Told what is being done.

    Raises:
        SettingsError: If ``given`` prunes or holds another model, or the engines need a plugin library.
        BundleError, CheckpointError: If a side cannot be loaded.
        PlatformError: If the backend cannot run here; told before anything is built.
    """
    runtime.check(bundle)
    if given is not None:
        _check_given(bundle, given)
        yield given
        return
    with scratch_folder(bundle.folder.parent, f".{bundle.folder.name}.baseline-") as scratch:
        progress("building the unpruned baseline")
        yield build_baseline(bundle, scratch / "baseline", source=source, runtime=runtime)


def build_baseline(bundle: Bundle, folder: Path, *, source: str, runtime: Runtime) -> Path:
    """Build ``source`` with the settings of ``bundle``, unpruned, with engines like its own.

    Raises:
        CheckpointError, PlatformError: As :func:`star_export.build.build`.
    """
    return build(baseline_options(bundle, folder, source=source, runtime=runtime)).folder


def baseline_options(bundle: Bundle, folder: Path, *, source: str, runtime: Runtime) -> BuildOptions:
    """What makes ``source`` an unpruned bundle that takes the pictures and prompts that ``bundle`` does."""
    spec, facts = bundle.spec, runtime.entry.facts(bundle)
    how = spec.quantization
    bits: dict[str, Any] = {"quantize_embedding": how.embedding} if how else {}
    if how and how.layers is None:
        bits |= {"quantize": how.type, "quantize_block": how.block, "quantize_vision": how.vision}
    prompt = read_preprocessing(bundle.path(PREPROCESSOR), spec.model).prompt
    return BuildOptions(
        model=source,
        output=folder,
        prune=False,
        max_images=spec.images.max_images,
        max_tiles=spec.images.max_tiles,
        max_image_tokens=spec.images.max_image_tokens,
        max_text_tokens=spec.max_text_tokens,
        max_new_tokens=spec.max_new_tokens,
        dtype=spec.dtype,
        engines=None if facts is None else options_like(facts),  # with no tokens to gather, so no plugin
        fp32_layers=spec.fp32_layers,
        chat_template=prompt.chat_template if prompt.given_template else None,
        end_tokens=prompt.end_tokens,
        **bits,
    )


def _check_given(bundle: Bundle, given: Path) -> None:
    spec = open_bundle(given).spec
    if spec.schedule:
        raise SettingsError(
            f"{given} prunes too; {option('baseline')} takes a bundle built with {option('prune', False)}"
        )
    if spec.model != bundle.spec.model:
        raise SettingsError(
            f"{given} holds another model than {bundle.folder}; build it from the same checkpoint"
        )
