"""Generation: a picture and a prompt in, text out.

The same three steps on every backend: vision, prefill with pruning, decode one
token at a time. The steps are separate methods, so that the parity check and
the benchmark measure exactly what users run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from star_export import contract as names
from star_export.answer.generation import Generation, Request
from star_export.answer.sampling import Sampling
from star_export.answer.steps import DecodeState, VisionOutput
from star_export.answer.transcript import check_stop
from star_export.bundle import PREPROCESSOR, TOKENIZER, Bundle, open_bundle
from star_export.contract import DECODE, PREFILL, VISION
from star_export.dtypes import to_device_dtype
from star_export.engines import open_session
from star_export.engines.session import Caches, DeviceArray, Int64, Session
from star_export.errors import BundleError, InputError, SettingsError
from star_export.preprocessing import (
    TokenizedPrompt,
    load_image,
    pixel_values,
    read_preprocessing,
    read_tokenizer,
    render,
    tokenize,
)
from star_export.preprocessing.images import ImageInput
from star_export.preprocessing.prompts import end_token_ids
from star_export.specs import ExportSpec, check_keep

_OWN_CACHES = "give prefill caches of its own: caches=pipeline.session.allocate_caches()"


class Pipeline:
    """A loaded bundle.

    Example:
        >>> pipeline = star_export.load("bundle")
        >>> for piece in pipeline.generate("dog.png", "What is this?"):
        ...     print(piece, end="", flush=True)

    Args:
        bundle: An opened bundle.
        session: Its graphs, loaded by a backend.

    Raises:
        BundleError: If tokenizer or preprocessing parameters cannot be read.
    """

    def __init__(self, bundle: Bundle, session: Session) -> None:
        self.bundle, self.session = bundle, session
        self.spec: ExportSpec = bundle.spec
        parameters = read_preprocessing(bundle.path(PREPROCESSOR), self.spec.model)
        self.image_spec, self.prompt_spec = parameters.image, parameters.prompt
        self.tokenizer = read_tokenizer(bundle.path(TOKENIZER), self.prompt_spec)
        try:
            self._added_ends = end_token_ids(self.prompt_spec.end_tokens, self.tokenizer)
        except SettingsError as error:
            raise BundleError(f"{bundle.path(PREPROCESSOR)} is damaged: {error}") from error
        self._states: WeakValueDictionary[int, DecodeState] = WeakValueDictionary()  # by id() of their caches
        self._claim: object | None = None  # of the generation that runs in the own caches

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the model's own, and those that the build added."""
        return (*self.spec.model.eos_token_ids, *self._added_ends)

    @cached_property
    def _caches(self) -> Caches:
        """KV caches of the one sequence that :meth:`generate` works on."""
        return self.session.allocate_caches()

    @contextmanager
    def claimed_caches(self) -> Iterator[Caches]:
        """This pipeline's own caches for one generation; one that began before loses them."""
        self._claim = claim = object()
        try:
            yield self._caches
        finally:
            if self._claim is claim:
                self._claim = None

    def generate(
        self,
        image: ImageInput | Sequence[ImageInput],
        prompt: str,
        *,
        keep: int | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        end_tokens: Sequence[str] = (),
    ) -> Generation:
        """Answer a prompt about a picture.

        Args:
            image: A path, encoded bytes or a PIL image (a list may hold one).
            prompt: The question, or a whole prompt that contains ``<image>``.
            keep: Visual tokens after stage 2; the bundle's own by default.
            max_new_tokens: Tokens to generate at most; what the caches hold by default.
            sampling: Greedy by default.
            stop: Strings that end the answer and are no part of it.
            end_tokens: Tokens that end it, besides the bundle's own, such as ``<|eot_id|>``.

        Returns:
            An iterator over pieces of text, whose :meth:`Generation.result` is the whole.
            One at a time, since the KV caches are shared: one that is not finished when the
            next begins raises InputError when it goes on, and one whose logits are NaN or infinite
            raises NonFiniteError; the next is not affected.

        Raises:
            InputError: If the picture or the prompt cannot be used.
            SettingsError: If a number is out of range, or an end token is unknown.
        """
        request = self.request(
            image,
            prompt,
            keep=keep,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            end_tokens=end_tokens,
        )
        return Generation(self, request)

    def request(
        self,
        image: ImageInput | Sequence[ImageInput],
        prompt: str,
        *,
        keep: int | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        end_tokens: Sequence[str] = (),
    ) -> Request:
        """Check and prepare what :meth:`generate` or a scheduler runs; see there. Any thread may."""
        limit = self.spec.max_new_tokens if max_new_tokens is None else max_new_tokens
        if not 1 <= limit <= self.spec.max_new_tokens:
            raise SettingsError(
                f"--max-new-tokens must be from 1 to {self.spec.max_new_tokens}, got {limit}; "
                "for more, build the bundle with a larger --max-new-tokens"
            )
        return Request(
            keep=self.budget(keep),
            tokens=self.tokenize(prompt),
            pixels=pixel_values(load_image(_only(image)), self.image_spec),
            max_new_tokens=limit,
            sampling=sampling or Sampling(),
            stop=check_stop(stop),
            end_token_ids=end_token_ids(end_tokens, self.tokenizer),
        )

    def budget(self, keep: int | None) -> int:
        """Visual tokens after stage 2 for a request.

        Raises:
            SettingsError: If the bundle cannot serve ``keep``.
        """
        star = self.spec.star
        if star is None:
            if keep is not None:
                raise SettingsError("this bundle was built with --no-prune; --keep has no meaning for it")
            return self.spec.image_tokens
        budget = star.keep if keep is None else keep
        check_keep(star, budget)
        return budget

    def tokenize(self, prompt: str, *, image_tokens: int | None = None) -> TokenizedPrompt:
        """Token ids and positions of a prompt with one image.

        Args:
            prompt: As the user typed it.
            image_tokens: Visual tokens to make room for; what stage 1 keeps by default.

        Raises:
            InputError: If it is empty, too long, or has not exactly one image.
        """
        text = render(prompt, self.prompt_spec)
        count = self.spec.image_tokens if image_tokens is None else image_tokens
        tokens = tokenize(text, self.tokenizer, self.prompt_spec, tokens_per_image=count)
        if (largest := int(tokens.input_ids.max())) >= self.spec.model.text.vocab_size:
            raise BundleError(
                f"{self.bundle.path(TOKENIZER)} gives token {largest}, the model has "
                f"{self.spec.model.text.vocab_size}; build the bundle again"
            )
        if tokens.text_tokens > self.spec.max_text_tokens:
            raise InputError(
                f"the prompt has {tokens.text_tokens} text tokens, "
                f"this bundle has room for {self.spec.max_text_tokens}; "
                f"shorten it or rebuild with --max-text-tokens {tokens.text_tokens}"
            )
        return tokens

    def encode_image(
        self, pixels: npt.NDArray[np.float32], *, stage1_keep: int | None = None
    ) -> VisionOutput:
        """Run the vision graph, without waiting for a GPU.

        Args:
            pixels: float32 ``[1, 3, H, W]``.
            stage1_keep: Patches that stage 1 keeps, instead of the bundle's ``N1``.
        """
        feeds = {names.PIXEL_VALUES: to_device_dtype(pixels, self.spec.dtype)}
        if self.spec.star is None:
            output = self.session.run(VISION, feeds)
            return VisionOutput(output[names.IMAGE_FEATURES], None, self.spec.image_tokens)
        count = self.spec.star.stage1_keep if stage1_keep is None else stage1_keep
        feeds[names.STAGE1_SLOTS] = np.arange(count)
        output = self.session.run(VISION, feeds)
        return VisionOutput(output[names.IMAGE_FEATURES], output[names.IMAGE_INDICES], count)

    def prefill(
        self,
        tokens: TokenizedPrompt,
        vision: VisionOutput,
        *,
        keep: int | None = None,
        caches: Caches | None = None,
    ) -> DecodeState:
        """Run the prefill graph, without waiting for a GPU; fills the caches from index 0.

        Args:
            tokens: The prompt, with as many image positions as there are features.
            vision: Features of the picture.
            keep: Visual tokens after stage 2; the bundle's own by default.
            caches: KV caches of one sequence; this pipeline's own by default.

        Returns:
            The sequence; the one that the caches held before is ``stale``.

        Raises:
            InputError: If a generation is running in this pipeline's own caches.
        """
        if caches is None:
            if self._claim is not None:
                raise InputError(
                    "a generation is running in this pipeline's KV caches; finish it or close() it, "
                    f"or {_OWN_CACHES}"
                )
            caches = self._caches
        if before := self._states.get(id(caches)):
            before.stale = True
        length = tokens.input_ids.shape[1]
        feeds: dict[str, Any] = {
            names.INPUT_IDS: tokens.input_ids,
            names.IMAGE_FEATURES: vision.features,
            names.IMAGE_POSITIONS: tokens.image_positions,
        }
        late_length = length
        if self.spec.star is not None:
            budget = self.spec.star.keep if keep is None else keep
            feeds[names.QUERY_POSITIONS] = tokens.query_positions
            feeds[names.STAGE2_SLOTS] = np.arange(budget)
            late_length += budget - tokens.image_positions.shape[1]
        output = self.session.run(PREFILL, feeds, caches)
        state = self._states[id(caches)] = DecodeState(
            caches, output[names.LOGITS], output.get(names.KEPT_POSITIONS), length, length, late_length
        )
        return state

    def decode(self, state: DecodeState, token: int) -> None:
        """Append ``token`` to a sequence and update its logits.

        Raises:
            InputError: If its caches hold it no more.
        """
        if state.stale:
            raise InputError(
                "another generation or prefill took the KV caches of this sequence, or they were cleaned "
                f"after logits that were not finite; finish one before the next, or {_OWN_CACHES}"
            )
        lengths = np.array([state.position]), np.array([state.late_length])
        state.output = self.decode_batch(state.caches, np.array([token]), *lengths)
        state.position += 1
        state.late_length += 1

    def decode_batch(
        self, caches: Caches, tokens: Int64, positions: Int64, late_lengths: Int64
    ) -> DeviceArray:
        """Append a token to each of ``B`` sequences.

        Args:
            caches: Their KV caches.
            tokens: int64 ``[B]``.
            positions: int64 ``[B]``, of these tokens; as many are in the early layers' caches.
            late_lengths: int64 ``[B]``, tokens in the late layers' caches.

        Returns:
            Logits, float32 ``[B, vocab]``.
        """
        feeds = {
            names.INPUT_IDS: tokens[:, None],
            names.POSITION_IDS: positions[:, None],
            names.EARLY_LENGTHS: positions,
        }
        if self.spec.star is not None:
            feeds[names.LATE_LENGTHS] = late_lengths
        return self.session.run(DECODE, feeds, caches)[names.LOGITS]


def load(
    folder: str | Path,
    *,
    backend: str = "onnxruntime",
    threads: int | None = None,
    plugin_library: Path | None = None,
    verify: bool = False,
) -> Pipeline:
    """Open a bundle, ready to answer.

    Args:
        folder: A bundle made by ``star-export build``.
        backend: What runs the graphs.
        threads: CPU threads; all cores by default.
        plugin_library: The plugin library of TensorRT engines that were built with one.
        verify: Hash every file first, the weights too.

    Raises:
        BundleError: If the bundle is missing, damaged, unsafe or too new.
        SettingsError: If the backend is unknown.
        PlatformError: If this machine lacks what the backend needs.
    """
    bundle = open_bundle(folder, verify=verify)
    session = open_session(bundle, backend, threads=threads, plugin_library=plugin_library)
    return Pipeline(bundle, session)


def _only(image: ImageInput | Sequence[ImageInput]) -> ImageInput:
    if isinstance(image, list | tuple):
        if len(image) != 1:
            raise InputError(f"this bundle takes exactly one image, got {len(image)}")
        return image[0]
    return image  # type: ignore[return-value]
