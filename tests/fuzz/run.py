"""One case, repeatable by its seed and number, and what came of it."""

import random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from star_export.errors import StarExportError

from .cases import CASES, World


@dataclass(frozen=True)
class Outcome:
    """What a case ended in.

    Attributes:
        kind: What was damaged.
        refused: The error that a user reads; None if the input was answered, or is a fault.
        fault: What would have been a traceback.
    """

    kind: str
    refused: StarExportError | None = None
    fault: BaseException | None = None

    def __str__(self) -> str:
        error = self.refused or self.fault
        return (
            f"{self.kind}: {type(error).__name__}: {str(error)[:200]}" if error else f"{self.kind}: answered"
        )


def run_case(world: World, seed: int, number: int) -> Outcome:
    """Damage something, use it, and sort what happens."""
    rng = random.Random(f"{seed}:{number}")
    case = rng.choices(list(CASES), list(CASES.values()))[0]
    try:
        with warnings.catch_warnings(action="ignore"):
            case(world, rng)
    except StarExportError as error:
        return Outcome(case.__name__, refused=error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic is no Exception
        return Outcome(case.__name__, fault=error)
    return Outcome(case.__name__)


def summary(outcomes: Sequence[Outcome], seed: int) -> str:
    """One line per kind."""
    lines = [f"{len(outcomes)} cases of seed {seed}"]
    for kind, count in sorted(Counter(outcome.kind for outcome in outcomes).items()):
        own = [outcome for outcome in outcomes if outcome.kind == kind]
        refused, faults = sum(o.refused is not None for o in own), sum(o.fault is not None for o in own)
        answered = count - refused - faults
        lines.append(f"{kind:13} {count:6}: {refused} refused, {answered} answered, {faults} faults")
    return "\n".join(lines)
