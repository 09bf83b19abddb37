"""A request -> who made it, and its body, read no further than its limit."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from mass.config import ServeConfig
from mass.serving import body
from mass.serving.errors import RequestError, too_large
from mass.serving.guards import CALLER
from mass.serving.keys import Caller

BODY_S = 60.0
"""Seconds until the body of a request must be here."""
CLIENT_GONE = 499
"""Status of a reply that nobody hears; it is counted in the metrics."""


def caller_of(request: Request) -> Caller:
    """Return who made the request; the guards have found out."""
    return request.scope[CALLER]


async def read_body(request: Request, config: ServeConfig) -> dict[str, Any]:
    """Return the JSON object in the request's body, which is read only up to the limit. Raises a `RequestError`."""
    most = config.max_body_kb * 1024
    too_long = too_large(f"the body is longer than {most} bytes; expected at most that; send less")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and len(length) < 20 and int(length) > most:
        raise too_long

    async def read() -> bytes:
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > most:
                raise too_long
        return bytes(data)

    try:
        data = await asyncio.wait_for(read(), BODY_S)
    except ClientDisconnect:
        raise RequestError("the client left before its request was here", status=CLIENT_GONE) from None
    except (TimeoutError, asyncio.TimeoutError):
        raise RequestError("the body did not arrive in time; send it at once", status=408, code="timeout") from None
    return body.read_object(data, request.headers.get("content-type"))
