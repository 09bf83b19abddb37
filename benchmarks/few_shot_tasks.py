"""Rows at hand -> few-shot tasks: the 27 of BIG-Bench Hard and nine practical ones made from other data sets' rows.

A task is a list of `Task`s, each an input with the output that is right for it. Tasks are divided by a fixed rule into
a half on which settings are chosen and a half that is reported.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mass.tasks import few_shot
from mass.types import Task

Row = dict[str, Any]
MADE_UP = {"Addition": "zorb", "Subtraction": "quill", "Multiplication": "fennet", "Common-Division": "marl"}
"""Labels that mean nothing, for the operations of SVAMP: only the examples say which is which."""
SIGNS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
MOST_CHARACTERS = 1500
"""Inputs that are longer are left out: a set of them would fill a small model's context."""


def halves(names: Iterable[str]) -> dict[str, str]:
    """Return tuning or reporting for each task: every second one in the order of the hashes of their names.

    The tasks of BIG-Bench Hard and the practical ones are divided separately.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    bbh = [name for name in order if name.startswith("bbh/")]
    made = [name for name in order if not name.startswith("bbh/")]
    return {name: "reporting" if i % 2 else "tuning" for part in (bbh, made) for i, name in enumerate(part)}


def load(folder: Path) -> dict[str, list[Task]]:
    """Return all tasks by name, from a folder with bbh/ and the files that `PRACTICAL` names."""
    found = {f"bbh/{path.stem}": _short(few_shot.load(path).tasks) for path in sorted((folder / "bbh").glob("*.jsonl"))}
    for name, (file, make) in PRACTICAL.items():
        rows = [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines() if line.strip()]
        pairs = [pair for row in rows if (pair := make(row)) is not None]
        # In a file the rows of a kind may stand together; the order is drawn once, for all runs alike.
        random.Random(0).shuffle(pairs)
        found[name] = _short(few_shot.of(pairs).tasks)
    return found


def _short(tasks: Iterable[Task]) -> list[Task]:
    different = {task.problem: task for task in tasks if len(task.problem) <= MOST_CHARACTERS}
    return list(different.values())


Pair = tuple[str, str] | None


def _story(row: Row) -> str:
    return f"{row['Body'].strip().rstrip('.')}. {row['Question'].strip()}"


def _equation(row: Row) -> Pair:
    return _story(row), row["Equation"].strip()


def _operation(row: Row) -> Pair:
    return _story(row), row["Type"]


def _made_up(row: Row) -> Pair:
    return _story(row), MADE_UP[row["Type"]]


def _as_json(row: Row) -> Pair:
    """SVAMP to strict JSON: the operation and the two numbers, in this order and form."""
    parts = row["Equation"].strip("( )").split()
    if len(parts) != 3 or parts[1] not in SIGNS:
        return None
    first, sign, second = parts
    return _story(row), json.dumps({"op": SIGNS[sign], "numbers": [float(first), float(second)]})


def _math_subject(row: Row) -> Pair:
    return row["problem"], row["subject"]


def _math_level(row: Row) -> Pair:
    return row["problem"], f"Level {row['level']}"


def _mmlu_subject(row: Row) -> Pair:
    return row["question"], row["subject"].replace("_", " ")


def _mmlu_field(row: Row) -> Pair:
    """The field alone, without the school: `high_school_physics` is physics."""
    for start in ("high_school_", "college_", "conceptual_", "elementary_"):
        if row["subject"].startswith(start):
            return row["question"], row["subject"].removeprefix(start).replace("_", " ")
    return None


def _signature(row: Row) -> Pair:
    """MBPP: what a function does -> its first line, as the reference writes it."""
    try:
        tree = ast.parse(row["code"].replace("\r\n", "\n"))
    except SyntaxError:
        return None
    tested = row["test_list"][0]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and f"{node.name}(" in tested:
            return row["text"], f"def {node.name}({ast.unparse(node.args)}):"
    return None


PRACTICAL: dict[str, tuple[str, Callable[[Row], Pair]]] = {
    "svamp to equation": ("svamp.jsonl", _equation),
    "svamp to operation": ("svamp.jsonl", _operation),
    "svamp to made-up labels": ("svamp.jsonl", _made_up),
    "svamp to strict JSON": ("svamp.jsonl", _as_json),
    "math to subject": ("math500.jsonl", _math_subject),
    "math to level": ("math500.jsonl", _math_level),
    "mmlu to subject": ("mmlu_stem.jsonl", _mmlu_subject),
    "mmlu to field": ("mmlu_stem.jsonl", _mmlu_field),
    "mbpp to signature": ("mbpp_train.jsonl", _signature),
}
