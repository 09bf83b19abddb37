"""Sample the rows of many threads side by side at a server, in one event loop for all that ask.

    rows of one call with one adapter -> it is loaded under a name of its own -> a request for each -> it is unloaded

It takes the place of `mass.lm.continuous.ContinuousDecoder`: the server does what that does in this process. A row
fails alone, with EngineError. As a sample is checked whole, its text comes in one piece.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import anyio.from_thread

from mass.errors import ConfigError, DataError
from mass.lm.continuous.ask import Ask, Closed, Limits, Load, Piece, QueueFull, adapters_of
from mass.lm.remote.failures import UnknownAdapter
from mass.lm.remote.folder import check_loadable
from mass.lm.remote.http import HttpEngine
from mass.lm.remote.lasting import Lasting
from mass.lm.remote.protocol import Local
from mass.lm.sampling import StopStrings
from mass.types import Params, Sample

if TYPE_CHECKING:
    from mass.lm.model import LM

LOOK_S = 0.05
"""Seconds between two looks at whether rows are still wanted."""


class _Row:
    """A row that waits or is asked for."""

    def __init__(self, ask: Ask, adapter: Params | None, local: Local) -> None:
        self.ask, self.adapter, self.local = ask, adapter, local
        self.future: Future[Sample] = Future()

    def is_unwanted(self) -> bool:
        """Return True once nobody wants the row any more."""
        try:
            if self.ask.cancelled is not None and self.ask.cancelled():
                self.future.cancel()
        except Exception as error:  # the caller's function; only this row is concerned
            self.fail(error)
        return self.future.done()

    def deliver(self, sample: Sample) -> None:
        """Give the sample to whoever waits for it, and to whoever listens."""
        try:
            if self.ask.on_piece is not None and not self.future.done():
                self.ask.on_piece(Piece(sample.text, sample.tokens, sample.logprobs))
        except Exception as error:  # the listener's
            self.fail(error)
        with suppress(InvalidStateError):  # cancelled a moment ago
            self.future.set_result(sample)

    def fail(self, error: BaseException) -> None:
        """End the row with an error for whoever waits for it; one that has ended stays as it is."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class RemoteDecoder:
    """Samples at the server that `lm` is connected to (`mass.lm.remote.connect`), until it is closed."""

    def __init__(self, lm: LM, limits: Limits | None = None, lasting: Sequence[Params] = ()) -> None:
        """Connect to the server; nothing is asked there yet.

        Args:
            lm: a model that a server samples for.
            limits: of them `waiting` and `reserved` count here; what is sampled side by side is the server's business,
                and bounded by `model.engine.requests`.
            lasting: adapters that many rows will have. They are not unloaded after each.

        Raises ConfigError for adapters that the server would not load, or that it has no folder for.
        """
        assert isinstance(lm.engine, HttpEngine)
        self.lm, self._engine, self._limits = lm, lm.engine, limits or Limits()
        self.local, self.config = self._engine.local, self._engine.config
        check_loadable(lm.adapters, self.config)
        if self.config.lora_dir is None:
            raise ConfigError(
                "a server samples, and model.engine.lora_dir is not set; expected a folder for the adapters of "
                "requests, which the server can read too; give one"
            )
        self._base: Params | None = None
        self.lasting = tuple(lasting)
        """Adapters that stay at the server."""
        self._rows: set[_Row] = set()
        self._asked = self._adapters = self._tokens = 0
        self._lock, self._closed = threading.Lock(), False
        self._open = ExitStack()
        self._portal = self._open.enter_context(anyio.from_thread.start_blocking_portal())
        self._open.enter_context(self._portal.wrap_async_context_manager(self._at_work()))

    def __enter__(self) -> RemoteDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def keep_base_apart(self) -> None:
        """Ask for rows of the base under an adapter that changes nothing, from now on.

        For servers that apply adapters to rows of the base in the same batch.
        """
        self._base = self.lm.init_adapter(0)
        self._portal.call(self._kept.add, self._base)

    def submit(self, ask: Ask) -> Future[Sample]:
        """Ask for one row (`submit_all`)."""
        return self.submit_all([ask])[0]

    def submit_all(self, asks: Sequence[Ask], *, wait: bool = False) -> list[Future[Sample]]:
        """Ask for rows, all or none; returns a future for each. Cancelling one breaks its request off.

        Args:
            wait: True for rows that are taken however many wait.

        Raises:
            ShapeError: an adapter that does not fit the model.
            DataError: a prompt without tokens, or one that is too long for the server.
            QueueFull: more rows wait than may.
            Closed: the decoder is closed.
        """
        adapters = adapters_of(asks, self.lm.adapters)
        self._check_lengths(asks)
        rows = [_Row(ask, adapter, self._local(ask)) for ask, adapter in zip(asks, adapters, strict=True)]
        groups: dict[int, list[_Row]] = {}
        for row in rows:
            groups.setdefault(id(row.adapter), []).append(row)
        with self._lock:
            if self._closed:
                raise Closed("the decoder is closed; expected an open one; make another")
            if not wait and len(self._rows) + len(rows) > self._limits.waiting + self.config.requests:
                raise QueueFull(
                    f"{len(rows)} more rows beside {len(self._rows)}; expected at most {self._limits.waiting} that "
                    "wait; ask again later"
                )
            self._rows |= set(rows)
            for group in groups.values():
                self._portal.start_task_soon(self._begin, group)
        return [row.future for row in rows]

    def load(self) -> Load:
        """Return what the decoder does now, for metrics."""
        running = self._asked
        adapters = self._adapters + len(self._kept)
        return Load(running, max(0, len(self._rows) - running), adapters, self._tokens, 0, 0)

    def close(self) -> None:
        """Refuse further rows, fail those that have not ended with `Closed`, and unload all adapters."""
        with self._lock:
            self._closed, was_open = True, not self._closed
        if was_open:
            self._open.close()

    # --- in the threads that ask

    def _check_lengths(self, asks: Sequence[Ask]) -> None:
        longest, most = max((len(ask.prompt) for ask in asks), default=0), self._engine.context
        if longest >= most:
            raise DataError(f"a prompt of {longest} tokens; the sampling server reads at most {most - 1}; shorten it")

    def _local(self, ask: Ask) -> Local:
        """Return the description of the model with the texts that end this row."""
        stop = ask.stop if isinstance(ask.stop, StopStrings) else StopStrings(self.lm.tokenizer, ask.stop)
        return dataclasses.replace(self.local, stop=stop.stop, cut=stop.cut)

    # --- in the event loop

    @asynccontextmanager
    async def _at_work(self) -> AsyncGenerator[None, None]:
        """Hold the connections and all tasks. At the end all tasks are cancelled, and adapters unloaded."""
        requests = self.config.requests
        reserved = min(self._limits.reserved or 0, requests - 1)
        self._requests = anyio.CapacityLimiter(requests)
        self._not_urgent = anyio.CapacityLimiter(requests - reserved)
        # A server has room for few adapters at a time, each of which serves many requests.
        self._side_by_side = anyio.CapacityLimiter(self.config.adapters)
        async with self._engine.session() as self._client:
            self._kept = Lasting(self._engine, self._client, self.lasting)
            try:
                async with anyio.create_task_group() as self._tasks:
                    yield
                    self._tasks.cancel_scope.cancel()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._kept.close()

    def _begin(self, rows: list[_Row]) -> None:
        if self._closed:
            self._end(rows)
        else:
            self._tasks.start_soon(self._run, rows)

    def _end(self, rows: list[_Row]) -> None:
        """Forget the rows; those without a sample or an error fail."""
        self._rows -= set(rows)
        for row in rows:
            row.fail(Closed("the decoder was closed before the row had ended; ask again elsewhere"))

    async def _run(self, rows: list[_Row]) -> None:
        """Sample rows with one adapter, and end each of them."""
        try:
            scopes = [anyio.CancelScope() for _ in rows]
            async with anyio.create_task_group() as watched:
                watched.start_soon(self._watch, rows, scopes, watched.cancel_scope)
                await self._sample(rows, scopes)
                watched.cancel_scope.cancel()
        finally:
            self._end(rows)

    async def _watch(self, rows: list[_Row], scopes: list[anyio.CancelScope], all_of_them: anyio.CancelScope) -> None:
        """Break off the rows that nobody wants any more, and all of it where none is wanted."""
        while True:
            unwanted = [row.is_unwanted() for row in rows]
            if all(unwanted):
                all_of_them.cancel()
            for scope, over in zip(scopes, unwanted, strict=True):
                if over:
                    scope.cancel()
            await anyio.sleep(LOOK_S)

    async def _sample(self, rows: list[_Row], scopes: list[anyio.CancelScope]) -> None:
        adapter = self._base if rows[0].adapter is None else rows[0].adapter
        try:
            async with self._held(adapter) as name, anyio.create_task_group() as asking:
                for row, scope in zip(rows, scopes, strict=True):
                    asking.start_soon(self._answer, row, scope, adapter, name)
        except Exception as error:  # it cannot be loaded
            for row in rows:
                row.fail(error)

    @asynccontextmanager
    async def _held(self, adapter: Params | None) -> AsyncGenerator[str | None, None]:
        """Yield the name of an adapter that is loaded for these rows alone, or of the base; None for a lasting one."""
        if adapter is None or adapter in self._kept:
            yield self._engine.served.name if adapter is None else None
            return
        async with self._side_by_side, self._engine.loaded(self._client, adapter) as name:
            self._adapters += 1
            try:
                yield name
            finally:
                self._adapters -= 1

    async def _answer(self, row: _Row, scope: anyio.CancelScope, adapter: Params | None, name: str | None) -> None:
        """Ask for one row once it is its turn, and end it."""
        ask = row.ask
        with scope:
            async with AsyncExitStack() as turn:
                if not ask.urgent:
                    await turn.enter_async_context(self._not_urgent)
                await turn.enter_async_context(self._requests)
                self._asked += 1
                try:
                    sample = await self._completed(row, adapter, name)
                except Exception as error:
                    row.fail(error)
                else:
                    self._tokens += len(sample.tokens)
                    row.deliver(sample)
                finally:
                    self._asked -= 1

    async def _completed(self, row: _Row, adapter: Params | None, name: str | None) -> Sample:
        """Request one completion. Raises EngineError."""
        if name is not None or adapter is None:
            return await self._complete(row, name or self._engine.served.name)
        async with self._kept.lent(adapter) as lent:
            try:
                return await self._complete(row, lent)
            except UnknownAdapter:  # the server was started anew meanwhile
                self._kept.forget(adapter, lent)
        async with self._kept.lent(adapter) as lent:
            return await self._complete(row, lent)

    async def _complete(self, row: _Row, name: str) -> Sample:
        ask = row.ask
        return await self._engine.complete(
            self._client,
            name,
            ask.prompt,
            ask.config,
            ask.seed,
            with_logprobs=ask.with_logprobs,
            local=row.local,
        )
