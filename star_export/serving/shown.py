"""What a page draws of an answer."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from star_export.answer.pipeline import Pipeline
from star_export.preprocessing.views import picture_views
from star_export.serving.card import Card
from star_export.serving.ticket import Ticket


def shown(ticket: Ticket, pipeline: Pipeline) -> dict[str, Any]:
    """The tokens that each stage kept, where they lie in the pictures, what that saved: as plain JSON values.

    Args:
        ticket: Of a request that is answered.
        pipeline: What answered it.
    """
    answer = ticket.answer()
    assert answer.usage is not None
    stages = [
        {"name": stage.name, "score": stage.score, "kept": list(kept)}
        for stage, kept in zip(Card.of(pipeline.spec).stages, ticket.kept, strict=True)
    ]
    pictures = picture_views(ticket.request.images, pipeline.image_spec, pipeline.spec.model.vision)
    views = [
        {
            "image": number,
            "rows": view.tokens.shape[0],
            "columns": view.tokens.shape[1],
            "tokens": view.tokens.tolist(),
            "data": _png(view.pixels),
        }
        for number, picture in enumerate(pictures)
        for view in picture
    ]
    return {
        "stages": stages,
        "views": views,
        "kv_bytes": answer.usage.kv_bytes,
        "kv_bytes_unpruned": answer.usage.kv_bytes_unpruned,
        "timings_ms": answer.timings_ms,
    }


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
