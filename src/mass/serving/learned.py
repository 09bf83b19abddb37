"""Examples that came with requests -> adapters learned from them once, kept for later requests of the same client.

They are bounded in number and memory, and dropped when they were not used for a while. An adapter belongs to a key, a
checkpoint, and examples: nobody else's request finds it. It belongs to the event loop; learning runs in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mass.adaptation.adapted import AdaptedModel
from mass.config import ServeConfig
from mass.serving.job import Job


@dataclass(frozen=True)
class ExamplesKey:
    """Whom an adapter belongs to, and what it was learned from."""

    owner: str
    checkpoint_hash: str
    digest: str
    """SHA-256 of the examples, and of the system messages before them."""

    @staticmethod
    def of(job: Job) -> ExamplesKey:
        """Return the key of a request's examples."""
        given = json.dumps([job.request.instruction, job.request.mass.examples])
        return ExamplesKey(job.owner, job.served.checkpoint_hash, hashlib.sha256(given.encode()).hexdigest())


@dataclass
class Kept:
    """One adapter that was learned from examples."""

    id: str
    key: ExamplesKey
    name: str
    """The model's, for lists."""
    model: AdaptedModel
    size: int
    """Bytes of the adapter."""
    made: float
    """Seconds since 1970."""
    used: float
    """Time of the last use, by the clock of the cache."""

    @property
    def choice(self) -> str:
        """How the examples are used, and why."""
        return "" if self.model.choice is None else self.model.choice.reason


@dataclass
class _Learning:
    """Examples that are being learned, for one request or several."""

    task: asyncio.Task[Kept]
    waiting: int = 0
    dropped: bool = False
    """True if the examples were deleted meanwhile, or nobody waits any more."""


class LearnedExamples:
    """The adapters, the one used last at the end."""

    def __init__(self, config: ServeConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._bytes = config.learned_sets, config.learned_mb * 1e6
        self._idle_s, self._clock = config.learned_minutes * 60, clock
        self._kept: OrderedDict[ExamplesKey, Kept] = OrderedDict()
        self._learning: dict[ExamplesKey, _Learning] = {}

    def find(self, key: ExamplesKey) -> Kept | None:
        """Return the adapter of a key, and count this as a use."""
        self.expire()
        found = self._kept.get(key)
        if found is not None:
            found.used = self._clock()
            self._kept.move_to_end(key)
        return found

    async def learn(self, key: ExamplesKey, name: str, learn: Callable[[], Awaitable[AdaptedModel]]) -> Kept:
        """Return the adapter of a key, learned by `learn` where there is none; requests that come meanwhile wait for
        the same. When the last of them is cancelled, so is the learning."""
        if (found := self.find(key)) is not None:
            return found
        learning = self._learning.get(key)
        if learning is None:
            learning = self._learning[key] = _Learning(asyncio.ensure_future(self._run(key, name, learn)))
            learning.task.add_done_callback(lambda _: self._forget(key, learning))
        learning.waiting += 1
        try:
            return await asyncio.shield(learning.task)
        finally:
            learning.waiting -= 1
            if not learning.waiting and not learning.task.done():
                self._forget(key, learning)  # a request that comes before it has ended learns anew
                learning.task.cancel()

    def _forget(self, key: ExamplesKey, learning: _Learning) -> None:
        if self._learning.get(key) is learning:
            del self._learning[key]

    async def _run(self, key: ExamplesKey, name: str, learn: Callable[[], Awaitable[AdaptedModel]]) -> Kept:
        model = await learn()
        size = sum(t.numel() * t.element_size() for t in model.adapter.values())
        found = Kept(f"examples-{uuid.uuid4().hex}", key, name, model, size, time.time(), self._clock())
        learning = self._learning.get(key)
        if learning is not None and not learning.dropped and size <= self._bytes and self._most:
            self._kept[key] = found
            self._shrink()
        return found

    def of_owner(self, owner: str | None) -> list[Kept]:
        """Return the adapters of an owner, the newest first; those of everybody for None."""
        self.expire()
        found = [one for one in self._kept.values() if owner is None or one.key.owner == owner]
        return sorted(found, key=lambda one: one.made, reverse=True)

    def delete(self, id: str, owner: str | None) -> bool:
        """Drop an adapter; return False where the owner has none of this id. Requests that use it end with it."""
        found = next((one for one in self.of_owner(owner) if one.id == id), None)
        if found is None:
            return False
        del self._kept[found.key]
        return True

    def clear(self) -> None:
        """Drop all adapters, and those that are being learned once they are."""
        self._kept.clear()
        for learning in self._learning.values():
            learning.dropped = True

    def expire(self) -> None:
        """Drop what was not used for too long."""
        oldest = self._clock() - self._idle_s
        for key in [key for key, one in self._kept.items() if one.used < oldest]:
            del self._kept[key]

    def _shrink(self) -> None:
        while len(self._kept) > self._most or sum(one.size for one in self._kept.values()) > self._bytes:
            self._kept.popitem(last=False)
