"""A comparison's folder: what its answers are a function of, every answer as it comes, at the end its table.

The answers come method by method, in stacks of problems that are written whole. So a comparison that was broken off, at
any moment, goes on from the last whole stack, and its answers are those of one that was not.
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
from mass.runs.provenance import Sitting
from mass.types import Task


@dataclass(frozen=True)
class ComparisonFolder:
    path: Path

    def check(self, *, resume: bool) -> None:
        """What `begin` and `resume` refuse, with nothing written: worth knowing before a model is loaded.

        Raises RunError when the folder is in use; with `resume`, when no comparison was begun in it, or it is finished.
        """
        if not resume:
            if is_used(self.path):
                raise RunError(
                    f"{self.path} is in use; a comparison needs an empty folder; name another with --out, or go on "
                    "with one that was broken off by --resume"
                )
        elif not is_begun(self.path, "methods"):
            raise RunError(
                f"{self.path} holds no comparison to go on with; expected its {CONFIG} in it; leave --resume out to "
                "start one"
            )
        elif (self.path / COMPARISON).is_file():
            raise RunError(f"the comparison in {self.path} is finished; `mass report {self.path}` writes its page")

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Raises RunError as `check` does, or when the folder cannot be written."""
        self.check(resume=False)
        try:
            replace_text(self.path / CONFIG, json.dumps(json_values(dict(asked)), indent=2) + "\n")
            (self.path / RECORDS).touch()
        except OSError as error:
            raise cannot_be_written(self.path, error) from error

    def resume(
        self, asked: Mapping[str, Any], tasks: Sequence[Task], methods: Sequence[str], stack: int
    ) -> dict[str, list[Record]]:
        """The answers up to the last whole stack; what follows them in the file is dropped.

        Args:
            asked: as it was when the comparison began.
            methods: in the order they run.
            stack: problems that are answered side by side.

        Raises RunError as `check` does, and when something else is asked.
        """
        self.check(resume=True)
        before = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        if (different := first_difference(before, json_values(dict(asked)))) is not None:
            key, was, now = different
            raise RunError(
                f"{self.path} was begun with {key} = {was!r}, now it is {now!r}; go on with the same options, or start "
                "another comparison"
            )
        (self.path / RECORDS).touch()  # a kill came before it was there
        kept, end = self._whole(tasks, methods, stack)
        with (self.path / RECORDS).open("r+b") as file:
            file.truncate(end)
        return kept

    def _whole(self, tasks: Sequence[Task], methods: Sequence[str], stack: int) -> tuple[dict[str, list[Record]], int]:
        """The records of whole stacks, and where in the file they end, in bytes."""
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
        if rest:  # a method that chooses among answers writes all of its own at once
            rest = 0 if choice_of(methods[complete]) is not None else rest - rest % stack
        count = complete * len(tasks) + rest
        kept: dict[str, list[Record]] = {}
        for record in records[:count]:
            kept.setdefault(record.method, []).append(record)
        return kept, ends[count]

    def write(self, records: Sequence[Record]) -> None:
        """Append answers, as lines."""
        lines = "".join(json.dumps(json_values(record.to_dict())) + "\n" for record in records)
        with (self.path / RECORDS).open("a", encoding="utf-8") as file:
            file.write(lines)

    def note(self, sitting: Sitting) -> None:
        """Add what this process works with to the folder's provenance."""
        RunFolder(self.path).note(asdict(sitting))

    def sittings(self) -> list[dict[str, Any]]:
        """As `mass.runs.provenance` notes them, oldest first."""
        return RunFolder(self.path).sittings()

    def commits(self) -> list[str]:
        """Those of the source that the sittings were at, each once."""
        return RunFolder(self.path).commits()

    def finish(self, table: Mapping[str, Any]) -> None:
        replace_text(self.path / COMPARISON, json.dumps(table, indent=2))


def _read(line: bytes, method: str, task: Task) -> Record | None:
    """The record of a line; None for one that was cut short or is another's."""
    if not line.endswith(b"\n"):
        return None
    try:
        data = json.loads(line)
    except ValueError:
        return None
    same = isinstance(data, dict) and (data.get("method"), data.get("problem")) == (method, task.problem)
    return Record.from_dict(data, task) if same else None
