"""Adapters that stay at the server for as long as this process samples there: those of checkpoints.

Each is loaded when it is first used. It gets another name and folder once the server does not know it any more, as
after a restart, and before other processes would take it for one that a killed process left behind.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import httpx2

from mass.lm.remote.http import HttpEngine
from mass.types import Params


@dataclass(eq=False)
class Loaded:
    """An adapter under one name."""

    name: str
    unloading: AsyncExitStack
    made: float = field(default_factory=time.monotonic)
    users: int = 0
    """Rows that are sampled from it."""


class Lasting:
    """The adapters by identity; they must not change. It belongs to one event loop."""

    def __init__(self, engine: HttpEngine, client: httpx2.AsyncClient, adapters: Sequence[Params]) -> None:
        self._engine, self._client = engine, client
        self._adapters: dict[int, tuple[Params, anyio.Lock]] = {}
        self._loaded: dict[int, Loaded] = {}
        self._longest_s = engine.config.orphan_hours * 3600 / 2
        for adapter in adapters:
            self.add(adapter)

    def add(self, adapter: Params) -> None:
        """Let one more adapter stay."""
        self._adapters[id(adapter)] = adapter, anyio.Lock()

    def __contains__(self, adapter: Params) -> bool:
        return id(adapter) in self._adapters

    def __len__(self) -> int:
        """Return how many are loaded."""
        return len(self._loaded)

    @asynccontextmanager
    async def lent(self, adapter: Params) -> AsyncGenerator[str, None]:
        """Yield the name of the adapter at the server, which keeps it at least for the length of the block.

        Raises EngineError where it cannot be loaded.
        """
        key = id(adapter)
        async with self._adapters[key][1]:
            found = self._loaded.get(key)
            if found is None or time.monotonic() - found.made > self._longest_s:
                unloading = AsyncExitStack()
                name = await unloading.enter_async_context(self._engine.loaded(self._client, adapter))
                self._loaded[key] = Loaded(name, unloading)
                if found is not None:
                    await self._unload_unused(found)
            found = self._loaded[key]
            found.users += 1
        try:
            yield found.name
        finally:
            found.users -= 1
            await self._unload_unused(found)

    def forget(self, adapter: Params, name: str) -> None:
        """Load the adapter anew for the next row, if it still has this name."""
        found = self._loaded.get(id(adapter))
        if found is not None and found.name == name:
            del self._loaded[id(adapter)]

    async def close(self) -> None:
        """Unload all."""
        for loaded in list(self._loaded.values()):
            await loaded.unloading.aclose()
        self._loaded.clear()

    async def _unload_unused(self, loaded: Loaded) -> None:
        """Unload what no row uses and none will."""
        if not loaded.users and loaded not in self._loaded.values():
            await loaded.unloading.aclose()
