"""A request on its way into a slot, piece by piece, and the thread in which that happens beside decode."""

from concurrent.futures import ThreadPoolExecutor
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
        ticket: The request.
        pipeline: What answers it.
        features: Features of pictures that were seen before.

    Attributes:
        caches: Its slot's, from when it is given one.
        state: Its sequence, when its prompt is in them.
    """

    def __init__(self, ticket: Ticket, pipeline: Pipeline, features: FeatureCache) -> None:
        self.ticket, self._pipeline, self._features = ticket, pipeline, features
        self._visions: list[VisionOutput] = []
        self.caches: Caches | None = None
        self.state: DecodeState | None = None

    @property
    def seen(self) -> bool:
        """Whether all of its pictures are; it needs a slot then."""
        return len(self._visions) == len(self.ticket.request.images)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each layer group that its prompt takes, at most."""
        return tuple(tokens - self.ticket.request.max_new_tokens for tokens in self.ticket.needed)

    def advance(self) -> None:
        """Do one piece of work."""
        request = self.ticket.request
        if not self.seen:
            image = request.images[len(self._visions)]
            self._visions.append(self._look(image, request.keep))
            if self.seen:
                self.ticket.progress.reach("vision")
            return
        assert self.caches is not None
        self.state = self._pipeline.steps.prefill(
            request.tokens, *self._visions, keep=request.keep, caches=self.caches
        )

    def _look(self, image: PreparedImage, keep: Keep | None) -> VisionOutput:
        """Features of a picture, from the vision graph or from memory."""
        (tokens,) = self._pipeline.entering([image], keep)
        return self._features.get((image.key, tokens), partial(see, self._pipeline, image, keep))


def see(pipeline: Pipeline, image: PreparedImage, keep: Keep | None) -> VisionOutput:
    """A picture's features, in host memory."""
    return pipeline.steps.encode_image(image, keep=keep).copied(pipeline.spec.dtype)


class Work:
    """A piece of work for an arriving request, that was begun.

    Args:
        arrival: Whose it is.
        beside: The thread that does it; None leaves it to who asks for its end.
    """

    def __init__(self, arrival: Arrival, beside: ThreadPoolExecutor | None) -> None:
        self.arrival = arrival
        self._future = beside.submit(arrival.advance) if beside else None

    @property
    def pending(self) -> bool:
        """Whether another thread is still at it."""
        return self._future is not None and not self._future.done()

    def finish(self) -> None:
        """Wait until it is done; raises what it raised."""
        if self._future is None:
            self.arrival.advance()
        else:
            self._future.result()
