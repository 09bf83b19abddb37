"""Every gold of real data sets is accepted, every corrupted gold rejected."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from mass import tasks
from mass.types import Task
from mass.verify import check_all

DATA = Path(__file__).parents[3] / "shared" / "data"
ROWS = {"gsm8k_test": 660, "math500": 250, "svamp": 500, "mmlu_stem": 755}


def rows(name: str) -> list[Task]:
    path = DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}: the public rows are not part of the repository")
    loaded = tasks.load(str(path))
    assert len(loaded) == ROWS[name]
    return loaded


def rejected(pairs: list[tuple[Task, str]]) -> None:
    verdicts = check_all(pairs)
    assert [(t.answer, text, v) for (t, text), v in zip(pairs, verdicts, strict=True) if v.correct is not False] == []


def accepted(pairs: list[tuple[Task, str]]) -> None:
    verdicts = check_all(pairs)
    assert [(t.answer, text, v) for (t, text), v in zip(pairs, verdicts, strict=True) if v.correct is not True] == []


def plus_one(answer: str) -> list[str]:
    """`answer` with each of its integers in turn replaced by the next."""
    found = re.finditer(r"[0-9]+", answer)
    return [answer[: m.start()] + str(int(m[0]) + 1).zfill(len(m[0])) + answer[m.end() :] for m in found]


def essence(answer: str) -> list[str]:
    """Its numbers, else its letters: `x=5` and `5` are the same answer."""
    return re.findall(r"[0-9]+", answer) or re.findall(r"[A-Za-z]+", answer)


@pytest.mark.parametrize("name", ["gsm8k_test", "math500"])
def test_worked_solutions_are_accepted(name: str) -> None:
    accepted([(task, task.solution) for task in rows(name)])


@pytest.mark.parametrize("name", ["gsm8k_test", "math500", "svamp", "mmlu_stem"])
def test_answers_are_accepted_in_every_style(name: str) -> None:
    styles = (r"So $\boxed{%s}$.", "#### %s", "The answer is %s.", "**Answer:** $%s$")
    accepted([(task, style % task.answer) for task in rows(name) for style in styles])


@pytest.mark.parametrize("name", ["gsm8k_test", "math500", "svamp"])
def test_answers_with_another_number_are_rejected(name: str) -> None:
    pairs = [(task, rf"\boxed{{{wrong}}}") for task in rows(name) for wrong in plus_one(task.answer)]
    assert len(pairs) >= ROWS[name] * 0.9
    rejected(pairs)


def test_other_letters_are_rejected() -> None:
    pairs = [(t, f"Answer: ({c})") for t in rows("mmlu_stem") for c in "ABCD" if c != t.answer]
    assert len(pairs) == 3 * ROWS["mmlu_stem"]
    rejected(pairs)


@pytest.mark.parametrize("name", ["gsm8k_test", "math500", "svamp", "mmlu_stem"])
def test_the_next_rows_answer_is_rejected(name: str) -> None:
    loaded = rows(name)
    pairs = [(a, b) for a, b in itertools.pairwise(loaded) if essence(a.answer) != essence(b.answer)]
    assert len(pairs) > ROWS[name] / 2
    rejected([(a, rf"\boxed{{{b.answer}}}") for a, b in pairs])
