"""The models of one server: bundles, and what clients call them."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from star_export.answer.pipeline import Pipeline
from star_export.bundle import open_bundle
from star_export.engines import Runtime, open_session
from star_export.engines.backends import default_backend
from star_export.errors import DeviceError, SettingsError, option
from star_export.serving.options import ServiceOptions
from star_export.serving.service import Service


@dataclass(frozen=True, kw_only=True)
class Models:
    """What is served.

    Attributes:
        folders: The bundles.
        names: What clients call each; their folders' names by default.
        backend: What runs the graphs; the bundle's engines by default, or else ONNX Runtime.
        threads: CPU threads; all cores by default.
        plugin_library: The plugin library of TensorRT engines that were built with one.
        verify: Hash every file first, the weights too.
        options: How much each takes on.

    Raises:
        SettingsError: If the names are not one for each.
    """

    folders: tuple[Path, ...]
    names: tuple[str, ...] = ()
    backend: str | None = None
    threads: int | None = None
    plugin_library: Path | None = None
    verify: bool = False
    options: ServiceOptions = field(default_factory=ServiceOptions)

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.folders):
            raise SettingsError(
                f"{option('name')} must be given once for each bundle, got {len(self.names)} names for "
                f"{len(self.folders)} bundles"
            )
        if len(self.by_name) < len(self.folders):
            raise SettingsError(f"two models have one name; give each its own with {option('name')}")

    @cached_property
    def by_name(self) -> Mapping[str, Path]:
        """The bundles by what clients call them."""
        names = self.names or tuple(folder.resolve().name for folder in self.folders)
        return dict(zip(names, self.folders, strict=True))

    def start(self, on_lost: Callable[[DeviceError], None]) -> dict[str, Service]:
        """Load and warm up every model.

        Raises:
            StarExportError: If one cannot be loaded.
        """
        with ExitStack() as started:
            services = {}
            for name, folder in self.by_name.items():
                bundle = open_bundle(folder, verify=self.verify)
                runtime = Runtime(
                    backend=self.backend or default_backend(bundle),
                    threads=self.threads,
                    plugin_library=self.plugin_library,
                    batches=True,
                )
                pipeline = Pipeline(bundle, open_session(bundle, runtime))
                started.callback(pipeline.close)
                services[name] = Service(pipeline, self.options, on_lost=on_lost)
                started.callback(services[name].close)
            started.pop_all()
        return services

    def greeting(self, address: str) -> str:
        """Where the server is, and how to ask it."""
        model = next(iter(self.by_name))
        question = (
            f'{{"model": "{model}", "messages": [{{"role": "user", "content": [{{"type": "image_url", '
            '"image_url": {"url": "data:image/png;base64,\'"$(base64 -w0 FILE)"\'"}}, '
            '{"type": "text", "text": "What is this?"}]}]}'
        )
        return (
            f"{', '.join(self.by_name)} at {address}/v1, a page at {address}\n"
            f"next: curl {address}/v1/chat/completions -H 'Content-Type: application/json' -d '{question}'"
        )
