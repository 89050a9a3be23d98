"""Stream an answer from Triton over gRPC. Needs: pip install 'tritonclient[grpc]'

python examples/triton_client.py localhost:8001 docs/shapes.png "What number is written?"
"""

import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton


def text_input(name: str, data: bytes) -> triton.InferInput:
    """An input of one string."""
    tensor = triton.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([data], dtype=np.object_))
    return tensor


if len(sys.argv) != 4:
    sys.exit(__doc__)
url, image, prompt = sys.argv[1:]
keep = triton.InferInput("keep", [1], "INT32")  # optional: visual tokens after stage 2
keep.set_data_from_numpy(np.array([29], dtype=np.int32))
stream = triton.InferInput("stream", [1], "BOOL")
stream.set_data_from_numpy(np.array([True]))
inputs = [text_input("image", Path(image).read_bytes()), text_input("prompt", prompt.encode()), keep, stream]

responses: queue.Queue = queue.Queue()
with triton.InferenceServerClient(url) as client:
    client.start_stream(lambda result, error: responses.put(error or result))
    client.async_stream_infer("star_llava", inputs)
    while True:
        response = responses.get()
        if isinstance(response, Exception):
            sys.exit(f"error: {response}")
        print(response.as_numpy("text")[0].decode(), end="", flush=True)
        if response.as_numpy("finish_reason") is not None:  # only the last one has it
            break
print()
