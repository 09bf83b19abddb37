"""Measure stages, and report progress to a listener: the current stage, and how far decoding is.

Code that works (`Clock`, `mass.lm.sampling`) reports; a listener is registered for the length of a `with` block and
hears the work of its own thread. Without a listener nothing happens.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Decoding:
    """The progress of sampling some rows."""

    tokens: int
    """Tokens sampled so far."""
    rows_left: int
    """Rows that have not ended."""
    seconds: float
    """Seconds since its start."""
    left_s: float
    """Seconds to come at most; fewer where rows end before their limit."""


class Listener(Protocol):
    """An object that wants to hear of progress."""

    def stage(self, name: str) -> None:
        """A stage begins, or continues after one inside it; an empty name means that no stage is active."""
        ...

    def decoding(self, state: Decoding) -> None:
        """One more token of each row has been sampled."""
        ...


_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)
_stage: ContextVar[str] = ContextVar("progress_stage", default="")


@contextmanager
def listening(listener: Listener) -> Generator[None, None, None]:
    """Report to this listener within the block, instead of to any earlier one."""
    before = _listener.get()
    _listener.set(listener)
    try:
        yield
    finally:
        _listener.set(before)


@contextmanager
def stage(name: str) -> Generator[None, None, None]:
    """Make the block a stage of this name."""
    before = _stage.get()
    _enter(name)
    try:
        yield
    finally:
        _enter(before)


def _enter(name: str) -> None:
    _stage.set(name)
    if (listener := _listener.get()) is not None:
        listener.stage(name)


def tell_decoding(state: Decoding) -> None:
    """Report the progress of sampling to the listener, if there is one."""
    if (listener := _listener.get()) is not None:
        listener.decoding(state)


@dataclass
class Clock:
    """Seconds spent in each stage."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def stage(self, name: str, without: str | None = None) -> Generator[None, None, None]:
        """Time the block as `name`, minus the time that it spends in the stage `without`."""
        start, inside = time.perf_counter(), self.seconds.get(without or "", 0.0)
        try:
            with stage(name):
                yield
        finally:
            inside = self.seconds.get(without or "", 0.0) - inside
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start - inside

    def shares(self, count: int) -> dict[str, float]:
        """Return the seconds of each stage divided by `count` problems."""
        return {stage: seconds / count for stage, seconds in self.seconds.items()}

    def each(self, name: str, values: Iterator[T]) -> Iterator[T]:
        """Yield the values, timing as `name` how long each takes to make and what the caller does with it."""
        while True:
            with self.stage(name):
                value = next(values, None)
                if value is None:
                    return
                yield value


def duration(seconds: float | None) -> str:
    """Write a duration as '45 s', '12 min' or '3.1 h'; '?' when it is unknown."""
    if seconds is None:
        return "?"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
