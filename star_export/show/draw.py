"""One request's figure as a file."""

from collections.abc import Sequence
from pathlib import Path

from star_export.bundle import Bundle
from star_export.files import atomic_open
from star_export.preprocessing.conversation import Prompt, read_conversation
from star_export.preprocessing.images import ImageInput
from star_export.preprocessing.views import picture_views
from star_export.progress import CaseProgress
from star_export.show.figure import draw_sheet
from star_export.show.page import png, render_page
from star_export.show.scores import ScoreReader, Scores
from star_export.specs import Keep


def draw(
    bundle: Bundle,
    pictures: Sequence[ImageInput],
    prompt: Prompt,
    output: Path,
    *,
    keep: Sequence[Keep | None] = (None,),
    max_new_tokens: int | None = None,
    progress: CaseProgress = lambda _done, _total: None,
) -> tuple[Scores, ...]:
    """Draw which parts of a request's pictures each stage keeps, by which scores, and the answers.

    Args:
        bundle: An opened bundle that prunes.
        pictures: Those of the request, in the order of their places.
        prompt: As :meth:`star_export.answer.pipeline.Pipeline.generate` takes it.
        output: File to write: a page if it ends in ``.html``, else a PNG.
        keep: Budgets, of which each is answered; None for the bundle's own.
        max_new_tokens: Tokens to generate at most; what the caches hold by default.
        progress: Called with answers done and answers in all.

    Returns:
        What is drawn, for each budget.

    Raises:
        SettingsError, InputError, BundleError: As :class:`ScoreReader` and its ``read``.
    """
    with ScoreReader(bundle) as reader:
        pipeline, answers = reader.pipeline, list[Scores]()
        views = picture_views(pipeline.prepare(pictures), pipeline.image_spec, pipeline.spec.model.vision)
        asked = read_conversation(prompt, pipeline.prompt_spec.image_token, images=len(views))[-1]
        for budget in keep:
            pipeline.budget(budget)
        for number, budget in enumerate(keep):
            progress(number, len(keep))
            answers.append(reader.read(pictures, prompt, keep=budget, max_new_tokens=max_new_tokens))
    question = "".join(asked.texts)
    if output.suffix.lower() == ".html":
        drawn = render_page(views, question, answers).encode()
    else:
        drawn = png(draw_sheet(views, question, answers))
    with atomic_open(output) as file:
        file.write(drawn)
    return tuple(answers)
