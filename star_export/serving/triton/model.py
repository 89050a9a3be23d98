"""The model that Triton's Python backend runs: requests in, streamed answers out.

``1/model.py`` of the repository imports it. The graphs run in this process: a model of Triton's
TensorRT backend could not keep the KV caches in place from one decode step to the next.
"""

import json
import logging
import os
import signal
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb  # only inside Triton

from star_export.answer.pipeline import open_pipeline
from star_export.answer.sampling import Sampling
from star_export.engines import Runtime
from star_export.errors import BusyError, DeviceError, InputError
from star_export.serving.scheduler import Scheduler, count_slots
from star_export.serving.ticket import Answer, Piece, Ticket
from star_export.serving.triton.fields import FORWARDED, INPUTS, check_names, image_bytes, scalars
from star_export.serving.triton.metrics import Metrics
from star_export.serving.triton.refusal import refuse
from star_export.serving.warmup import warm_up

log = logging.getLogger("star_export.serving")

#: Seconds between two looks at whether the client is still there: each asks Triton's own process.
LOOK_EVERY = 0.02


class TritonPythonModel:
    """The front door, as the Python backend wants it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle and warm it up; Triton says "ready" after that."""
        config = json.loads(args["model_config"])
        settings = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        home = Path(args["model_repository"]) / args["model_version"]
        threads = int(settings["threads"]) or None
        library = home / settings["plugin_library"] if settings["plugin_library"] else None
        folder = home / settings["bundle"]
        runtime = Runtime(backend=settings["backend"], threads=threads, plugin_library=library)
        self._pipeline = open_pipeline(folder, runtime)
        kv_bytes, most = int(settings["kv_cache_mib"]) << 20, int(settings["max_slots"])
        slots = count_slots(self._pipeline, kv_bytes, most=most)
        self._scheduler = Scheduler(
            self._pipeline,
            slots=slots,
            queue=int(settings["queue"]),
            feature_bytes=int(settings["feature_cache_mib"]) << 20,
            on_lost=_end_server,
        )
        self._timeout = float(settings["timeout_s"])
        self._most = slots + int(settings["queue"])
        self._present = 0
        self._lock = threading.Lock()
        self._preparing = threading.Semaphore(os.cpu_count() or 1)  # decoded pictures are large
        warm_up(self._scheduler)
        self._metrics = Metrics(self._scheduler, args["model_name"])

    def execute(self, requests: list[Any]) -> None:
        """Take requests; each is answered from a thread of its own."""
        for request in requests:
            sender = request.get_response_sender()
            parameters = json.loads(request.parameters() or "{}")
            tensors = {f.name: pb.get_input_tensor_by_name(request, f.name) for f in INPUTS}
            values = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
            with self._lock:
                full = self._present >= self._most
                self._present += not full
            if full:
                error = BusyError(f"{self._most} requests are here already; try again later")
                refuse(sender, error, forwarded=FORWARDED in parameters)
                continue
            threading.Thread(target=self._serve, args=(values, parameters, sender), daemon=True).start()

    def finalize(self) -> None:
        """Finish what is running, and free the GPU's memory."""
        self._scheduler.close()
        self._metrics.close()
        self._pipeline.close()

    def _serve(self, values: dict[str, Any], parameters: dict[str, Any], sender: Any) -> None:
        try:
            check_names(parameters)
            ticket, stream = self._submit(values)
            try:
                self._send(ticket, sender, stream=stream)
            except Exception:
                ticket.cancel()  # nobody will read the rest
                raise
        except Exception as error:  # the client gets it, whatever it is
            refuse(sender, error, forwarded=FORWARDED in parameters)
        finally:
            with self._lock:
                self._present -= 1

    def _submit(self, values: dict[str, Any]) -> tuple[Ticket, bool]:
        """Check a request and queue it; whether its answer is to be streamed."""
        given = scalars(values)
        sampling = Sampling(**{k: given[k] for k in ("temperature", "top_p", "seed") if k in given})
        with self._preparing:
            request = self._pipeline.request(
                image_bytes(given["image"]),
                given["prompt"],
                keep=given.get("keep"),
                max_new_tokens=given.get("max_new_tokens"),
                sampling=sampling,
                stop=given.get("stop", ()),
            )
        timeout = given.get("timeout_s", self._timeout)
        if not timeout > 0:  # NaN too
            raise InputError(f"timeout_s must be above 0, got {timeout:g}")
        timeout = min(timeout, self._timeout)
        return self._scheduler.submit(request, timeout=timeout), bool(given.get("stream", False))

    def _send(self, ticket: Ticket, sender: Any, *, stream: bool) -> None:
        """Send pieces as they come and the end of the answer; let go when the client has gone."""
        look = time.monotonic()
        while not isinstance(update := ticket.next(LOOK_EVERY), Answer):
            if time.monotonic() >= look:
                look = time.monotonic() + LOOK_EVERY
                if sender.is_cancelled():
                    ticket.cancel()
            if update is not None and stream and not ticket.cancelled:
                sender.send(_response(update))
        if update.finish_reason == "cancelled":
            raise CancelledError("the request was cancelled")
        last = ticket.rest if stream else Piece(update.text, update.token_ids)
        sender.send(_response(last, update), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _response(piece: Piece, answer: Answer | None = None) -> Any:
    outputs = [_text("text", piece.text), pb.Tensor("token_ids", np.array(piece.token_ids, np.int32))]
    if answer is not None:
        plain = answer.to_dict()
        outputs.append(_text("finish_reason", answer.finish_reason))
        outputs += [_text(name, json.dumps(plain[name])) for name in ("usage", "timings_ms")]
    return pb.InferenceResponse(outputs)


def _text(name: str, text: str) -> Any:
    return pb.Tensor(name, np.array([text.encode()], np.object_))


def _end_server(error: DeviceError) -> None:
    """Let Triton, whose child this process is, go down as if asked to: it is unready at once."""
    log.critical("%s; this server ends, so that it can be started again", error)
    os.kill(os.getppid(), signal.SIGTERM)
