"""Work that takes its time -> whoever shows how far it is: the stage it is in, and how decoding goes.

Those who work (`Clock`, `mass.lm.sampling`) say so; who wants to hear it listens for the length of a `with`
block, and hears the work of its own thread. Where nobody listens nothing happens.
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
    """How far the sampling of some rows is."""

    tokens: int
    """Sampled so far."""
    rows_left: int
    """Rows that have not ended."""
    seconds: float
    """Since its start."""
    left_s: float
    """Seconds to come at most: where rows end before their limit it is less."""


class Listener(Protocol):
    def stage(self, name: str) -> None:
        """A stage begins, or goes on after one within it; empty: none."""
        ...

    def decoding(self, state: Decoding) -> None:
        """A token of each row has been sampled."""
        ...


_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)
_stage: ContextVar[str] = ContextVar("progress_stage", default="")


@contextmanager
def listening(listener: Listener) -> Generator[None, None, None]:
    """Within the block, tell this listener, and nobody who listened before."""
    before = _listener.get()
    _listener.set(listener)
    try:
        yield
    finally:
        _listener.set(before)


@contextmanager
def stage(name: str) -> Generator[None, None, None]:
    """The block is a stage of this name."""
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
    if (listener := _listener.get()) is not None:
        listener.decoding(state)


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def stage(self, name: str, without: str | None = None) -> Generator[None, None, None]:
        """Time the block as `name`, less what it spends in the stage `without`."""
        start, inside = time.perf_counter(), self.seconds.get(without or "", 0.0)
        try:
            with stage(name):
                yield
        finally:
            inside = self.seconds.get(without or "", 0.0) - inside
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start - inside

    def shares(self, count: int) -> dict[str, float]:
        """The seconds of each of `count` problems."""
        return {stage: seconds / count for stage, seconds in self.seconds.items()}

    def each(self, name: str, values: Iterator[T]) -> Iterator[T]:
        """Time the making of each value, and what the caller does with it, as `name`."""
        while True:
            with self.stage(name):
                value = next(values, None)
                if value is None:
                    return
                yield value
