"""Write and read a `Solution` as JSON: `mass solve --json` prints it, `--out` writes it, and `--replay` reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

from mass import encoding
from mass.adaptation.checkpoint import adapt_config
from mass.adaptation.origin import lora_of
from mass.errors import DataError, RunError
from mass.types import Adaptation, Solution, Task


def to_json(solution: Solution, *, indent: int | None = None) -> str:
    """Return `{"text", "answer", "adaptation"}` as JSON; numbers that JSON does not have become null."""
    record = None if solution.adaptation is None else solution.adaptation.to_dict()
    return json.dumps(
        encoding.finite({"text": solution.text, "answer": solution.answer, "adaptation": record}),
        indent=indent,
        allow_nan=False,
    )


def read(path: Path) -> Adaptation:
    """Return the record in a file: an `adaptation` object, or the whole object that contains one.

    Raises:
        DataError: The file cannot be read or contains no record.
    """
    try:
        text = encoding.read(path)
    except OSError as error:
        raise DataError(
            f"--replay {str(path)!r} cannot be read ({error.strerror}); give a record of mass solve"
        ) from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); expected one object of mass solve --json") from error
    if isinstance(data, dict) and "adaptation" in data:
        data = cast("dict[str, Any]", data)["adaptation"]
        if data is None:
            raise DataError(f"{path} is an answer without practice; there is no update to replay; solve it anew")
    if not isinstance(data, dict):
        raise DataError(f"{path} holds no adaptation; expected one object of mass solve --json")
    values = cast("dict[str, Any]", data)
    try:
        record = Adaptation.from_dict(values)
        adapt_config(record.config)
        lora_of(record)
        return record
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} is not a record of an adaptation ({error}); expected one of mass solve --json"
        ) from error


def write(folder: Path, index: int, problem: str | Task, solution: Solution) -> Path:
    """Write one answer to a file named by its position and the task's id.

    Raises:
        RunError: The file cannot be written.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", problem.id)[:80] if isinstance(problem, Task) else ""
    path = folder / f"{index + 1:04d}{f'-{name}' if name else ''}.json"
    try:
        path.write_text(to_json(solution, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); name another folder with --out") from error
    return path
