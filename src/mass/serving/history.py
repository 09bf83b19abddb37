"""Routes of the records of past adaptations: list, show, replay, judge, delete.

A client sees its own records; the operator sees all.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from mass.config import ServeConfig
from mass.encoding import finite
from mass.errors import ConfigError
from mass.serving import fields, kept
from mass.serving.errors import RequestError, not_found, other_version
from mass.serving.json_reply import Json
from mass.serving.reading import caller_of, read_body
from mass.serving.records import MOST, Entry, Filters, Records
from mass.serving.streams import Gone, until_gone

if TYPE_CHECKING:
    from mass.serving.service import Service, Serving

T = TypeVar("T")
ROOT = "/v1/mass/adaptations"
PAGE_SIZE = 50
_WORDS = {"true": True, "false": False}


def add_history(app: FastAPI, serving: Serving, config: ServeConfig) -> None:
    """Add the routes to the application."""

    @app.get(ROOT)
    async def adaptations(request: Request) -> Response:
        query = dict(request.query_params)
        fields.require_known(query, ("limit", "cursor", *Filters.__dataclass_fields__))
        limit = _integer(query.pop("limit", str(PAGE_SIZE)), "limit", MOST)
        cursor, filters = query.pop("cursor", None), _filters(query)
        records = _records(serving.ready())
        try:
            found = await _read(lambda: records.list(filters, owner=_owner(request), limit=limit, cursor=cursor))
        except ConfigError as error:
            raise RequestError(str(error), param="cursor") from error
        data = [kept.listed(one) for one in found.entries]
        return Json({"object": "list", "data": data, "cursor": found.cursor, "has_more": found.cursor is not None})

    @app.get(ROOT + "/{id}")
    async def adaptation(request: Request, id: str) -> Response:
        service = serving.ready()
        entry = await _entry(service, request, id)
        return Json(finite(kept.shown(entry, service.models.of(entry.summary.checkpoint_hash))))

    @app.delete(ROOT + "/{id}")
    async def delete(request: Request, id: str) -> Response:
        records = _records(serving.ready())
        if not await _read(lambda: records.delete(id, owner=_owner(request))):
            raise _missing(id)
        return Json({"id": id, "object": "adaptation", "deleted": True})

    @app.post(ROOT + "/{id}/verdict")
    async def verdict(request: Request, id: str) -> Response:
        data = await read_body(request, config)
        fields.require_known(data, ("right",))
        if "right" not in data:
            raise RequestError("right is missing; expected true, false or null", param="right")
        right = None if data["right"] is None else fields.boolean(data["right"], "right")
        service = serving.ready()
        records, before = _records(service), await _entry(service, request, id)
        if not await _read(lambda: records.set_verdict(id, right, owner=_owner(request))):
            raise _missing(id)
        if right is not None and right != before.summary.right:
            service.metrics.judged(before.summary.model, adapted=before.summary.adapted, right=right)
        return Json(kept.summary(await _entry(service, request, id)))

    @app.post(ROOT + "/{id}/replay")
    async def replay(request: Request, id: str) -> Response:
        service = serving.ready()
        entry = await _entry(service, request, id)
        try:
            return Json(await until_gone(request, service.replay(entry)))
        except Gone:
            raise RequestError("the client has gone", status=499) from None


def _records(service: Service) -> Records:
    """Return the records. Raises a `RequestError` for a server without."""
    if service.records is None:
        raise not_found("this server keeps no records; start it with --records FOLDER", "records_off")
    return service.records


async def _entry(service: Service, request: Request, id: str) -> Entry:
    records = _records(service)
    try:
        found = await _read(lambda: records.get(id, owner=_owner(request)))
    except (AttributeError, KeyError, TypeError) as error:
        raise other_version() from error
    if found is None:
        raise _missing(id)
    return found


def _owner(request: Request) -> str | None:
    """Return whose records may be seen; None for those of everybody."""
    caller = caller_of(request)
    return None if caller.admin else caller.owner


def _missing(id: str) -> RequestError:
    return not_found(f"adaptation {id[:60]!r} does not exist, or belongs to another key")


async def _read(work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work)


def _filters(query: dict[str, str]) -> Filters:
    """Return the filters in a query. Raises a `RequestError`."""
    values: dict[str, Any] = dict(query)
    for name in ("since", "until"):
        if name in query:
            values[name] = _number(query[name], name)
    if "adapted" in query:
        values["adapted"] = _WORDS[fields.choice(query["adapted"], "adapted", _WORDS)]
    if "right" in query:
        values["right"] = _WORDS.get(fields.choice(query["right"], "right", (*_WORDS, "unset")), "unset")
    return Filters(**values)


def _number(text: str, param: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise fields.wrong(param, text, "seconds since 1970")
    return value


def _integer(text: str, param: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise fields.wrong(param, text, f"an integer from 1 to {most}")
    return int(text)
