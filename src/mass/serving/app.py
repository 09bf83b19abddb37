"""A service -> routes: OpenAI's API, what this server adds to it under `/v1/mass`, health, metrics, and the page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from mass.config import ServeConfig
from mass.serving import fields, protocol, replies
from mass.serving.errors import INVALID, RequestError, not_found, unavailable
from mass.serving.guards import Guards
from mass.serving.history import add_history
from mass.serving.job import Job
from mass.serving.json_reply import Json
from mass.serving.keys import Keys, require_admin
from mass.serving.protocol import DEFAULT_MODEL, AnswerRequest
from mass.serving.reading import CLIENT_GONE, caller_of, read_body
from mass.serving.service import Identity, Service, Serving
from mass.serving.streams import EventStream, Gone, until_gone

SCRIPTS = ("api.js", "app.js", "ask.js", "history.js", "parts.js", "record.js", "text.js")
PAGE = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    **{f"/{name}": (name, "text/javascript") for name in SCRIPTS},
}
"""The files of the page, by path."""
MAX_IDENTITY = 200
"""Characters of an Idempotency-Key or an x-request-id at most."""


def create_app(
    serving: Serving,
    config: ServeConfig,
    keys: Keys,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """Return the application. `serving` gets its service later, so that the server answers while the model loads.

    `lifespan` is entered before the first request, and left after the last, by servers that speak ASGI's lifespan.
    """
    app = FastAPI(
        title="mass", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan
    )
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestError, _request_error)
    _add_answers(app, serving, config)
    _add_models(app, serving)
    _add_examples(app, serving)
    _add_operation(app, serving)
    add_history(app, serving, config)
    _add_page(app)

    def count(route: str, status: int) -> None:
        if serving.service is not None:
            serving.service.metrics.replies.labels(route, str(status)).inc()

    app.add_middleware(Guards, keys=keys, count=count)
    return app


def _add_answers(app: FastAPI, serving: Serving, config: ServeConfig) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, protocol.read_chat)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, protocol.read_completions)

    async def answer(request: Request, read: Any) -> Response:
        data = await read_body(request, config)
        asked: AnswerRequest = read(data, config)
        owner = caller_of(request).owner
        job = serving.ready().start(asked, owner, _identity(request, owner))
        try:
            await until_gone(request, job.admitted() if asked.stream else job.outcome())
        except Gone:
            job.leave()
            # Nobody hears this reply; it says in the metrics what happened.
            return Response(status_code=CLIENT_GONE)
        if asked.stream:
            return EventStream(job, config.comment_s, {"x-mass-id": job.id})
        return await _whole(job)


async def _whole(job: Job) -> Response:
    outcome = await job.outcome()
    headers = {"x-mass-id": job.id, "x-mass-adapted": "true" if outcome.adapted else "false"}
    return Json(replies.whole(job, outcome), headers=headers)


def _add_models(app: FastAPI, serving: Serving) -> None:
    def listed(name: str, parent: str | None) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "mass", "parent": parent}

    @app.get("/v1/models")
    async def models() -> Response:
        known = serving.ready().models
        found = [listed(one.name, one.base if one.adapts else None) for one in known]
        return Json({"object": "list", "data": [*found, listed(DEFAULT_MODEL, known.default[0])]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        known = serving.ready().models
        if name == DEFAULT_MODEL:
            return Json(listed(name, known.default[0]))
        one = known.find(name)
        return Json(listed(one.name, one.base if one.adapts else None))

    @app.get("/v1/mass/default")
    async def default() -> Response:
        return Json(_default(serving.ready()))

    @app.post("/v1/mass/default")
    async def switch(request: Request) -> Response:
        require_admin(caller_of(request))
        data = await read_body(request, ServeConfig())
        fields.require_known(data, ("model", "back"))
        back = fields.boolean(data.get("back", False), "back")
        if back == ("model" in data):
            raise RequestError("expected either 'model', a name, or 'back': true", param="model")
        serving.ready().models.switch(None if back else fields.text(data["model"], "model"))
        return Json(_default(serving.ready()))


def _add_examples(app: FastAPI, serving: Serving) -> None:
    def owner(request: Request) -> str | None:
        caller = caller_of(request)
        return None if caller.admin else caller.owner

    @app.get("/v1/mass/examples")
    async def examples(request: Request) -> Response:
        found = serving.ready().learned.of_owner(owner(request))
        data = [
            {"id": one.id, "model": one.name, "bytes": one.size, "created": int(one.made), "use": one.choice}
            for one in found
        ]
        return Json({"object": "list", "data": data})

    @app.delete("/v1/mass/examples/{id}")
    async def forget(request: Request, id: str) -> Response:
        if not serving.ready().learned.delete(id, owner(request)):
            raise not_found(f"examples {id[:60]!r} do not exist, or belong to another key")
        return Json({"id": id, "object": "examples", "deleted": True})


def _default(service: Service) -> dict[str, str]:
    now, before = service.models.default
    return {"model": now, "previous": before}


def _add_operation(app: FastAPI, serving: Serving) -> None:
    @app.get("/health")
    async def health() -> Response:
        service = serving.ready()
        if service.stopping:
            raise unavailable("the server is stopping", "stopping")
        return Json({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(serving.ready().metrics.text(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI) -> None:
    folder = Path(str(files("mass.serving") / "page"))

    async def file(request: Request) -> Response:
        name, kind = PAGE[request.url.path]
        try:
            content = await asyncio.to_thread((folder / name).read_bytes)
        except OSError:
            raise not_found("this installation has no page; the API is at /v1") from None
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    for path in PAGE:
        app.add_api_route(path, file, methods=["GET"])


def _identity(request: Request, owner: str) -> Identity | None:
    """Return what the client calls this request, if it does. Raises a `RequestError` for a key that is too long."""
    key, id = request.headers.get("idempotency-key", ""), request.headers.get("x-request-id", "")
    if len(key) > MAX_IDENTITY:
        raise RequestError(
            f"the Idempotency-Key has {len(key)} characters; expected at most {MAX_IDENTITY}; use a shorter one",
            param="Idempotency-Key",
        )
    if key:
        return Identity(owner, f"idempotency-key:{key}", strict=True)
    # A request id is the client's own, for its logs as well: one that is too long to be kept names nothing here.
    return Identity(owner, f"x-request-id:{id}", strict=False) if 0 < len(id) <= MAX_IDENTITY else None


async def _http_error(request: Request, error: Exception) -> Response:
    """Write the framework's own errors, an unknown path or method, in OpenAI's form."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"{request.method} {request.url.path[:100]} does not exist here; GET /v1/models lists the models"
    else:
        message = f"{request.method} {request.url.path[:100]}: {error.detail}"
    found = RequestError(message, status=error.status_code, kind=INVALID, headers=error.headers)
    return Json(found.body(), found.status, found.headers)


async def _request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return Json(error.body(), error.status, error.headers)
