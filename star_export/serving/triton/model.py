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
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb  # only inside Triton

from star_export.answer.pipeline import open_pipeline
from star_export.engines import Runtime
from star_export.errors import BusyError, DeviceError
from star_export.serving.admission import Place
from star_export.serving.query import Query
from star_export.serving.service import Service
from star_export.serving.ticket import Answer, Piece, Ticket
from star_export.serving.triton.fields import (
    FORWARDED,
    INPUTS,
    check_names,
    scalars,
    service_options,
)
from star_export.serving.triton.metrics import Metrics
from star_export.serving.triton.refusal import refuse

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
        backend = settings["backend"]
        runtime = Runtime(backend=backend, threads=threads, plugin_library=library, batches=True)
        self._service = Service(
            open_pipeline(folder, runtime), service_options(settings), on_lost=_end_server
        )
        self._metrics = Metrics(self._service.stats, args["model_name"])

    def execute(self, requests: list[Any]) -> None:
        """Take requests; each is answered from a thread of its own."""
        for request in requests:
            sender = request.get_response_sender()
            parameters = json.loads(request.parameters() or "{}")
            tensors = {f.name: pb.get_input_tensor_by_name(request, f.name) for f in INPUTS}
            values = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
            try:
                place = self._service.enter()
            except BusyError as error:
                refuse(sender, error, forwarded=FORWARDED in parameters)
                continue
            given = place, values, parameters, sender
            threading.Thread(target=self._serve, args=given, daemon=True).start()

    def finalize(self) -> None:
        """Finish what is running, and free the GPU's memory."""
        self._service.close()
        self._metrics.close()
        self._service.pipeline.close()

    def _serve(self, place: Place, values: dict[str, Any], parameters: dict[str, Any], sender: Any) -> None:
        try:
            with place:
                check_names(parameters)
                given = scalars(values)
                stream, show = given.pop("stream", False), given.pop("show", False)
                ticket = self._service.submit(Query.of(given), place)
            with ticket:
                self._send(ticket, sender, stream=stream, show=show)
        except Exception as error:  # the client gets it, whatever it is
            refuse(sender, error, forwarded=FORWARDED in parameters)

    def _send(self, ticket: Ticket, sender: Any, *, stream: bool, show: bool) -> None:
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
        last = ticket.rest if stream else Piece(update.text, update.token_ids, update.logprobs)
        ending = _ending(update, ticket)
        if show:
            ending.append(_text("shown", json.dumps(self._service.shown(ticket))))
        sender.send(_response(last, ending), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _response(piece: Piece, ending: Sequence[Any] = ()) -> Any:
    outputs = [_text("text", piece.text), pb.Tensor("token_ids", np.array(piece.token_ids, np.int32))]
    if piece.logprobs is not None:
        outputs.append(_text("logprobs", json.dumps([asdict(one) for one in piece.logprobs])))
    return pb.InferenceResponse([*outputs, *ending])


def _ending(answer: Answer, ticket: Ticket) -> list[Any]:
    """Outputs of the last response alone."""
    plain = answer.to_dict()
    usage = {**plain["usage"], "stages": ticket.stages, "cached_tokens": ticket.cached_tokens}
    return [
        _text("finish_reason", answer.finish_reason),
        _text("usage", json.dumps(usage)),
        _text("timings_ms", json.dumps(plain["timings_ms"])),
    ]


def _text(name: str, text: str) -> Any:
    return pb.Tensor(name, np.array([text.encode()], np.object_))


def _end_server(error: DeviceError) -> None:
    """Let Triton, whose child this process is, go down as if asked to: it is unready at once."""
    log.critical("%s; this server ends, so that it can be started again", error)
    os.kill(os.getppid(), signal.SIGTERM)
