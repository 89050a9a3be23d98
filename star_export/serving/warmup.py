"""Work that nobody waits for, so that the first requests that somebody does are quick."""

from PIL import Image

from star_export.serving.features import FeatureCache
from star_export.serving.scheduler import Scheduler
from star_export.serving.stats import Counts

TOKENS = 4


def warm_up(scheduler: Scheduler) -> None:
    """Prefill every slot, then answer one request; decode has run at every batch size before.

    Raises:
        StarExportError: If the bundle cannot answer.
    """
    pipeline = scheduler.pipeline
    size = pipeline.spec.model.vision.image_size
    length = min(TOKENS, pipeline.spec.max_new_tokens)
    request = pipeline.request(Image.new("RGB", (size, size), "gray"), "?", max_new_tokens=length)
    scheduler.warm_up(request)
    scheduler.submit(request).answer()
    scheduler.stats = Counts(slots=scheduler.stats.slots)
    scheduler.features = FeatureCache(scheduler.features.limit)
