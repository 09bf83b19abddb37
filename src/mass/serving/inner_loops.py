"""Inner loops of many requests -> adapted weights, as stacks: those that wait at the same time run as one.

Each request has a thread that blocks here. One of them runs a stack for all that wait with the same checkpoint and
configuration; there is one stack at a time, so that its memory is that of one. Nothing is delayed to fill a stack.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
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
    learned: Learned | None = None
    error: BaseException | None = field(default=None)

    @property
    def done(self) -> bool:
        return self.learned is not None or self.error is not None


class InnerLoops:
    """Runs lessons as stacks of at most `most`, one stack at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._busy = False

    def learn(self, lesson: Lesson, learn: Learn) -> Learned:
        """Return what `learn` makes of the lesson, perhaps together with others of the same key.

        `learn` must depend on nothing but the lessons and their key. Raises Cancelled, or what it raises for this
        lesson alone: one that fails in a stack does not fail the others.
        """
        own = _Waiting(lesson, learn)
        with self._changed:
            self._waiting.append(own)
        while (stack := self._next(own)) is not None:
            try:
                _run(stack)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
        if own.error is not None:
            raise own.error
        assert own.learned is not None
        return own.learned

    def _next(self, own: _Waiting) -> list[_Waiting] | None:
        """Return a stack for this thread to run, once it is its turn; None once `own` is done."""
        with self._changed:
            self._changed.wait_for(lambda: own.done or not self._busy)
            if own.done:
                return None
            stack = [one for one in self._waiting if one.lesson.key == own.lesson.key][: self._most]
            self._waiting = [one for one in self._waiting if one not in stack]
            self._busy = True
            return stack


def _run(stack: list[_Waiting]) -> None:
    """Learn a stack, without those that are cancelled. If it fails, each is learned alone."""
    for one in stack:
        if one.lesson.cancelled():
            one.error = Cancelled()
    live = [one for one in stack if not one.done]
    token = current_request.set(Stack([one.lesson for one in live]))
    try:
        found = live[0].learn([one.lesson for one in live]) if live else []
        for one, learned in zip(live, found, strict=True):
            one.learned = learned
    except BaseException as error:
        if len(live) == 1 or not isinstance(error, Exception):
            for one in live:
                one.error = error
            return
        for one in live:
            _run([one])
    finally:
        current_request.reset(token)
