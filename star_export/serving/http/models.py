"""The models of one server: bundles, those behind Triton servers, and what clients call them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from star_export.answer.pipeline import Pipeline
from star_export.bundle import open_bundle
from star_export.engines import Runtime, open_session
from star_export.engines.backends import default_backend
from star_export.errors import DeviceError, PlatformError, SettingsError, option
from star_export.serving.http.options import HttpOptions
from star_export.serving.http.served import ServedModel
from star_export.serving.http.upstream import Upstream
from star_export.serving.options import ServiceOptions
from star_export.serving.service import Service
from star_export.serving.triton.fields import MODEL


@dataclass(frozen=True, kw_only=True)
class Models:
    """What is served.

    Attributes:
        folders: The bundles.
        upstreams: Addresses of Triton's gRPC ports that serve ``star_llava``; models behind the bundles.
        names: What clients call each; by default their folders' names, and Triton's.
        backend: What runs the graphs; the bundle's engines by default, or else ONNX Runtime.
        threads: CPU threads; all cores by default.
        plugin_library: The plugin library of TensorRT engines that were built with one.
        verify: Hash every file first, the weights too.
        options: How much each takes on.

    Raises:
        SettingsError: If there is no model, the names are not one for each, or one cannot be asked for.
    """

    folders: tuple[Path, ...] = ()
    upstreams: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    backend: str | None = None
    threads: int | None = None
    plugin_library: Path | None = None
    verify: bool = False
    options: ServiceOptions = field(default_factory=ServiceOptions)

    def __post_init__(self) -> None:
        count = len(self.folders) + len(self.upstreams)
        if not count:
            raise SettingsError(f"there is nothing to serve; give a bundle's folder, or {option('upstream')}")
        if self.names and len(self.names) != count:
            raise SettingsError(
                f"{option('name')} must be given once for each model, got {len(self.names)} names for "
                f"{count} models"
            )
        for name in self.by_name:
            if not name.strip() or not name.isprintable() or name.endswith("/"):
                raise SettingsError(
                    f"a model's name must be printable, not blank, and not end with a slash, got {name!r}; "
                    f"give another {option('name')}"
                )
        if len(self.by_name) < count:
            raise SettingsError(f"two models have one name; give each its own with {option('name')}")

    @cached_property
    def by_name(self) -> Mapping[str, Path | str]:
        """The bundles and the addresses by what clients call them."""
        own = (*(folder.resolve().name for folder in self.folders), *(MODEL for _ in self.upstreams))
        return dict(zip(self.names or own, (*self.folders, *self.upstreams), strict=True))

    @contextmanager
    def start(self, on_lost: Callable[[DeviceError], None]) -> Iterator[dict[str, ServedModel]]:
        """Load and warm up every model; close them all behind the block.

        Raises:
            StarExportError: If one cannot be loaded or reached.
        """
        with ExitStack() as started:
            services: dict[str, ServedModel] = {}
            for name, source in self.by_name.items():
                if isinstance(source, Path):
                    pipeline = self._load(source)
                    started.callback(pipeline.close)
                    services[name] = Service(pipeline, self.options, on_lost=on_lost)
                else:
                    services[name] = Upstream(source, self.options.timeout_s)
                started.callback(services[name].close)
            yield services

    def _load(self, folder: Path) -> Pipeline:
        bundle = open_bundle(folder, verify=self.verify)
        runtime = Runtime(
            backend=self.backend or default_backend(bundle),
            threads=self.threads,
            plugin_library=self.plugin_library,
            batches=True,
        )
        return Pipeline(bundle, open_session(bundle, runtime))

    def serve(self, options: HttpOptions, *, on_ready: Callable[[str], None] = lambda _address: None) -> None:
        """Answer until told to end; see :func:`star_export.serving.http.server.serve`.

        Raises:
            PlatformError: If the server's packages are missing, or its address cannot be had.
            StarExportError: If a model cannot be loaded, or its GPU was lost.
        """
        try:
            from star_export.serving.http.server import serve
        except ModuleNotFoundError as error:
            raise PlatformError(
                f"serving needs {error.name}; run: pip install 'star-export[serve]'"
            ) from error
        serve(self.start, options, on_ready=on_ready)

    def greeting(self, address: str) -> str:
        """Where the server is, and how to ask it."""
        model = next(iter(self.by_name))
        question = (
            f'{{"model": "{model}", "messages": [{{"role": "user", "content": [{{"type": "image_url", '
            '"image_url": {"url": "data:image/png;base64,%s"}}, {"type": "text", "text": "What is this?"}]}]}'
        )
        ask = f"curl {address}/v1/chat/completions -H 'Content-Type: application/json' -d @-"
        return (
            f"{', '.join(self.by_name)} at {address}/v1, a page at {address}\n"
            f"next: printf '{question}' \"$(base64 -w0 FILE)\" | {ask}"
        )
