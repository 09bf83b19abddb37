"""Turn a row of a data set into a Task.

Rows are recognised by their field names: HumanEval (`prompt`, `entry_point`, `test`), MBPP (`text` or `prompt`, `code`,
`test_list`), BIG-Bench Hard (`input`, `target`), SVAMP (`Body`, `Question`, `Answer`), GSM8K (`question`, `answer`),
MATH, AIME and our own (`problem`), and those with options (`mass.tasks.options`). Other names are mapped by `fields`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from mass.errors import DataError, nearest
from mass.tasks.options import multiple_choice
from mass.tasks.values import Row, is_list, kind, names, text_of
from mass.types import Task
from mass.verify.extract import boxed

FIELDS = ("problem", "solution", "answer", "subject", "level", "id")
"""Our fields, which `fields` can map to the data set's own names."""

_LAYOUTS = (
    "'problem', 'question' and 'answer', 'Body', 'Question' and 'Answer', 'question', 'choices' and 'answer', "
    "'input' and 'target', 'prompt', 'entry_point' and 'test', or 'text', 'code' and 'test_list'"
)
_ALSO = {
    "problem": ("question", "Problem", "Question", "question_stem"),
    "solution": ("Solution",),
    "answer": ("Answer",),
    "subject": ("type",),
    "id": ("unique_id", "ID", "task_id"),
}
"""Names that are used where ours is absent: in GSM8K, AIME, MATH, MATH-500."""
_PLAIN = ("math", "exact", "words", "choice", "gsm8k-strict", "gsm8k-flexible", "minerva")
"""Verifiers that compare final answers. Other verifiers get the answer field unchanged."""
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_LEVEL = re.compile(r"\s*(?:level\s*)?([0-9]{1,9}|\?)(?:\.0*)?\s*", re.I)
_WHOLE = re.compile(r"([0-9]+)\.0+(?![0-9])")
_LETTER = re.compile(r"\(([A-Z])\)")
_MATHEMATICS = re.compile(r"[0-9\\^=+$]")


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Check the keys of a mapping.

    Raises:
        DataError: A key is not one of our fields.
    """
    for name in mapping:
        if name not in FIELDS:
            raise DataError(f"fields maps {name!r}, which is not a field of a task{nearest(name, FIELDS)}")


def task(row: Row, mapping: Mapping[str, str], verifier: str | None = None) -> Task:
    """Return the task in a row; its `id` is empty where the row has none.

    GSM8K's calculator marks `<<2*3=6>>` are removed from solutions.

    Args:
        verifier: Used instead of the verifier that the layout suggests.

    Raises:
        DataError: The row is not a task.
    """
    values = _ours(row, mapping)
    judge = verifier or values.get("verifier", "math")
    solution, answer = text_of(values, "solution"), text_of(values, "answer")
    if judge in _PLAIN:
        solution, answer = _plain(solution, answer)
    if not isinstance(values["problem"], str) or not values["problem"].strip():
        raise DataError(f"the problem is {kind(values['problem'])}; expected text")
    return Task(
        problem=text_of(values, "problem"),
        solution=solution,
        answer=answer,
        subject=text_of(values, "subject"),
        level=_level(values.get("level")),
        id=text_of(values, "id"),
        verifier=judge,
    )


def _plain(solution: str, answer: str) -> tuple[str, str]:
    """Return (worked solution, final answer), where a data set may keep either in the other's field."""
    if "####" in answer:
        solution = solution or answer
        answer = answer.rpartition("####")[2].strip()
    elif "\n" in answer.strip() and not solution:
        raise DataError("the answer has several lines and no final answer; expected '#### x' as its last, as in GSM8K")
    solution = _CALCULATOR.sub("", solution)
    return solution, answer.strip() or _final(solution)


def _ours(row: Row, mapping: Mapping[str, str]) -> Row:
    """Return the row under our field names."""
    made = _recognised(row, mapping)
    row = row | made
    values = {name: row[name] for name in FIELDS if name in row} | made
    for name, others in _ALSO.items():
        for other in others:
            if name not in values and other in row:
                values[name] = row[other]
    for name, theirs in mapping.items():
        if theirs not in row:
            raise DataError(f"the field {theirs!r}, mapped to {name!r}, is missing; the row has {names(row)}")
        values[name] = row[theirs]
    if "problem" not in values:
        example = f'fields={{"problem": {json.dumps(next(iter(row), "name"))}}}'
        raise DataError(f"no problem among the fields {names(row)}; expected {_LAYOUTS}; map other names by {example}")
    return values | multiple_choice(row, values, mapped="answer" in mapping)


def _recognised(row: Row, mapping: Mapping[str, str]) -> Row:
    """Return our fields for layouts that need more than other names."""
    if "problem" in mapping:
        return {}
    if "Body" in row and "Question" in row:
        return _svamp(row)
    if "prompt" in row and "entry_point" in row and "test" in row:
        return _humaneval(row)
    if "test_list" in row and ("text" in row or "prompt" in row):
        return _mbpp(row)
    if "input" in row and "target" in row and not {"problem", *_ALSO["problem"]} & row.keys():
        return _bigbench_hard(row)
    return {}


def _humaneval(row: Row) -> Row:
    entry = text_of(row, "entry_point").strip()
    if not re.fullmatch(r"[A-Za-z_]\w*", entry):
        raise DataError(f"the entry point is {text_of(row, 'entry_point')[:40]!r}; expected the name of a function")
    return {
        "problem": row["prompt"],
        "solution": row.get("canonical_solution"),
        "answer": f"{text_of(row, 'test')}\n\ncheck({entry})\n",
        "verifier": "code",
    }


def _mbpp(row: Row) -> Row:
    """Read a row of MBPP. The problem quotes the tests, as is usual: only they say what the function is called."""
    tests = (
        [text_of({"test_list": test}, "test_list") for test in row["test_list"]] if is_list(row["test_list"]) else []
    )
    if not tests:
        raise DataError(f"the field 'test_list' is {kind(row['test_list'])}; expected a list of assertions")
    imports = row.get("test_imports")
    setup = [text_of({"test_imports": line}, "test_imports") for line in imports] if is_list(imports) else []
    setup.append(text_of(row, "test_setup_code"))
    text = text_of(row, "text") or text_of(row, "prompt")
    if not text.strip():
        raise DataError("the field 'text' is empty; expected what the function does")
    return {
        "problem": "\n".join([f"{text.strip()} Your code should pass these tests:\n", *tests]),
        "solution": row.get("code"),
        "answer": "\n".join([*(line for line in setup if line.strip()), *tests]) + "\n",
        "verifier": "code",
    }


def _svamp(row: Row) -> Row:
    body, question = text_of(row, "Body").strip(), text_of(row, "Question").strip()
    stop = "" if not body or body[-1] in ".?!,;:" else "."
    answer = text_of(row, "Answer").strip()
    equation = _WHOLE.sub(r"\1", text_of(row, "Equation").strip())
    if equation.startswith("(") and equation.endswith(")"):
        equation = equation[1:-1].strip()
    steps = f"{equation} = {answer}\n" if equation else ""
    values = {"problem": f"{body}{stop} {question}".strip(), "solution": f"{steps}#### {answer}" if answer else ""}
    return values | ({"subject": row["Type"]} if "Type" in row else {})


def _bigbench_hard(row: Row) -> Row:
    """Read a row of BIG-Bench Hard. Its 27 tasks have different kinds of answer, and the row shows which: a letter,
    a number, or words."""
    problem, target = text_of(row, "input"), text_of(row, "target").strip()
    letter = _LETTER.fullmatch(target)
    if letter and re.search(rf"^\({letter[1]}\)", problem, re.M):
        target, verifier = letter[1], "choice"
    else:
        verifier = "math" if _MATHEMATICS.search(target) else "words"
    solution = f"Answer: {target}" if target else ""
    return {"problem": problem, "answer": target, "solution": solution, "verifier": verifier}


def _level(value: object) -> int | None:
    """Read 5, 5.0, '5' and 'Level 5' as 5; MATH's 'Level ?' and null as None."""
    match = _LEVEL.fullmatch(text_of({"level": value}, "level") or "?")
    if match is None:
        raise DataError(f"the level is {str(value)[:40]!r}; expected a number, as in 5 or 'Level 5'")
    return None if match[1] == "?" else int(match[1])


def _final(solution: str) -> str:
    r"""Return the final answer of a worked solution: after the last `####`, or in the last `\boxed{}`."""
    return solution.rpartition("####")[2].strip() if "####" in solution else boxed(solution)
