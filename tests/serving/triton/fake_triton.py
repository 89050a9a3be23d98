"""A fake of ``triton_python_backend_utils`` and of Triton's gRPC front end, for tests without a server.

Requests reach the model as Triton hands them on; ``Server`` speaks real gRPC on a port of its own.
"""

import json
import queue
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import Enum
from typing import Any

import grpc
import numpy as np
import tritonclient.utils as triton
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as service

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class Code(Enum):
    """Triton's error codes, as gRPC's statuses."""

    UNKNOWN = grpc.StatusCode.UNKNOWN
    INTERNAL = grpc.StatusCode.INTERNAL
    INVALID_ARG = grpc.StatusCode.INVALID_ARGUMENT
    UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
    CANCELLED = grpc.StatusCode.CANCELLED


class TritonError:
    """A message and a code."""

    UNKNOWN, INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = Code

    def __init__(self, message: str, code: Code = Code.INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> Code:
        return self._code


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self._outputs, self._error = output_tensors or [], error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def plain(self) -> dict[str, Any]:
        """Outputs by name: texts and lists of numbers."""
        values = {tensor.name(): tensor.as_numpy().tolist() for tensor in self._outputs}
        return {name: v if name == "token_ids" else v[0].decode() for name, v in values.items()}


class Sender:
    """Where responses go; the client goes away with ``cancelled``, and ``broken`` sending raises."""

    def __init__(self) -> None:
        self.responses: queue.SimpleQueue[tuple[InferenceResponse, int]] = queue.SimpleQueue()
        self.cancelled = self.broken = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        if self.broken:
            raise RuntimeError("the response cannot be sent")
        self.responses.put((response, flags))

    def __iter__(self) -> Iterator[InferenceResponse]:
        """Responses up to the final one."""
        flags = 0
        while flags != TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            response, flags = self.responses.get(timeout=60)
            yield response


class Request:
    """What a model's ``execute`` gets."""

    def __init__(self, inputs: dict[str, np.ndarray], parameters: dict[str, Any] | None = None) -> None:
        self.inputs, self.sender, self._parameters = inputs, Sender(), parameters or {}

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def get_response_sender(self) -> Sender:
        return self.sender


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return Tensor(name, request.inputs[name]) if name in request.inputs else None


class InferenceRequest:
    """A request of one model to another: ``models`` holds what answers, by name."""

    models: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        *,
        model_name: str,
        inputs: list[Tensor],
        requested_output_names: list[str],
        parameters: dict[str, Any],
    ) -> None:
        self._model, self._names = self.models[model_name], requested_output_names
        self._request = Request({t.name(): t.as_numpy() for t in inputs}, parameters)

    def exec(self, *, decoupled: bool) -> Iterator[InferenceResponse]:
        assert decoupled
        self._model.execute([self._request])
        for response in self._request.sender:
            if response.has_error():  # Triton loses the code between models
                yield InferenceResponse(error=TritonError(response.error().message()))
            else:
                yield InferenceResponse([t for t in response.output_tensors() if t.name() in self._names])
        yield InferenceResponse()  # Triton's empty final response


class MetricFamily:
    """``families`` holds what was made, by name."""

    COUNTER, GAUGE = "counter", "gauge"
    families: dict[str, "MetricFamily"] = {}  # noqa: RUF012

    def __init__(self, *, name: str, description: str, kind: str) -> None:
        self.kind, self.description, self.metrics = kind, description, []
        self.families[name] = self

    def Metric(self, *, labels: dict[str, str]) -> "Metric":  # noqa: N802
        self.metrics.append(Metric(self.kind, labels))
        return self.metrics[-1]


class Metric:
    def __init__(self, kind: str, labels: dict[str, str]) -> None:
        self.kind, self.labels, self.value = kind, labels, 0.0
        self.history: list[float] = []

    def increment(self, by: float) -> None:
        assert self.kind == MetricFamily.COUNTER
        assert by >= 0
        self.value += by

    def set(self, value: float) -> None:
        assert self.kind == MetricFamily.GAUGE
        self.value = value
        self.history.append(value)


class _Service(service.GRPCInferenceServiceServicer):
    def __init__(self, model: Any, ready: bool, config: str) -> None:
        self._model, self._ready, self._config = model, ready, config
        self.seen: list[Request] = []

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.ModelReadyResponse(ready=self._ready and request.name == "star_llava")

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        config = text_format.Parse(self._config, model_config_pb2.ModelConfig())
        if config.name != request.name:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found"
            )
        return messages.ModelConfigResponse(config=config)

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        coded = dict(context.invocation_metadata()).get("triton_grpc_error") == "true"
        for message in requests:
            inputs = {
                given.name: _array(given, content)
                for given, content in zip(message.inputs, message.raw_input_contents, strict=True)
            }
            request = Request(inputs, {name: value.bool_param for name, value in message.parameters.items()})
            context.add_callback(lambda request=request: setattr(request.sender, "cancelled", True))
            self.seen.append(request)
            self._model.execute([request])
            for response in request.sender:
                if response.has_error():
                    if coded:
                        context.abort(response.error().code().value, response.error().message())
                    yield messages.ModelStreamInferResponse(error_message=response.error().message())
                else:
                    yield messages.ModelStreamInferResponse(infer_response=_message(response))


def _array(given: Any, content: bytes) -> np.ndarray:
    if given.datatype == "BYTES":
        return triton.deserialize_bytes_tensor(content)
    return np.frombuffer(content, triton.triton_to_np_dtype(given.datatype)).reshape(given.shape)


def _message(response: InferenceResponse) -> Any:
    message = messages.ModelInferResponse(model_name="star_llava")
    for tensor in response.output_tensors():
        array = tensor.as_numpy()
        text = array.dtype == np.object_
        message.outputs.add(name=tensor.name(), datatype="BYTES" if text else "INT32", shape=array.shape)
        content = triton.serialize_byte_tensor(array).item() if text else array.tobytes()
        message.raw_output_contents.append(content)
    return message


@contextmanager
def serve(model: Any, *, ready: bool = True, config: str = "") -> Iterator[tuple[str, list[Request]]]:
    """A gRPC server in front of a model: its address, and the requests that it has seen.

    ``config`` is the model's ``config.pbtxt``.
    """
    service_, server = _Service(model, ready, config), grpc.server(ThreadPoolExecutor(8))
    service.add_GRPCInferenceServiceServicer_to_server(service_, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}", service_.seen
    finally:
        server.stop(None).wait()


class Answering:
    """A model that answers every request by calling a function with its sender."""

    def __init__(self, answer: Callable[[Sender], None]) -> None:
        self._answer = answer

    def execute(self, requests: list[Request]) -> None:
        for request in requests:
            self._answer(request.sender)


def install() -> None:
    """Let ``import triton_python_backend_utils`` find this module."""
    sys.modules["triton_python_backend_utils"] = sys.modules[__name__]
