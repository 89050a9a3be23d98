"""Bundles as a model of lmms-eval, so that its tasks run on them.

lmms-eval finds this module by its entry point: ``lmms-eval --model star_export --model_args bundle=DIR``.
"""

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from star_export.answer.pipeline import open_pipeline
from star_export.answer.request import Request
from star_export.answer.sampling import Sampling
from star_export.engines import Runtime
from star_export.errors import SettingsError
from star_export.serving.scheduler import Scheduler
from star_export.serving.ticket import Ticket

log = logging.getLogger("star_export.lmms")

MANIFEST = ModelManifest(model_id="star_export", chat_class_path=f"{__name__}.StarExport")


class StarExport(lmms):  # type: ignore[misc]  # of a package without types
    """A bundle; requests are decoded together, ``batch_size`` at once.

    Args:
        bundle: The bundle's folder.
        keep: Visual tokens of all pictures after the last stage; the bundle's own by default.
        backend: What runs it.
        threads: CPU threads; all cores by default.
        batch_size: Requests that are decoded at once.
        device: Not used: the backend says where it runs.
        max_batch_size: Not used either.

    Raises:
        SettingsError: If an option is out of range.
        BundleError, PlatformError: If the bundle cannot be loaded.
    """

    is_simple = False

    def __init__(
        self,
        bundle: str,
        *,
        keep: int | None = None,
        backend: str = "onnxruntime",
        threads: int | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise SettingsError(f"batch_size must be a number from 1, got {batch_size}")
        self.keep, self.slots = keep, int(batch_size)
        runtime = Runtime(backend=backend, threads=threads, batches=self.slots > 1)
        self.pipeline = open_pipeline(bundle, runtime)
        self.scheduler = Scheduler(self.pipeline, slots=self.slots, overlap=False)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, in the order of the requests."""
        self._check_room(requests)
        running: deque[Ticket] = deque()
        answers: list[str] = []
        for instance in requests:
            if len(running) == 2 * self.slots:  # no more pictures in memory than keep it busy
                answers.append(running.popleft().answer().text)
            running.append(self.scheduler.submit(self._request(*instance.args)))
        return answers + [ticket.answer().text for ticket in running]

    def _request(
        self, _context: str, to_messages: Any, settings: dict[str, Any], index: int, task: str, split: str
    ) -> Request:
        """What lmms-eval asks of a document, as the bundle takes it."""
        messages = to_messages(self.task_dict[task][split][index])
        pictures = [p["url"] for message in messages for p in message["content"] if p["type"] == "image"]
        prompt = [
            {"role": message["role"], "content": [_without_picture(part) for part in message["content"]]}
            for message in messages
        ]
        until = settings.get("until") or ()
        return self.pipeline.request(
            pictures,
            prompt,
            keep=self.keep,
            max_new_tokens=min(_wanted(settings), self.pipeline.spec.max_new_tokens),
            sampling=_sampling(settings),
            stop=[until] if isinstance(until, str) else until,
        )

    def _check_room(self, requests: Sequence[Any]) -> None:
        most = self.pipeline.spec.max_new_tokens
        wanted = max((_wanted(instance.args[2]) for instance in requests), default=0)
        if wanted > most:
            log.warning(
                "answers may need %d tokens and end after %d; build with --max-new-tokens", wanted, most
            )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not possible: a bundle gives the next token only.

        Raises:
            SettingsError: Always.
        """
        raise SettingsError("a bundle generates answers; choose tasks with output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not possible: see :meth:`loglikelihood`.

        Raises:
            SettingsError: Always.
        """
        raise SettingsError(
            "a bundle answers one question here; choose tasks with output_type generate_until"
        )

    def clean(self) -> None:
        """End the scheduler and let go of the bundle."""
        super().clean()
        self.scheduler.close()
        self.pipeline.close()


def _wanted(settings: dict[str, Any]) -> int:
    """Tokens of an answer; a task that names no number gets what lmms-eval's own models give it."""
    return int(settings.get("max_new_tokens", 1024))


def _sampling(settings: dict[str, Any]) -> Sampling:
    temperature = settings.get("temperature") or 0.0
    if settings.get("do_sample") is False or not temperature:
        return Sampling()
    return Sampling(temperature=temperature, top_p=settings.get("top_p") or 1.0, seed=0)


def _without_picture(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a message; pictures are given beside it."""
    return {"type": "image"} if part["type"] == "image" else part
