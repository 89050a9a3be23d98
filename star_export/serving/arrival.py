"""A request on its way into a slot, piece by piece, and the thread in which that happens beside decode."""

from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

from star_export.answer.generation import kept_tokens
from star_export.answer.pipeline import Pipeline
from star_export.answer.steps import DecodeState, Steps, VisionOutput
from star_export.engines.session import Caches
from star_export.preprocessing import PreparedImage
from star_export.serving.features import FeatureCache
from star_export.serving.prefixes import Prefix, PrefixCache
from star_export.serving.ticket import Ticket
from star_export.specs import Keep


class Arrival:
    """What is done for a request before it is decoded: pictures, one by one, prompt, what is appended to it.

    Of a conversation whose caches were kept, only what they do not hold is appended.

    Args:
        ticket: The request; it has a slot.
        caches: That slot's.
        pipeline: What answers it.
        steps: The same graphs, of the session that is used here.
        features: Features of pictures that were seen before.
        prefixes: Conversations that were answered before.

    Attributes:
        state: Its sequence, as far as it is in the caches.
    """

    def __init__(
        self,
        ticket: Ticket,
        caches: Caches,
        *,
        pipeline: Pipeline,
        steps: Steps,
        features: FeatureCache,
        prefixes: PrefixCache,
    ) -> None:
        self.ticket, self._caches = ticket, steps.session.borrow(caches)
        self._pipeline, self._steps, self._features = pipeline, steps, features
        self._visions: list[VisionOutput] = []
        self._rest = ticket.request.appended
        self._found = prefixes.find(ticket.request)
        self.state: DecodeState | None = None

    @property
    def ready(self) -> bool:
        """Whether all of it is in the caches."""
        return self.state is not None and not self._rest

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each layer group that it takes until its answer begins, at most."""
        return tuple(tokens - self.ticket.request.max_new_tokens for tokens in self.ticket.needed)

    def advance(self) -> None:
        """Do one piece of work."""
        images, steps = self.ticket.request.images, self._steps
        if self._found:
            self._resume(*self._found)
        elif self.state is None and len(self._visions) < len(images):
            self._visions.append(self._look(images[len(self._visions)], self.ticket.request.keep))
            if len(self._visions) == len(images):
                self.ticket.progress.reach("vision")
        elif self.state is None:
            request = self.ticket.request
            self.state = steps.prefill(request.tokens, *self._visions, keep=request.keep, caches=self._caches)
            self.ticket.kept = kept_tokens(
                request, self._visions, self.state, pruned_before=self._pipeline.spec.stage1 is not None
            )
        else:
            steps.decode(self.state, *self._some())

    def advance_to_end(self) -> None:
        """Do all that is left, unless the request is let go meanwhile."""
        while not self.ready and not self.ticket.over:
            self.advance()
        self._steps.session.synchronize()

    def _resume(self, prefix: Prefix, appended: int) -> None:
        lengths = prefix.fill(self._caches, appended)
        self._rest, self._found = self._rest[appended:], None
        self.ticket.kept = prefix.kept
        self.ticket.cached_tokens = self.ticket.request.tokens.input_ids.shape[1] + appended
        self.ticket.progress.reach("vision")
        self.state = self._steps.resume(self._caches, lengths, self._some())

    def _some(self) -> tuple[int, ...]:
        """As many of the tokens to append as decode takes at once."""
        count = self._pipeline.spec.append_tokens
        some, self._rest = self._rest[:count], self._rest[count:]
        return some

    def _look(self, image: PreparedImage, keep: Keep | None) -> VisionOutput:
        """Features of a picture, from the vision graph or from memory."""
        (tokens,) = self._pipeline.entering([image], keep)
        return self._features.get((image.key, tokens), partial(see, self._steps, image, keep))


def see(steps: Steps, image: PreparedImage, keep: Keep | None) -> VisionOutput:
    """A picture's features, in host memory."""
    return steps.encode_image(image, keep=keep).copied(steps.spec.dtype)


class Work:
    """What is being done for an arriving request: all of it in another thread, or one piece in this one.

    Args:
        arrival: Whose it is.
        beside: The other thread; without one, the piece is done by who asks for its end.
    """

    def __init__(self, arrival: Arrival, beside: ThreadPoolExecutor | None) -> None:
        self.arrival = arrival
        self._future = beside.submit(arrival.advance_to_end) if beside else None

    @property
    def pending(self) -> bool:
        """Whether another thread is still at it."""
        return self._future is not None and not self._future.done()

    def wait(self, seconds: float) -> None:
        """Wait until it is done, at most some seconds."""
        if self._future:
            wait([self._future], max(0.0, seconds))

    def finish(self) -> None:
        """Wait until it is done; raises what it raised."""
        if self._future is None:
            self.arrival.advance()
        else:
            self._future.result()
