"""Golds of real data sets are accepted, corrupted ones rejected. Exceptions are listed, each with its reason."""

from __future__ import annotations

import ast
import itertools
import os
import re
import warnings
from collections import Counter
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
BBH = {
    "boolean_expressions": 125,
    "causal_judgement": 93,
    "date_understanding": 125,
    "disambiguation_qa": 125,
    "dyck_languages": 125,
    "formal_fallacies": 125,
    "geometric_shapes": 125,
    "hyperbaton": 125,
    "logical_deduction_five_objects": 125,
    "logical_deduction_seven_objects": 125,
    "logical_deduction_three_objects": 125,
    "movie_recommendation": 125,
    "multistep_arithmetic_two": 125,
    "navigate": 125,
    "object_counting": 125,
    "penguins_in_a_table": 73,
    "reasoning_about_colored_objects": 125,
    "ruin_names": 125,
    "salient_translation_error_detection": 125,
    "snarks": 89,
    "sports_understanding": 125,
    "temporal_sequences": 125,
    "tracking_shuffled_objects_five_objects": 125,
    "tracking_shuffled_objects_seven_objects": 125,
    "tracking_shuffled_objects_three_objects": 125,
    "web_of_lies": 125,
    "word_sorting": 125,
}
"""Tasks of BIG-Bench Hard, and how many rows of each there are."""
MBPP = {"mbpp_train": 374, "mbpp_validation": 90, "mbpp_test": 250}
ROWS = {
    "gsm8k_test": 660,
    "math500": 250,
    "svamp": 500,
    "mmlu_stem": 755,
    "humaneval": 82,
    **MBPP,
    **{f"bbh/{name}": count for name, count in BBH.items()},
}
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


# --- BIG-Bench Hard

WORDS = {"boolean_expressions", "causal_judgement", "dyck_languages", "formal_fallacies", "navigate",
         "sports_understanding", "web_of_lies", "word_sorting"}  # fmt: skip
NUMBERS = {"multistep_arithmetic_two", "object_counting"}
TEXTS = {"movie_recommendation": "Monsters, Inc", "ruin_names": "dearth, wind, & fire"}
"""Tasks with options, of which one row names none: a title with commas was taken apart into several."""


def judges(name: str) -> dict[str, int]:
    """How many rows of a task each verifier judges."""
    if name in WORDS or name in NUMBERS:
        return {"words" if name in WORDS else "math": BBH[name]}
    return {"choice": BBH[name] - 1, "words": 1} if name in TEXTS else {"choice": BBH[name]}


@pytest.mark.parametrize("name", BBH)
def test_golds_of_big_bench_hard(name: str) -> None:
    loaded = rows(f"bbh/{name}")
    assert Counter(task.verifier for task in loaded) == judges(name)
    written = [f"({task.answer})" if task.verifier == "choice" else task.answer for task in loaded]
    styles = (
        *(r"So $\boxed{%s}$.", "#### %s", "The answer is %s.", "**Answer:** $%s$", "%s"),
        *("Answer: %s", "Let us see.\n\nSo the answer is **%s**.", "The final answer is: %s"),
    )
    accepted([(task, task.solution) for task in loaded])
    accepted([(task, style % gold) for task, gold in zip(loaded, written, strict=True) for style in styles])


def others(task: Task, golds: list[str]) -> list[str]:
    """Wrong answers like the right one: another option, opposite, number or bracket, and the words in another order."""
    words = task.answer.split()
    changed = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)) if len(words) > 1]
    changed += [" ".join([*words[:i], words[i + 1], words[i], *words[i + 2 :]]) for i in range(len(words) - 1)]
    changed += [f"{task.answer} {words[-1]}"] if task.verifier == "words" and golds[0].lower() not in CLOSED else []
    numbers = [*other_numbers(task.answer), *other_signs(task.answer)] if task.verifier == "math" else []
    return [answer for answer in {*golds, *changed, *numbers} if answer != task.answer]


CLOSED = ("yes", "no", "true", "false", "valid", "invalid")


@pytest.mark.parametrize("name", BBH)
def test_corrupted_golds_of_big_bench_hard(name: str) -> None:
    loaded = rows(f"bbh/{name}")
    golds = sorted({task.answer for task in loaded})[:12]
    pairs = [
        (task, style % wrong) for task in loaded for wrong in others(task, golds) for style in ("Answer: %s", "%s")
    ]
    pairs += [(task, rf"So $\boxed{{{wrong}}}$.") for task in loaded for wrong in others(task, golds)[:4]]
    assert len(pairs) >= 2 * len(loaded)
    rejected(pairs)


# --- programs


@pytest.mark.slow
def test_canonical_programs_are_accepted() -> None:
    accepted([(task, task.solution) for task in rows("humaneval")])


@pytest.mark.slow
@pytest.mark.parametrize("name", MBPP)
def test_programs_of_mbpp_are_accepted(name: str) -> None:
    accepted([(task, task.solution) for task in rows(name)])


@pytest.mark.slow
@pytest.mark.parametrize("name", MBPP)
def test_altered_programs_of_mbpp_are_rejected(name: str) -> None:
    rejected([(task, altered(task.solution)) for task in rows(name)[:: 1 if name == "mbpp_validation" else 5]])


def altered(program: str) -> str:
    """Every result of every function wrapped in a tuple."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that are none
        tree = ast.parse(program)
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            node.value = ast.Tuple([node.value, ast.Constant("wrong")], ast.Load())
    return f"```python\n{ast.unparse(ast.fix_missing_locations(tree))}\n```"


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
