"""Replicas of a bundle on a Ray cluster, each of which answers as many rows as one process does.

Plain actors, not Ray Data: its retries repeat whole blocks, while a row here is done once its line is
in the journal, which only this process writes. So an answer that is lost with its replica is asked
for again and one that is there never is, whatever dies.
"""

import os
import queue
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from star_export.bundle import Bundle, open_bundle
from star_export.engines import Runtime
from star_export.errors import DeviceError, PlatformError, SettingsError, StarExportError, option
from star_export.reports import subject
from star_export.serving.batch.options import BatchOptions
from star_export.serving.batch.outcome import Refusal
from star_export.serving.batch.worker import Worker
from star_export.serving.query import Query
from star_export.serving.ticket import Answer

#: Replicas that may die with a row before it is taken for the cause.
ATTEMPTS = 3
#: Seconds between two looks at whether the job ends.
_LOOK_EVERY = 0.2
#: Seconds in which a cluster's address must take a connection.
_REACHED_WITHIN = 10


class Remote:
    """The actor: a worker in a process of its own, which loads the bundle when it is first needed.

    Args:
        folder: The bundle, at the same path on every machine.
        hashes: What its files must be.
        runtime: How it runs.
        options: The job.
    """

    def __init__(self, folder: Path, hashes: dict[str, str], runtime: Runtime, options: BatchOptions) -> None:
        self._folder, self._hashes, self._runtime, self._options = folder, hashes, runtime, options
        self._worker: Worker | None = None
        self._loading = threading.Lock()

    def open(self) -> str | None:
        """Load the bundle; why that failed."""
        try:
            self._loaded()
        except (StarExportError, OSError) as error:
            return str(error)
        return None

    def answer(self, query: Query) -> Answer | Refusal:
        """As :meth:`Worker.answer`; a lost GPU ends this process, so that another begins anew."""
        try:
            return self._loaded().answer(query)
        except DeviceError:
            os._exit(1)

    def _loaded(self) -> Worker:
        with self._loading:
            if self._worker is None:
                bundle = open_bundle(self._folder)
                if subject(bundle, self._runtime.backend) != self._hashes:
                    raise SettingsError(f"{self._folder} holds another bundle there; copy this one to it")
                self._worker = Worker(bundle, self._runtime, self._options)
            return self._worker


@dataclass(frozen=True, eq=False)
class _Replica:
    """An actor.

    Attributes:
        handle: Ray's handle of it.
        alone: Held by a row that another replica died with: no two of them are on one replica, so that
            the one which is to blame takes no other along for a second time.
    """

    handle: Any
    alone: threading.Lock = field(default_factory=threading.Lock)


class Replicas:
    """An :class:`star_export.serving.batch.worker.Answerer` on all machines of a Ray cluster.

    Args:
        bundle: The bundle, at the same path on every machine.
        runtime: How it runs.
        options: The job; one replica takes a GPU, or ``cores_per_replica`` CPU cores.

    Raises:
        PlatformError: If Ray is not installed, the cluster cannot be reached, or a replica cannot load.
        SettingsError: If the cluster has no room for a replica.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, options: BatchOptions) -> None:
        self._joined = ExitStack()
        self._ray = self._joined.enter_context(_cluster(options.ray or "auto"))
        cuda, cores = runtime.entry.device == "cuda", options.cores_per_replica
        unit, share = ("GPU", 1) if cuda else ("CPU", cores)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        count = sum(int(node.get(unit, 0) // share) for node in nodes)
        if not count:
            self._joined.close()
            remedy = "add machines with GPUs" if cuda else f"lower {option('cores_per_replica')}"
            raise SettingsError(f"no machine of the Ray cluster has {share} {unit}s for a replica; {remedy}")
        threads = runtime.threads or (None if cuda else cores)
        actor = self._ray.remote(Remote).options(
            num_cpus=1 if cuda else cores,
            num_gpus=int(cuda),
            max_restarts=-1,
            max_concurrency=2 * options.concurrency,  # each may be waited for while it loads
        )
        given = (bundle.folder.resolve(), subject(bundle, runtime.backend), replace(runtime, threads=threads))
        self._replicas = [_Replica(actor.remote(*given, options)) for _ in range(count)]
        self.concurrency = count * options.concurrency
        self._places: queue.Queue[_Replica] = queue.Queue()
        self._stopping = threading.Event()
        self._broken: str | None = None
        self._waiting: list[threading.Thread] = []
        for replica in self._replicas * options.concurrency:
            self._return_when_loaded(replica)
        try:
            self._places.put(self._place())  # when one has loaded the others soon have
        except PlatformError:
            self.close()
            raise

    def answer(self, query: Query) -> Answer | Refusal:
        """The answer of any replica; see :class:`star_export.serving.batch.worker.Answerer`."""
        for attempt in range(ATTEMPTS):
            replica = self._place()
            lone: AbstractContextManager[Any] = replica.alone if attempt else nullcontext()
            try:
                with lone:
                    found: Answer | Refusal = self._ray.get(replica.handle.answer.remote(query))
            except self._ray.exceptions.RayActorError:
                self._return_when_loaded(replica)
                continue
            self._places.put(replica)
            return found
        return Refusal(kind="internal", error=f"{ATTEMPTS} replicas died while they answered it")

    def stop(self) -> None:
        """Let everything go that is being answered."""
        self._stopping.set()
        for replica in self._replicas:
            self._ray.kill(replica.handle)

    def close(self) -> None:
        """Leave the cluster, whose replicas end."""
        self._stopping.set()
        for thread in self._waiting:  # Ray ends a process that asks it for something once it was left
            thread.join()
        self._joined.close()

    def _place(self) -> _Replica:
        while True:
            if self._stopping.is_set():
                raise CancelledError
            if self._broken is not None:
                raise PlatformError(f"a replica cannot load the bundle: {self._broken}")
            try:
                return self._places.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                continue

    def _return_when_loaded(self, replica: _Replica) -> None:
        """Offer a place on a replica once it runs, after it died or at the beginning."""
        thread = threading.Thread(target=self._wait_loaded, args=(replica,), daemon=True)
        thread.start()
        self._waiting.append(thread)

    def _wait_loaded(self, replica: _Replica) -> None:
        died, opening = 0, None
        while not self._stopping.wait(_LOOK_EVERY):
            try:
                opening = opening or replica.handle.open.remote()
                self._broken = self._ray.get(opening, timeout=_LOOK_EVERY) or self._broken
            except self._ray.exceptions.GetTimeoutError:  # it loads, or has no machine now
                continue
            except self._ray.exceptions.ActorDiedError as error:  # one that begins anew is "unavailable"
                died, opening = died + 1, None
                if died == ATTEMPTS:
                    self._broken = str(error)
                    return
            except self._ray.exceptions.RayError:
                opening = None
            else:
                self._places.put(replica)
                return


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, joined to a cluster; what it says on stdout, such as that a replica died, goes to stderr.

    Raises:
        PlatformError: If it is not installed or does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        import ray
    except ImportError as error:
        raise PlatformError(f"{option('ray')} needs Ray; run: pip install 'star-export[ray]'") from error
    own = {"include_dashboard": False} if address == "local" else {}
    server = urlsplit(address if "//" in address else f"//{address}")
    with redirect_stdout(sys.stderr):
        try:
            if server.port:  # ray.init looks for one that is not there for minutes
                socket.create_connection((server.hostname, server.port), _REACHED_WITHIN).close()
            ray.init(address=address, log_to_driver=False, logging_level="error", **own)
        except (OSError, ValueError, RuntimeError) as error:
            raise PlatformError(f"the Ray cluster {address} cannot be joined: {error}") from error
        try:
            yield ray
        finally:
            ray.shutdown()
