"""Requests that nobody waits for, so that the first ones that somebody does are quick."""

from PIL import Image

from star_export.engines.scheduler import Scheduler
from star_export.engines.ticket import Stats

TOKENS = 4


def warm_up(scheduler: Scheduler) -> None:
    """Answer a request in every slot, a few tokens each; decode has run at every batch size before.

    Raises:
        StarExportError: If the bundle cannot answer.
    """
    pipeline = scheduler.pipeline
    size = pipeline.spec.model.vision.image_size
    length = min(TOKENS, pipeline.spec.max_new_tokens)
    request = pipeline.request(Image.new("RGB", (size, size), "gray"), "?", max_new_tokens=length)
    for ticket in [scheduler.submit(request) for _ in range(min(scheduler.slots, scheduler.queue))]:
        ticket.answer()
    scheduler.stats = Stats(slots=scheduler.slots)
