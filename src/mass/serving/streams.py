"""The events of a job -> a stream of server-sent events, and the end of the job when its client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mass.serving import replies
from mass.serving.errors import RequestError
from mass.serving.job import Job, Outcome, Text

T = TypeVar("T")


class Gone(Exception):
    """The client has closed its connection."""


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for work as long as the client is there, whose request was read. Raises Gone, and cancels the work."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return await working
    finally:
        for task in (working, leaving):
            task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await working


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A stream of a job's events, with a comment now and then while nothing else is told."""

    def __init__(self, job: Job, comment_s: float, headers: Mapping[str, str]) -> None:
        super().__init__(headers={**headers, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._job, self._comment_s = job, comment_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (as its base has it)
        """Send the stream; when the client leaves, close the job's events, which cancels the job."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await sending

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(events(self._job, self._comment_s)) as lines:
            async for line in lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def events(job: Job, comment_s: float) -> AsyncGenerator[bytes, None]:
    """Yield the lines of a stream. An error after the start is an event of its own, as OpenAI's clients expect it."""
    trimmed = Trimmed(strips=job.served.adapts or job.request.endpoint == "chat")
    for one in replies.opening(job):
        yield _event(one)
    try:
        async with aclosing(job.follow(comment_s)) as followed:
            async for event in followed:
                if event is None:
                    yield b": practising\n\n"
                elif isinstance(event, Text):
                    if (shown := trimmed.add(event)) or job.request.logprobs:
                        yield _event(replies.part(job, event, shown))
                elif isinstance(event, Outcome):
                    for one in replies.ending(job, event):
                        yield _event(one)
                    yield b"data: [DONE]\n\n"
                elif job.request.mass.practice:
                    yield _event(replies.practice(job, event))
    except RequestError as error:
        yield _event(error.body())


class Trimmed:
    """Parts of answers, without the white space at the start and at the end of each, as a whole reply has them."""

    def __init__(self, *, strips: bool) -> None:
        self._strips = strips
        self._held: dict[int, str] = {}
        self._begun: set[int] = set()

    def add(self, part: Text) -> str:
        """Return what can be sent of an answer, now that this part is known: white space waits for what follows it."""
        if not self._strips:
            return part.text
        text = self._held.get(part.index, "") + part.text
        if part.index not in self._begun:
            text = text.lstrip()
        shown = text.rstrip()
        self._held[part.index] = text[len(shown) :]
        if shown:
            self._begun.add(part.index)
        return shown


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n\n"
