"""minimath-terms: many kinds, each named by a term whose meaning nothing in the problem tells."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from mass.tasks import content_hash, load, minimath
from mass.tasks.minimath import LEVELS, SUBJECTS, Problem, recognise, similar
from mass.tasks.minimath.terms import MEANINGS, TELLING
from mass.verify import check

TERMS = minimath.SOURCES["minimath-terms"]
PINNED = "45d307815c0aab4b993bbaa6b4a2c4895167116a9422aafe1b68655ac711781b"
"""The first 300 test problems with their solutions, so that a base trained on the terms stays one that knows them."""

TESTED = (("test", 0), ("validation", 1))
"""Split and seed of the problems of recipes/minimath-terms that nothing is trained on."""


def some(kind: minimath.Kind, count: int = 3) -> list[Problem]:
    rng = random.Random(kind.name)
    return [Problem(kind, level, kind.draw(rng, level)) for level in LEVELS for _ in range(count)]


def holds(solution: str) -> bool:
    """Whether each step is true and the last one's value is the answer."""
    *steps, last = solution.split(". ")
    true = all(eval(left) == int(right) for left, right in (step.split("=") for step in steps))
    return true and len(steps) == 2 and last == f"Answer: {steps[-1].split('=')[1]}"


def test_each_subject_has_twenty_terms_of_its_own() -> None:
    assert Counter(kind.subject for kind in TERMS) == dict.fromkeys(SUBJECTS, 20)
    assert len({kind.name for kind in TERMS}) == 140
    assert all(re.fullmatch("[a-z]{3,6}", kind.name) for kind in TERMS)


def test_what_a_term_means_does_not_change() -> None:
    assert content_hash(load("minimath-terms", size=300)) == PINNED


def test_a_solution_is_two_true_steps_and_so_is_a_mistaken_one() -> None:
    right = mistaken = 0
    for kind in TERMS:
        for problem in some(kind):
            assert holds(problem.solution()), problem.text
            assert holds(problem.solution("mistaken")), problem.text
            assert check(problem.task(), problem.solution()).correct is True
            right += check(problem.task(), problem.solution("mistaken")).correct is True
            mistaken += 1
    assert right < 0.06 * mistaken, "by chance, as 2*2 is 2+2"


def test_a_term_is_mistaken_for_a_meaning_that_shares_one_operation() -> None:
    """So a mistaken solution is as long, as true and half as right as a right one."""
    names = {meaning: name for name, meaning in MEANINGS.items()}
    for kind in TERMS:
        assert kind.mistaken is not None
        (a, b), (c, d) = names[kind.solve], names[kind.mistaken]
        assert (a == c) != (b == d)


def test_no_term_tells_another() -> None:
    """The commonest meaning is that of few terms, in every subject."""
    names = {meaning: name for name, meaning in MEANINGS.items()}
    for subject in SUBJECTS:
        found = Counter(names[kind.solve] for kind in TERMS if kind.subject == subject)
        assert max(found.values()) <= 4
    assert len(TELLING) > 5


def test_a_slip_has_one_untrue_step_or_follows_from_one() -> None:
    for kind in TERMS:
        for problem in some(kind, 1):
            slip = problem.solution("slip", random.Random(0))
            assert not holds(slip)
            assert check(problem.task(), slip).correct is False


def test_texts_are_recognised_and_similar_problems_keep_the_term() -> None:
    rng = random.Random(0)
    for kind in TERMS:
        problem = some(kind)[-1]
        found = recognise(problem.text)
        assert found is not None
        assert (found.kind, found.answer) == (kind, problem.answer)
        assert similar(rng, problem, "train").kind is kind


def test_what_the_study_trains_on_is_not_what_it_is_tested_on() -> None:
    """The training problems of its five seeds, those it is validated on, and its test problems."""
    test, held_out = ({t.problem for t in load("minimath-terms", split=s, size=1000, seed=n)} for s, n in TESTED)
    trained = {t.problem for n in range(5) for t in load("minimath-terms", split="train", size=1000, seed=n)}
    assert len(trained) > 3000
    assert len(test | held_out | trained) == len(test) + len(held_out) + len(trained)


@pytest.mark.parametrize("text", ["Find the glumf of a 3 by 4 rectangle.", "Compute the verf of 3.", "Find its nenz."])
def test_other_terms_and_other_texts_are_not(text: str) -> None:
    assert recognise(text) is None


def test_kinds_of_the_other_sets_are_mistaken_for_nothing() -> None:
    problem = minimath.draw(random.Random(0), "train")
    assert problem.kind.mistaken is None
    with pytest.raises(ValueError, match="mistaken for nothing"):
        problem.solution("mistaken")
