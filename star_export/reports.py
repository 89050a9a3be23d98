"""Reports of ``check`` and ``eval`` that lie in the bundle, each with the hashes of what it was about.

``reports/`` holds one for each task and backend; no manifest lists them. Before there were any,
``check`` wrote ``parity.json``, which says nothing of what it was about.
"""

import logging
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from star_export.bundle import CONFIG, PARITY, REPORTS, Bundle
from star_export.errors import counted
from star_export.files import write_json
from star_export.typed import convert, parse

log = logging.getLogger("star_export.reports")


@dataclass(frozen=True, kw_only=True)
class Report:
    """One report as its file has it.

    Attributes:
        what: ``check``, or ``eval`` with its task and split.
        backend: What ran the graphs or engines.
        made: When, in UTC; None in ``parity.json``.
        passed: Whether the command's exit code was 0.
        summary: The outcome in a few words.
        subject: SHA-256 of each file of the bundle that it was about; none in ``parity.json``.
        versions: Tools that took part.
        settings: What was asked for.
        result: Everything that was found.
    """

    what: str
    backend: str
    made: str | None
    passed: bool
    summary: str
    subject: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    result: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StoredReport:
    """A file that a bundle has as a report.

    Attributes:
        file: Its path inside the bundle.
        report: What it says; None if it is no report.
        differ: Files of the bundle that are others than those that it was about.
        fault: Why it is no report.
    """

    file: str
    report: Report | None = None
    differ: tuple[str, ...] = ()
    fault: str = ""

    @property
    def state(self) -> str:
        """Whether the report is about the bundle as it is now, in words."""
        if self.report is None:
            return f"no report: {self.fault}"
        if not self.report.subject:
            return "says nothing of what it was about"
        if not self.differ:
            return "current"
        names = ", ".join(PurePosixPath(path).name for path in self.differ)
        return f"out of date: {names} {'differ' if self.differ[1:] else 'differs'}"

    def __str__(self) -> str:
        line = f"{self.file}: {self.state}"
        if found := self.report:
            made = f", {found.made}" if found.made else ""
            line = f"{found.what} on {found.backend}{made}: {found.summary}; {self.state}"
        return "".join(c if c.isprintable() else " " for c in line)  # anybody may have written the file

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "state": self.state}


def store_report(
    bundle: Bundle,
    *,
    what: str,
    backend: str,
    passed: bool,
    summary: str,
    versions: Mapping[str, str],
    settings: Mapping[str, Any],
    result: Mapping[str, Any],
) -> None:
    """Put a report into the bundle in place of an earlier one; a warning where that cannot be written.

    Args:
        bundle: What the report is about, opened before the work began.
        what, backend, passed, summary: As in :class:`Report`.
        versions: Of tools other than this one, ONNX Runtime and the backend's.
        settings, result: JSON values.
    """
    report = Report(
        what=what,
        backend=backend,
        made=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        passed=passed,
        summary=summary,
        subject=subject(bundle, backend),
        versions=_versions(bundle, backend) | dict(versions),
        settings=dict(settings),
        result=dict(result),
    )
    path = bundle.path(f"{REPORTS}/{'-'.join([*what.split(), backend])}.json")
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, asdict(report))
        if what == "check":
            bundle.path(PARITY).unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be written, so this report is not stored: %s", path, error.strerror or error)


def read_reports(bundle: Bundle) -> list[StoredReport]:
    """The reports in a bundle, compared with the hashes in its manifest; damaged ones say so."""
    return [_read(bundle, path) for path in _files(bundle.folder)]


def _files(folder: Path) -> Iterator[Path]:
    """What lies where reports lie, but for temporary files."""
    if (folder / PARITY).exists():
        yield folder / PARITY
    if (folder / REPORTS).is_dir():
        yield from sorted(p for p in (folder / REPORTS).iterdir() if not p.name.startswith("."))


def _read(bundle: Bundle, path: Path) -> StoredReport:
    file = path.relative_to(bundle.folder).as_posix()
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        values = parse(path.read_bytes())
        report = _of_parity(values) if file == PARITY else convert(values, Report)
    except (OSError, ValueError) as error:
        return StoredReport(file=file, fault=str(error))
    return StoredReport(file=file, report=report, differ=_differing(report, bundle))


@dataclass(frozen=True)
class _Parity:
    """What ``parity.json`` has had in every version."""

    passed: bool
    backend: str
    cases: list[Any]


def _of_parity(values: Any) -> Report:
    whole = convert(values, dict[str, Any])
    old = convert({name: whole[name] for name in whole.keys() & {"passed", "backend", "cases"}}, _Parity)
    return Report(
        what="check",
        backend=old.backend,
        made=None,
        passed=old.passed,
        summary=check_summary(passed=old.passed, cases=len(old.cases)),
        subject={},
        versions={},
        settings={},
        result=whole,
    )


def check_summary(*, passed: bool, cases: int) -> str:
    """The outcome of a check in a few words."""
    return f"{'passed' if passed else 'FAILED'}, {counted(cases, 'case')}"


def subject(bundle: Bundle, backend: str) -> dict[str, str]:
    """What answers on a backend come from, by SHA-256: all but other engines and the config, for people."""
    own = f"engines/{backend}/"
    return {
        file.path: file.sha256
        for file in bundle.files
        if file.path.startswith(own) or not (file.path == CONFIG or file.path.startswith("engines/"))
    }


def _differing(report: Report, bundle: Bundle) -> tuple[str, ...]:
    if not report.subject:
        return ()
    now = subject(bundle, report.backend)
    return tuple(path for path in sorted(now | report.subject) if now.get(path) != report.subject.get(path))


def _versions(bundle: Bundle, backend: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("star-export", "onnxruntime"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    engines = bundle.manifest.get("engines", {}).get(backend)
    return found | ({backend: engines["version"]} if engines else {})
