"""Source -> Tasks: a set that is built in, or a JSONL file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from mass.errors import DataError, nearest
from mass.tasks import jsonl, minimath
from mass.types import Task

__all__ = ["content_hash", "load"]


def load(
    source: str | Path,
    *,
    split: str = "test",
    size: int | None = None,
    seed: int = 0,
    fields: Mapping[str, str] | None = None,
    verifier: str | None = None,
) -> list[Task]:
    """Tasks of `source`: "minimath", "minimath-search", or the path of a `.jsonl` or `.jsonl.gz` file.

    Args:
        split: of a built-in set; a file is what it is.
        size: None takes all rows of a file, in file order; a smaller number takes a random subset of that size, drawn
            with `seed` and kept in file order; a larger one takes all rows.
        fields: our field name -> the file's, such as `{"problem": "prompt", "answer": "gold"}`.
        verifier: judges all tasks, instead of the one their layout suggests.

    Raises:
        DataError: with file and line number, on anything that cannot be used.
    """
    if size is not None and size < 1:
        raise DataError(f"size is {size}; expected at least 1, or none for all")
    if str(source) in minimath.SOURCES:
        if fields:
            raise DataError(f"fields maps the names of a file, and {source} is built in; leave fields out")
        tasks = minimath.load(split, size, seed, source=str(source))
    else:
        tasks = _subset(jsonl.load(_file(source), fields), size, seed)
    return tasks if verifier is None else [dataclasses.replace(task, verifier=verifier) for task in tasks]


def content_hash(tasks: Sequence[Task]) -> str:
    """SHA-256 over the problems, in order: whether two runs saw the same ones."""
    return hashlib.sha256(json.dumps([task.problem for task in tasks]).encode()).hexdigest()


def _file(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.name.endswith(jsonl.SUFFIXES):
        return path
    if path.exists():
        raise DataError(f"{path} is no {' or '.join(jsonl.SUFFIXES)} file; convert it to one JSON object a line")
    hint = nearest(str(source), minimath.SOURCES)
    known = " or ".join(map(repr, minimath.SOURCES))
    raise DataError(f"no task set {str(source)!r}; expected {known}, or a path to a .jsonl or .jsonl.gz file{hint}")


def _subset(tasks: list[Task], size: int | None, seed: int) -> list[Task]:
    if size is None or size >= len(tasks):
        return tasks
    return [tasks[i] for i in sorted(random.Random(seed).sample(range(len(tasks)), size))]
