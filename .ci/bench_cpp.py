"""`star_run` beside `star-export run`: a process from start to first token, its memory, each further token.

Both run in turns, so that whatever else the machine does meets both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime

LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
NAMES = ("star_run", "star-export run")


def measure(command: list[str]) -> tuple[float, float, float, str]:
    """Milliseconds of a process, of processors in it, its peak MB, and what it printed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    spent = 1000 * (time.perf_counter() - start)
    if process.returncode:
        sys.exit(f"{command[0]} ended with {process.returncode}")
    return spent, 1000 * (usage.ru_utime + usage.ru_stime), usage.ru_maxrss / 1024, printed


def row(name: str, unit: str, values: list[list[float]]) -> None:
    """One line: the medians of both, and how many times the second is the first."""
    ours, pythons = map(statistics.median, values)
    print(f"{name:32}{ours:12.1f} {unit:3}{pythons:16.1f} {unit:3}{pythons / ours:10.2f}x")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("picture")
    parser.add_argument("--build", type=Path, default=Path("build/cpp"), help="Where engines/cpp is built.")
    parser.add_argument("--prompt", default="What color is the square?")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=16, help="Of the answer that is timed.")
    asked = parser.parse_args()
    question = [asked.bundle, "--image", asked.picture, "--prompt", asked.prompt, "--json"]
    commands = (
        [str(asked.build / "star_run"), "--onnxruntime", str(LIBRARY), *question],
        [str(Path(sys.executable).with_name("star-export")), "run", *question],
    )
    first, busy, memory, ttft, decode = ([list[float](), list[float]()] for _ in range(5))
    for command in commands:
        measure([*command, "--max-new-tokens", "1"])  # files into the system's cache
    for _ in range(asked.repeats):
        for side, command in enumerate(commands):
            spent, work, peak, _ = measure([*command, "--max-new-tokens", "1"])
            printed = measure([*command, "--max-new-tokens", str(asked.new_tokens)])[-1]
            answer = json.loads(printed)["timings_ms"]
            first[side].append(spent)
            busy[side].append(work)
            memory[side].append(peak)
            ttft[side].append(answer["vision"] + answer["prefill"])
            decode[side].extend(answer["decode"] or [0.0])
    print(f"medians of {asked.repeats}, in turns\n{'':32}{NAMES[0]:>15}{NAMES[1]:>20}{'ratio':>11}")
    row("process start to first token", "ms", first)
    row("processor time of that", "ms", busy)
    row("peak memory of that", "MB", memory)
    row("vision and prefill", "ms", ttft)
    row("each further token", "ms", decode)


if __name__ == "__main__":
    main()
