"""Golds of real data sets are accepted, corrupted ones rejected. Exceptions are listed, each with its reason."""

from __future__ import annotations

import ast
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mass import tasks
from mass.types import Task
from mass.verify import check_all


def _data() -> Path:
    """The folder of public rows: MASS_DATA, or `shared/data` beside the repository or a folder above it."""
    if named := os.environ.get("MASS_DATA"):
        return Path(named)
    places = [parent / "shared" / "data" for parent in Path(__file__).resolve().parents[3:]]
    return next((place for place in places if place.is_dir()), places[0])


DATA = _data()
ROWS = {"gsm8k_test": 660, "math500": 250, "svamp": 500, "mmlu_stem": 755, "humaneval": 82}
COMPARED = ["gsm8k_test", "math500", "svamp", "mmlu_stem"]


def rows(name: str) -> list[Task]:
    path = DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}: the public rows are not part of the repository (MASS_DATA names their folder)")
    loaded = tasks.load(str(path))
    assert len(loaded) == ROWS[name]
    return loaded


def rejected(pairs: list[tuple[Task, str]]) -> None:
    verdicts = check_all(pairs)
    assert [(t.answer, text, v) for (t, text), v in zip(pairs, verdicts, strict=True) if v.correct is not False] == []


def accepted(pairs: list[tuple[Task, str]]) -> None:
    verdicts = check_all(pairs)
    assert [(t.answer, text, v) for (t, text), v in zip(pairs, verdicts, strict=True) if v.correct is not True] == []


def other_numbers(answer: str) -> Iterator[str]:
    """`answer` with each of its integers in turn replaced by the next."""
    for found in re.finditer(r"[0-9]+", answer):
        yield answer[: found.start()] + str(int(found[0]) + 1).zfill(len(found[0])) + answer[found.end() :]


def other_signs(answer: str) -> Iterator[str]:
    """With another sign in front, or of one of its terms."""
    yield answer[1:] if answer.startswith("-") else f"-{answer}"
    for found in re.finditer(r"(?<!^)[+-]", answer):
        yield answer[: found.start()] + ("-" if found[0] == "+" else "+") + answer[found.end() :]


def other_brackets(answer: str) -> Iterator[str]:
    if re.fullmatch(r"[(\[].*,.*[)\]]", answer):
        yield ("[" if answer[0] == "(" else "(") + answer[1:]
        yield answer[:-1] + ("]" if answer[-1] == ")" else ")")


SAME_AFTER_ALL = {("0", "-0"): "minus nothing is nothing"}
"""(gold, corrupted gold) that mean the same, and why."""


def corrupted(name: str) -> list[tuple[Task, str]]:
    found: list[tuple[Task, str]] = []
    for task in rows(name):
        answers = {*other_numbers(task.answer), *other_signs(task.answer), *other_brackets(task.answer)}
        found += [(task, wrong) for wrong in sorted(answers) if (task.answer, wrong) not in SAME_AFTER_ALL]
    return found


def essence(answer: str) -> list[str]:
    """Its numbers, else its letters: `x=5` and `5` are the same answer."""
    return re.findall(r"[0-9]+", answer) or re.findall(r"[A-Za-z]+", answer)


@pytest.mark.parametrize("name", COMPARED)
def test_solutions_are_accepted(name: str) -> None:
    accepted([(task, task.solution) for task in rows(name)])


@pytest.mark.parametrize("name", COMPARED)
def test_answers_are_accepted_in_every_style(name: str) -> None:
    styles = (r"So $\boxed{%s}$.", "#### %s", "The answer is %s.", "**Answer:** $%s$", "%s")
    accepted([(task, style % task.answer) for task in rows(name) for style in styles])


@pytest.mark.slow
@pytest.mark.parametrize("style", [r"\boxed{%s}", "%s"])
@pytest.mark.parametrize("name", ["gsm8k_test", "math500", "svamp"])
def test_answers_with_another_number_sign_or_bracket_are_rejected(name: str, style: str) -> None:
    pairs = [(task, style % wrong) for task, wrong in corrupted(name)]
    assert len(pairs) >= 2 * ROWS[name]
    rejected(pairs)


@pytest.mark.parametrize("style", ["Answer: (%s)", "%s", r"\boxed{%s}", "The answer is %s."])
def test_other_letters_are_rejected(style: str) -> None:
    pairs = [(t, style % c) for t in rows("mmlu_stem") for c in "ABCD" if c != t.answer]
    assert len(pairs) == 3 * ROWS["mmlu_stem"]
    rejected(pairs)


@pytest.mark.parametrize("name", COMPARED)
def test_the_next_rows_answer_is_rejected(name: str) -> None:
    loaded = rows(name)
    pairs = [(a, b) for a, b in itertools.pairwise(loaded) if essence(a.answer) != essence(b.answer)]
    assert len(pairs) > ROWS[name] / 2
    rejected([(a, rf"\boxed{{{b.answer}}}") for a, b in pairs])


# --- programs


@pytest.mark.slow
def test_canonical_programs_are_accepted() -> None:
    accepted([(task, task.solution) for task in rows("humaneval")])


@pytest.mark.slow
def test_whole_programs_in_a_fence_are_accepted() -> None:
    accepted([(task, f"Here:\n```python\n{task.problem}{task.solution}```\n") for task in rows("humaneval")[::8]])


@pytest.mark.slow
def test_programs_that_do_nothing_are_rejected() -> None:
    rejected([(task, text) for task in rows("humaneval")[::4] for text in ("    pass\n", "", "    return 1\n")])


class _Returns(ast.NodeTransformer):
    """Every result of the outermost function wrapped in a tuple: another value, whatever it was."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        inner = [child for child in ast.walk(node) if isinstance(child, ast.FunctionDef) and child is not node]
        skipped = {id(part) for function in inner for part in ast.walk(function)}
        for part in ast.walk(node):
            if isinstance(part, ast.Return) and part.value is not None and id(part) not in skipped:
                part.value = ast.Tuple([part.value, ast.Constant("wrong")], ast.Load())
        return node


def mutated(task: Task) -> str:
    tree = ast.parse(task.problem + task.solution)
    entry = task.answer.rpartition("check(")[2].partition(")")[0]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == entry:
            _Returns().visit(node)
    return f"```python\n{ast.unparse(ast.fix_missing_locations(tree))}\n```"


@pytest.mark.slow
def test_mutated_programs_are_rejected() -> None:
    loaded = rows("humaneval")
    rejected([(task, mutated(task)) for task in loaded])
