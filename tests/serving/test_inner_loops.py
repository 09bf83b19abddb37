"""Lessons that wait at the same time are learned as one stack, and one lesson's fault is its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from servers import WAIT_S, until

from mass.lm.continuous import Cancelled, check_cancelled, current_request
from mass.serving.inner_loops import InnerLoops, Learned, Lesson, _run, _Waiting
from mass.types import Adaptation


@dataclass
class Teacher:
    """Learns stacks, the first one only when it is told to; notes their sizes."""

    stacks: list[list[str]] = field(default_factory=list[list[str]])
    begun: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    bad: frozenset[str] = frozenset()

    def learn(self, lessons: Sequence[Lesson]) -> list[Learned]:
        request = current_request.get()
        assert request is not None
        assert not request.cancelled
        self.stacks.append([one.problem for one in lessons])
        self.begun.set()
        assert self.go.wait(WAIT_S)
        if any(one.problem in self.bad for one in lessons):
            raise ValueError("bad")
        return [(Adaptation(one.problem, "m", one.seed, {}, "h"), {}) for one in lessons]


def lesson(problem: str, key: str = "k", *, cancelled: bool = False) -> Lesson:
    return Lesson(key, problem, (), 0, lambda: cancelled)


def taught(loops: InnerLoops, teacher: Teacher, lessons: list[Lesson]) -> list[Any]:
    """Learn the lessons in threads, the first one before the others come; return records or exceptions."""

    def learn(one: Lesson) -> Any:
        current_request.set(one)  # type: ignore[arg-type]
        try:
            return loops.learn(one, teacher.learn)[0].problem
        except (ValueError, Cancelled) as error:
            return type(error)

    with ThreadPoolExecutor(len(lessons)) as pool:
        first = pool.submit(learn, lessons[0])
        assert teacher.begun.wait(WAIT_S)
        others = [pool.submit(learn, one) for one in lessons[1:]]
        until(lambda: len(loops._waiting) == len(lessons) - 1)
        teacher.go.set()
        return [future.result(WAIT_S) for future in (first, *others)]


def test_those_that_wait_are_one_stack_each_with_its_own_result() -> None:
    teacher = Teacher()
    names = [f"p{i}" for i in range(6)]
    assert taught(InnerLoops(16), teacher, [lesson(name) for name in names]) == names
    assert sorted(map(len, teacher.stacks)) == [1, 5]


def test_a_stack_is_no_larger_than_allowed_and_of_one_key() -> None:
    teacher = Teacher()
    lessons = [lesson(f"p{i}", key="ab"[i % 2]) for i in range(9)]
    assert taught(InnerLoops(2), teacher, lessons) == [one.problem for one in lessons]
    assert max(map(len, teacher.stacks)) == 2
    assert all(len({int(name[1:]) % 2 for name in stack}) == 1 for stack in teacher.stacks)


def test_one_that_fails_fails_alone() -> None:
    teacher = Teacher(bad=frozenset({"p2"}))
    found = taught(InnerLoops(16), teacher, [lesson(f"p{i}") for i in range(5)])
    assert found == ["p0", "p1", ValueError, "p3", "p4"]


def test_a_cancelled_lesson_is_not_learned() -> None:
    teacher = Teacher()
    lessons = [lesson("p0"), lesson("p1", cancelled=True), lesson("p2")]
    assert taught(InnerLoops(16), teacher, lessons) == ["p0", Cancelled, "p2"]
    assert not any("p1" in stack for stack in teacher.stacks)


def test_a_stack_ends_between_two_steps_when_nobody_waits_for_it() -> None:
    gone, steps = list[str](), list[int]()

    def learn(_: Sequence[Lesson]) -> list[Learned]:
        for step in range(10):
            steps.append(step)
            gone.append(f"p{step}")
            check_cancelled()
        raise AssertionError

    names = ("p0", "p3")
    waiting = [_Waiting(Lesson("k", name, (), 0, lambda name=name: name in gone), learn) for name in names]
    _run(waiting)
    assert steps == [0, 1, 2, 3]
    assert [type(one.learned.exception()) for one in waiting] == [Cancelled, Cancelled]


def test_the_caller_keeps_its_own_request() -> None:
    teacher, own = Teacher(), lesson("p0")
    teacher.go.set()
    token = current_request.set(own)  # type: ignore[arg-type]
    try:
        InnerLoops(1).learn(own, teacher.learn)
        assert current_request.get() is own
    finally:
        current_request.reset(token)


def test_a_fault_beyond_exceptions_reaches_all() -> None:
    def stop(_: Sequence[Lesson]) -> list[Learned]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        InnerLoops(1).learn(lesson("p"), stop)
