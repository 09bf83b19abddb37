"""Load tasks from a built-in set, a known data set, any data set of the hub, a file, or reasoning-gym."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from mass.errors import DataError, nearest
from mass.tasks import choice, files, gym, known, minimath
from mass.tasks.known import KNOWN
from mass.types import Task

__all__ = ["KNOWN", "content_hash", "has_splits", "load"]


def load(
    source: str | Path,
    *,
    split: str = "test",
    size: int | None = None,
    seed: int = 0,
    fields: Mapping[str, str] | None = None,
    verifier: str | None = None,
    part: tuple[float, float] | None = None,
    levels: Sequence[int] | None = None,
    subjects: Sequence[str] | None = None,
) -> list[Task]:
    """Load the tasks of `source`.

    Args:
        source: "minimath" or "minimath-terms"; the path of a `.jsonl`, `.jsonl.gz` or `.parquet`
            file; the name of a known data set (a key of `KNOWN`) or an id of the hub, "owner/name" or
            "owner/name:config"; "reasoning_gym:NAME".
        split: Part of a built-in set or of a data set of the hub. Ignored for a file.
        size: None takes all rows, in their order. A smaller number takes a random subset of that size, drawn with
            `seed` and kept in order; a larger one takes all. Built-in sets and reasoning-gym generate as many as asked
            for.
        seed: Seed of the random subset, or of the generated problems.
        fields: Our field name -> the data set's, such as `{"problem": "prompt", "answer": "gold"}`.
        verifier: The verifier for all tasks, instead of the one their layout suggests: a key of
            `mass.verify.VERIFIERS`, or one of your own, "module:function" or "command:PROGRAM ARGUMENTS".
        part: (low, high) takes the tasks of a file or data set for which a number between 0 and 1, computed by hashing
            the problem's text, is at least low and below high. Parts that do not overlap have no problem in common, in
            whatever order the rows come. `size` is drawn from the part.
        levels: Only the tasks of these levels, such as `[1, 2, 3, 4]`; None takes all. For a file or data set, `part`
            and `size` choose among those; a built-in set generates as many as asked for. Not for reasoning-gym.
        subjects: Only the tasks of these subjects, such as `["Algebra", "Geometry"]`, by the same rules.

    Raises:
        DataError: Something cannot be used; for a file, the message gives the line number.
    """
    if part is not None and not (len(part) == 2 and 0 <= part[0] < part[1] <= 1):
        raise DataError(f"part is {list(part)}; expected two rising numbers between 0 and 1, as in [0, 0.9]")
    if size is not None and size < 1:
        raise DataError(f"size is {size}; expected at least 1, or none for all")
    choice.check(levels, subjects)
    name = str(source)
    if name in minimath.SOURCES or name.startswith(gym.PREFIX):
        if part is not None:
            raise DataError(f"part divides a file or data set, and {name} is built in; leave part out")
        if fields:
            raise DataError(f"fields maps the names of a data set, and {name} is built in; leave fields out")
        made = _made(name, split, size, seed, levels, subjects)
        return made if verifier is None else [dataclasses.replace(task, verifier=verifier) for task in made]
    chosen = choice.choose(_read(source, split, fields, verifier), levels, subjects, name)
    return _subset(_part(chosen, part, name), size, seed)


def _made(
    name: str,
    split: str,
    size: int | None,
    seed: int,
    levels: Sequence[int] | None,
    subjects: Sequence[str] | None,
) -> list[Task]:
    """Generate tasks of minimath or of reasoning-gym."""
    if name in minimath.SOURCES:
        return minimath.load(split, size, seed, subjects, levels, source=name)
    for kind, values in (("levels", levels), ("subjects", subjects)):
        if values is not None:
            raise DataError(
                f"{kind} chooses among tasks that name one, and {name} makes them by options of its own; leave {kind} "
                "out, or add its options after a question mark"
            )
    return gym.load(name, size, seed)


def _read(source: str | Path, split: str, fields: Mapping[str, str] | None, verifier: str | None) -> list[Task]:
    """Return all tasks of a file or data set."""
    name, path = str(source), Path(source).expanduser()
    if path.exists() or name.endswith(files.SUFFIXES):
        if not name.endswith(files.SUFFIXES):
            raise DataError(f"{path} is not a {' or '.join(files.SUFFIXES)} file; convert it to one JSON object a line")
        return files.load(path, fields, verifier)
    found = known.find(name)
    if found is None:
        hint = nearest(name, [*minimath.SOURCES, *KNOWN])
        raise DataError(
            f"no task set {name!r}; expected a path to a {' or '.join(files.SUFFIXES)} file, or a name{hint}"
        )
    return known.load(*found, split, fields, verifier)


def has_splits(source: str | Path) -> bool:
    """Return True if `split` chooses among the source's problems: for minimath and data sets of the hub, not for
    files."""
    name = str(source)
    is_file = Path(source).expanduser().exists() or name.endswith(files.SUFFIXES)
    return name in minimath.SOURCES or not (is_file or name.startswith(gym.PREFIX))


def content_hash(tasks: Sequence[Task]) -> str:
    """Return the SHA-256 of the problems, in order. Two runs with the same hash saw the same problems."""
    return hashlib.sha256(json.dumps([task.problem for task in tasks]).encode()).hexdigest()


def _part(tasks: list[Task], part: tuple[float, float] | None, name: str) -> list[Task]:
    """Return the tasks whose number lies in the part."""
    if part is None:
        return tasks
    found = [task for task in tasks if part[0] <= _share(task.problem) < part[1]]
    if not found:
        raise DataError(f"no task of {name} is in part {list(part)}; expected some; take a wider part, or all")
    return found


def _share(problem: str) -> float:
    """Return a number in [0, 1) that depends on the text alone, ignoring spaces and capitals.

    A hash and not a random draw: the same problem falls into the same part in every file and every order.
    """
    digest = hashlib.sha256(" ".join(problem.lower().split()).encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def _subset(tasks: list[Task], size: int | None, seed: int) -> list[Task]:
    if size is None or size >= len(tasks):
        return tasks
    return [tasks[i] for i in sorted(random.Random(seed).sample(range(len(tasks)), size))]
