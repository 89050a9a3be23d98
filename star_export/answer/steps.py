"""What the steps of a generation pass on to each other."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from star_export.answer.sampling import NOT_FINITE, Sampler, Sampling, next_tokens
from star_export.dtypes import to_device_dtype
from star_export.engines.session import Caches, DeviceArray, Int64, Tensor, on_host
from star_export.errors import NonFiniteError
from star_export.specs import DType

_GREEDY = Sampler(Sampling())


@dataclass(frozen=True)
class VisionOutput:
    """What the vision graph gives.

    Attributes:
        features: Projected visual tokens ``[1, N1, C]``, where the backend keeps them or on the host.
        kept: int64 ``[1, N1]``, the patches that stage 1 kept; None unpruned.
        num_tokens: ``N1``, or all patches unpruned.
    """

    features: Tensor
    kept: Tensor | None
    num_tokens: int

    def copied(self, dtype: DType) -> "VisionOutput":
        """A copy in host memory, valid for ever; ``dtype`` is the bundle's."""
        features = to_device_dtype(on_host(self.features), dtype)
        return VisionOutput(features, None if self.kept is None else on_host(self.kept), self.num_tokens)

    @cached_property
    def indices(self) -> Int64:
        """Kept patches ``[N1]``; waits for the vision graph when read first, before its next run."""
        if self.kept is None:
            return np.arange(self.num_tokens)
        return on_host(self.kept)[0]  # type: ignore[no-any-return]


@dataclass
class DecodeState:
    """One sequence between prefill and its last token.

    Attributes:
        caches: KV caches of both layer groups.
        output: Logits after the last token, float32 ``[1, vocab]``, where the backend keeps them.
        kept: int64 ``[1, S2]``, prompt positions that the late layers saw; None unpruned.
        prompt_tokens: Prompt length before stage 2.
        position: Position of the next token.
        late_length: Tokens in the late layers' caches; the early layers hold ``position``.
        stale: Whether the caches hold it no more: another prefill filled them, or they were cleaned.
    """

    caches: Caches
    output: DeviceArray
    kept: DeviceArray | None
    prompt_tokens: int
    position: int
    late_length: int
    stale: bool = False

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """float32 ``[vocab]`` after the last token, copied from the device at every use."""
        return self.output.numpy()[0]  # type: ignore[no-any-return]

    @cached_property
    def kept_positions(self) -> Int64:
        """Prompt positions that the late layers saw ``[S2]``; to be read before the next prefill."""
        if self.kept is None:
            return np.arange(self.prompt_tokens)
        return self.kept.numpy()[0]  # type: ignore[no-any-return]

    def next_token(self, sampler: Sampler) -> int:
        """The token to append.

        Raises:
            NonFiniteError: If the logits are NaN or infinite; the caches are clean then.
        """
        token = next_tokens(self.output, {0: sampler})[0]
        if token is None:
            if not self.stale:
                self.caches.zero()
                self.stale = True
            raise NonFiniteError(NOT_FINITE)
        return token

    def best_token(self) -> int:
        """The most likely token, found on the device; ties go to the lower id.

        Raises:
            NonFiniteError: See :meth:`next_token`.
        """
        return self.next_token(_GREEDY)
