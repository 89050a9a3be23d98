"""The figure as one HTML page that needs no other file: budgets side by side."""

import base64
import io
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from jinja2 import Environment
from PIL import Image

from star_export.preprocessing.views import Views
from star_export.show.figure import stage_panels
from star_export.show.scores import Scores

_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ prompt }}</title>
<style>
  body { margin: 2rem; font: 16px/1.5 system-ui, sans-serif; color: #202020; background: #fff; }
  h1 { font-size: 1.4rem; }
  div { display: flex; flex-wrap: wrap; gap: 1.5rem; margin-bottom: 2rem; }
  figure { margin: 0; max-width: 100%; }
  figcaption { font-weight: 600; }
  img { display: block; width: 100%; }
  p { white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
<h1>{{ prompt }}</h1>
{% macro figure(panel) %}<figcaption>{{ panel.title }}</figcaption>
<img alt="{{ panel.title }}" src="data:image/png;base64,{{ panel.image | base64 }}">{% endmacro %}
<div>{% for panel in shared %}
<figure style="width: {{ panel.image.width }}px">{{ figure(panel) }}</figure>{% endfor %}
</div>
<div>{% for panels, answer in budgets %}{% for panel in panels %}
<figure style="width: {{ panel.image.width }}px">{{ figure(panel) }}{% if loop.last %}
<p>{{ answer }}</p>{% endif %}</figure>{% endfor %}{% endfor %}
</div>
</html>
"""


def render_page(views: Views, prompt: str, answers: Sequence[Scores]) -> str:
    """The page of one request.

    Args:
        views: Of the request's pictures.
        prompt: The question; any text.
        answers: One per budget.
    """
    environment = Environment(autoescape=True)
    environment.filters["base64"] = lambda image: base64.b64encode(png(image)).decode()
    panels, shared = [stage_panels(views, scores) for scores in answers], _shared(answers)
    budgets = [(own[shared:], answer.result.text) for own, answer in zip(panels, answers, strict=True)]
    return environment.from_string(_TEMPLATE).render(
        prompt=prompt, shared=panels[0][:shared], budgets=budgets
    )


def _shared(answers: Sequence[Scores]) -> int:
    """How many panels come before the first that the budgets change: what a stage before the last kept."""
    kept = zip(*([stage.kept for stage in answer.stages[:-1]] for answer in answers), strict=True)
    alike = takewhile(lambda same: all(np.array_equal(same[0], other) for other in same), kept)
    return 2 + 2 * len(list(alike))


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
