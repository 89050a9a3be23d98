"""``make load-serve``: many clients against a real ``star-export serve``; every answer is checked.

Two servers, one after the other, with the same work as ``make load`` has for Triton: requests that share
decode steps, and one at a time, for a tenth as many. One picture is a photo of 12 megapixels. One request in
ten is nonsense or is dropped by its client. Exit code 1 if an answer is wrong, a request is lost, or memory
grows. With ``--triton`` the same clients' numbers of Triton's front door stand beside them.
"""

import argparse
import base64
import http.client
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import load
from load import KV_CACHE_MIB, Case, Door, Most, Tally, build_bundle, make_cases, report, run

from star_export.answer.pipeline import load as load_pipeline

#: Memory may grow by this share in the second half of the time.
GROWTH, WARM = 0.02, 1 / 2


@contextmanager
def server(bundle: Path, log: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server on ``bundle``, started as users start it, and its port."""
    program = Path(sys.executable).with_name("star-export")
    command = [program, "serve", bundle, "--port", "0", "--json", "--threads", "1", *options]
    with log.open("w") as written:
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=written, text=True)
    assert process.stdout
    try:
        yield process, int(urlsplit(json.loads(process.stdout.readline())["address"]).port or 0)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, log.read_text()


@cache
def _url(image: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"


@contextmanager
def asked(port: int, case: Case, url: str) -> Iterator[http.client.HTTPResponse]:
    """What a server answers; leaving the block drops the connection."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": case.prompt}]
    options = dict(case.inputs)
    options["max_tokens"] = options.pop("max_new_tokens")
    body = {"messages": [{"role": "user", "content": content}], "stream": True, **options}
    body["stream_options"] = {"include_usage": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        yield connection.getresponse()
    finally:
        connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The objects of a stream; it must have its end."""
    assert response.status == 200, f"{response.status}: {response.read()!r}"
    for line in response:
        if line == b"data: [DONE]\n":
            return
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
    raise AssertionError("the stream has no end")


def ask(port: int, case: Case) -> tuple[str, float]:
    """A whole answer."""
    start, first, text, count = time.perf_counter(), 0.0, "", 0
    with asked(port, case, _url(case.image)) as response:
        for event in events(response):
            first = first or time.perf_counter() - start
            for choice in event["choices"]:
                text += choice["delta"].get("content", "")
            if event["usage"]:
                count = event["usage"]["completion_tokens"]
    return ("right" if (text, count) == (case.text, len(case.token_ids)) else "wrong"), first


def drop(port: int, case: Case) -> tuple[str, None]:
    """Close the connection after the first piece."""
    with asked(port, case, _url(case.image)) as response:
        next(events(response))
    return "dropped", None


def garbage(port: int, case: Case) -> tuple[str, None]:
    """Send what is no picture."""
    with asked(port, case, _url(Path(__file__))) as response:
        said = response.read()
    if response.status == 400 and b"not a picture" in said:
        return "refused", None
    return f"lost: {response.status} {said!r}", None


def main() -> int:
    """Run the servers; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder for checkpoint, bundle, pictures and logs")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--triton", action="store_true", help="also through a tritonserver; see `make load`")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    bundle = build_bundle(args.work, prune=True)
    with load_pipeline(bundle) as pipeline:
        cases = make_cases(pipeline, args.work, args.cases)
    slots = "--max-slots", str(args.clients), "--kv-cache", KV_CACHE_MIB
    tallies: dict[str, Tally] = {}
    for title, options, share in (("batched", slots, 1.0), ("one at a time", ("--max-slots", "1"), 0.1)):
        with server(bundle, args.work / f"{title}.log".replace(" ", "-"), *options) as (process, port):
            door = Door(*(partial(way, port) for way in (ask, drop, garbage)))
            most = Most(requests=share * args.requests)
            tallies[title] = run(process, cases, door, clients=args.clients, most=most, title=title)
    if args.triton:
        with load.server(bundle, args.work / "repository", "--threads", "1", *slots) as process:
            door, most = load.DOOR, Most(requests=args.requests)
            tallies["triton"] = run(process, cases, door, clients=args.clients, most=most, title="triton")
    failed = report(tallies, growth=GROWTH, warm=WARM)
    batched = tallies.pop("batched")
    for title, tally in tallies.items():
        later = statistics.median(tally.ttft) / statistics.median(batched.ttft)
        print(f"batched / {title}: {batched.rate / tally.rate:.2f}x requests/s, TTFT 1/{later:.1f} of its")
    return failed


if __name__ == "__main__":
    sys.exit(main())
