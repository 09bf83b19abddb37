"""Keep a comparison's folder: what its answers depend on, every answer as it comes, and its table at the end.

Answers come method by method, in stacks of problems that are written whole. So a comparison that is interrupted at any
moment continues after the last whole stack, and its answers equal those of an uninterrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mass.errors import RunError
from mass.evaluation.methods import choice_of
from mass.evaluation.table import Record
from mass.runs.folder import (
    COMPARISON,
    CONFIG,
    RECORDS,
    RunFolder,
    cannot_be_written,
    first_difference,
    is_begun,
    is_used,
    json_values,
    replace_text,
)
from mass.runs.provenance import Session
from mass.types import Task


@dataclass(frozen=True)
class ComparisonFolder:
    """The files of one comparison."""

    path: Path

    def check(self, *, resume: bool) -> None:
        """Refuse what `begin` and `resume` would refuse, without writing anything; called before a model is loaded.

        Raises:
            RunError: The folder is in use; or, with `resume`, no comparison was begun in it, or it is finished.
        """
        if not resume:
            if is_used(self.path):
                raise RunError(
                    f"{self.path} is in use; a comparison needs an empty folder; name another with --out, or go on "
                    "with one that was interrupted by --resume"
                )
        elif not is_begun(self.path, "methods"):
            raise RunError(
                f"{self.path} holds no comparison to go on with; expected its {CONFIG} in it; leave --resume out to "
                "start one"
            )
        elif (self.path / COMPARISON).is_file():
            raise RunError(f"the comparison in {self.path} is finished; `mass report {self.path}` writes its page")

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Write the configuration of a new comparison.

        Raises:
            RunError: As `check`, or the folder cannot be written.
        """
        self.check(resume=False)
        try:
            replace_text(self.path / CONFIG, json.dumps(json_values(dict(asked)), indent=2) + "\n")
            (self.path / RECORDS).touch()
        except OSError as error:
            raise cannot_be_written(self.path, error) from error

    def resume(
        self, asked: Mapping[str, Any], tasks: Sequence[Task], methods: Sequence[str], stack: int
    ) -> dict[str, list[Record]]:
        """Return the answers up to the last whole stack, and delete from the file any that follow.

        Args:
            asked: The configuration, which has to equal that of the beginning.
            tasks: The tasks in their order.
            methods: Methods in the order in which they run.
            stack: Number of problems that are answered side by side.

        Raises:
            RunError: As `check`, or the configuration differs.
        """
        self.check(resume=True)
        before = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        if (different := first_difference(before, json_values(dict(asked)))) is not None:
            key, was, now = different
            raise RunError(
                f"{self.path} was begun with {key} = {was!r}, now it is {now!r}; go on with the same options, or start "
                "another comparison"
            )
        (self.path / RECORDS).touch()  # a kill may have come before it was created
        kept, end = self._whole(tasks, methods, stack)
        with (self.path / RECORDS).open("r+b") as file:
            file.truncate(end)
        return kept

    def _whole(self, tasks: Sequence[Task], methods: Sequence[str], stack: int) -> tuple[dict[str, list[Record]], int]:
        """Return the records of whole stacks, and the position in the file where they end, in bytes.

        Problems of one stack are computed together, so an incomplete stack is answered again as a whole: its answers
        then equal those of an uninterrupted run.
        """
        expected = [(method, task) for method in methods for task in tasks]
        records, ends = list[Record](), [0]
        with (self.path / RECORDS).open("rb") as file:
            for (method, task), line in zip(expected, file, strict=False):
                record = _read(line, method, task)
                if record is None:
                    break
                records.append(record)
                ends.append(ends[-1] + len(line))
        complete, rest = divmod(len(records), len(tasks))
        if rest:  # a method that chooses among answers writes all its records at once
            rest = 0 if choice_of(methods[complete]) is not None else rest - rest % stack
        count = complete * len(tasks) + rest
        kept: dict[str, list[Record]] = {}
        for record in records[:count]:
            kept.setdefault(record.method, []).append(record)
        return kept, ends[count]

    def write(self, records: Sequence[Record]) -> None:
        """Append records, one line each."""
        lines = "".join(json.dumps(json_values(record.to_dict())) + "\n" for record in records)
        with (self.path / RECORDS).open("a", encoding="utf-8") as file:
            file.write(lines)

    def note(self, session: Session) -> None:
        """Add this process's versions and device to the folder's provenance."""
        RunFolder(self.path).note(asdict(session))

    def sessions(self) -> list[dict[str, Any]]:
        """Return the periods in which the comparison was worked on, as `mass.runs.provenance` notes them, oldest
        first."""
        return RunFolder(self.path).sessions()

    def commits(self) -> list[str]:
        """Return the distinct commits of the source at which it was worked on, oldest first."""
        return RunFolder(self.path).commits()

    def finish(self, table: Mapping[str, Any]) -> None:
        """Write the table; a folder that has it is finished."""
        replace_text(self.path / COMPARISON, json.dumps(table, indent=2))


def _read(line: bytes, method: str, task: Task) -> Record | None:
    """Return the record in a line; None for a line that was cut short or belongs to another method or task."""
    if not line.endswith(b"\n"):
        return None
    try:
        data = json.loads(line)
    except ValueError:
        return None
    same = isinstance(data, dict) and (data.get("method"), data.get("problem")) == (method, task.problem)
    return Record.from_dict(data, task) if same else None
