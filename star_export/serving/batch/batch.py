"""A batch job from its rows to its parts."""

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from star_export.answer.request import Requests
from star_export.bundle import Bundle, open_bundle
from star_export.errors import InputError, PlatformError
from star_export.files import sha256
from star_export.progress import CaseProgress
from star_export.reports import subject
from star_export.serving.batch.job import ERRORS, Job, open_job, plain
from star_export.serving.batch.options import BatchOptions
from star_export.serving.batch.outcome import Answered, Bad, Outcome, Refusal
from star_export.serving.batch.rows import Rows
from star_export.serving.batch.table import Table, Values, open_table, require_pyarrow
from star_export.serving.batch.worker import Answerer, Worker


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a job has done.

    Attributes:
        output: Its folder.
        rows: Rows of the job; ``answered`` and ``bad`` ones together.
        answered: Rows in the parts.
        bad: Rows in ``errors``.
        parts: How many files of answers there are.
        errors: The file of bad rows; None where there are none.
        resumed: Rows that were done before this run.
        seconds: What this run took, after the bundle was loaded.
        rows_per_second: Of the rows of this run; None where there were none.
    """

    output: str
    rows: int
    answered: int
    bad: int
    parts: int
    errors: str | None
    resumed: int
    seconds: float
    rows_per_second: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def run_batch(
    options: BatchOptions,
    progress: CaseProgress = lambda _done, _total: None,
    status: Callable[[str], None] = lambda _text: None,
) -> Summary:
    """Answer every row of a file; goes on where an earlier run of the same job ended.

    Args:
        options: The job.
        progress: Told how many rows are done.
        status: Told what comes before the first.

    Raises:
        InputError: If the input cannot be read.
        SettingsError: If the input lacks columns, a number is out of range, or the folder is not the job's.
        BundleError: If the bundle cannot be used.
        PlatformError: If this machine lacks something.
    """
    bundle = open_bundle(options.bundle)
    runtime = replace(options.runtime, batches=True)
    options.defaults.check(Requests(bundle))
    table = open_table(options.input)
    rows = Rows(
        options.columns,
        options.images or options.input.parent,
        options.defaults,
        remote=options.allow_remote_images,
    )
    rows.check(table.columns())
    kind = options.format or table.format
    if kind == "parquet":
        require_pyarrow()
    status("reading the input")
    total = table.count()
    total = min(total, options.limit or total)
    if not total:
        raise InputError(f"{options.input} has no rows")
    settings = _settings(options, bundle)
    with open_job(
        options.output, settings, total=total, rows_per_part=options.rows_per_part, kind=kind
    ) as job:
        resumed = job.done
        if resumed == total:
            return _summary(job, resumed, 0.0)
        status("loading the bundle")
        with closing(_answerer(options, bundle, runtime)) as answerer:
            begin = time.perf_counter()
            progress(job.done, total)
            with closing(_outcomes(_todo(table, job), rows, answerer)) as outcomes:
                for outcome in outcomes:
                    job.record(outcome)
                    progress(job.done, total)
            return _summary(job, resumed, time.perf_counter() - begin)


def _answerer(options: BatchOptions, bundle: Bundle, runtime: Any) -> Answerer:
    if options.ray is None:
        return Worker(bundle, runtime, options)
    from star_export.serving.batch.replicas import Replicas

    return Replicas(bundle, runtime, options)


def _todo(table: Table, job: Job) -> Iterator[tuple[int, Values]]:
    """The rows that are not done, with their numbers."""
    rows = islice(enumerate(table.rows(job.start), job.start), job.total - job.start)
    return ((number, values) for number, values in rows if number not in job)


def _outcomes(
    todo: Iterator[tuple[int, Values]], rows: Rows, answerer: Answerer
) -> Generator[Outcome, None, None]:
    """What becomes of rows, as soon as it is known; no more are read than can be worked on."""
    with ThreadPoolExecutor(answerer.concurrency) as pool:
        running: set[Future[Outcome]] = set()
        try:
            for number, values in todo:
                running.add(pool.submit(_outcome, number, values, rows, answerer))
                if len(running) == answerer.concurrency:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            for future in as_completed(running):
                yield future.result()
        except BaseException:
            answerer.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _outcome(number: int, values: Values, rows: Rows, answerer: Answerer) -> Outcome:
    identity = None
    try:
        if isinstance(values, InputError):
            raise values
        identity = rows.identity(values)
        query = rows.query(values)
    except Exception as error:  # of one row, whatever it is
        found: Any = Refusal.of(error)
    else:
        try:
            found = answerer.answer(query)
        except PlatformError as error:
            raise rows.told(number, error) from error
    if isinstance(found, Refusal):
        return Bad(row=number, id=identity, kind=found.kind, error=found.error)
    return Answered(
        row=number,
        id=identity,
        text=found.text,
        token_ids=found.token_ids,
        finish_reason=found.finish_reason,
        usage=found.usage,
    )


def _settings(options: BatchOptions, bundle: Bundle) -> dict[str, Any]:
    """Everything that the output depends on."""
    backend = options.runtime.backend
    files = json.dumps(subject(bundle, backend), sort_keys=True).encode()
    return plain(
        {
            "job": 1,
            "input": sha256(options.input),
            "bundle": hashlib.sha256(files).hexdigest(),
            "backend": backend,
            "columns": options.columns,
            "images": options.images and str(Path(options.images).resolve()),
            "allow_remote_images": options.allow_remote_images,
            **asdict(options.defaults),
            "format": options.format,
            "rows_per_part": options.rows_per_part,
            "limit": options.limit,
        }
    )


def _summary(job: Job, resumed: int, seconds: float) -> Summary:
    rows = job.total - resumed
    return Summary(
        output=str(job.folder),
        rows=job.total,
        answered=job.total - job.bad,
        bad=job.bad,
        parts=job.parts,
        errors=str(job.folder / ERRORS) if job.bad else None,
        resumed=resumed,
        seconds=seconds,
        rows_per_second=rows / seconds if rows else None,
    )
