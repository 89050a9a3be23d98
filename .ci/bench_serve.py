"""``make bench-serve``: what HTTP adds to the service, with the same requests both ways, in turns.

Streams over real sockets, from threads of this process, which share its interpreter: clients on other
machines cost less. The smallest time of each way counts, since other work only adds to it.
"""

import argparse
import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from star_export.answer.pipeline import open_pipeline
from star_export.engines import Runtime
from star_export.serving.http.options import HttpOptions
from star_export.serving.http.server import Server, listen
from star_export.serving.options import ServiceOptions
from star_export.serving.query import Query
from star_export.serving.service import Service
from star_export.validation.probes import make_probes

PROMPT = "Describe the picture."


def ask_service(service: Service, picture: bytes, tokens: int, seed: int) -> int:
    """One answer from the service itself, piece by piece."""
    query = Query(image=picture, prompt=PROMPT, max_new_tokens=tokens, temperature=100.0, seed=seed)
    with service.submit(query) as ticket:
        return sum(map(len, ticket))


def ask_server(port: int, picture: bytes, tokens: int, seed: int) -> int:
    """The same over HTTP."""
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": PROMPT}]
    options = {"max_tokens": tokens, "temperature": 100.0, "seed": seed, "stream": True}
    body = json.dumps({"messages": [{"role": "user", "content": content}], **options})
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    events = [line[6:] for line in connection.getresponse() if line.startswith(b"data: {")]
    connection.close()
    return sum(len(json.loads(event)["choices"][0]["delta"].get("content", "")) for event in events)


def seconds(ask: Callable[[int], int], clients: int, requests: int) -> tuple[float, int]:
    """How long some requests took, and the characters of their answers."""
    with ThreadPoolExecutor(clients) as threads:
        began = time.perf_counter()
        characters = sum(threads.map(ask, range(requests)))
        return time.perf_counter() - began, characters


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    for name, default in (("clients", 8), ("requests", 32), ("tokens", 64), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    held = io.BytesIO()
    make_probes(1)[0].pictures[0].save(held, "PNG")
    picture, options = held.getvalue(), HttpOptions(port=0)
    pipeline = open_pipeline(given.bundle, Runtime(threads=1, batches=True))
    service = Service(pipeline, ServiceOptions(max_slots=given.clients))
    with pipeline, service, listen(options) as bound:
        ready, port = threading.Event(), bound.getsockname()[1]
        server = Server({"model": service}, options, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        ready.wait()
        ways = {
            "service": lambda seed: ask_service(service, picture, given.tokens, seed),
            "http": lambda seed: ask_server(port, picture, given.tokens, seed),
        }
        found = [
            {way: seconds(ask, given.clients, given.requests) for way, ask in ways.items()}
            for _ in range(given.rounds)
        ]
        server.should_exit = True
        thread.join()
    best = {way: min(times[way][0] for times in found) for way in ways}
    assert len({times[way][1] for times in found for way in ways}) == 1, "answers differ"
    for way, least in best.items():
        print(f"{way}: {given.requests / least:.2f} requests/s, best of {given.rounds} rounds")
    print(f"http takes {best['http'] / best['service']:.3f} times as long")


if __name__ == "__main__":
    main()
