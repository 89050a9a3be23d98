"""What is asked, checked and prepared."""

from dataclasses import dataclass

from star_export.answer.sampling import Sampling
from star_export.preprocessing import PreparedImage, TokenizedPrompt


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked request, ready to run.

    Attributes:
        images: The pictures, in the order of their places in the prompt.
        tokens: The prompt.
        keep: Visual tokens of all pictures after the last stage.
        max_new_tokens: Tokens to generate at most.
        sampling: How the next token is chosen.
        stop: Strings that end the answer and are no part of it.
        end_token_ids: Tokens that end it, besides the bundle's own.
    """

    images: tuple[PreparedImage, ...]
    tokens: TokenizedPrompt
    keep: int
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    end_token_ids: tuple[int, ...] = ()
