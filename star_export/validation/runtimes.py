"""Polygraphy's comparator over a bundle's graphs: each request, every runtime that works here.

The reference is Polygraphy's own ONNX Runtime runner on the bundle's ONNX files,
which knows nothing of this package: it copies the KV caches instead of updating
them in place. Against it run the sessions that users run: ONNX Runtime's, and one
for each set of engines in the bundle.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from star_export.answer.pipeline import Pipeline
from star_export.bundle import Bundle, open_bundle
from star_export.contract import DECODE, PREFILL
from star_export.engines import Runtime, open_session
from star_export.engines.backends import ONNXRUNTIME
from star_export.engines.session import Caches, DeviceArray, HostArray, Session, Tensor, Wrapper, on_host
from star_export.errors import PlatformError, SettingsError, StarExportError
from star_export.progress import CaseProgress
from star_export.specs import Keep
from star_export.validation.probes import Probe, budgets_of, choose_probes
from star_export.validation.report import JUnitTest, case_name, to_junit
from star_export.validation.verdicts import Tolerances

#: Tokens that are appended at once, where the bundle can.
MORE = 3


@dataclass(frozen=True)
class Call:
    """One graph run: its feeds, and the KV caches as they were before."""

    graph: str
    feeds: dict[str, HostArray]
    past: dict[str, HostArray]


@dataclass(frozen=True)
class OutputComparison:
    """One output of one graph, as two runtimes computed it.

    Attributes:
        picture: Name of the probe.
        keep: Budgets; None for a bundle that does not prune.
        graph: ``vision``, ``prefill`` or ``decode``.
        runtime: The backend that was compared with Polygraphy's ONNX Runtime.
        output: Name of the output.
        error: Largest absolute difference, divided by the root mean square of the reference.
        tolerance: What passes.
        passed: Polygraphy's verdict.
    """

    picture: str
    keep: Keep | None
    graph: str
    runtime: str
    output: str
    error: float
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class ComparatorReport:
    """All comparisons of all cases, and the runtimes that could not take part.

    Attributes:
        bundle: Its folder.
        polygraphy: Version of Polygraphy.
        outputs: Every output of every graph and runtime, for every picture and budget.
        not_run: Reason per backend whose engines the bundle has but this machine cannot run.
    """

    bundle: str
    polygraphy: str
    outputs: tuple[OutputComparison, ...]
    not_run: dict[str, StarExportError]

    @property
    def passed(self) -> bool:
        """Whether every output agrees."""
        return all(output.passed for output in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        reasons = {backend: str(reason) for backend, reason in self.not_run.items()}
        return {"passed": self.passed, **asdict(replace(self, not_run={})), "not_run": reasons}

    def to_junit(self) -> bytes:
        """JUnit XML: a test suite per case, a test case per output; runtimes not run are skipped."""
        return to_junit(self._tests())

    def _tests(self) -> Iterator[JUnitTest]:
        for found in self.outputs:
            yield JUnitTest(
                suite=case_name(found.picture, found.keep),
                name=f"{found.runtime}: {found.graph}: {found.output}",
                passed=found.passed,
                text=f"error {found.error:.3g}, tolerance {found.tolerance:.3g}",
            )
        for backend, reason in self.not_run.items():
            yield JUnitTest(suite="runtimes", name=backend, passed=None, text=str(reason))


def compare_runtimes(
    folder: Path,
    *,
    probes: Sequence[Probe] | int,
    keep: Sequence[Keep] = (),
    runtime: Runtime | None = None,
    progress: CaseProgress = lambda _done, _total: None,
) -> ComparatorReport:
    """Run requests through every runtime that works here, and compare every output.

    Args:
        folder: A float32 or float16 bundle; every file is hashed first.
        probes: Pictures and prompts, or how many of the built-in ones.
        keep: Budgets of stage 2; the bundle's own by default.
        runtime: How they run; its backend is each of them in turn.
        progress: Called with cases done and cases in all.

    Raises:
        PlatformError: If Polygraphy is not installed.
        SettingsError: If a budget is out of range, or ONNX Runtime cannot run the bundle, so that
            there is no reference.
    """
    try:
        import polygraphy
    except ImportError as error:
        raise PlatformError(
            "check --polygraphy needs Polygraphy; run: pip install 'star-export[polygraphy]'"
        ) from error
    bundle = open_bundle(folder, verify=True)
    if bundle.spec.dtype not in Runtime().entry.dtypes:
        raise SettingsError(
            f"ONNX Runtime cannot run {bundle.spec.dtype} on a CPU, so there is nothing to compare with; "
            "build a float16 bundle of the same model"
        )
    outputs: list[OutputComparison] = []
    with ExitStack() as stack:
        recorder = stack.enter_context(Recorder(open_session(bundle)))
        pipeline = Pipeline(bundle, recorder)
        engines, not_run = _open_engines(bundle, runtime or Runtime(), stack)
        sessions = {ONNXRUNTIME: recorder.session, **engines}
        chosen = choose_probes(probes, pipeline)
        cases = [(probe, budget) for probe in chosen for budget in budgets_of(probe, pipeline, keep)]
        for index, (probe, budget) in enumerate(cases):
            progress(index, len(cases))
            calls = _record(pipeline, recorder, probe, budget)
            for last in range(1, len(calls) + 1):
                outputs += _compare(bundle, (probe.name, budget), calls[:last], sessions)
    return ComparatorReport(str(folder), polygraphy.__version__, tuple(outputs), not_run)


def _open_engines(
    bundle: Bundle, runtime: Runtime, stack: ExitStack
) -> tuple[dict[str, Session], dict[str, StarExportError]]:
    """A session for each set of engines, or why it does not run here; ``stack`` closes them."""
    sessions: dict[str, Session] = {}
    not_run: dict[str, StarExportError] = {}
    for backend in bundle.manifest.get("engines", {}):
        try:
            session = open_session(bundle, replace(runtime, backend=backend))
        except StarExportError as error:
            not_run[backend] = error
        else:
            sessions[backend] = stack.enter_context(session)
    return sessions, not_run


class Recorder(Wrapper):
    """A session that notes everything it is fed, and otherwise is the one inside."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.calls: list[Call] = []

    def run(
        self, graph: str, feeds: Mapping[str, Tensor], caches: Caches | None = None
    ) -> dict[str, DeviceArray]:
        """Note what one graph is fed, and run it."""
        host = {name: on_host(tensor) for name, tensor in feeds.items()}
        names = self.contract[graph].caches()
        past = {name: caches.numpy(name) for name in names} if caches is not None else {}
        self.calls.append(Call(graph, host, past))
        return self.session.run(graph, feeds, caches)


def _record(pipeline: Pipeline, recorder: Recorder, probe: Probe, keep: Keep | None) -> list[Call]:
    """Vision of each picture, prefill, and decode of one token and of some at once."""
    recorder.calls = []
    images = pipeline.prepare(probe.pictures)
    visions = pipeline.steps.encode_images(images, keep)
    caches = recorder.allocate_caches()  # empty, as every other runtime's: rows beyond the length compare too
    state = pipeline.steps.prefill(
        pipeline.tokenize(probe.prompt, images, keep=keep), *visions, keep=keep, caches=caches
    )
    token, spec = int(state.logits.argmax()), pipeline.spec
    pipeline.steps.decode(state, token)
    if more := min(spec.append_tokens, spec.max_new_tokens) - 1:
        pipeline.steps.decode(state, *[token] * min(more, MORE))
    return recorder.calls


def _compare(
    bundle: Bundle, case: tuple[str, Keep | None], calls: list[Call], sessions: dict[str, Session]
) -> list[OutputComparison]:
    """Compare the last of ``calls``; the ones before it fill the KV caches."""
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, CompareFunc
    from polygraphy.logger import G_LOGGER

    call = calls[-1]
    path = str(bundle.graph_path(call.graph))
    runners = [OnnxrtRunner(SessionFromOnnx(path, providers=["cpu"]), name="polygraphy")]
    runners += [_session_runner(name, session, calls) for name, session in sessions.items()]
    onnxruntime.set_default_logger_severity(3)  # its warnings about graphs that work are noise
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(all="ignore"):  # relative errors of zeros
        results = Comparator.run(runners, data_loader=[{**call.feeds, **call.past}])
        reference = results["polygraphy"][0]
        scale = {name: _rms(reference[name]) for name in reference}
        tolerance = {name: _tolerance(bundle, call.graph, name) for name in reference}
        verdicts = Comparator.compare_accuracy(
            results,
            comparisons=[(0, index) for index in range(1, len(runners))],
            compare_func=CompareFunc.simple(
                atol={name: tolerance[name] * scale[name] for name in reference},
                rtol=0.0,
                check_error_stat="max",
            ),
        )[0]
    return [
        OutputComparison(
            *case,
            call.graph,
            pair[1],
            name,
            verdict.max_absdiff / scale[name],
            tolerance[name],
            bool(verdict),
        )
        for pair, iterations in verdicts.items()
        for name, verdict in iterations[0].items()
    ]


def _session_runner(name: str, session: Session, calls: list[Call]) -> Any:
    """A Polygraphy runner over one of our sessions."""
    from polygraphy.backend.base import BaseRunner
    from polygraphy.common import TensorMetadata

    class _SessionRunner(BaseRunner):  # type: ignore[misc]
        def get_input_metadata_impl(self) -> Any:
            metadata = TensorMetadata()
            for feed, array in {**calls[-1].feeds, **calls[-1].past}.items():
                metadata.add(feed, array.dtype, array.shape)
            return metadata

        def infer_impl(self, feed_dict: dict[str, HostArray]) -> dict[str, HostArray]:
            del feed_dict  # the same as calls[-1]: caches are filled by the graphs, not fed
            caches = session.allocate_caches()
            self.inference_time = 0.0
            for call in calls:
                cached = caches if call.graph in (PREFILL, DECODE) else None
                outputs = session.run(call.graph, call.feeds, cached)
            host = {output: array.numpy() for output, array in outputs.items()}
            if cached is not None:
                aliases = session.contract[call.graph].aliases
                host |= {present: caches.numpy(past) for present, past in aliases.items()}
            return host

    return _SessionRunner(name=name)


def _tolerance(bundle: Bundle, graph: str, output: str) -> float:
    """The tolerance of ``check`` for this output; indices must be equal."""
    tolerances = Tolerances.load(bundle.spec.dtype)
    if output in bundle.contract[graph].aliases:
        return tolerances.kv_cache
    if output == "image_features":
        return tolerances.vision_features
    if output == "logits":
        return tolerances.prefill_logits if graph == PREFILL else tolerances.decode_logits
    return 0.0


def _rms(array: HostArray) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) or 1.0
