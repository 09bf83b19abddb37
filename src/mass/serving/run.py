"""Listen, load the model meanwhile, serve until told to stop, and finish what is in flight."""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mass.config import ServeConfig
from mass.errors import ConfigError, RunError
from mass.serving.errors import RequestError, unavailable
from mass.serving.json_reply import Json
from mass.serving.keys import Keys

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mass.serving.loading import Parts
    from mass.serving.records import Records
    from mass.serving.service import Service

log = logging.getLogger(__name__)

PRUNE_EVERY_S = 3600.0
EXPIRE_EVERY_S = 60.0
LAST_SENDING_S = 5
"""Seconds for the last replies to be sent, once they are there."""


class Protocol(H11Protocol):
    """HTTP/1.1, with an error of OpenAI's form for what is no HTTP."""

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, and close the connection."""
        content = Json(RequestError(f"the request is no HTTP ({msg})").body()).body
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(content)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Starting:
    """The application until the model is loaded: it answers everything with 503."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        """The real one, once it is there."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)
            return
        error = unavailable("the model is being loaded; try again in a moment", "loading")
        await Json(error.body(), error.status, error.headers)(scope, receive, send)


class Server(uvicorn.Server):
    """A server that answers what it has begun before it stops."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[Callable[[], bool]], Awaitable[None]]) -> None:
        super().__init__(config)
        self._drain = drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, finish the others, and then close."""
        await self._drain(lambda: self.force_exit)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (as signals call it)
        """Stop; at the second signal at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals in the block, without raising them again afterwards: the end of the run is still to come."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def listen(config: ServeConfig) -> socket.socket:
    """Return a socket that is bound to the address. Raises ConfigError, as where the port is in use."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((config.host, config.port))
    except OSError as error:
        found.close()
        raise ConfigError(
            f"port {config.port} of host {config.host!r} cannot be listened at ({error.strerror or error}); expected a "
            "free one; choose another --port"
        ) from error
    return found


def serve(
    config: ServeConfig,
    keys: Keys,
    bound: socket.socket,
    load: Callable[[], Parts],
    ready: Callable[[Parts, Service], None],
    server_made: Callable[[Server], None] = lambda _: None,
) -> None:
    """Serve on a bound socket until a signal, with the model that `load` returns; it is loaded in a thread meanwhile.

    `ready` is called in the event loop once requests are answered. Raises what `load` raises, ModelError where the
    base's weights are not what they were, and RunError where the folder of records cannot be used.
    """
    with bound:
        asyncio.run(_serve(config, keys, bound, load, ready, server_made))


async def _serve(
    config: ServeConfig,
    keys: Keys,
    bound: socket.socket,
    load: Callable[[], Parts],
    ready: Callable[[Parts, Service], None],
    server_made: Callable[[Server], None],
) -> None:
    services: list[Service] = []

    async def drain(hurried: Callable[[], bool]) -> None:
        for service in services:
            await service.drain(config.drain_s, hurried)

    starting = Starting()
    server = Server(_uvicorn(starting), drain)
    server_made(server)
    running = asyncio.create_task(server.serve(sockets=[bound]))
    loading = asyncio.create_task(asyncio.to_thread(loaded, load, config))
    try:
        await asyncio.wait({running, loading}, return_when=asyncio.FIRST_COMPLETED)
        parts, records = await loading  # also where it was told to stop meanwhile: a thread cannot be left behind
        with nullcontext() if records is None else records:
            if not running.done():
                services.append(_open(starting, config, keys, parts, records))
                ready(parts, services[0])
                await _until(running, services[0], records, config)
            await asyncio.to_thread(close, parts, services)
    finally:
        server.should_exit = True
        await running


def loaded(load: Callable[[], Parts], config: ServeConfig) -> tuple[Parts, Records | None]:
    """Load the model, and open the records. The modules that need torch are imported here, in a thread."""
    importlib.import_module("mass.serving.app")  # so that the event loop does not wait for it
    from mass.serving.records import Records

    records = None if config.records is None else Records(config.records)
    try:
        return load(), records
    except BaseException:
        if records is not None:
            records.close()
        raise


def _open(starting: Starting, config: ServeConfig, keys: Keys, parts: Parts, records: Records | None) -> Service:
    """Answer requests from now on."""
    from mass.serving.app import create_app
    from mass.serving.service import Service, Serving

    serving = Serving(Service(config, parts.models, parts.decoders, parts.canaries, records))
    starting.app = create_app(serving, config, keys)
    return serving.ready()


async def _until(running: asyncio.Task[None], service: Service, records: Records | None, config: ServeConfig) -> None:
    """Wait until the server stops; meanwhile remove old records, and learned examples that nobody uses."""
    tidying = [asyncio.create_task(prune(records, config.keep_days)), asyncio.create_task(_expire(service))]
    try:
        await running
    finally:
        for task in tidying:
            task.cancel()


def close(parts: Parts, services: Sequence[Service]) -> None:
    """End all threads, and check the base's weights. Raises ModelError."""
    from mass.serving.loading import require_unchanged

    for service in services:
        service.close()
    for decoder in set(parts.decoders.values()):
        decoder.close()
    require_unchanged(parts)


async def _expire(service: Service) -> None:
    """Free learned examples that were not used for too long, also where nobody asks any more."""
    while True:
        service.learned.expire()
        await asyncio.sleep(EXPIRE_EVERY_S)


async def prune(records: Records | None, keep_days: float | None) -> None:
    """Remove old records, now and then once an hour."""
    while records is not None and keep_days is not None:
        try:
            await asyncio.to_thread(records.prune, keep_days)
        except RunError as error:
            log.error("old records could not be removed: %s", error)
        await asyncio.sleep(PRUNE_EVERY_S)


def _uvicorn(app: object) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=Protocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # its lines have the query of a request, which may be a text of it
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_SENDING_S,
    )
