"""``star_llava_infer``: the same model for ``infer``, which takes one response and no stream."""

import json
import threading
from typing import Any

import triton_python_backend_utils as pb  # only inside Triton

from star_export.serving.triton.fields import FORWARDED, INPUTS, MODEL, OUTPUTS, check_names
from star_export.serving.triton.refusal import pass_on, refuse


class TritonPythonModel:
    """Passes requests on to ``star_llava``, and back its only response."""

    def execute(self, requests: list[Any]) -> None:
        """Take requests; each waits in a thread of its own, so that they run together."""
        for request in requests:
            names = [field.name for field in INPUTS if field.name != "stream"]
            given = [pb.get_input_tensor_by_name(request, name) for name in names]
            inputs = [pb.Tensor(t.name(), t.as_numpy()) for t in given if t is not None]
            parameters = json.loads(request.parameters() or "{}")
            sender = request.get_response_sender()
            threading.Thread(target=_forward, args=(inputs, parameters, sender), daemon=True).start()


def _forward(inputs: list[Any], parameters: dict[str, Any], sender: Any) -> None:
    try:
        check_names(parameters)
        request = pb.InferenceRequest(
            model_name=MODEL,
            inputs=inputs,
            requested_output_names=[field.name for field in OUTPUTS],
            parameters={FORWARDED: True},
        )
        found = [r for r in request.exec(decoupled=True) if r.has_error() or r.output_tensors()]
        response = found[0]
    except Exception as error:
        refuse(sender, error)
        return
    if response.has_error():
        pass_on(sender, response.error().message())
    else:
        sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
