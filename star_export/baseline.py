"""The unpruned bundle that a pruned one is compared with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from star_export.build import BuildOptions, build
from star_export.bundle import PREPROCESSOR, Bundle, open_bundle
from star_export.engines import check_backend, free_device_memory
from star_export.engines.onnxruntime import check_dtype
from star_export.engines.tensorrt.bindings import BACKENDS as TENSORRT_BACKENDS
from star_export.engines.tensorrt.bindings import TENSORRT_RTX
from star_export.engines.tensorrt.builder import EngineOptions
from star_export.engines.tensorrt.facts import AMPERE_PLUS, read_facts
from star_export.errors import SettingsError
from star_export.files import scratch_folder
from star_export.preprocessing.parameters import read_preprocessing


@contextmanager
def unpruned_baseline(
    bundle: Bundle, given: Path | None, *, source: str, backend: str, progress: Callable[[str], None]
) -> Iterator[Path]:
    """The folder of an unpruned bundle: ``given``, or one that is built and removed after.

    Args:
        bundle: The pruned bundle; the baseline has its settings.
        given: A bundle that exists already.
        source: The checkpoint to build from.
        backend: What will run it.
        progress: Told what is being done.

    Raises:
        SettingsError: If ``given`` prunes or holds another model.
        BundleError, CheckpointError: If a side cannot be loaded.
        PlatformError: If the backend cannot run here; told before anything is built.
    """
    check_runs(bundle, backend)
    if given is not None:
        _check_given(bundle, given)
        yield given
        return
    with scratch_folder(bundle.folder.parent, f".{bundle.folder.name}.baseline-") as scratch:
        progress("building the unpruned baseline")
        yield build_baseline(bundle, scratch / "baseline", source=source, backend=backend)


def build_baseline(bundle: Bundle, folder: Path, *, source: str, backend: str) -> Path:
    """Build ``source`` with the settings of ``bundle``, unpruned, with engines like its own.

    Raises:
        CheckpointError, PlatformError: As :func:`star_export.build.build`.
    """
    return build(baseline_options(bundle, folder, source=source, backend=backend)).folder


def baseline_options(bundle: Bundle, folder: Path, *, source: str, backend: str) -> BuildOptions:
    """What makes ``source`` an unpruned bundle that reads prompts and ends answers as ``bundle`` does."""
    spec = bundle.spec
    prompt = read_preprocessing(bundle.path(PREPROCESSOR), spec.model).prompt
    return BuildOptions(
        model=source,
        output=folder,
        prune=False,
        max_text_tokens=spec.max_text_tokens,
        max_new_tokens=spec.max_new_tokens,
        dtype=spec.dtype,
        engines=_engines(bundle, backend) if backend in TENSORRT_BACKENDS else None,
        fp32_layers=spec.fp32_layers,
        chat_template=prompt.chat_template if prompt.given_template else None,
        end_tokens=prompt.end_tokens,
    )


def _check_given(bundle: Bundle, given: Path) -> None:
    spec = open_bundle(given).spec
    if spec.schedule:
        raise SettingsError(f"{given} prunes too; --baseline takes a bundle built with --no-prune")
    if spec.model != bundle.spec.model:
        raise SettingsError(
            f"{given} holds another model than {bundle.folder}; build it from the same checkpoint"
        )


def check_runs(bundle: Bundle, backend: str) -> None:
    """Refuse a backend that cannot run here, before minutes of building.

    Raises:
        SettingsError: If it is unknown.
        BundleError: If it cannot run this bundle.
        PlatformError: If it needs a GPU and there is none.
    """
    check_backend(backend)
    if backend in TENSORRT_BACKENDS:
        read_facts(bundle, backend)
    else:
        check_dtype(bundle)
    if backend != "onnxruntime":
        free_device_memory()


def _engines(bundle: Bundle, backend: str) -> EngineOptions:
    """Engines like those of ``bundle``; an unpruned bundle has no tokens to gather, so no plugin."""
    facts = read_facts(bundle, backend)
    return EngineOptions(
        backend=backend,
        targets=facts.targets if backend == TENSORRT_RTX else (),
        max_batch=facts.max_batch,
        plugins="none",
        hardware_compatible=AMPERE_PLUS in facts.targets,
        version_compatible=facts.version_compatible,
        weight_streaming=facts.weight_streaming,
    )
