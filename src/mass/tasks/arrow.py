"""Read the rows of an Arrow table (from Parquet or `datasets`), with the values' own precision."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mass.errors import DataError
from mass.tasks.values import Row


def rows_of(data_set: Any) -> Iterator[Row]:
    """Yield the rows of a `datasets.Dataset`, read a thousand at a time."""
    for table in data_set.with_format("arrow").iter(batch_size=1000):
        yield from rows(table)


def rows(table: Any) -> Iterator[Row]:
    """Yield the rows of a table or record batch.

    A value that Python cannot represent (a date beyond the year 9999, text that is not UTF-8) is replaced by the
    exception that says so. It becomes an error only where a task needs the value.

    Raises:
        DataError: Two columns have the same name.
    """
    names: list[str] = table.schema.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the column {twice[:40]!r} is given twice; expected once; leave one out")
    columns = {name: _values(table.column(i)) for i, name in enumerate(names)}
    for number in range(table.num_rows):
        yield {name: column[number] for name, column in columns.items()}


def _values(column: Any) -> list[Any]:
    try:
        found = column.to_pylist()
    except (ValueError, OverflowError, TypeError, NotImplementedError):
        found = [_value(scalar) for scalar in column]
    narrow = _narrow(column.type)
    return found if narrow is None else [narrow(value) for value in found]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, TypeError, NotImplementedError) as error:
        return error


def _narrow(kind: Any) -> Callable[[Any], Any] | None:
    """Return a function that gives a value of an Arrow type the digits of its own precision; None for a type without
    small floats.

    A float32 of 0.1 comes from Arrow as 0.10000000149011612, which would be a wrong gold answer.
    """
    types: Any = importlib.import_module("pyarrow").types
    if types.is_float16(kind) or types.is_float32(kind):
        scalar = kind.to_pandas_dtype()
        return lambda value: None if value is None else scalar(value)
    if types.is_dictionary(kind):
        return _narrow(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _narrow(kind.value_type)
        return inner and (lambda value: [inner(item) for item in value] if isinstance(value, list) else value)
    if types.is_struct(kind):
        found = {part.name: _narrow(part.type) for part in (kind.field(i) for i in range(kind.num_fields))}
        return _narrow_fields({name: inner for name, inner in found.items() if inner is not None})
    return None


def _narrow_fields(fields: Mapping[str, Callable[[Any], Any]]) -> Callable[[Any], Any] | None:
    """Return such a function for a struct; its other fields stay as they are."""

    def narrow(value: Row | None) -> Row | None:
        return value and value | {name: inner(value[name]) for name, inner in fields.items()}

    return narrow if fields else None
