"""Rows -> examples with inputs and outputs, kept word for word, and few-shot tasks drawn from them.

An example is a `Task` whose `solution` is the output as the row has it. Rows are chats (`messages`), pairs
(`input`, `output` and the like), or any row that `mass.tasks.rows` reads.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mass.errors import DataError
from mass.tasks import files, rows
from mass.tasks.values import Row, is_list, is_object, kind, names, text_of
from mass.types import Task

INPUTS = ("input", "prompt", "question", "text", "sentence", "problem")
"""Names of the input in a row of pairs, in order of preference."""
OUTPUTS = ("output", "target", "completion", "response", "label")
"""Names of the output."""
VERBATIM = "text"
"""The verifier of outputs that have no other: the whole text must be equal."""


@dataclass(frozen=True)
class Examples:
    """Examples of one task."""

    tasks: tuple[Task, ...]
    instruction: str = ""
    """What a system message of all rows says; empty where there is none."""


def load(path: Path, fields: Mapping[str, str] | None = None, verifier: str | None = None) -> Examples:
    """Read the examples of a file, in its order.

    Args:
        fields: Our field name -> the file's: `problem` is the input, `solution` (or `answer`) the output.
        verifier: Judges all outputs, instead of the one that the rows suggest.

    Raises:
        DataError: A row is no example; the message gives the line number.
    """
    mapping = dict(fields or {})
    rows.check_mapping(mapping)
    return _examples(files.numbered_rows(path), mapping, verifier, f"{path}, line", path.name.partition(".")[0])


def questions(path: Path, fields: Mapping[str, str] | None = None, verifier: str | None = None) -> list[Task]:
    """Read questions from a file: rows as of examples, whose output may be missing, or rows of a task set.

    Raises DataError: A row has no input; the message gives the line number.
    """
    mapping = dict(fields or {})
    rows.check_mapping(mapping)
    found: list[Task] = []
    stem = path.name.partition(".")[0]
    for number, row in files.numbered_rows(path):
        try:
            task = _question(row, mapping, verifier)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        found.append(task if task.id else dataclasses.replace(task, id=f"{stem}-{number}"))
    if not found:
        raise DataError(f"{path} has no rows; expected one JSON object a line")
    return found


def _question(row: Row, mapping: Mapping[str, str], verifier: str | None) -> Task:
    name = mapping.get("problem") or next((one for one in INPUTS if one in row), None)
    answered = {*OUTPUTS, "answer", "solution", "messages", *mapping.values()} - {name}
    if name is None or name not in row or answered & row.keys():
        return _example(row, mapping, verifier)[0]
    if not text_of(row, name).strip():
        raise DataError(f"the field {name!r} is empty; give the question's text")
    return Task(_asked(row, name), verifier=verifier or VERBATIM)


def of(given: Iterable[Any], verifier: str | None = None) -> Examples:
    """Return examples given in Python: pairs (input, output), rows as a file has them, or `Task`s with a solution.

    Raises:
        DataError: One is none of these; the message gives its number.
    """
    found: list[tuple[int, Row | Task]] = []
    for number, one in enumerate(given, start=1):
        if isinstance(one, Task) or is_object(one):
            found.append((number, one))
        elif isinstance(one, tuple | list) and [*map(type, cast("list[Any]", one))] == [str, str]:
            found.append((number, {"input": one[0], "output": one[1]}))
        else:
            what = kind(list(cast("tuple[Any, ...]", one)) if isinstance(one, tuple) else one)
            raise DataError(f"example {number} is {what}; expected a pair of texts (input, output)")
    return _examples(found, {}, verifier, "example", "example")


def _examples(
    numbered: Iterable[tuple[int, Row | Task]], mapping: Mapping[str, str], verifier: str | None, where: str, name: str
) -> Examples:
    tasks: list[Task] = []
    systems = dict[str, None]()
    for number, row in numbered:
        try:
            task, system = (_of_task(row, verifier), "") if isinstance(row, Task) else _example(row, mapping, verifier)
        except DataError as error:
            raise DataError(f"{where} {number}: {error}") from None
        systems[system] = None
        tasks.append(task if task.id else dataclasses.replace(task, id=f"{name}-{number}"))
    if not tasks:
        raise DataError(f"no examples are given ({name} is empty); give at least one input with its output")
    if len(systems) > 1:
        raise DataError(f"the system messages of {name} differ; expected one for all examples; make them equal")
    return Examples(tuple(tasks), next(iter(systems)))


def _of_task(task: Task, verifier: str | None) -> Task:
    solution = task.solution or task.answer
    if not task.problem.strip() or not solution.strip():
        raise DataError(f"the {'output' if task.problem.strip() else 'input'} is empty; give its text, or leave it out")
    return dataclasses.replace(task, solution=solution, verifier=verifier or task.verifier)


def _example(row: Row, mapping: Mapping[str, str], verifier: str | None) -> tuple[Task, str]:
    """Return the example in a row, and its system message."""
    if "messages" in row and "problem" not in mapping:
        system, question, answer = _conversation(row["messages"])
        return _pair(question, answer, verifier), system
    question = mapping.get("problem") or next((name for name in INPUTS if name in row), None)
    answer = mapping.get("solution") or mapping.get("answer") or next((name for name in OUTPUTS if name in row), None)
    if question is None or answer is None:
        return _of_task(rows.task(row, mapping, verifier), verifier), ""
    for name in (question, answer):
        if name not in row:
            raise DataError(f"the field {name!r} is missing; the row has {names(row)}")
    asked = _asked(row, question)
    if "target" in row and "input" in row and not mapping:
        return _bigbench(row, asked, text_of(row, answer), verifier), ""
    return _pair(asked, text_of(row, answer), verifier), ""


def _asked(row: Row, name: str) -> str:
    """Return the input of a row, after its instruction where it has one."""
    before = [text_of(row, "instruction")] if "instruction" in row and name != "instruction" else []
    return "\n\n".join(part for part in (*before, text_of(row, name)) if part.strip())


def _pair(question: str, answer: str, verifier: str | None) -> Task:
    return _of_task(Task(question, solution=answer, answer=answer, verifier=verifier or VERBATIM), verifier)


def _bigbench(row: Row, question: str, answer: str, verifier: str | None) -> Task:
    """Return a row of BIG-Bench Hard with its verifier; an output that is a JSON object or list is compared as text."""
    if _is_structure(answer):
        return _pair(question, answer, verifier)
    found = _of_task(rows.task(row, {}, verifier), verifier)
    return dataclasses.replace(found, solution=answer)


def _is_structure(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _conversation(messages: object) -> tuple[str, str, str]:
    """Return system message, question and answer of a chat. Raises DataError for any other conversation."""
    turns = [one for one in messages if is_object(one)] if is_list(messages) else []
    if not is_list(messages) or len(turns) != len(messages):
        raise DataError(f"'messages' is {kind(messages)}; expected a list of objects with 'role' and 'content'")
    roles = [text_of(turn, "role") for turn in turns]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        said = ", ".join(roles)[:80] or "nobody"
        raise DataError(f"the conversation is of {said}; expected user and assistant, after a system message or none")
    texts = [text_of(turn, "content") for turn in turns]
    *system, question, answer = texts
    return system[0] if system else "", question, answer


def load_sets(
    path: Path,
    count: int,
    seed: int,
    *,
    fields: Mapping[str, str] | None = None,
    verifier: str | None = None,
    size: int | None = None,
) -> list[Task]:
    """Return the few-shot tasks of a file, or of each file in a folder; the file's name is the subject.

    Args:
        count: Rows of each file that are given with the others.
        size: Rows of each file that are asked at most; None for all others.

    Raises:
        DataError: A row is no example, or a file has too few.
    """
    paths = sorted(one for one in path.iterdir() if one.name.endswith(files.SUFFIXES)) if path.is_dir() else [path]
    if not paths:
        raise DataError(f"{path} has no {' or '.join(files.SUFFIXES)} file; expected one for each task")
    found: list[Task] = []
    for one in paths:
        asked = draw(load(one, fields, verifier).tasks, count, seed)
        name = one.name.partition(".")[0]
        found += [dataclasses.replace(task, subject=name) for task in asked[:size]]
    return found


def draw(tasks: Sequence[Task], count: int, seed: int) -> list[Task]:
    """Return the tasks that are asked, in their order, each with the same `count` others as its examples.

    The examples are drawn with `seed`; those of another seed are others, of the same tasks.

    Raises:
        DataError: There are no more than `count` tasks.
    """
    if not 1 <= count < len(tasks):
        raise DataError(
            f"{count} examples of {len(tasks)} rows; expected 1 to {len(tasks) - 1}, so that some are asked"
        )
    chosen = random.Random(seed).sample(range(len(tasks)), count)
    given = tuple((tasks[i].problem, tasks[i].solution) for i in chosen)
    texts = {question for question, _ in given}
    asked = [task for i, task in enumerate(tasks) if i not in set(chosen) and task.problem not in texts]
    return [dataclasses.replace(task, examples=given) for task in asked]
