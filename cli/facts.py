"""What a bundle takes, what it drops and what an answer cost, in words."""

from typing import TYPE_CHECKING

from star_export.cli.output import megabytes
from star_export.errors import counted

if TYPE_CHECKING:
    from star_export.answer.chat import ChatStats
    from star_export.answer.generation import Timings
    from star_export.specs import ExportSpec, Stage


def images(spec: "ExportSpec") -> str:
    """The pictures of a request."""
    limits = spec.images
    count = "1 picture" if limits.max_images == 1 else f"up to {limits.max_images} pictures"
    tiles = "" if limits.max_tiles == 1 else f" of up to {limits.max_tiles} tiles"
    return f"{count}{tiles}, {limits.max_image_tokens} visual tokens"


def pruning(spec: "ExportSpec") -> str:
    """What each stage keeps of them."""
    counts = ["attention counts what each stands for"] if spec.proportional else []
    return ", ".join([*map(_stage, spec.schedule), *counts]) or "no pruning"


def _stage(stage: "Stage") -> str:
    kept = str(stage.tokens) if stage.share is None else f"{100 * stage.share:g} %"
    if stage.after_layer == 0:
        return f"-> {kept} of each picture before the decoder by {stage.score}"
    most = (
        "" if stage.share is None and stage.max_tokens == stage.tokens else f" (at most {stage.max_tokens})"
    )
    return f"-> {kept}{most} after layer {stage.after_layer} by {stage.score}"


def chat_stats(stats: "ChatStats") -> str:
    """What a conversation holds, in a few lines."""
    caches = " + ".join(map(str, stats.lengths))
    pictures = f"{counted(stats.images, 'picture')} of {stats.image_tokens} visual tokens"
    lines = [
        f"{counted(stats.turns, 'turn')}, {pictures}",
        f"{caches} tokens in the KV caches, {megabytes(stats.bytes)}; "
        f"unpruned {megabytes(stats.unpruned_bytes)}",
        f"read from its start {counted(stats.prefills, 'time')}",
    ]
    if stats.timings_ms is not None:
        lines.append(f"last answer: {timings(stats.timings_ms)}")
    return "\n".join(lines)


def timings(spent: "Timings") -> str:
    """Where the time of an answer went."""
    decode = f", {sum(spent.decode) / len(spent.decode):.1f} ms per token" if spent.decode else ""
    return f"vision {spent.vision:.0f} ms, prefill {spent.prefill:.0f} ms{decode}"
