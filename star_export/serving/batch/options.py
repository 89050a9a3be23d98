"""What a batch job is asked to do."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from star_export.answer.request import Requests
from star_export.answer.sampling import Sampling
from star_export.answer.transcript import check_stop
from star_export.engines import Runtime
from star_export.errors import SettingsError, option
from star_export.specs import Keep

#: Rows that are read and prepared while all slots are in use.
AHEAD = 4

Format = Literal["jsonl", "parquet"]


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What rows ask that do not say it themselves; see :class:`star_export.serving.query.Query`."""

    prompt: str | None = None
    keep: Keep | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Those that are there, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def check(self, requests: Requests) -> None:
        """Refuse what no row could be answered with, before any is.

        Raises:
            SettingsError: If a number is out of range.
        """
        requests.budget(self.keep)
        requests.new_tokens(self.max_new_tokens)
        numbers = {name: self.given[name] for name in ("temperature", "top_p", "seed") if name in self.given}
        Sampling(**numbers)
        check_stop(self.stop or ())


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """A batch job.

    Attributes:
        bundle: The bundle that answers.
        input: A file of rows: ``.jsonl``, ``.jsonl.gz`` or ``.parquet``.
        output: The job's folder.
        columns: Field to the input's column of another name, such as ``{"image": "path"}``.
        images: Folder that paths of pictures are relative to; the input's by default.
        defaults: What rows ask that do not say it themselves.
        format: Of the output; the input's by default.
        rows_per_part: Rows of each output file.
        limit: Rows to answer, from the first; all by default.
        runtime: How the bundle runs, in each process.
        max_slots, kv_cache_mib, feature_cache_mib, prefix_cache_mib: As
            :class:`star_export.serving.options.ServiceOptions` has them, for each process.
        allow_remote_images: Whether pictures are fetched from public web addresses.
        ray: Address of a Ray cluster, ``auto`` or ``local``; None answers in this process.
        cores_per_replica: CPU cores of each replica on Ray, where the backend runs on the CPU.

    Raises:
        SettingsError: If a number is out of range.
    """

    bundle: Path
    input: Path
    output: Path
    columns: dict[str, str] = field(default_factory=dict)
    images: Path | None = None
    defaults: Defaults = field(default_factory=Defaults)
    format: Format | None = None
    rows_per_part: int = 1000
    limit: int | None = None
    runtime: Runtime = field(default_factory=Runtime)
    max_slots: int = 32
    kv_cache_mib: int = 4096
    feature_cache_mib: int = 256
    prefix_cache_mib: int = 256
    allow_remote_images: bool = False
    ray: str | None = None
    cores_per_replica: int = 4

    def __post_init__(self) -> None:
        for name in ("rows_per_part", "limit", "cores_per_replica"):
            if (found := getattr(self, name)) is not None and found < 1:
                raise SettingsError(f"{option(name)} must be at least 1, got {found}")

    @property
    def concurrency(self) -> int:
        """Rows that a process has at once: so many that none of its slots waits for one to be read."""
        return self.max_slots + AHEAD
