"""The types around continuous decoding: a row that is asked for, its pieces, limits, errors, what decodes, and whom a
thread works for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mass.config import SamplingConfig
from mass.config.checks import require
from mass.errors import DataError, MassError, ShapeError
from mass.lm.lora import LoraSites, changes_nothing
from mass.lm.sampling import StopStrings
from mass.types import Params, Sample

if TYPE_CHECKING:
    from mass.lm.model import LM


class QueueFull(MassError):
    """More rows than may wait for decoding."""


class Closed(MassError):
    """A decoder that is closed, or was closed before a row had ended."""


class Cancelled(Exception):
    """The request that this thread works for is cancelled. No `MassError`, so that nothing falls back on it."""


@dataclass(frozen=True)
class Piece:
    """A part of a continuation that later tokens cannot change. The pieces of a row, joined, are its sample."""

    text: str
    """The further text; it may be empty where only tokens are left."""
    tokens: tuple[int, ...]
    """The tokens since the last piece. Those of half a character, or of the start of a stop text, come later."""
    logprobs: tuple[float, ...] = ()
    """Log-probability of each of these tokens; empty unless asked for."""


@dataclass(frozen=True, eq=False)
class Ask:
    """One row to be decoded."""

    prompt: Sequence[int]
    config: SamplingConfig
    seed: int
    adapter: Params | None = None
    """One adapter, no stack; None for the base. Rows share an adapter if they have the same object."""
    stop: StopStrings | Sequence[str] = ()
    """Texts that end the row."""
    with_logprobs: bool = False
    on_piece: Callable[[Piece], None] | None = None
    """Called in the decoder's thread with each piece, so it must be quick. If it raises, this row fails."""
    owner: Hashable = None
    """Rows of different owners are begun in turn."""
    urgent: bool = False
    """True if the row may take one of `Limits.reserved`."""
    cancelled: Callable[[], bool] | None = None
    """Called in the decoder's thread before each step; True frees the row."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a decoder. A `None` is replaced by what suits the model."""

    rows: int | None = None
    """Rows decoded side by side at most; None for `ModelConfig.decode_rows`."""
    waiting: int = 1024
    """Rows that may wait."""
    reserved: int | None = None
    """How many of `rows` only urgent rows may take; None for an eighth."""
    prefill_tokens: int = 512
    """Positions of prompts read between two steps of running rows at most, so that a long prompt does not hold them
    up. A model with a recurrent state reads its prompts whole."""
    memory_gb: float | None = None
    """Gigabytes for the rows and their adapters; None for a share of what is free whenever rows are begun."""

    def __post_init__(self) -> None:
        for name in ("rows", "waiting", "prefill_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"decoder.{name}", value, "at least 1")
        require(self.reserved is None or self.reserved >= 0, "decoder.reserved", self.reserved, "0 or more")
        require(self.memory_gb is None or self.memory_gb > 0, "decoder.memory_gb", self.memory_gb, "a positive number")


@dataclass(frozen=True)
class Load:
    """What a decoder does at this moment, and has done so far."""

    running: int
    """Rows that are decoded or whose prompt is read."""
    waiting: int
    adapters: int
    """Different adapters of the running rows."""
    tokens: int
    """Tokens sampled since the start."""
    steps: int
    """Steps since the start, each of one token for each running row."""
    held: int
    """Bytes of keys and values."""


class Decoder(Protocol):
    """What decodes the rows of many threads: this process (`ContinuousDecoder`), or a server
    (`mass.lm.remote.decoder.RemoteDecoder`)."""

    lm: LM

    def submit_all(self, asks: Sequence[Ask], *, wait: bool = False) -> list[Future[Sample]]: ...

    def load(self) -> Load: ...

    def close(self) -> None: ...


def adapters_of(asks: Sequence[Ask], sites: LoraSites) -> list[Params | None]:
    """Return the adapter of each row, one object for all that have it in common; None for one that changes nothing.

    Raises ShapeError for an adapter that does not fit the model, DataError for a prompt without tokens.
    """
    if not all(ask.prompt for ask in asks):
        raise DataError("a prompt without tokens; expected at least one; give a text or a start token")
    adapters = {id(ask.adapter): ask.adapter for ask in asks if ask.adapter is not None}
    own = {key: _checked(adapter, sites) for key, adapter in adapters.items()}
    return [own.get(id(ask.adapter)) for ask in asks]


def _checked(adapter: Params, sites: LoraSites) -> Params | None:
    """Return the adapter; None for one that changes nothing. Raises ShapeError."""
    sites.check(adapter)
    if any(tensor.dim() != 2 for tensor in adapter.values()):
        raise ShapeError("a row has a stack of adapters; expected one adapter; use mass.lm.lora.pick")
    return None if changes_nothing(adapter) else adapter


class Request(Protocol):
    """What the work in a thread is for."""

    @property
    def cancelled(self) -> bool:
        """True once the result is not wanted any more: the client has gone, or the deadline has passed."""
        ...

    @property
    def owner(self) -> Hashable:
        """Whom the rows are counted to (`Ask.owner`)."""
        ...

    @property
    def urgent(self) -> bool:
        """True if its rows may take reserved ones (`Ask.urgent`)."""
        ...


current_request: ContextVar[Request | None] = ContextVar("current_request", default=None)
"""The request that this thread, or this context, works for."""


def check_cancelled() -> None:
    """Raise `Cancelled` where the current request is cancelled."""
    request = current_request.get()
    if request is not None and request.cancelled:
        raise Cancelled("the request was cancelled, or its deadline has passed")
