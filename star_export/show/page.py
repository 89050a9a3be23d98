"""The figure as one HTML page that needs no other file: budgets side by side."""

import base64
import io
from collections.abc import Sequence

from jinja2 import Environment
from PIL import Image

from star_export.show.figure import Pixels, budget_panel, stage_panels
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
  figure { margin: 0; width: 384px; }
  figcaption { font-weight: 600; }
  img { display: block; width: 100%; }
  p { white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
<h1>{{ prompt }}</h1>
{% macro figure(panel) %}<figcaption>{{ panel.title }}</figcaption>
<img alt="{{ panel.title }}" src="data:image/png;base64,{{ panel.image | base64 }}">{% endmacro %}
<div>{% for panel in shared %}
<figure>{{ figure(panel) }}</figure>{% endfor %}
</div>
<div>{% for panel, answer in budgets %}
<figure>{{ figure(panel) }}
<p>{{ answer }}</p></figure>{% endfor %}
</div>
</html>
"""


def render_page(picture: Pixels, prompt: str, answers: Sequence[Scores]) -> str:
    """The page of one picture and prompt.

    Args:
        picture: What the model sees, ``[H, W, 3]``.
        prompt: The question; any text.
        answers: One per budget.
    """
    environment = Environment(autoescape=True)
    environment.filters["base64"] = lambda image: base64.b64encode(png(image)).decode()
    budgets = [(budget_panel(picture, scores), scores.result.text) for scores in answers]
    shared = stage_panels(picture, answers[0])
    return environment.from_string(_TEMPLATE).render(prompt=prompt, shared=shared, budgets=budgets)


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
