"""A whole check: every probe at every budget, batches against singles, and the report of it.

A bundle with quantised weights is checked twice. Its graphs must give what the checkpoint gives with the
same quantised weights, as exactly as any other's; and what users run, where activations are rounded too, must
not be far from the checkpoint's own weights.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from star_export.answer.pipeline import Pipeline
from star_export.bundle import Bundle, open_bundle
from star_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from star_export.checkpoint.hub import with_revision
from star_export.engines import Runtime, open_session
from star_export.errors import CheckpointError, SettingsError, option
from star_export.preprocessing.processor import read_processor
from star_export.progress import CaseProgress
from star_export.reports import check_summary, store_report
from star_export.specs import Keep
from star_export.validation.batches import compare_batches
from star_export.validation.capacities import compare_capacities
from star_export.validation.nonfinite import WatchedSession
from star_export.validation.parity import Original, ParityCheck
from star_export.validation.probes import Probe, budgets_of, choose_probes
from star_export.validation.reference import Reference
from star_export.validation.report import CaseReport, ParityReport


def check_bundle(
    folder: Path,
    *,
    model: str | None = None,
    runtime: Runtime | None = None,
    keep: Sequence[Keep] = (),
    probes: Sequence[Probe] | int,
    max_new_tokens: int = 8,
    progress: CaseProgress = lambda _done, _total: None,
) -> ParityReport:
    """Check a bundle against the checkpoint it was made from, and store the report in it.

    Args:
        folder: The bundle; every file is hashed first.
        model: Where the checkpoint is now; by default where the manifest says it was.
        runtime: What runs the graphs.
        keep: Budgets to check; the bundle's own by default.
        probes: Pictures and prompts to check with, or how many of the built-in ones.
        max_new_tokens: Tokens to decode.
        progress: Called with cases done and cases in all.

    Raises:
        BundleError, CheckpointError, SettingsError: If it cannot run.
    """
    bundle, runtime = open_bundle(folder, verify=True), runtime or Runtime()
    if not bundle.spec.schedule and keep:
        raise SettingsError(
            f"this bundle was built with {option('prune', False)}; {option('keep')} has no meaning for it"
        )
    exact, rounding = replace(runtime, exact=True), runtime.entry.rounding(bundle.spec)
    with ExitStack() as stack:
        session = stack.enter_context(WatchedSession(open_session(bundle, exact), bundle))
        pipeline = users = Pipeline(bundle, session)
        if rounding:
            users = Pipeline(bundle, stack.enter_context(open_session(bundle, runtime)))
        chosen = choose_probes(probes, pipeline)
        wanted = [(probe, budget) for probe in chosen for budget in budgets_of(probe, pipeline, keep)]
        checkpoint = _source_checkpoint(bundle, model)
        reference, processor = Reference(checkpoint.folder), read_processor(checkpoint.folder)
        check, as_users = (
            ParityCheck(each, reference, processor, max_new_tokens=max_new_tokens, rounding=rounding)
            for each in (pipeline, users)
        )
        cases = _run(check, as_users, wanted, progress)
        facts = runtime.entry.facts(bundle)
        rooms = [engines.room for engines in facts.smaller] if facts else []
        batches = compare_batches(pipeline, chosen) + compare_capacities(pipeline, chosen, rooms)
    versions = {name: version(name) for name in ("torch", "transformers", "onnxruntime")}
    if facts is not None:
        versions[facts.backend] = facts.version
    report = ParityReport(
        bundle=str(folder),
        backend=runtime.backend,
        reference=str(checkpoint.folder),
        dtype=bundle.spec.dtype,
        cases=cases,
        batches=batches,
        versions=versions,
        nonfinite=session.found,
    )
    store_report(
        bundle,
        what="check",
        backend=runtime.backend,
        passed=report.passed,
        summary=check_summary(passed=report.passed, cases=len(cases)),
        versions=versions,
        settings={"keep": list(keep), "probes": [p.name for p in chosen], "max_new_tokens": max_new_tokens},
        result=report.to_dict(),
    )
    return report


def _run(
    check: ParityCheck,
    as_users: ParityCheck,
    wanted: Sequence[tuple[Probe, Keep | None]],
    progress: CaseProgress,
) -> tuple[CaseReport, ...]:
    """Every probe at every budget; what the checkpoint's own weights give comes before these are rounded."""
    spec = check.pipeline.spec
    originals: list[Original | None] = [None] * len(wanted)
    if spec.dtype != "float32" or check.rounding:
        if spec.schedule or check.rounding:
            originals = [as_users.against_original(*case) for case in wanted]
        check.reference.quantize_weights(spec)
        check.reference.round_weights(spec.weight_dtype)
    cases: list[CaseReport] = []
    for case, original in zip(wanted, originals, strict=True):
        progress(len(cases), len(wanted))
        cases.append(check.run(*case, original))
    return tuple(cases)


def _source_checkpoint(bundle: Bundle, model: str | None) -> Checkpoint:
    """The checkpoint to compare with; must have the shape the bundle was made from."""
    made_from = bundle.manifest["source"]
    source = model or with_revision(made_from["model"], made_from["revision"])
    try:
        checkpoint = open_checkpoint(source)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error.marked} (check needs the source checkpoint; give it with {option('model')})"
        ) from error
    if checkpoint.model != bundle.spec.model:
        raise CheckpointError(f"{source} has another architecture than the model this bundle was made from")
    return checkpoint
