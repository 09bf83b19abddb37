"""One request on its way: what it tells while it is answered, who listens, and when it is given up.

A job lives in the event loop; threads that sample and practise for it look at `cancelled`, and tell it things through
the loop. Its events are kept, so that a second connection with the same identity hears it from the start.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field

from mass.serving.errors import RequestError
from mass.serving.models import Served
from mass.serving.protocol import AnswerRequest
from mass.types import Example, GateDecision, Sample


@dataclass(frozen=True)
class Practice:
    """The practice of the request, after it was written, or after it was weighted and learned."""

    stage: str
    """written or learned."""
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Unadapted:
    """The answers of the unadapted weights."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """A part of answer number `index` that will not change."""

    index: int
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The answers to a request, and how they were obtained."""

    samples: tuple[Sample, ...]
    prompt_tokens: int
    adapted: bool = False
    fallback: str = ""
    """The reason for the unadapted answer of a request that might have adapted; empty where the adapted weights
    answered, and where no adaptation was asked for."""
    gate: GateDecision | None = None
    examples: tuple[Example, ...] = ()
    unadapted: tuple[Sample, ...] = ()
    """The answers of the unadapted weights, where the adapted ones answered."""
    seed: int = 0
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """By stage; `total` from the request's arrival, and in it `other`: neither the model's nor spent in the queue."""
    tokens: dict[str, int] = field(default_factory=dict[str, int])
    """Generated tokens by stage."""
    learned: str = ""
    """Identity of the adapter that was learned from examples; empty without examples."""


Event = Practice | Unadapted | Text | Outcome


class Job:
    """One request that is being answered. All methods but `cancelled` and `tell` belong to the event loop."""

    def __init__(self, request: AnswerRequest, served: Served, owner: str) -> None:
        self.id = f"mass-{uuid.uuid4().hex}"
        self.request, self.served, self.owner = request, served, owner
        self.time = time.time()
        self.started = time.perf_counter()
        self.cancelled = False
        """True once nobody waits for the answer; threads look at it between two steps."""
        self.task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._events: list[Event] = []
        self._error: RequestError | None = None
        self._listeners: set[asyncio.Event] = set()
        self._admitted = asyncio.Event()

    @property
    def done(self) -> bool:
        """True once there is an outcome or an error."""
        return self._error is not None or (bool(self._events) and isinstance(self._events[-1], Outcome))

    @property
    def answer_begun(self) -> bool:
        """True once a part of an answer was told."""
        return any(isinstance(event, Text) for event in self._events)

    def admit(self) -> None:
        """Say that the request can be answered: its prompt fits, and there is room for it."""
        self._admitted.set()

    async def admitted(self) -> None:
        """Wait until the request is known to be one that can be answered. Raises its `RequestError` otherwise."""
        await self._admitted.wait()
        if self._error is not None:
            raise self._error

    def tell(self, event: Event) -> None:
        """Publish an event from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self.publish, event)

    def publish(self, event: Event) -> None:
        """Add an event, unless the job is done."""
        if not self.done:
            self._events.append(event)
            self._wake()

    def fail(self, error: RequestError) -> None:
        """End with an error, unless the job is done."""
        if not self.done:
            self._error = error
            self._admitted.set()
            self._wake()

    def cancel(self) -> None:
        """Give the request up: its rows leave the batch before the next step."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()

    def leave(self) -> None:
        """Give the request up unless somebody follows it, or it is done."""
        if not self._listeners and not self.done:
            self.cancel()

    async def follow(self, every_s: float) -> AsyncGenerator[Event | None, None]:
        """Yield the events from the first one to the outcome, and None where none came for so many seconds.

        Raises the job's `RequestError`. When the last follower of an unfinished job leaves, the job is cancelled.
        """
        changed, at = asyncio.Event(), 0
        self._listeners.add(changed)
        try:
            while True:
                changed.clear()
                while at < len(self._events):
                    at += 1
                    yield self._events[at - 1]
                if self._error is not None:
                    raise self._error
                if self.done:
                    return
                try:
                    await asyncio.wait_for(changed.wait(), every_s)
                except (TimeoutError, asyncio.TimeoutError):  # two classes in Python 3.10
                    yield None
        finally:
            self._listeners.discard(changed)
            self.leave()

    async def outcome(self) -> Outcome:
        """Wait for the outcome. Raises the job's `RequestError`."""
        async for event in self.follow(3600.0):
            if isinstance(event, Outcome):
                return event
        raise AssertionError("a job ends with an outcome or an error")

    def _wake(self) -> None:
        for listener in self._listeners:
            listener.set()
