"""``python -m tests.fuzz --seed 1 --count 10000``; ``--only 17`` repeats one case with its traceback."""

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path

from rich.progress import track

from star_export.build import BuildOptions, build

from . import MODEL
from .cases import make_world
from .run import run_case, summary


def main() -> int:
    """Run the cases; 1 if one of them was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--only", type=int, help="number of one case")
    options = parser.parse_args()
    os.environ["TZ"] = "UTC"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        build(BuildOptions(model=str(MODEL), output=place / "bundle", keep=64, max_new_tokens=16))
        world = make_world(place / "bundle", place)
        outcomes = []
        numbers = range(options.count) if options.only is None else [options.only]
        for number in track(numbers, "damaged input", transient=True, disable=not sys.stderr.isatty()):
            outcome = run_case(world, options.seed, number)
            outcomes.append(outcome)
            if outcome.fault is not None:
                print(f"case {number} of seed {options.seed}: {outcome}")
                if options.only is not None:
                    traceback.print_exception(outcome.fault)
    print(summary(outcomes, options.seed))
    return int(any(outcome.fault for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
