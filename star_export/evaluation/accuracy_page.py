"""A comparison as a page of Markdown and a plot."""

import importlib.util
import io
from collections.abc import Sequence

from star_export.errors import PlatformError
from star_export.evaluation.comparison import Comparison, MethodReport
from star_export.evaluation.methods import RULES, STAR
from star_export.evaluation.statistics import Estimate, kinds_table, markdown

_INTRODUCTION = """# Accuracy

Made by `{command}`.

{questions} questions of the task `{task}` (split `{split}`, seed {seed}), each about a picture of its
own, asked of `{model}` in ONNX Runtime, greedily. STAR drops {dropped:.0f} of {patches:.0f} visual tokens
after the vision encoder and prunes to its budget after {prune_layer} of {layers} decoder layers. Brackets
hold 95 % bootstrap intervals, paired by question where two variants are compared. Tokens and FLOPs are
means over the pictures; FLOPs are those of a prefill with the first question, counted exactly, without the
vision tower; speed is the unpruned prefill's time divided by this one's, median over the questions, which
all variants answered in turns.

The unpruned model answers {accuracy} % right.
"""

_FAIR = """
## At STAR's average of tokens per layer

Pruning inside the decoder leaves its first layers long: the same number of tokens at the end costs STAR
more than a method that prunes before the decoder. Here every method gets as many visual tokens per layer,
on average over the layers, as STAR has at that budget. A method that would have to leave less than one
token is missing.
"""


def to_markdown(comparison: Comparison, *, command: str, plot: str) -> str:
    """The whole page.

    Args:
        comparison: What was found.
        command: The command that makes the page.
        plot: Name of the plot's file.
    """
    full, *methods = comparison.methods
    star = next(m for m in methods if m.method.rule == STAR)
    parts = [
        _INTRODUCTION.format(
            command=command,
            questions=comparison.questions,
            task=comparison.task,
            split=comparison.split,
            seed=comparison.seed,
            model=comparison.model,
            patches=full.entering,
            dropped=full.entering - star.entering,
            prune_layer=comparison.prune_layer,
            layers=comparison.layers,
            accuracy=full.score.accuracy.percent(),
        ),
        f"![accuracy against FLOPs]({plot})\n",
        "## At equal budgets\n",
        _budget_table(methods, full, average=False),
        "\n".join(_verdicts(methods, average=False)),
        _FAIR,
        _budget_table(methods, full, average=True),
        "\n".join(_verdicts(methods, average=True)),
        "\n## STAR by kind of question\n",
        kinds_table(
            {"unpruned": full.score}
            | {f"keep {m.method.budget}": m.score for m in methods if m.method.rule == STAR}
        ),
    ]
    return "\n".join(parts)


def _budget_table(methods: Sequence[MethodReport], full: MethodReport, *, average: bool) -> str:
    """A row per method and budget."""
    head = [
        "budget",
        "method",
        "tokens",
        "per layer",
        "accuracy %",
        "of unpruned %",
        "STAR is ahead by",
        "FLOPs",
        "speed",
    ]
    rows = []
    for found in _in_order(methods, average=average):
        method, score = found.method, found.score
        rows.append(
            [
                str(method.budget),
                f"**{method.rule}**" if method.rule == STAR else method.rule,
                f"{found.keep:.0f}" if found.layer is None else f"{found.entering:.0f} → {found.keep:.0f}",
                f"{found.tokens_per_layer:.0f}",
                score.accuracy.percent(),
                "" if score.retention is None else score.retention.percent(),
                "" if found.lead is None else found.lead.percent(),
                f"{100 * found.flops / full.flops:.0f} %",
                f"{found.speedup:.2f}x",
            ]
        )
    return markdown(head, rows)


def _in_order(methods: Sequence[MethodReport], *, average: bool) -> list[MethodReport]:
    """STAR and the others of one comparison, budget by budget."""
    chosen = [m for m in methods if m.method.average == average or m.method.rule == STAR]
    return sorted(chosen, key=lambda m: (-m.method.budget, RULES.index(m.method.rule)))


def _verdicts(methods: Sequence[MethodReport], *, average: bool) -> list[str]:
    """One line per rule: where STAR is ahead, where it is not, and where that is certain."""
    lines = []
    for rule in RULES[1:]:
        leads = [
            (m.method.budget, m.lead)
            for m in methods
            if m.method.rule == rule and m.method.average == average
        ]
        said = []
        for verdict in ("ahead", "not distinguishable", "behind"):
            budgets = [
                str(budget) for budget, lead in leads if lead is not None and _verdict(lead) == verdict
            ]
            if budgets:
                said.append(f"{verdict} at {', '.join(budgets)}")
        if said:
            lines.append(f"- STAR against {rule}: {'; '.join(said)}.")
    return lines


def _verdict(lead: Estimate) -> str:
    if lead.low > 0:
        return "ahead"
    return "behind" if lead.high < 0 else "not distinguishable"


def require_plotting() -> None:
    """Refuse to go on without matplotlib.

    Raises:
        PlatformError: If it is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise PlatformError("the plot needs matplotlib; run: pip install 'star-export[eval]'")


def to_png(comparison: Comparison) -> bytes:
    """Accuracy against FLOPs, a line per rule; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    full, *methods = comparison.methods
    level = 100 * full.score.accuracy.value
    axes.axhline(level, color="0.6", linestyle=":", label="unpruned")
    for rule in RULES:
        found = sorted((m for m in methods if m.method.rule == rule), key=lambda m: m.flops)
        x = [100 * m.flops / full.flops for m in found]
        y = [100 * m.score.accuracy.value for m in found]
        low = [100 * (m.score.accuracy.value - m.score.accuracy.low) for m in found]
        high = [100 * (m.score.accuracy.high - m.score.accuracy.value) for m in found]
        strong = rule == STAR
        axes.errorbar(
            x,
            y,
            yerr=[low, high],
            marker="o",
            markersize=6 if strong else 4,
            linewidth=2.5 if strong else 1.2,
            elinewidth=0.7,
            color="black" if strong else None,
            zorder=3 if strong else 2,
            label=rule,
        )
    axes.set_xlabel("prefill FLOPs, % of unpruned")
    axes.set_ylabel("right answers, %")
    axes.set_title(f"{comparison.model}, {comparison.task}, {comparison.questions} questions")
    axes.grid(alpha=0.3)
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
