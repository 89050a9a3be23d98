"""What is asked: pictures and prompts, checked and prepared for one bundle."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from star_export.answer.grammar import Grammar, Grammars, Schema
from star_export.answer.sampling import Sampler, Sampling
from star_export.answer.transcript import Transcript, check_stop
from star_export.bundle import PREPROCESSOR, TOKENIZER, Bundle
from star_export.errors import BundleError, InputError, SettingsError, counted, option
from star_export.preprocessing import (
    PreparedImage,
    TokenizedPrompt,
    load_image,
    prepare,
    read_preprocessing,
    read_tokenizer,
    render,
    tokenize,
)
from star_export.preprocessing.continuing import tokens_behind_answer
from star_export.preprocessing.conversation import (
    Conversation,
    Prompt,
    opening_turns,
    read_conversation,
)
from star_export.preprocessing.images import ImageInput
from star_export.preprocessing.prompts import end_token_ids
from star_export.specs import ExportSpec, ImageLimits, Keep, check_keep


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked request, ready to run.

    Attributes:
        images: The pictures, in the order of their places in the prompt.
        tokens: The prompt, by whose text after the last picture visual tokens are chosen.
        appended: Tokens behind it, which are no part of that choice.
        reprune: Whether all of a conversation is, so that nothing is appended.
        keep: Budgets of the stages, as far as these pictures have so many visual tokens.
        max_new_tokens: Tokens to generate at most.
        sampling: How the next token is chosen.
        stop: Strings that end the answer and are no part of it.
        end_token_ids: Tokens that end it, besides the bundle's own.
        grammar: What its text must be.
    """

    images: tuple[PreparedImage, ...]
    tokens: TokenizedPrompt
    keep: Keep | None
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    end_token_ids: tuple[int, ...] = ()
    appended: tuple[int, ...] = ()
    reprune: bool = True
    grammar: Grammar | None = None

    @property
    def room(self) -> int:
        """Tokens that the caches hold behind the prompt when the answer is as long as it may be."""
        return len(self.appended) + self.max_new_tokens

    def sampler(self) -> Sampler:
        """What chooses the tokens of one answer."""
        return Sampler(self.sampling, self.grammar.constraint() if self.grammar else None)


class Requests:
    """Makes requests of pictures and prompts; any thread may.

    Args:
        bundle: An opened bundle.

    Attributes:
        spec: What was exported.
        tokenizer: The model's.

    Raises:
        BundleError: If tokenizer or preprocessing parameters cannot be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.spec: ExportSpec = bundle.spec
        parameters = read_preprocessing(bundle.path(PREPROCESSOR), self.spec.model)
        self.image_spec, self.prompt_spec = parameters.image, parameters.prompt
        self.tokenizer = read_tokenizer(bundle.path(TOKENIZER), self.prompt_spec)
        try:
            self._added_ends = end_token_ids(self.prompt_spec.end_tokens, self.tokenizer)
        except SettingsError as error:
            raise BundleError(f"{bundle.path(PREPROCESSOR)} is damaged: {error.marked}") from error
        self._grammars = Grammars(self.tokenizer, self.spec.model.text.vocab_size)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the model's own, and those that the build added."""
        return (*self.spec.model.eos_token_ids, *self._added_ends)

    def request(
        self,
        image: ImageInput | Sequence[ImageInput],
        prompt: Prompt,
        *,
        keep: Keep | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        end_tokens: Sequence[str] = (),
        reprune: bool = True,
        schema: Schema | None = None,
    ) -> Request:
        """Check and prepare what a pipeline's ``generate`` or a scheduler runs; see there."""
        pictures = self.prepare(image)
        budget = self.budget(keep, pictures)
        tokens, appended = self.tokenize(prompt, pictures, keep=budget), tuple[int, ...]()
        if not reprune and not isinstance(prompt, str):
            tokens, appended = self._opened(prompt, tokens, pictures, budget)
        ends = end_token_ids(end_tokens, self.tokenizer)
        return Request(
            keep=budget,
            tokens=tokens,
            appended=appended,
            reprune=reprune,
            images=pictures,
            max_new_tokens=self.new_tokens(max_new_tokens),
            sampling=sampling or Sampling(),
            stop=check_stop(stop),
            end_token_ids=ends,
            grammar=self.grammar(schema, ends),
        )

    def grammar(self, schema: Schema | None, ends: Sequence[int] = ()) -> Grammar | None:
        """A JSON schema, compiled once; None for none.

        Args:
            schema: As :meth:`Pipeline.generate` takes it.
            ends: Tokens that end an answer, besides the bundle's own.

        Raises:
            InputError: If it is no JSON schema, too large, or of a kind that llguidance does not know.
            PlatformError: If llguidance is not installed.
        """
        return None if schema is None else self._grammars.grammar(schema, (*self.end_token_ids, *ends))

    def new_tokens(self, wanted: int | None) -> int:
        """Tokens of an answer, at most: ``wanted``, or what the caches have room for.

        Raises:
            SettingsError: If they have no room for ``wanted``.
        """
        most = self.spec.max_new_tokens
        if wanted is not None and not 1 <= wanted <= most:
            raise SettingsError(
                f"{option('max_new_tokens')} must be from 1 to {most}, got {wanted}; "
                f"for more, build the bundle with a larger {option('max_new_tokens')}"
            )
        return most if wanted is None else wanted

    def transcript(self, request: Request) -> Transcript:
        """An empty answer to a request."""
        return Transcript(
            self.tokenizer,
            eos_token_ids=(*self.end_token_ids, *request.end_token_ids),
            max_new_tokens=request.max_new_tokens,
            stop=request.stop,
        )

    def budget(self, keep: Keep | None, images: Sequence[PreparedImage] = ()) -> Keep | None:
        """Budgets for these pictures, or the largest ones: of the last stage, or as many as are asked for.

        Never more than come to a stage inside the decoder; None where there is no stage.

        Raises:
            SettingsError: If the bundle cannot serve ``keep``.
        """
        spec = self.spec
        if not spec.schedule and keep is not None:
            raise SettingsError(
                f"this bundle was built with {option('prune', False)}; {option('keep')} has no meaning for it"
            )
        if keep is not None:
            check_keep(spec.schedule, keep)
        asked = spec.asked(keep, sum(image.packing.tokens for image in images) or None)
        entering = sum(self.entering(images, asked)) or spec.max_visual_tokens
        inside = spec.budgets(asked, entering=entering)
        found = (*asked[: len(asked) - len(inside)], *inside)
        if isinstance(keep, tuple) or any(stage.share for stage in spec.decoder_stages[:-1]):
            return found
        return found[-1] if found else None

    def last_tokens(self, keep: Keep | None, images: Sequence[PreparedImage]) -> int:
        """Visual tokens that the last layers see of some pictures."""
        entering = sum(self.entering(images, keep))
        return (entering, *self.spec.budgets(keep, entering=entering))[-1]

    def entering(self, images: Sequence[PreparedImage], keep: Keep | None = None) -> list[int]:
        """Visual tokens of each picture when the decoder starts."""
        return [self.spec.entering(image.packing.tokens, image.packing.newlines, keep) for image in images]

    def prepare(self, image: ImageInput | Sequence[ImageInput]) -> tuple[PreparedImage, ...]:
        """Pictures as the vision graph takes them.

        Raises:
            InputError: If one cannot be read, or there are more, or larger ones, than the bundle takes.
        """
        sources, limits = as_list(image), self.spec.images
        if not sources:
            raise InputError("no picture is given; a question needs one at least")
        if len(sources) > limits.max_images:
            raise InputError(
                f"this bundle takes at most {counted(limits.max_images, 'picture')}, "
                f"got {len(sources)}; build it again with {option('max_images', len(sources))}"
            )
        prepared = prepare([load_image(source) for source in sources], self.image_spec, self.spec.model)
        check_limits(prepared, limits)
        return prepared

    def tokenize(
        self,
        prompt: Prompt,
        images: Sequence[PreparedImage],
        *,
        keep: Keep | None = None,
        tokens_per_image: Sequence[int] | None = None,
    ) -> TokenizedPrompt:
        """Token ids and positions of a prompt about some pictures.

        Args:
            prompt: As :meth:`generate` takes it.
            images: The pictures.
            keep: Budgets of the stages; the bundle's own by default.
            tokens_per_image: Visual tokens to make room for; what stage 1 keeps of each by default.

        Raises:
            InputError: If it is empty, too long, or has not one place for each picture.
        """
        text = render(prompt, self.prompt_spec, images=len(images))
        counts = self.entering(images, keep) if tokens_per_image is None else tokens_per_image
        tokens = tokenize(text, self.tokenizer, self.prompt_spec, tokens_per_image=counts)
        self._check_vocabulary(int(tokens.input_ids.max()))
        if tokens.text_tokens > self.spec.max_text_tokens:
            said = "prompt" if isinstance(prompt, str) or len(prompt) == 1 else "conversation"
            raise InputError(
                f"the {said} has {tokens.text_tokens} text tokens, "
                f"this bundle has room for {self.spec.max_text_tokens}; "
                f"shorten it or build it again with {option('max_text_tokens', tokens.text_tokens)}"
            )
        return tokens

    def _opened(
        self, prompt: Prompt, whole: TokenizedPrompt, images: Sequence[PreparedImage], keep: Keep | None
    ) -> tuple[TokenizedPrompt, tuple[int, ...]]:
        """A conversation up to the question that brought its last picture, and the tokens behind that.

        Nothing is behind it where the template writes a longer conversation in another way.
        """
        token = self.prompt_spec.image_token
        first = opening_turns(read_conversation(prompt, token, images=len(images)), token)
        tokens = self.tokenize(first, images, keep=keep)
        ids, length = whole.input_ids[0], tokens.input_ids.shape[1]
        if not np.array_equal(ids[:length], tokens.input_ids[0]):
            return whole, ()
        return tokens, tuple(ids[length:].tolist())

    def continued(self, conversation: Conversation) -> tuple[int, ...] | None:
        """Tokens that a conversation has behind its last answer; see :func:`tokens_behind_answer`."""
        tokens = tokens_behind_answer(conversation, self.tokenizer, self.prompt_spec)
        if tokens:
            self._check_vocabulary(max(tokens))
        return tokens

    def _check_vocabulary(self, largest: int) -> None:
        if largest >= self.spec.model.text.vocab_size:
            raise BundleError(
                f"{self.bundle.path(TOKENIZER)} gives token {largest}, the model has "
                f"{self.spec.model.text.vocab_size}; build the bundle again"
            )


def as_list(image: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """One picture or several, as several."""
    return list(image) if isinstance(image, list | tuple) else [image]  # type: ignore[list-item]


def check_limits(images: Sequence[PreparedImage], limits: ImageLimits) -> None:
    """Refuse pictures that a bundle has no room for.

    Raises:
        InputError: With the number to build for.
    """
    tiles, tokens = max(len(i.pixels) for i in images), sum(i.packing.tokens for i in images)
    if tiles > limits.max_tiles:
        raise InputError(
            f"a picture has {tiles} tiles, this bundle takes {limits.max_tiles}; "
            f"scale it down or build with {option('max_tiles', tiles)}"
        )
    if tokens > limits.max_image_tokens:
        raise InputError(
            f"the pictures have {tokens} visual tokens, this bundle has room for {limits.max_image_tokens}; "
            f"scale them down or build with {option('max_image_tokens', tokens)}"
        )
