"""Turn progress reports (`mass.timing`) into short lines now and then: stage, tokens per second, time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mass.timing import Decoding, duration, listening

LOOK_EVERY_S = 0.5
FIRST_AFTER_S = 2.0
"""Seconds that a stage takes before it is reported."""


@dataclass
class StageWatch:
    """Listens to progress and passes lines to `show`.

    A stage is reported once it is `FIRST_AFTER_S` old: at once if it is the first time, then every `every_s` seconds.
    `look` is called by a separate thread, so lines appear even while nothing is reported.
    """

    show: Callable[[str], None]
    every_s: float
    clock: Callable[[], float] = time.monotonic
    _name: str = ""
    _began: float = 0.0
    _said: float = 0.0
    _named: set[str] = field(default_factory=set[str])
    _state: Decoding | None = None

    def __post_init__(self) -> None:
        self._began = self._said = self.clock()

    def stage(self, name: str) -> None:
        """Note that a stage begins (see `mass.timing.Listener`)."""
        self._name, self._began, self._state = name, self.clock(), None

    def decoding(self, state: Decoding) -> None:
        """Note the progress of sampling."""
        self._state = state if state.rows_left else None

    def look(self) -> None:
        """Show a line if one is due."""
        now = self.clock()
        new = bool(self._name) and self._name not in self._named
        if now - self._began < FIRST_AFTER_S or not (new or now - self._said >= self.every_s):
            return
        self._said = now
        self._named.add(self._name)
        self.show(words(self._name, now - self._began, self._state))


def words(name: str, seconds: float, state: Decoding | None) -> str:
    """Write a line such as `synthesis: 1,234 tokens, 56 tokens/s, 12 rows go on, at most 40 s left`."""
    if state is None:
        return f"{name}: {duration(seconds)}" if name else duration(seconds)
    pace = state.tokens / max(state.seconds, 1e-9)
    rows = "1 row goes on" if state.rows_left == 1 else f"{state.rows_left} rows go on"
    speed = f"{pace:,.0f}" if pace >= 10 else f"{pace:.1f}"
    said = f"{state.tokens:,} tokens, {speed} tokens/s, {rows}, at most {duration(state.left_s)} left"
    return f"{name or 'sampling'}: {said}"


@contextmanager
def watching(show: Callable[[str], None], every_s: float) -> Generator[None, None, None]:
    """Show the progress of the work inside the block."""
    watch, done = StageWatch(show, every_s), threading.Event()

    def keep_looking() -> None:
        while not done.wait(LOOK_EVERY_S):
            watch.look()

    thread = threading.Thread(target=keep_looking, name="progress", daemon=True)
    thread.start()
    try:
        with listening(watch):
            yield
    finally:
        done.set()
        thread.join()
