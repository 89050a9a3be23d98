"""The three steps of an answer, and what they pass on to each other.

Vision, prefill with pruning, decode one token at a time: the same on every backend, and each can be
run alone, so that the parity check and the benchmark measure exactly what users run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from star_export import contract as names
from star_export.answer.choosing import next_tokens, no_token
from star_export.answer.sampling import Sampler, Sampling
from star_export.arrays import to_device_dtype
from star_export.contract import DECODE, PREFILL, VISION
from star_export.engines.session import Caches, DeviceArray, Int64, Session, Tensor, on_host
from star_export.errors import InputError
from star_export.preprocessing import PreparedImage, TokenizedPrompt
from star_export.preprocessing.packing import Packing, packed_index, packed_taps
from star_export.specs import DType, Keep

_GREEDY = Sampler(Sampling())
_OWN_CACHES = "give prefill caches of its own: caches=steps.session.allocate_caches()"


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
        caches: KV caches of every layer group.
        output: Logits after the last token, float32 ``[1, vocab]``, where the backend keeps them.
        kept: Prompt positions that each stage inside the decoder kept, int64 ``[1, S2]``.
        prompt_tokens: Prompt length before the first of them.
        lengths: int64 ``[groups]``, tokens in each group's caches.
        stale: Whether the caches hold it no more: another prefill filled them, or they were cleaned.
    """

    caches: Caches
    output: DeviceArray
    kept: tuple[DeviceArray, ...]
    prompt_tokens: int
    lengths: Int64
    stale: bool = False

    @property
    def position(self) -> int:
        """Position of the next token: as many are in the first group's caches."""
        return int(self.lengths[0])

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """float32 ``[vocab]`` after the last token, copied from the device at every use."""
        return self.output.numpy()[0]  # type: ignore[no-any-return]

    @cached_property
    def stage_positions(self) -> tuple[Int64, ...]:
        """Prompt positions that each stage kept ``[S2]``; to be read before the next prefill."""
        found = (kept.numpy()[0] for kept in self.kept)
        return tuple(positions[positions >= 0] for positions in found)

    @property
    def kept_positions(self) -> Int64:
        """Prompt positions that the last layers saw ``[S2]``; see :attr:`stage_positions`."""
        return self.stage_positions[-1] if self.kept else np.arange(self.prompt_tokens)

    def next_token(self, sampler: Sampler) -> int:
        """The token to append.

        Raises:
            NonFiniteError: If the logits are NaN or infinite; the caches are clean then.
            InputError: If the sampler's schema allows no token; likewise.
        """
        token = next_tokens(self.output, {0: sampler})[0]
        if token is None:
            if not self.stale:
                self.caches.zero()
                self.stale = True
            raise no_token(sampler)
        return token

    def best_token(self) -> int:
        """The most likely token, found on the device; ties go to the lower id.

        Raises:
            NonFiniteError: See :meth:`next_token`.
        """
        return self.next_token(_GREEDY)


class Steps:
    """The three graphs of a bundle on one session: see a picture, read a prompt, append a token.

    Args:
        session: The graphs, loaded by a backend.

    Attributes:
        spec: What was exported.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.spec = session, session.spec
        self._lengths_names = names.lengths_names(session.spec)
        self._states: WeakValueDictionary[int, DecodeState] = WeakValueDictionary()  # by id() of their caches
        self._own: tuple[tuple[int, ...], Caches] | None = None  # and the capacities that were asked for
        self._claim: object | None = None  # of the generation that runs in the own caches

    @contextmanager
    def claimed_caches(
        self, tokens: TokenizedPrompt, *, keep: Keep | None, new_tokens: int
    ) -> Iterator[Caches]:
        """The own caches for one generation; one that began before loses them."""
        self._claim = claim = object()
        try:
            yield self._caches(tokens, keep, new_tokens)
        finally:
            if self._claim is claim:
                self._claim = None

    def needed(self, tokens: TokenizedPrompt, *, keep: Keep | None, new_tokens: int) -> tuple[int, ...]:
        """Tokens in each layer group's caches when an answer of ``new_tokens`` is complete, at most."""
        visual = tokens.image_positions.shape[1]
        lengths = self.spec.lengths(tokens.input_ids.shape[1] - visual, visual, keep)
        return tuple(length + new_tokens for length in lengths)

    def _caches(self, tokens: TokenizedPrompt, keep: Keep | None, new_tokens: int | None) -> Caches:
        """KV caches of one sequence, for who has none of its own; what they held is stale if they are new."""
        needed = self.spec.capacities
        if new_tokens is not None:
            needed = self.needed(tokens, keep=keep, new_tokens=new_tokens)
        capacities = self.session.capacities(needed)
        if self._own is None or self._own[0] != capacities:
            if self._own and (before := self._states.get(id(self._own[1]))):
                before.stale = True
            self._own = None  # free before there are others
            self._own = capacities, self.session.allocate_caches(1, capacities)
        return self._own[1]

    def encode_image(
        self, image: PreparedImage, *, keep: Keep | None = None, stage1_keep: int | None = None
    ) -> VisionOutput:
        """Run the vision graph, without waiting for a GPU.

        Args:
            image: A picture.
            keep: Budgets of the stages, of which this one is the first; the bundle's own by default.
            stage1_keep: Visual tokens that stage 1 keeps, whatever the bundle's does.
        """
        feeds: dict[str, Any] = {names.PIXEL_VALUES: to_device_dtype(image.pixels, self.spec.dtype)}
        packing, tiled = image.packing, self.spec.model.tiling is not None
        if tiled:
            feeds |= self._packed(packing)
        if self.spec.stage1 is None:
            output = self.session.run(VISION, feeds)
            return VisionOutput(output[names.IMAGE_FEATURES], None, packing.tokens)
        count = stage1_keep or self.spec.entering(packing.tokens, packing.newlines, keep)
        if names.drops(self.spec):
            feeds[names.STAGE1_DROPS] = np.arange(packing.tokens - count)
        else:
            feeds[names.STAGE1_SLOTS] = np.arange(count)
        output = self.session.run(VISION, feeds)
        return VisionOutput(output[names.IMAGE_FEATURES], output[names.IMAGE_INDICES], count)

    def encode_images(
        self, images: Sequence[PreparedImage], keep: Keep | None = None
    ) -> tuple[VisionOutput, ...]:
        """Run the vision graph on each picture; what it gives for several is copied to the host."""
        if len(images) == 1:
            return (self.encode_image(images[0], keep=keep),)
        return tuple(self.encode_image(image, keep=keep).copied(self.spec.dtype) for image in images)

    def _packed(self, packing: Packing) -> dict[str, Any]:
        """The inputs that say what becomes of a cut picture's patches."""
        model = self.spec.model
        if model.tiling is None or model.tiling.max_grid is None:
            return {names.PACKED_INDEX: packed_index(packing, model.vision)}
        index, weights = packed_taps(packing, model.vision)
        return {names.PACKED_INDEX: index, names.PACKED_WEIGHTS: weights}

    def prefill(
        self,
        tokens: TokenizedPrompt,
        *visions: VisionOutput,
        keep: Keep | None = None,
        caches: Caches | None = None,
        new_tokens: int | None = None,
    ) -> DecodeState:
        """Run the prefill graph; fills the caches from index 0.

        It does not wait for a GPU, unless the last stage adapts how much it keeps. A prompt without a picture
        is run through decode, into empty caches: the graph has no size 0.

        Args:
            tokens: The prompt, with as many image positions as there are features.
            visions: Features of each picture; those of several in host memory.
            keep: Visual tokens after the last stage, or after every one; the bundle's own by default.
            caches: KV caches of one sequence; the own ones by default.
            new_tokens: How many more the own ones have room for; by default as many as a bundle's may.

        Returns:
            The sequence; the one that the caches held before is ``stale``.

        Raises:
            InputError: If a generation is running in the own caches.
        """
        if caches is None:
            if self._claim is not None:
                raise InputError(
                    f"a generation is running in these KV caches; finish it or close() it, or {_OWN_CACHES}"
                )
            caches = self._caches(tokens, keep, new_tokens)
        if before := self._states.get(id(caches)):
            before.stale = True
        state = self._read(tokens, visions, keep, caches) if visions else self._read_text(tokens, caches)
        self._states[id(caches)] = state
        return state

    def _read(
        self, tokens: TokenizedPrompt, visions: Sequence[VisionOutput], keep: Keep | None, caches: Caches
    ) -> DecodeState:
        length, visual = tokens.input_ids.shape[1], tokens.image_positions.shape[1]
        feeds: dict[str, Any] = {
            names.INPUT_IDS: tokens.input_ids,
            names.IMAGE_FEATURES: _side_by_side(visions),
            names.IMAGE_POSITIONS: tokens.image_positions,
        }
        if self.spec.decoder_stages:
            feeds[names.QUERY_POSITIONS] = tokens.query_positions
        budgets = self.spec.budgets(keep, entering=visual)
        for slots, budget in zip(names.decoder_slots(self.spec), budgets, strict=True):
            feeds[slots] = np.arange(budget)
        output = self.session.run(PREFILL, feeds, caches)
        kept = tuple(output[name] for name in names.kept_names(self.spec))
        lengths = np.array(self.spec.lengths(length - visual, visual, keep))
        if self.spec.adapts:  # how many it kept, only the graph knows
            lengths[-1] = (kept[-1].numpy() >= 0).sum()
        return DecodeState(caches, output[names.LOGITS], kept, length, lengths)

    def _read_text(self, tokens: TokenizedPrompt, caches: Caches) -> DecodeState:
        ids = tuple(tokens.input_ids[0].tolist())
        state = self.resume(caches, np.zeros(len(self.spec.groups), np.int64), ids[: self.spec.append_tokens])
        state.prompt_tokens = len(ids)
        self.decode(state, *ids[self.spec.append_tokens :])
        return state

    def resume(self, caches: Caches, lengths: Int64, tokens: tuple[int, ...]) -> DecodeState:
        """Go on with a sequence that caches hold.

        Args:
            caches: KV caches of one sequence.
            lengths: int64 ``[groups]``, tokens in each group's.
            tokens: What to append, one at least, as many as decode takes at once at most.

        Returns:
            The sequence; what its stages kept is not known.
        """
        output = self.decode_batch(caches, np.array([tokens]), lengths[:, None])
        return DecodeState(caches, output, (), int(lengths[0]), lengths + len(tokens))

    def decode(self, state: DecodeState, *tokens: int) -> None:
        """Append tokens to a sequence and update its logits.

        Raises:
            InputError: If its caches hold it no more.
        """
        if state.stale:
            raise InputError(
                "another generation or prefill took the KV caches of this sequence, or they were cleaned "
                f"after logits that were not finite; finish one before the next, or {_OWN_CACHES}"
            )
        for some in batched(tokens, self.spec.append_tokens):
            state.output = self.decode_batch(state.caches, np.array([some]), state.lengths[:, None])
            state.lengths = state.lengths + len(some)

    def decode_batch(self, caches: Caches, tokens: Int64, lengths: Int64) -> DeviceArray:
        """Append tokens to each of ``B`` sequences.

        Args:
            caches: Their KV caches.
            tokens: int64 ``[B]`` or ``[B, C]``.
            lengths: int64 ``[groups, B]``, tokens in each group's caches; the first group holds every
                token, so that its lengths are the positions of the first new ones.

        Returns:
            Logits after the last, float32 ``[B, vocab]``.
        """
        tokens = tokens.reshape(lengths.shape[1], -1)
        positions = lengths[0][:, None] + np.arange(tokens.shape[1])
        feeds = {names.INPUT_IDS: tokens, names.POSITION_IDS: positions}
        feeds |= zip(self._lengths_names, lengths, strict=True)
        return self.session.run(DECODE, feeds, caches)[names.LOGITS]


def _side_by_side(visions: Sequence[VisionOutput]) -> Tensor:
    """Features of all pictures, ``[1, V, C]``."""
    first, *others = (vision.features for vision in visions)
    return np.concatenate([first, *others], axis=1) if others else first


def batched(values: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    """``size`` values at a time; the last time what is left."""
    return (values[first : first + size] for first in range(0, len(values), size))
