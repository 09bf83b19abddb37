"""Inner loops of many requests -> adapted weights, as stacks: those that wait at the same time run as one.

Each request has a thread that blocks here, while one thread runs a stack for all that wait with the same checkpoint and
configuration. There is one stack at a time, so that its memory is that of one: whatever an allocator or a library of
arithmetic keeps for a thread (an arena, buffers) is kept once. Nothing is delayed to fill a stack.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from mass.lm.continuous import Cancelled, current_request
from mass.types import Adaptation, Example, Params


@dataclass(frozen=True)
class Lesson:
    """What one request wants to learn."""

    key: Hashable
    """Equal for lessons that may be learned as one stack."""
    problem: str
    examples: tuple[Example, ...]
    seed: int
    cancelled: Callable[[], bool]


@dataclass(frozen=True)
class Stack:
    """Lessons that are learned together, as a request (`mass.lm.continuous.Request`) that ends with the last of them:
    that of the thread which runs them must not end the lessons of the others."""

    lessons: Sequence[Lesson]
    owner: Hashable = None
    urgent: bool = False

    @property
    def cancelled(self) -> bool:
        return all(lesson.cancelled() for lesson in self.lessons)


Learned = tuple[Adaptation, Params]
Learn = Callable[[Sequence[Lesson]], list[Learned]]


@dataclass(eq=False)
class _Waiting:
    lesson: Lesson
    learn: Learn
    learned: Future[Learned] = field(default_factory=Future[Learned])


class InnerLoops:
    """Runs lessons as stacks of at most `most`, one stack at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="inner loops")
        """The one thread in which weights are learned from practice."""
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []

    def learn(self, lesson: Lesson, learn: Learn) -> Learned:
        """Return what `learn` makes of the lesson, perhaps together with others of the same key.

        `learn` must depend on nothing but the lessons and their key. Raises Cancelled, or what it raises for this
        lesson alone: one that fails in a stack does not fail the others.
        """
        own = _Waiting(lesson, learn)
        with self._lock:
            self._waiting.append(own)
        self.thread.submit(self._run_next)
        return own.learned.result()

    def close(self) -> None:
        """End the thread, once nobody waits any more."""
        self.thread.shutdown(wait=True)

    def _run_next(self) -> None:
        """Run a stack of the lesson that waits longest. There is a turn for each lesson, so some find nothing left."""
        with self._lock:
            key = self._waiting[0].lesson.key if self._waiting else None
            stack = [one for one in self._waiting if one.lesson.key == key][: self._most]
            self._waiting = [one for one in self._waiting if one not in stack]
        _run(stack)


def _run(stack: list[_Waiting]) -> None:
    """Learn a stack, without those that are cancelled. If it fails, each is learned alone."""
    for one in stack:
        if one.lesson.cancelled():
            one.learned.set_exception(Cancelled())
    live = [one for one in stack if not one.learned.done()]
    token = current_request.set(Stack([one.lesson for one in live]))
    try:
        found = live[0].learn([one.lesson for one in live]) if live else []
        for one, learned in zip(live, found, strict=True):
            one.learned.set_result(learned)
    except BaseException as error:
        if len(live) == 1 or not isinstance(error, Exception):
            for one in live:
                one.learned.set_exception(error)
            return
        for one in live:
            _run([one])
    finally:
        current_request.reset(token)
