"""What is asked, checked and prepared."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from star_export.answer.sampling import Sampling
from star_export.preprocessing import TokenizedPrompt


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked request, ready to run.

    Attributes:
        pixels: float32 ``[1, 3, H, W]``.
        tokens: The prompt.
        keep: Visual tokens after stage 2.
        max_new_tokens: Tokens to generate at most.
        sampling: How the next token is chosen.
        stop: Strings that end the answer and are no part of it.
        end_token_ids: Tokens that end it, besides the bundle's own.
    """

    pixels: npt.NDArray[np.float32]
    tokens: TokenizedPrompt
    keep: int
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    end_token_ids: tuple[int, ...] = ()
