"""All endpoints, as one ASGI application."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from star_export.serving.http.completions import Completions, find_model
from star_export.serving.http.guard import Guard, KeyCheck, ReadRest
from star_export.serving.http.metrics import metrics_text
from star_export.serving.http.options import HttpOptions
from star_export.serving.http.refusal import ApiError
from star_export.serving.http.reply import error_response, json_response
from star_export.serving.http.served import ServedModel

#: When models count as made: a bundle does not know.
_STARTED = int(time.time())

ENDPOINTS = "POST /v1/chat/completions, GET /v1/models, /health, /metrics, and a page at /"
PAGE = Path(__file__).parent / "page"


def make_app(services: Mapping[str, ServedModel], options: HttpOptions) -> Starlette:
    """The application over services that are ready.

    Args:
        services: What answers, by the model's name.
        options: Who may ask, and how much.
    """
    completions = Completions(services, options)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        completions.close()

    routes = [
        Mount(
            "/v1",
            routes=[
                # With and without a slash at the end: a redirection would lose keys and, behind TLS, the "s".
                Route("/chat/completions", completions, methods=["POST"]),
                Route("/chat/completions/", completions, methods=["POST"]),
                Route("/models", partial(_models, services)),
                Route("/models/{name:path}", partial(_model, services)),
            ],
        ),
        Route("/health", partial(_health, services)),
        Route("/metrics", partial(_metrics, services)),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    middleware = [Middleware(ReadRest, options=options), Middleware(Guard, options=options)]
    if options.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=options.cors_origins,
                allow_methods=("GET", "POST"),
                allow_headers=("*",),
            )
        )
    if options.api_key is not None:
        middleware.append(Middleware(KeyCheck, key=options.api_key))
    handlers: Any = {HTTPException: _http_error, ApiError: _api_error}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)


async def _models(services: Mapping[str, ServedModel], _request: Request) -> Response:
    return json_response({"object": "list", "data": [_card(*item) for item in services.items()]})


async def _model(services: Mapping[str, ServedModel], request: Request) -> Response:
    name = request.path_params["name"].rstrip("/")
    return json_response(_card(*find_model(services, name))) if name else await _models(services, request)


def _card(name: str, service: ServedModel) -> dict[str, Any]:
    """A model as the API lists it, and under ``star`` what may be asked of it."""
    return {
        "id": name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "star-export",
        "star": asdict(service.card),
    }


async def _health(services: Mapping[str, ServedModel], _request: Request) -> Response:
    if not all(service.open for service in services.values()):
        return json_response({"status": "closing"}, status=503)
    if not all(await asyncio.gather(*(asyncio.to_thread(service.ready) for service in services.values()))):
        return json_response({"status": "unreachable"}, status=503)
    return json_response({"status": "ready"})


async def _metrics(services: Mapping[str, ServedModel], _request: Request) -> Response:
    text = metrics_text({name: service.stats() for name, service in services.items()})
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _http_error(_request: Request, error: HTTPException) -> Response:
    """What Starlette refuses: paths and methods that there are not."""
    unserved = f"this path or method is not served; there are {ENDPOINTS}"
    text = f"{unserved if error.status_code in (404, 405) else error.detail}; see docs/serving.md"
    refused = error_response(ApiError(error.status_code, text))
    refused.headers.update(error.headers or {})
    return refused


async def _api_error(_request: Request, error: ApiError) -> Response:
    return error_response(error)
