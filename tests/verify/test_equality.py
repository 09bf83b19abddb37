"""Two final answers that are the same mathematics, and two that are not, by kind; each pair in both directions."""

from __future__ import annotations

import time

import pytest
from answer_pairs import DIFFERENT, SAME

from mass.types import Task
from mass.verify import check
from mass.verify.math import compare


def pairs(kinds: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    listed = [pair for pairs in kinds.values() for pair in pairs]
    return [*listed, *((other, one) for one, other in listed)]


def judge(gold: str, answer: str) -> bool | None:
    return check(Task("p", answer=gold), rf"It is $\boxed{{{answer}}}$.").correct


@pytest.mark.parametrize(("gold", "answer"), pairs(SAME))
def test_same(gold: str, answer: str) -> None:
    assert judge(gold, answer) is True


@pytest.mark.parametrize(("gold", "answer"), pairs(DIFFERENT))
def test_different(gold: str, answer: str) -> None:
    assert judge(gold, answer) is False


HOSTILE = [
    "5 ",
    "ab ",
    "5 ab ",
    "{",
    r"\{",
    r"\text{",
    r"\sqrt",
    "√(",
    "^(",
    "²",
    ":1",
    "x=",
    "5/",
    "a-",
    r"{a\over ",
    "–5",
    "'5",
    "a^2 a",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_what_is_read_without_algebra_takes_little_time(piece: str) -> None:
    start = time.process_time()
    for end in ("", "#", "!", " 5 cm"):
        compare("7", (piece * 1000)[:990] + end)
    assert time.process_time() - start < 4
