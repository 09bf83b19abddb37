"""Choose tasks by level and by subject, keeping their order."""

from __future__ import annotations

from collections.abc import Sequence

from mass.errors import DataError, nearest
from mass.types import Task


def check(levels: Sequence[int] | None, subjects: Sequence[str] | None) -> None:
    """Check a choice before anything is loaded.

    Raises:
        DataError: It chooses nothing, or one value twice.
    """
    for kind, values, example in (("levels", levels, [1, 2]), ("subjects", subjects, ["Algebra"])):
        if values is not None and (isinstance(values, str) or not 0 < len(values) == len(set(values))):
            raise DataError(f"{kind} is {values!r}; expected some, each once, as in {example}, or none for all")


def choose(tasks: list[Task], levels: Sequence[int] | None, subjects: Sequence[str] | None, name: str) -> list[Task]:
    """Return the tasks of these levels and subjects; None means all.

    Args:
        name: The source, for error messages.

    Raises:
        DataError: No task has one of the levels or subjects, or none has both.
    """
    if levels is not None:
        there = {task.level for task in tasks if task.level is not None}
        _check_there("level", levels, there, name, f"; known: {', '.join(map(str, sorted(there)))}")
    if subjects is not None:
        named = {task.subject for task in tasks if task.subject}
        missing = next((subject for subject in subjects if subject not in named), "")
        _check_there("subject", subjects, named, name, nearest(missing, named))
    found = [
        task
        for task in tasks
        if (levels is None or task.level in levels) and (subjects is None or task.subject in subjects)
    ]
    if not found:
        raise DataError(
            f"no task of {name} has both a level of {levels} and a subject of {subjects}; expected some; take more "
            "of either, or all"
        )
    return found


def _check_there(
    kind: str, wanted: Sequence[int] | Sequence[str], there: set[int] | set[str], name: str, hint: str
) -> None:
    if not there:
        raise DataError(
            f"{kind}s is {list(wanted)}, and no task of {name} names a {kind}; leave {kind}s out, or map the set's own "
            f"name for it to {kind!r} with the option 'fields'"
        )
    missing = [value for value in wanted if value not in there]
    if missing:
        raise DataError(f"{kind}s is {list(wanted)}, and no task of {name} has the {kind} {missing[0]!r}{hint}")
