"""``make bench-serve``: what HTTP adds to the service, with the same requests both ways, in turns.

The service and the server are in this process, HTTP's clients in one of their own, over real sockets. What
counts is this process's time on the CPU, to which neither clients nor other work on the machine add much; the
smallest of all rounds. On one core (``taskset -c 0``) it is the time that answers take.
"""

import argparse
import base64
import http.client
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
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
    """The characters of one answer from the service itself, piece by piece."""
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


def ask_all(ask: Callable[[int], int], clients: int, requests: int) -> int:
    """The characters of some answers, asked for at once."""
    with ThreadPoolExecutor(clients) as threads:
        return sum(threads.map(ask, range(requests)))


def be_clients(port: int, tokens: int, clients: int, requests: int) -> None:
    """The other process: a round over HTTP for each line that comes, its characters in one that goes."""
    picture = _picture()
    for _ in sys.stdin:
        print(ask_all(partial(ask_server, port, picture, tokens), clients, requests), flush=True)


@contextmanager
def clients_of(port: int, given: argparse.Namespace) -> Iterator[Callable[[], int]]:
    """Asks the other process for a round."""
    numbers = [port, given.tokens, given.clients, given.requests]
    command = [sys.executable, __file__, "--ask", *map(str, numbers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        to, back = process.stdin, process.stdout

        def ask() -> int:
            print(file=to, flush=True)
            return int(back.readline())

        ask()  # it has started, and both sides are warm
        yield ask


@contextmanager
def serving(service: Service) -> Iterator[tuple[int, int]]:
    """The port of a server over a service, and the clock of its event loop's thread."""
    options, ready = HttpOptions(port=0), threading.Event()
    with listen(options) as bound:
        server = Server({"model": service}, options, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        ready.wait()
        try:
            assert thread.ident
            yield bound.getsockname()[1], time.pthread_getcpuclockid(thread.ident)
        finally:
            server.should_exit = True
            thread.join()


def measure(bundle: Path, given: argparse.Namespace) -> None:
    """Both ways in turns; prints what each took."""
    pipeline = open_pipeline(bundle, Runtime(threads=1, batches=True))
    with pipeline, Service(pipeline, ServiceOptions(max_slots=given.clients)) as service:
        direct = partial(ask_service, service, _picture(), given.tokens)
        with serving(service) as (port, loop), clients_of(port, given) as over_http:
            ways = {"service": partial(ask_all, direct, given.clients, given.requests), "http": over_http}
            ways["service"]()
            best, characters = {}, set()
            for _ in range(given.rounds):
                for way, ask in ways.items():
                    began, idle = time.process_time(), time.clock_gettime(loop)
                    characters.add(ask())
                    took = time.process_time() - began, time.clock_gettime(loop) - idle
                    best[way] = min(took, best.get(way, took))
    assert len(characters) == 1, "answers differ"
    tokens = given.requests * given.tokens
    (alone, _), (whole, loop_s) = best["service"], best["http"]
    per_token = [f"{1e6 * took / tokens:.0f}" for took in (alone, whole, loop_s)]
    print(
        f"{bundle}: {per_token[0]} µs a token, {per_token[1]} over HTTP,"
        f" {per_token[2]} of them in its event loop;"
        f" HTTP takes {whole / alone:.3f} times as long"
    )


def _picture() -> bytes:
    held = io.BytesIO()
    make_probes(1)[0].pictures[0].save(held, "PNG")
    return held.getvalue()


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--ask"]:
        be_clients(*map(int, sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="+")
    for name, default in (("clients", 8), ("requests", 24), ("tokens", 128), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    for bundle in given.bundle:
        measure(bundle, given)


if __name__ == "__main__":
    main()
