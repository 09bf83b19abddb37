"""reasoning-gym: its tasks, and the full score or none."""

from __future__ import annotations

import dataclasses

import pytest

from mass import tasks
from mass.errors import DataError
from mass.verify import check

pytest.importorskip("reasoning_gym", reason="the extra `gym` is not installed")
pytestmark = pytest.mark.slow


def test_tasks_are_seeded_and_their_solutions_accepted() -> None:
    loaded = tasks.load("reasoning_gym:chain_sum?min_terms=3&max_terms=3", size=5, seed=2)
    assert loaded == tasks.load("reasoning_gym:chain_sum?min_terms=3&max_terms=3", size=5, seed=2)
    assert loaded != tasks.load("reasoning_gym:chain_sum?min_terms=3&max_terms=3", size=5, seed=3)
    assert len({task.id for task in loaded}) == 5
    for task in loaded:
        assert check(task, task.solution).correct is True
        assert check(task, rf"so \boxed{{{task.answer}}}").correct is True
        assert check(task, f"<answer>{int(task.answer) + 1}</answer>").correct is False


def test_another_right_answer_is_accepted_and_partial_credit_is_none() -> None:
    task = tasks.load("reasoning_gym:countdown", size=1, seed=1)[0]
    assert check(task, f"<answer>{task.answer.replace(' ', '')}</answer>").correct is True
    for wrong in (f"{task.answer} + 1", f"It is {task.answer}, I think", "1 + 1", "__import__('os')"):
        assert check(task, f"<answer>{wrong}</answer>").correct is not True, wrong
    assert check(task, "no answer").correct is False
    assert check(dataclasses.replace(task, id="x"), "<answer>1</answer>").correct is None


def test_what_cannot_be_made() -> None:
    with pytest.raises(DataError, match="no data set 'chain_sums'; did you mean 'chain_sum'"):
        tasks.load("reasoning_gym:chain_sums")
    with pytest.raises(DataError, match="cannot be made"):
        tasks.load("reasoning_gym:chain_sum?no_such=1")
    with pytest.raises(DataError, match="is built in; leave fields out"):
        tasks.load("reasoning_gym:chain_sum", fields={"problem": "q"})
