"""The one place where a token is chosen, for every loop that decodes."""

from collections.abc import Mapping

from star_export.answer.sampling import Sampler
from star_export.engines.session import DeviceArray
from star_export.errors import NonFiniteError, StarExportError, option

#: Why there is no next token, and what to do.
_NOT_FINITE = (
    "the model's logits are not finite: an overflow, if the bundle is float16 (build it with "
    f"{option('dtype', 'bfloat16')} or {option('fp32_layers')}), else damaged weights or a damaged picture; "
    "star-export check names the first tensor that is not finite"
)


def next_tokens(logits: DeviceArray, samplers: Mapping[int, Sampler]) -> dict[int, int | None]:
    """The next token of each sequence.

    The logits leave the device only for samplers that are not greedy.

    Args:
        logits: float32 ``[B, vocab]``.
        samplers: By row of the logits.

    Returns:
        By row; None where the largest logit is not finite, whatever the sampler, or a schema allows
        no token: see :func:`no_token`. Minus infinity below a finite one is a probability of 0.
    """
    best = logits.argmax()
    choosing = [row for row, sampler in samplers.items() if best[row] >= 0 and not sampler.greedy]
    tokens: dict[int, int | None] = {row: int(best[row]) if best[row] >= 0 else None for row in samplers}
    if choosing:
        host = logits.numpy()
        tokens |= {row: samplers[row].choose(host[row]) for row in choosing}
    return tokens


def no_token(sampler: Sampler) -> StarExportError:
    """What to raise where :func:`next_tokens` gave None."""
    return sampler.refusal or NonFiniteError(_NOT_FINITE)
