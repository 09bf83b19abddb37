r"""A row of a data set -> Task.

Rows are recognised by their field names: HumanEval (`prompt`, `entry_point`, `test`), MBPP (`text` or `prompt`,
`code`, `test_list`), MMLU (`question`, `choices`, `answer`), SVAMP (`Body`, `Question`, `Answer`), GSM8K (`question`,
`answer`), MATH, AIME and our own (`problem`); other names are mapped by `fields`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypeGuard

from mass.errors import DataError, nearest
from mass.types import Task

FIELDS = ("problem", "solution", "answer", "subject", "level", "id")
"""What `fields` can map to names of the data set's own."""
LETTERS = "ABCDEFGHIJ"

_LAYOUTS = (
    "'problem', 'question' and 'answer', 'Body', 'Question' and 'Answer', 'question', 'choices' and 'answer', "
    "'prompt', 'entry_point' and 'test', or 'text', 'code' and 'test_list'"
)
_ALSO = {
    "problem": ("question", "Problem", "Question"),
    "solution": ("Solution",),
    "answer": ("Answer",),
    "subject": ("type",),
    "id": ("unique_id", "ID", "task_id"),
}
"""Names that stand for ours where ours is absent: GSM8K, AIME, MATH, MATH-500."""
_PLAIN = ("math", "exact", "choice", "gsm8k-strict", "gsm8k-flexible", "minerva")
"""Verifiers that compare final answers; to others an answer is handed as it is."""
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_LEVEL = re.compile(r"\s*(?:level\s*)?([0-9]{1,9}|\?)\s*", re.I)
_BOXED = re.compile(r"\\f?boxed\s*\{")
_WHOLE = re.compile(r"([0-9]+)\.0+(?![0-9])")

Row = dict[str, Any]


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Raises DataError for a name that is no field of ours."""
    for name in mapping:
        if name not in FIELDS:
            raise DataError(f"fields maps {name!r}, which is no field of a task{nearest(name, FIELDS)}")


def task(row: Row, mapping: Mapping[str, str], verifier: str | None = None) -> Task:
    """The task that a row is; its `id` is empty where the row has none.

    GSM8K's calculator marks `<<2*3=6>>` are left out of the solutions. `verifier` judges it, instead of the one that
    its layout suggests. Raises DataError for anything that is no task.
    """
    values = _ours(row, mapping)
    judge = verifier or values.get("verifier", "math")
    solution, answer = _text(values, "solution"), _text(values, "answer")
    if judge in _PLAIN:
        solution, answer = _plain(solution, answer)
    if not isinstance(values["problem"], str) or not values["problem"].strip():
        raise DataError(f"the problem is {kind(values['problem'])}; expected text")
    return Task(
        problem=_text(values, "problem"),
        solution=solution,
        answer=answer,
        subject=_text(values, "subject"),
        level=_level(values.get("level")),
        id=_text(values, "id"),
        verifier=judge,
    )


def _plain(solution: str, answer: str) -> tuple[str, str]:
    """Worked solution and final answer, where either may stand in the other's place."""
    if "####" in answer:
        solution = solution or answer
        answer = answer.rpartition("####")[2].strip()
    elif "\n" in answer.strip() and not solution:
        raise DataError("the answer has several lines and no final answer; expected '#### x' as its last, as in GSM8K")
    solution = _CALCULATOR.sub("", solution)
    return solution, answer.strip() or _final(solution)


def _ours(row: Row, mapping: Mapping[str, str]) -> Row:
    """The row under our field names."""
    made = _recognised(row, mapping)
    row = row | made
    values = {name: row[name] for name in FIELDS if name in row} | made
    for name, others in _ALSO.items():
        for other in others:
            if name not in values and other in row:
                values[name] = row[other]
    for name, theirs in mapping.items():
        if theirs not in row:
            raise DataError(f"the field {theirs!r}, mapped to {name!r}, is missing; the row has {_names(row)}")
        values[name] = row[theirs]
    if "problem" not in values:
        example = f'fields={{"problem": {json.dumps(next(iter(row), "name"))}}}'
        raise DataError(f"no problem among the fields {_names(row)}; expected {_LAYOUTS}; map other names by {example}")
    return values | _multiple_choice(values, row["choices"]) if "choices" in row else values


def _recognised(row: Row, mapping: Mapping[str, str]) -> Row:
    """Our fields of the layouts whose fields are not ours under another name."""
    if "problem" in mapping:
        return {}
    if "Body" in row and "Question" in row:
        return _svamp(row)
    if "prompt" in row and "entry_point" in row and "test" in row:
        return _humaneval(row)
    if "test_list" in row and ("text" in row or "prompt" in row):
        return _mbpp(row)
    return {}


def _humaneval(row: Row) -> Row:
    entry = _text(row, "entry_point").strip()
    if not re.fullmatch(r"[A-Za-z_]\w*", entry):
        raise DataError(f"the entry point is {_text(row, 'entry_point')[:40]!r}; expected the name of a function")
    return {
        "problem": row["prompt"],
        "solution": row.get("canonical_solution"),
        "answer": f"{_text(row, 'test')}\n\ncheck({entry})\n",
        "verifier": "code",
    }


def _mbpp(row: Row) -> Row:
    """The problem names the tests, as everyone's prompt does: they alone say what the function is called."""
    tests = [_text({"test_list": test}, "test_list") for test in row["test_list"]] if _is_list(row["test_list"]) else []
    if not tests:
        raise DataError(f"the field 'test_list' is {kind(row['test_list'])}; expected a list of assertions")
    imports = row.get("test_imports")
    setup = [_text({"test_imports": line}, "test_imports") for line in imports] if _is_list(imports) else []
    setup.append(_text(row, "test_setup_code"))
    text = _text(row, "text") or _text(row, "prompt")
    if not text.strip():
        raise DataError("the field 'text' is empty; expected what the function does")
    return {
        "problem": "\n".join([f"{text.strip()} Your code should pass these tests:\n", *tests]),
        "solution": row.get("code"),
        "answer": "\n".join([*(line for line in setup if line.strip()), *tests]) + "\n",
        "verifier": "code",
    }


def _svamp(row: Row) -> Row:
    body, question = _text(row, "Body").strip(), _text(row, "Question").strip()
    stop = "" if not body or body[-1] in ".?!,;:" else "."
    answer = _text(row, "Answer").strip()
    equation = _WHOLE.sub(r"\1", _text(row, "Equation").strip())
    if equation.startswith("(") and equation.endswith(")"):
        equation = equation[1:-1].strip()
    steps = f"{equation} = {answer}\n" if equation else ""
    values = {"problem": f"{body}{stop} {question}".strip(), "solution": f"{steps}#### {answer}" if answer else ""}
    return values | ({"subject": row["Type"]} if "Type" in row else {})


def _multiple_choice(values: Row, choices: object) -> Row:
    """Problem with its choices listed, and the answer as a letter (from an index, a letter, or absent)."""
    options = [_text({"choices": choice}, "choices") for choice in choices] if _is_list(choices) else []
    if not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"the field 'choices' is {kind(choices)}; expected a list of 2 to {len(LETTERS)} texts")
    letters = LETTERS[: len(options)]
    lines = [
        _text(values, "problem"),
        *(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)),
    ]
    answer = _text(values, "answer").strip()
    if answer.isdecimal() and int(answer[:9]) < len(letters):
        answer = letters[int(answer[:9])]
    if answer and (len(answer) != 1 or answer not in letters):
        raise DataError(f"the answer is {answer[:40]!r}; expected an index from 0 to {len(letters) - 1} or a letter")
    solution = _text(values, "solution") or (f"Answer: {answer}" if answer else "")
    return {"problem": "\n".join(lines), "answer": answer, "solution": solution, "verifier": "choice"}


def _text(values: Row, name: str) -> str:
    """A text field; numbers are written out (145.0 as '145'), null and absent are empty."""
    value = values.get(name)
    if isinstance(value, float) and math.isfinite(value):
        value = int(value) if value.is_integer() else format(Decimal(repr(value)), "f")
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return "" if value is None else str(value)
    if not isinstance(value, str):
        raise DataError(f"the field {name!r} is {kind(value)}; expected text or a number")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"the field {name!r} holds half a surrogate pair, which is no text; mend its escapes") from None
    return value


def _level(value: object) -> int | None:
    """5, 5.0, '5' and 'Level 5' as 5; MATH's 'Level ?' and null as None."""
    match = _LEVEL.fullmatch(_text({"level": value}, "level") or "?")
    if match is None:
        raise DataError(f"the level is {str(value)[:40]!r}; expected a number, as in 5 or 'Level 5'")
    return None if match[1] == "?" else int(match[1])


def _final(solution: str) -> str:
    r"""The final answer of a worked solution: after the last `####`, or in the last closed `\boxed{}`."""
    if "####" in solution:
        return solution.rpartition("####")[2].strip()
    for box in reversed(list(_BOXED.finditer(solution))):
        depth = 1
        for token in re.finditer(r"\\.|[{}]", solution[box.end() :], re.S):
            depth += {"{": 1, "}": -1}.get(token[0], 0)
            if depth == 0:
                return solution[box.end() : box.end() + token.start()].strip()
    return ""


def _names(row: Row) -> str:
    names = [repr(name[:40]) for name in row]
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") if names else "of an empty object"


def _is_list(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)


def kind(value: object) -> str:
    """What a JSON value is, in JSON's words."""
    if isinstance(value, str):
        return "text" if value.strip() else "empty"
    if _is_list(value):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return "null" if value is None else json.dumps(value)
