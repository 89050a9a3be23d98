"""A model as this front door asks it: a service of this process, or one behind Triton."""

from typing import Any, Protocol

from star_export.serving.admission import Place
from star_export.serving.card import Card
from star_export.serving.options import ServiceOptions
from star_export.serving.query import Query
from star_export.serving.stats import RequestStats
from star_export.serving.ticket import Updates


class ServedModel(Protocol):
    """What answers; any thread may ask. :class:`star_export.serving.service.Service` explains each."""

    @property
    def card(self) -> Card:
        """What may be asked."""

    @property
    def options(self) -> ServiceOptions:
        """How much it takes on."""

    @property
    def places(self) -> int:
        """Requests that may be present at once."""

    @property
    def open(self) -> bool:
        """Whether it lets requests in; never waits."""

    def ready(self) -> bool:
        """Whether it would answer; may wait for another machine."""

    def enter(self) -> Place:
        """Let a request in before it is read; never waits."""

    def submit(self, query: Query, place: Place | None = None, *, show: bool = False) -> Updates:
        """Send a request on its way; ``show`` says that :meth:`shown` will be asked."""

    def shown(self, ticket: Updates) -> dict[str, Any]:
        """What a page draws of an answer; see :func:`star_export.serving.shown.shown`."""

    def stats(self) -> RequestStats:
        """The numbers of this moment."""

    def drain(self) -> None:
        """Let nobody in any more; never waits."""

    def close(self) -> None:
        """Let nobody in any more and finish what is here."""
