"""Read tasks from a file: one JSON object per line, or Parquet."""

from __future__ import annotations

import dataclasses
import gzip
import importlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from mass import encoding
from mass.errors import DataError
from mass.tasks import arrow, rows, values
from mass.tasks.values import Row
from mass.types import Task

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
NEEDS_PYARROW = "reading Parquet needs pyarrow; install it with `pip install 'mass-adapt[data]'`"


def load(path: Path, fields: Mapping[str, str] | None = None, verifier: str | None = None) -> list[Task]:
    """Return all rows of `path` in file order; blank lines are skipped. An id that occurs twice gets a suffix.

    Raises:
        DataError: A row is not a task; the message gives the file and the line (for Parquet: the row) number.
    """
    found = numbered_rows(path)
    parquet = path.suffix == ".parquet"
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".parquet")
    tasks = tasks_of(found, f"{path}, {'row' if parquet else 'line'}", stem, fields, verifier)
    if not tasks:
        raise DataError(f"{path} has no rows; expected {'rows' if parquet else 'one JSON object a line'}")
    return tasks


def numbered_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Return the rows of a file with their line (for Parquet: row) numbers from 1. Raises DataError, also while they
    are read."""
    if not path.is_file():
        raise DataError(f"{path} is {'a folder' if path.is_dir() else 'not a file'}; expected a {_names()} file")
    return _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def tasks_of(
    numbered: Iterable[tuple[int, Row]],
    where: str,
    name: str,
    fields: Mapping[str, str] | None = None,
    verifier: str | None = None,
) -> list[Task]:
    """Return the tasks of numbered rows.

    Args:
        name: A row without an id is called by this name and its number.
        where: Beginning of error messages.
    """
    mapping = dict(fields or {})
    rows.check_mapping(mapping)
    tasks: list[Task] = []
    taken: set[str] = set()
    for number, row in numbered:
        try:
            task = rows.task(row, mapping, verifier)
        except DataError as error:
            raise DataError(f"{where} {number}: {error}") from None
        tasks.append(dataclasses.replace(task, id=_unique(task.id or f"{name}-{number}", taken)))
    return tasks


def _unique(name: str, taken: set[str]) -> str:
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}-{count}"
    taken.add(unique)
    return unique


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line number from 1, object) for each line that is not blank."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for line, data in enumerate(lines, start=1):
                if data.strip():
                    yield line, _object(data, f"{path}, line {line}")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _object(data: bytes, where: str) -> Row:
    try:
        text = encoding.decode(data)
    except ValueError as error:
        raise DataError(f"{where} {error}; save the file as UTF-8") from None
    try:
        row = json.loads(text, object_pairs_hook=_once)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}); expected one object a line") from None
    if not isinstance(row, dict):
        raise DataError(f'{where} is {values.kind(row)}; expected one JSON object a line, like {{"problem": …}}')
    return cast(Row, row)


def _once(pairs: list[tuple[str, Any]]) -> Row:
    """Return an object, refusing a name that occurs twice: JSON would silently take the last of the two values."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the field {twice[:40]!r} is given twice; expected once; leave one out")
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (row number from 1, row)."""
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(f"{path}: {NEEDS_PYARROW}") from None
    try:
        with parquet.ParquetFile(path) as file:
            yield from enumerate((row for batch in file.iter_batches() for row in arrow.rows(batch)), start=1)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (
        OSError,
        ValueError,
        NotImplementedError,
        LookupError,
        TypeError,
    ) as error:  # pyarrow's own exceptions are subclasses of these
        raise DataError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error


def _names() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
