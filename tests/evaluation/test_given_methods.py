"""The methods for problems that bring examples: learned once a set, the cost shared, no gold used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import mass
from mass.config import EvalConfig, ExamplesConfig, LoraConfig, SamplingConfig
from mass.errors import ConfigError
from mass.evaluation import given
from mass.evaluation.evaluate import evaluate
from mass.model import Mass
from mass.tasks import few_shot
from mass.types import Task

CONFIG = EvalConfig(answer=SamplingConfig(8, 0.0), learn=ExamplesConfig(epochs=(1,), folds=2), stack=2, resamples=50)
METHODS = ("examples-zero-shot", "examples-in-context", "examples-adapted", "examples")


@pytest.fixture(scope="module")
def model(taught_base: Path) -> Mass:
    return mass.load(str(taught_base), lora=LoraConfig(r=2, lora_alpha=4.0))


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    rows = few_shot.of([(f"Compute {a} + {b}.", f"{a + b}") for a in (1, 2, 3) for b in (1, 2, 3)]).tasks
    return few_shot.draw(rows, 4, 0)


def test_a_set_is_learned_once_whatever_the_stack(
    model: Mass, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], given.use
    monkeypatch.setattr(given, "use", lambda *args: (calls.append(args[3].method), real(*args))[1])
    found = evaluate(model, tasks, METHODS, config=CONFIG)
    assert calls == ["zero-shot", "in-context", "adapted", "auto"]
    again = evaluate(model, tasks, METHODS, config=replace(CONFIG, stack=5))
    assert [r.attempt.text for r in found.records] == [r.attempt.text for r in again.records]
    assert [row.method for row in found.rows] == list(METHODS)
    assert all(row.n == 5 for row in found.rows)


def test_the_cost_of_learning_is_shared(model: Mass, tasks: list[Task]) -> None:
    (row,) = [r for r in evaluate(model, tasks, ["examples"], config=CONFIG).records if r.task is tasks[0]]
    assert row.attempt.record is not None
    seconds = row.attempt.record.seconds
    assert {"trying in-context", "answer"} <= set(seconds)
    assert row.attempt.seconds == pytest.approx(sum(seconds.values()))


def test_no_gold_of_a_question_is_used(model: Mass, tasks: list[Task]) -> None:
    other = [replace(task, answer="wrong", solution="wrong") for task in tasks]
    texts = [
        [r.attempt.text for r in evaluate(model, some, ["examples"], config=CONFIG).records] for some in (tasks, other)
    ]
    assert texts[0] == texts[1]


def test_tasks_without_examples_are_one_line(model: Mass) -> None:
    with pytest.raises(ConfigError, match=r"the tasks have none; expected --tasks\.shots N"):
        evaluate(model, [Task("Compute 1 + 1.", answer="2")], ["examples"], config=CONFIG)
