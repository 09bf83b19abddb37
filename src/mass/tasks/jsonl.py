r"""A file of one JSON object a line -> Tasks.

Rows are recognised by their field names: MATH and our own (`problem`), GSM8K (`question`, `answer`), SVAMP (`Body`,
`Question`, `Answer`) and MMLU (`question`, `choices`, `answer`); other names are mapped by `fields`.
"""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeGuard, cast

from mass.errors import DataError, nearest
from mass.types import Task

SUFFIXES = (".jsonl", ".jsonl.gz")
FIELDS = ("problem", "solution", "answer", "subject", "level", "id")
"""What `fields` can map to names of the file's own."""
LETTERS = "ABCDEFGHIJ"

_LAYOUTS = "'problem', 'question' and 'answer', 'Body', 'Question' and 'Answer', or 'question', 'choices' and 'answer'"
_ALSO = {"problem": ("question",), "subject": ("type",), "id": ("unique_id",)}
"""Names that stand for ours where ours is absent: GSM8K, MATH, MATH-500."""
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_LEVEL = re.compile(r"\s*(?:level\s*)?([0-9]{1,9}|\?)\s*", re.I)
_BOXED = re.compile(r"\\f?boxed\s*\{")

Row = dict[str, Any]


def load(path: Path, fields: Mapping[str, str] | None = None) -> list[Task]:
    """All rows of `path` in file order; blank lines are skipped.

    GSM8K's calculator marks `<<2*3=6>>` are left out of the solutions. An id given twice gets a suffix.

    Raises:
        DataError: with file and line number, on anything that is no task.
    """
    mapping = dict(fields or {})
    for name in mapping:
        if name not in FIELDS:
            raise DataError(f"fields maps {name!r}, which is no field of a task{nearest(name, FIELDS)}")
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    tasks: list[Task] = []
    taken: set[str] = set()
    for line, row in _rows(path):
        try:
            task = _task(row, mapping)
        except DataError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
        tasks.append(dataclasses.replace(task, id=_unique(task.id or f"{stem}-{line}", taken)))
    if not tasks:
        raise DataError(f"{path} has no rows; expected one JSON object a line")
    return tasks


def _unique(name: str, taken: set[str]) -> str:
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}-{count}"
    taken.add(unique)
    return unique


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object) of each line that is not blank."""
    if not path.is_file():
        raise DataError(
            f"{path} is {'a folder' if path.is_dir() else 'no file'}; expected a {' or '.join(SUFFIXES)} file"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for line, raw in enumerate(lines, start=1):
                data = raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw
                if data.strip():
                    yield line, _object(data, f"{path}, line {line}")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _object(data: bytes, where: str) -> Row:
    try:
        row = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        bad = data[error.start]
        raise DataError(f"{where} is not UTF-8 (byte 0x{bad:02x} at {error.start}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}); expected one object a line") from None
    if not isinstance(row, dict):
        raise DataError(f'{where} is {_kind(row)}; expected one JSON object a line, like {{"problem": …}}')
    return cast(Row, row)


def _task(row: Row, mapping: Mapping[str, str]) -> Task:
    values = _ours(row, mapping)
    solution, answer = _text(values, "solution"), _text(values, "answer")
    if "####" in answer:
        solution = solution or answer
        answer = answer.rpartition("####")[2].strip()
    elif "\n" in answer.strip() and not solution:
        raise DataError("the answer has several lines and no final answer; expected '#### x' as its last, as in GSM8K")
    solution = _CALCULATOR.sub("", solution)
    if not isinstance(values["problem"], str) or not values["problem"].strip():
        raise DataError(f"the problem is {_kind(values['problem'])}; expected text")
    return Task(
        problem=_text(values, "problem"),
        solution=solution,
        answer=answer.strip() or _final(solution),
        subject=_text(values, "subject"),
        level=_level(values.get("level")),
        id=_text(values, "id"),
        verifier="choice" if "choices" in row else "math",
    )


def _ours(row: Row, mapping: Mapping[str, str]) -> Row:
    """The row under our field names."""
    if "Body" in row and "Question" in row:
        row = row | _svamp(row)
    values = {name: row[name] for name in FIELDS if name in row}
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


def _svamp(row: Row) -> Row:
    body, question = _text(row, "Body").strip(), _text(row, "Question").strip()
    stop = "" if not body or body[-1] in ".?!,;:" else "."
    names = {"answer": "Answer", "subject": "Type", "id": "ID"}
    return {ours: row[theirs] for ours, theirs in names.items() if theirs in row} | {
        "problem": f"{body}{stop} {question}".strip()
    }


def _multiple_choice(values: Row, choices: object) -> Row:
    """Problem with its choices listed, and the answer as a letter (from an index, a letter, or absent)."""
    options = [_text({"choices": choice}, "choices") for choice in choices] if _is_list(choices) else []
    if not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"the field 'choices' is {_kind(choices)}; expected a list of 2 to {len(LETTERS)} texts")
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
    return {"problem": "\n".join(lines), "answer": answer}


def _text(values: Row, name: str) -> str:
    """A text field; numbers are written out (145.0 as '145'), null and absent are empty."""
    value = values.get(name)
    if isinstance(value, float) and math.isfinite(value):
        value = int(value) if value.is_integer() else format(Decimal(repr(value)), "f")
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return "" if value is None else str(value)
    if not isinstance(value, str):
        raise DataError(f"the field {name!r} is {_kind(value)}; expected text or a number")
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


def _kind(value: object) -> str:
    """What a JSON value is, in JSON's words."""
    if isinstance(value, str):
        return "text" if value.strip() else "empty"
    if _is_list(value):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return "null" if value is None else json.dumps(value)
