"""What every request passes before it reaches a route: its address, its origin, its key; and what every reply gets.

It is a layer around the whole application, so no route can be reached without it, one that is added later included.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mass.serving.errors import RequestError, forbidden, internal
from mass.serving.failures import described
from mass.serving.json_reply import Json
from mass.serving.keys import Keys, is_loopback

log = logging.getLogger(__name__)

OPEN = "/health"
"""The one path that needs no key."""
CALLER = "mass_caller"
"""Where a request's scope has its `Caller`."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,200}")


class Guards:
    """The layer around the application."""

    def __init__(self, app: ASGIApp, keys: Keys, count: Callable[[str, int], None]) -> None:
        """`count` hears of every reply: the path of its route, and its status."""
        self._app, self._keys, self._count = app, keys, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # a WebSocket: there are none here, and none is opened without a key
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        named = headers.get("x-request-id", "")
        request_id = named if _REQUEST_ID.fullmatch(named) else uuid.uuid4().hex
        began = False

        async def finish(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                found = MutableHeaders(scope=message)
                for name, value in {**HEADERS, "x-request-id": request_id}.items():
                    found.setdefault(name, value)
                route = getattr(scope.get("route"), "path", "other")
                self._count(route, message["status"])
            await send(message)

        try:
            self._admit(scope, headers)
            await self._app(scope, receive, finish)
        except RequestError as error:
            await Json(error.body(), error.status, error.headers)(scope, receive, finish)
        except Exception as error:
            log.error("a route failed: %s", described(error))
            if not began:
                await Json(internal().body(), 500)(scope, receive, finish)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Refuse a request from a page of another site, or without a key. Raises a `RequestError`."""
        host = headers.get("host", "")
        if not self._keys.required and not is_loopback(_name(host)):
            # Without a key only the address protects: a page elsewhere could point a name of its own at this machine.
            raise forbidden("the Host header names another machine; expected 127.0.0.1 or localhost, or set a key")
        client = scope.get("client")
        if not self._keys.required and client and not is_loopback(client[0]):  # another server may have bound the port
            raise forbidden("the request comes from another machine, and no key is set; set one, or ask from this one")
        origin = headers.get("origin")
        if origin is not None and _authority(origin) != host:
            raise forbidden("the request comes from a page of another site; expected none, or the page of this server")
        if scope["path"] != OPEN:
            scope[CALLER] = self._keys.caller(headers.get("authorization"))


def _name(host: str) -> str:
    """Return a host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
