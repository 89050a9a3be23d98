"""A conversation whose KV caches stay between its turns."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from weakref import ref

from PIL.Image import Image

from star_export.answer.generation import (
    Clock,
    Generation,
    Opening,
    Result,
    Timings,
    answer_pieces,
    open_answer,
)
from star_export.answer.grammar import Schema
from star_export.answer.request import Request, Requests, as_list
from star_export.answer.sampling import Sampler, Sampling
from star_export.answer.steps import Steps, VisionOutput
from star_export.answer.transcript import Transcript
from star_export.engines.session import Caches, resizable_capacities
from star_export.preprocessing import PreparedImage, load_image
from star_export.preprocessing.conversation import IMAGE, Conversation, Turn, read_conversation
from star_export.preprocessing.images import ImageInput
from star_export.preprocessing.prompts import end_token_ids
from star_export.specs import Keep


@dataclass(frozen=True, kw_only=True)
class ChatStats:
    """What a conversation holds.

    Attributes:
        turns: Turns of user and model.
        images: Pictures in them.
        image_tokens: Visual tokens of these before any is pruned.
        lengths: Tokens in each layer group's caches.
        bytes: Bytes of these.
        unpruned_bytes: Bytes if no visual token had been dropped.
        prefills: How often all of it was read.
        timings_ms: Of the last whole answer; None before there is one.
    """

    turns: int
    images: int
    image_tokens: int
    lengths: tuple[int, ...]
    bytes: int
    unpruned_bytes: int
    prefills: int
    timings_ms: Timings | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Held:
    """What the caches hold: a request that was prefilled, and what was appended since.

    Attributes:
        request: What was prefilled.
        asked: Its turns.
        opening: Of the last answer.
        pending: The end of that answer, which the caches do not hold.
    """

    request: Request
    asked: Conversation
    opening: Opening
    pending: tuple[int, ...] = ()


class Chat:
    """Questions and answers about pictures, one after the other; made by :meth:`Pipeline.chat`.

    A question is appended to the caches of the answer before it. All of the conversation is read
    anew, and which visual tokens stay is decided anew, by a question that brings a picture, after
    :attr:`keep` was changed, with ``reprune``, and where the chat template writes a longer conversation in
    another way or the caches have no room; the answers are then tokens of their texts.

    A turn that fails leaves everything as it was before. An answer that is not wanted to its end, by
    :meth:`Generation.close`, Ctrl-C or the next question, stays in the conversation as far as it came.

    Example:
        >>> chat = pipeline.chat(images=["dog.png"])
        >>> print(chat.send("What is this?").result().text)
        >>> print(chat.send("And this?", images=["cat.png"]).result().text)

    Args:
        requests: Makes the requests.
        steps: The graphs that answer them.
        messages: See :meth:`Pipeline.chat`, as for the others.
    """

    def __init__(
        self,
        requests: Requests,
        steps: Steps,
        messages: Sequence[Turn | Mapping[str, Any]] = (),
        *,
        images: ImageInput | Sequence[ImageInput],
        keep: Keep | None,
        reprune: bool,
        max_new_tokens: int | None,
        sampling: Sampling | None,
        end_tokens: Sequence[str],
    ) -> None:
        self._requests, self._steps, self.reprune = requests, steps, reprune
        self._limit = requests.new_tokens(max_new_tokens)
        self._sampling = sampling or Sampling()
        self._ends = end_token_ids(end_tokens, requests.tokenizer)
        self._turns: Conversation = ()
        self._pictures: tuple[Image, ...] = ()  # as they came: how they are cut depends on how many there are
        self._attached: tuple[Image, ...] = ()
        self._prepared: tuple[PreparedImage, ...] = ()
        self._seen: tuple[tuple[PreparedImage, ...], list[int], tuple[VisionOutput, ...]] = (), [], ()
        self._held: _Held | None = None
        self._caches: Caches | None = None
        self._capacities: tuple[int, ...] = ()  # of these
        self._prefills = 0
        self._timings: Timings | None = None
        self._last: ref[Generation] | None = None
        for image in as_list(images):
            self.attach(image)
        if messages:
            asking = [*messages, Turn("user", ("?",))]
            self._turns = read_conversation(asking, self._image_token, images=len(self._attached))[:-1]
            self._pictures, self._attached = self._attached, ()
            self._prepared = requests.prepare(self._pictures) if self._pictures else ()
        self.keep = keep

    @property
    def keep(self) -> Keep | None:
        """Visual tokens of all pictures after the last stage; when changed, the next question prunes anew.

        Raises:
            SettingsError: When set to what the bundle cannot serve.
        """
        return self._keep

    @keep.setter
    def keep(self, keep: Keep | None) -> None:
        self._requests.budget(keep)
        self._keep = keep

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as plain JSON values, which :meth:`Pipeline.chat` takes."""
        return [{"role": turn.role, "content": turn.parts} for turn in self._turns]

    @property
    def images(self) -> tuple[Image, ...]:
        """Its pictures, in the order of their places."""
        return self._pictures

    @property
    def asked(self) -> Conversation:
        """The turns that decided which visual tokens the caches hold; none before the first answer."""
        return self._held.asked if self._held else ()

    def attach(self, image: ImageInput) -> None:
        """Add a picture to the next question.

        Raises:
            InputError: If it cannot be read, or the bundle has no room for it.
        """
        attached = (*self._attached, load_image(image))
        self._requests.prepare([*self._pictures, *attached])
        self._attached = attached

    def send(
        self, question: str, *, images: ImageInput | Sequence[ImageInput] = (), schema: Schema | None = None
    ) -> Generation:
        """Ask the next question; the answer is in the conversation as far as it is iterated.

        Args:
            question: Text; ``<image>`` in it says where a picture stands.
            images: Its pictures; they open the question where it does not say where they stand.
            schema: What the answer must be, as :meth:`Pipeline.generate` takes it.

        Raises:
            InputError: If it or the schema cannot be used, or the conversation outgrows the bundle.
        """
        if self._last and (last := self._last()):
            last.close()
        new = (*self._attached, *map(load_image, as_list(images)))
        pictures = (*self._pictures, *new)
        places = () if self._image_token in question else (IMAGE,) * len(new)
        asked = read_conversation(
            (*self._turns, Turn("user", (*places, question))), self._image_token, images=len(pictures)
        )
        tokens = None if new or self.reprune else self._appended(asked)
        if tokens is None or self._held is None:
            prepared = self._requests.prepare(pictures) if new or not pictures else self._prepared
            request, held = self._request(asked, prepared), None
        else:
            request, held = self._held.request, self._held
        request = replace(request, grammar=self._requests.grammar(schema, self._ends))
        generation = Generation(self._run(asked, pictures, request, held, tokens or ()))
        self._last = ref(generation)
        return generation

    def stats(self) -> ChatStats:
        """What it holds now."""
        spec = self._requests.spec
        image_tokens = sum(image.packing.tokens for image in self._prepared)
        entered = sum(self._requests.entering(self._prepared, self._keep))
        lengths = self._held.opening.state.lengths.tolist() if self._held else [0] * len(spec.groups)
        unpruned = lengths[0] + image_tokens - entered if self._held else 0
        return ChatStats(
            turns=len(self._turns),
            images=len(self._pictures),
            image_tokens=image_tokens,
            lengths=tuple(lengths),
            bytes=spec.sequence_bytes(lengths),
            unpruned_bytes=spec.kv_bytes(unpruned, spec.model.text.num_layers),
            prefills=self._prefills,
            timings_ms=self._timings,
        )

    @property
    def _image_token(self) -> str:
        return self._requests.prompt_spec.image_token

    def _room(self, needed: Sequence[int]) -> Caches:
        """The caches with room for so many tokens of each layer group; longer ones hold what these held."""
        session, caches = self._steps.session, self._caches
        capacities = resizable_capacities(session, needed)
        self._caches = None  # should this fail, the next turn has others
        if caches is None:
            caches = session.allocate_caches(1, capacities)
        else:
            capacities = tuple(map(max, capacities, self._capacities))
            if capacities != self._capacities:
                session.resize_caches(caches, 1, capacities, rows=[0])
        self._caches, self._capacities = caches, capacities
        return caches

    def _request(self, asked: Conversation, images: tuple[PreparedImage, ...]) -> Request:
        """All of the conversation."""
        budget = self._requests.budget(self._keep, images)
        return Request(
            images=images,
            tokens=self._requests.tokenize(asked, images, keep=budget),
            keep=budget,
            max_new_tokens=self._limit,
            sampling=self._sampling,
            end_token_ids=self._ends,
        )

    def _appended(self, asked: Conversation) -> tuple[int, ...] | None:
        """What the caches do not hold of a conversation; None if they cannot go on with it."""
        held = self._held
        if held is None or held.request.keep != self._requests.budget(self._keep, held.request.images):
            return None
        behind = self._requests.continued(asked)
        if behind is None:
            return None
        tokens = (*held.pending, *behind)
        needed = held.opening.state.lengths + len(tokens) + self._limit
        return tokens if (needed <= self._requests.spec.capacities).all() else None

    def _run(
        self,
        asked: Conversation,
        pictures: tuple[Image, ...],
        request: Request,
        held: _Held | None,
        tokens: tuple[int, ...],
    ) -> Generator[str, None, Result]:
        transcript, sampler, clock = self._requests.transcript(request), request.sampler(), Clock()
        self._held = None  # until the answer is known: after an error all is read anew
        if held is None:
            held = self._prefilled(asked, request, sampler, clock)
        else:
            held = replace(held, opening=self._continued(held.opening, tokens, sampler, clock))
        try:
            result = yield from answer_pieces(self._steps, held.opening, sampler, transcript, clock)
        except (GeneratorExit, KeyboardInterrupt):
            transcript.finish()
            self._keep_turns(asked, pictures, held, transcript)
            raise
        self._keep_turns(asked, pictures, held, transcript)
        self._timings = result.timings_ms
        return result

    def _prefilled(self, asked: Conversation, request: Request, sampler: Sampler, clock: Clock) -> _Held:
        entering = self._requests.entering(request.images, request.keep)
        if request.images is not self._seen[0] or entering != self._seen[1]:
            visions = self._steps.encode_images(request.images, request.keep)
            copies = tuple(vision.copied(self._steps.spec.dtype) for vision in visions)
            self._seen = request.images, entering, copies
        needed = self._steps.needed(request.tokens, keep=request.keep, new_tokens=request.max_new_tokens)
        opening = open_answer(self._steps, request, self._seen[2], self._room(needed), sampler, clock)
        self._prefills += 1
        return _Held(request=request, asked=asked, opening=opening)

    def _continued(
        self, opening: Opening, tokens: tuple[int, ...], sampler: Sampler, clock: Clock
    ) -> Opening:
        state = opening.state
        self._room((state.lengths + len(tokens) + self._limit).tolist())
        self._steps.decode(state, *tokens)
        length, first = state.position, state.next_token(sampler)
        return replace(opening, first=first, prompt_tokens=length, vision_ms=0.0, prefill_ms=clock.lap())

    def _keep_turns(
        self, asked: Conversation, pictures: tuple[Image, ...], held: _Held, transcript: Transcript
    ) -> None:
        """Make a question and its answer part of the conversation."""
        fed = held.opening.state.position - held.opening.prompt_tokens
        pending = transcript.token_ids[fed:]
        if pending and pending[-1] in (*self._requests.end_token_ids, *self._ends):
            pending.pop()  # the template's text brings it, or has none
        said = transcript.text.replace(self._image_token, "")  # spelled by the model: no place of a picture
        self._turns = (*asked, Turn("assistant", (said,)))
        self._pictures, self._prepared = pictures, held.request.images
        self._attached = tuple(a for a in self._attached if all(a is not picture for picture in pictures))
        self._held = replace(held, pending=tuple(pending))
