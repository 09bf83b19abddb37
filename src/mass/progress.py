"""Work that takes its time -> whoever shows how far it is: the stage it is in, and how decoding goes.

Those who work (`mass.adapt.Clock`, `mass.lm.sampling`) say so; who wants to hear it listens for the length of a `with`
block, and hears the work of its own thread. Where nobody listens nothing happens.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


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
