"""What is said of practice examples, with a recogniser of sums in place of minimath's."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from research.appraisal import Appraisal, appraise, edit_distance, recogniser

from mass.types import Example, Task


@dataclass(frozen=True)
class Sum:
    a: int
    sign: str
    b: int

    @property
    def kind(self) -> str:
        return self.sign

    @property
    def level(self) -> int:
        return 1 if self.a < 10 else 2

    def task(self) -> Task:
        value = self.a + self.b if self.sign == "+" else self.a - self.b
        return Task(f"{self.a} {self.sign} {self.b}?", "", str(value), "Algebra", self.level, verifier="exact")


def recognise(text: str) -> Sum | None:
    match = re.fullmatch(r"(\d+) ([+-]) (\d+)\?", text)
    return None if match is None else Sum(int(match[1]), match[2], int(match[3]))


TARGET = Task("3 + 4?", "", "7", "Algebra", 1, verifier="exact")


def of(problem: str, solution: str, rejected: str = "", known: bool = True) -> Appraisal:
    return appraise(TARGET, Example(problem, solution, rejected=rejected), recognise if known else None)


def test_an_example_is_judged_by_the_problem_that_it_states() -> None:
    right = of("3 + 5?", "Answer: 8")
    assert (right.valid, right.recognised, right.correct, right.same_kind, right.level_difference) == (
        True, True, True, True, 0,
    )  # fmt: skip
    assert (right.distance, right.relative_distance, right.copy, right.near_copy) == (1, 1 / 6, False, True)
    wrong = of("12 - 5?", "Answer: 8")
    assert (wrong.correct, wrong.same_kind, wrong.same_subject, wrong.level_difference) == (False, False, True, 1)
    assert of(" 3  + 4?", "Answer: 7").copy
    rejected = of("3 + 4?", "Answer: 7", "copy")
    assert (rejected.valid, rejected.correct) == (False, True)


def test_what_is_not_of_the_source_is_not_correct_and_what_cannot_be_asked_is_not_judged() -> None:
    other = of("Sing a song.", "Answer: 7")
    assert (other.recognised, other.correct, other.same_kind, other.level_difference) == (False, False, False, None)
    unknown = of("3 + 5?", "Answer: 8", known=False)
    assert (unknown.recognised, unknown.correct, unknown.same_kind, unknown.distance) == (None, None, None, 1)
    unparsed = of("", "", "unparsed")
    assert (unparsed.valid, unparsed.distance, unparsed.correct, unparsed.near_copy) == (False, None, None, False)
    assert recogniser("problems.jsonl") is None


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("", "", 0), ("flaw", "lawn", 2), ("same", "same", 0)],
)
def test_edit_distance_of_known_pairs(one: str, other: str, distance: int) -> None:
    assert edit_distance(one, other) == edit_distance(other, one) == distance


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_edit_distance_is_that_of_its_definition(one: str, other: str) -> None:
    @functools.cache
    def least(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = one[i - 1] == other[j - 1]
        return min(least(i - 1, j) + 1, least(i, j - 1) + 1, least(i - 1, j - 1) + (not same))

    assert edit_distance(one, other) == least(len(one), len(other))
