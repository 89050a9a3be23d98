"""A request on its way into a slot, piece by piece, and the thread in which that happens beside decode."""

from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

from star_export.answer.pipeline import Pipeline
from star_export.answer.steps import DecodeState, VisionOutput
from star_export.engines.session import Caches
from star_export.preprocessing import PreparedImage
from star_export.serving.features import FeatureCache
from star_export.serving.ticket import Ticket
from star_export.specs import Keep


class Arrival:
    """What is done for a request before it is decoded: its pictures, one by one, then its prompt.

    Args:
        ticket: The request; it has a slot.
        caches: That slot's.
        pipeline: What answers it.
        features: Features of pictures that were seen before.

    Attributes:
        state: Its sequence, when its prompt is in them.
    """

    def __init__(self, ticket: Ticket, caches: Caches, *, pipeline: Pipeline, features: FeatureCache) -> None:
        self.ticket, self._caches = ticket, caches
        self._pipeline, self._features = pipeline, features
        self._visions: list[VisionOutput] = []
        self.state: DecodeState | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each layer group that its prompt takes, at most."""
        return tuple(tokens - self.ticket.request.max_new_tokens for tokens in self.ticket.needed)

    def advance(self) -> None:
        """Do one piece of work."""
        request = self.ticket.request
        if len(self._visions) < len(request.images):
            self._visions.append(self._look(request.images[len(self._visions)], request.keep))
            if len(self._visions) == len(request.images):
                self.ticket.progress.reach("vision")
        else:
            self.state = self._pipeline.steps.prefill(
                request.tokens, *self._visions, keep=request.keep, caches=self._caches
            )

    def advance_to_end(self) -> None:
        """Do all that is left, unless the request is let go meanwhile."""
        while self.state is None and not self.ticket.over:
            self.advance()

    def _look(self, image: PreparedImage, keep: Keep | None) -> VisionOutput:
        """Features of a picture, from the vision graph or from memory."""
        (tokens,) = self._pipeline.entering([image], keep)
        return self._features.get((image.key, tokens), partial(see, self._pipeline, image, keep))


def see(pipeline: Pipeline, image: PreparedImage, keep: Keep | None) -> VisionOutput:
    """A picture's features, in host memory."""
    return pipeline.steps.encode_image(image, keep=keep).copied(pipeline.spec.dtype)


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
            wait([self._future], seconds)

    def finish(self) -> None:
        """Wait until it is done; raises what it raised."""
        if self._future is None:
            self.arrival.advance()
        else:
            self._future.result()
