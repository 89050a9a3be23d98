"""A comparison as a page of Markdown and a plot."""

from collections.abc import Sequence

from star_export.evaluation.comparison import Comparison, MethodReport
from star_export.evaluation.few_bits import few_bits_section
from star_export.evaluation.methods import (
    FASTV,
    PROPORTIONAL_SPREAD,
    RULES,
    STAR,
    UNPRUNED,
    Level,
    Method,
)
from star_export.evaluation.plots import draw, pareto
from star_export.evaluation.statistics import Estimate, kinds_table, markdown
from star_export.specs.scores import SPREAD

_INTRODUCTION = """# Accuracy

Made by `{command}`.

{questions} questions of the task `{task}` (split `{split}`, seed {seed}),
asked of `{model}` in ONNX Runtime, greedily. Brackets hold 95 % bootstrap intervals, paired by question where
two variants are compared. Tokens and FLOPs are means over the pictures; FLOPs are those of a prefill with the
first question, counted exactly, without the vision tower and what ranks tokens before the decoder; speed is
the unpruned prefill's time divided by this one's, median over the questions, which all variants answered in
turns.

Methods are compared at equal averages of visual tokens over the decoder's {layers} layers. **keep N** is the
average that STAR has at a budget of N tokens, with the paper's settings. A method is missing where its first
layers alone have more than the average, or where it would have to let more tokens enter than a picture has.

The unpruned model has {tokens:.0f} visual tokens in every layer and answers {accuracy} % right.

![share of the unpruned accuracy against tokens per layer]({plot})

The dashed line is the Pareto front: no method has more right answers with as few tokens per layer.
"""


def to_markdown(comparison: Comparison, *, command: str, plot: str) -> str:
    """The whole page.

    Args:
        comparison: What was found.
        command: The command that makes the page.
        plot: Name of the plot's file.
    """
    full, *methods = comparison.methods
    parts = [
        _INTRODUCTION.format(
            command=command,
            questions=comparison.questions,
            task=comparison.task,
            split=comparison.split,
            seed=comparison.seed,
            model=comparison.model,
            layers=comparison.layers,
            tokens=full.entering,
            accuracy=full.score.accuracy.percent(),
            plot=plot,
        ),
        "## The methods\n",
        markdown(["method", "what it keeps"], [[rule, RULES[rule].what] for rule in _rules(methods)]),
        "## The Pareto front\n",
        _table(_front(comparison.methods), full, None),
    ]
    for level in _levels(methods):
        found = [m for m in methods if m.method.level == level]
        parts += [f"## {level.name.capitalize()}\n", _table(found, full, level.reference), _verdicts(found)]
    shown = [full, *(m for m in methods if _is_reference(m.method) or _counts(m.method))]
    parts += [
        "\n## STAR and spread by kind of question\n",
        kinds_table({m.method.name: m.score for m in shown}),
        *few_bits_section(comparison.weights),
    ]
    return "\n".join(parts)


def _is_reference(method: Method) -> bool:
    return method.level is not None and method.rule == method.level.reference


def _counts(method: Method) -> bool:
    """Whether it is `spread` with attention that counts, at an average."""
    return method.rule == PROPORTIONAL_SPREAD and method.level is not None and method.level.keep is None


def _levels(methods: Sequence[MethodReport]) -> list[Level]:
    """What methods were compared at, in order."""
    return list(dict.fromkeys(m.method.level for m in methods if m.method.level))


def _front(methods: Sequence[MethodReport]) -> list[MethodReport]:
    """Averages that are a whole number but for rounding count as equal."""
    return pareto(methods, cost=lambda m: round(m.tokens_per_layer), worth=lambda m: m.score.accuracy.value)


def _rules(methods: Sequence[MethodReport]) -> list[str]:
    return list(dict.fromkeys(m.method.rule for m in methods))


def _table(methods: Sequence[MethodReport], full: MethodReport, reference: str | None) -> str:
    """A row per method, the best first; leads over the reference if there is one."""
    head = ["method", "tokens", "per layer", "accuracy %", "of unpruned %", "FLOPs", "speed"]
    if reference is not None:
        head.insert(5, f"ahead of {reference} by")
        methods = sorted(methods, key=lambda m: -m.score.accuracy.value)
    rows = []
    for found in methods:
        name, score = found.method.rule if reference else found.method.name, found.score
        row = [
            f"**{name}**" if found.method.rule == reference else name,
            f"{found.keep:.0f}" if found.layer is None else f"{found.entering:.0f} → {found.keep:.0f}",
            f"{found.tokens_per_layer:.0f}",
            score.accuracy.percent(),
            "" if score.retention is None else score.retention.percent(),
            f"{100 * found.flops / full.flops:.0f} %",
            f"{found.speedup:.2f}x",
        ]
        if reference is not None:
            row.insert(5, "" if found.lead is None else found.lead.percent())
        rows.append(row)
    return markdown(head, rows)


def _verdicts(methods: Sequence[MethodReport]) -> str:
    """Which methods are ahead of the level's reference, which behind, and which are not told apart."""
    found: dict[str, list[str]] = {"ahead of": [], "not distinguishable from": [], "behind": []}
    for method in methods:
        if method.lead is not None:
            found[_verdict(method.lead)].append(method.method.rule)
    level = methods[0].method.level
    reference = level.reference if level else UNPRUNED
    lines = [f"- {verdict.capitalize()} {reference}: {', '.join(n)}." for verdict, n in found.items() if n]
    return "\n".join(lines) + "\n"


def _verdict(lead: Estimate) -> str:
    if lead.low > 0:
        return "ahead of"
    return "behind" if lead.high < 0 else "not distinguishable from"


#: Lines that stand out, with their colours.
_STRONG = {
    STAR: "black",
    SPREAD: "tab:red",
    PROPORTIONAL_SPREAD: "tab:purple",
    "balanced-text-peaks": "tab:blue",
    FASTV: "tab:green",
}


def to_png(comparison: Comparison) -> bytes:
    """Share of the unpruned accuracy against tokens per layer, a line per rule; needs matplotlib."""
    full, *methods = comparison.methods

    def point(found: MethodReport) -> tuple[float, float]:
        whole = max(full.score.accuracy.value, 1e-9)
        return found.tokens_per_layer, 100 * found.score.accuracy.value / whole

    return draw(
        {rule: [point(m) for m in methods if m.method.rule == rule] for rule in _rules(methods)},
        [point(found) for found in _front(comparison.methods)],
        strong=_STRONG,
        title=f"{comparison.model}, {comparison.task}, {comparison.questions} questions",
        cost=f"visual tokens per layer, of {full.entering:.0f}",
        worth="right answers, % of unpruned",
    )
