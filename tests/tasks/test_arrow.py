"""Values as Parquet and `datasets` hold them: each is its text, or an error that names the row."""

from __future__ import annotations

import datetime
import decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest

from mass import tasks
from mass.errors import DataError
from mass.tasks import known, values
from mass.tasks.known import Known
from mass.types import Task
from mass.verify import check

pa: Any = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
parquet: Any = pytest.importorskip("pyarrow.parquet")


def load(folder: Path, **columns: Any) -> list[Task]:
    path = folder / "set.parquet"
    parquet.write_table(pa.table(columns), path)
    return tasks.load(path)


def column(written: Any, kind: Any = None) -> Any:
    return pa.array([written, None], kind)


TEXTS = {
    "decimal": (column(decimal.Decimal("7.50"), pa.decimal128(10, 2)), "7.50"),
    "a small decimal": (column(decimal.Decimal("-1E-8"), pa.decimal128(20, 10)), "-0.0000000100"),
    "a wide decimal": (column(decimal.Decimal(10**40), pa.decimal256(60, 0)), "1" + "0" * 40),
    "float32": (column(0.1, pa.float32()), "0.1"),
    "float32, negative": (column(-2.675, pa.float32()), "-2.675"),
    "float32, whole": (column(145, pa.float32()), "145"),
    "float32, small": (column(1.5e-7, pa.float32()), "0.00000015"),
    "float16": (column(numpy.float16(0.1), pa.float16()), "0.1"),
    "float64": (column(0.1), "0.1"),
    "int8": (column(-7, pa.int8()), "-7"),
    "uint64": (column(2**64 - 1, pa.uint64()), "18446744073709551615"),
    "dictionary": (column("7").dictionary_encode(), "7"),
    "dictionary of float32": (column(0.1, pa.float32()).dictionary_encode(), "0.1"),
    "large string": (column("7", pa.large_string()), "7"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_value_is_its_text(tmp_path: Path, name: str) -> None:
    cells, expected = TEXTS[name]
    first, second = load(tmp_path, question=["p", "q"], answer=cells)
    assert (first.answer, second.answer) == (expected, "")
    assert check(first, f"Answer: {expected}").correct is True


NO_TEXTS = {
    "bytes": (column(b"7"), "bytes (b'7')"),
    "large bytes": (column(b"7", pa.large_binary()), "bytes"),
    "date": (column(datetime.date(2024, 2, 29)), "date (2024-02-29)"),
    "time": (column(datetime.time(1, 2)), "time (01:02:00)"),
    "timestamp": (column(datetime.datetime(2024, 2, 29)), "datetime (2024-02-29 00:00:00)"),
    "timestamp in a zone": (column(1, pa.timestamp("us", "UTC")), "datetime (1970-01-01"),
    "nanoseconds": (column(1, pa.timestamp("ns")), "1970"),
    "a year beyond Python's": (column(1 << 60, pa.timestamp("ms")), "unreadable ("),
    "duration": (column(datetime.timedelta(1)), "timedelta (1 day"),
    "boolean": (column(True), "true"),
    "struct": (column({"a": 1}), "an object"),
    "list": (column([1, 2]), "a list of 2"),
    "map": (column([("a", 1)], pa.map_(pa.string(), pa.int64())), "a list of 1"),
    "NaN": (column(float("nan"), pa.float32()), "nan"),
    "infinity": (column(float("inf")), "Infinity"),
}


@pytest.mark.parametrize("name", NO_TEXTS)
def test_a_value_that_is_no_text_names_its_row(tmp_path: Path, name: str) -> None:
    cells, kind = NO_TEXTS[name]
    with pytest.raises(DataError) as caught:
        load(tmp_path, question=["p", "q"], answer=cells)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'set.parquet'}, row 1: the field 'answer' is ")
    assert kind in message
    assert "expected text or a number" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", NO_TEXTS)
def test_a_column_that_no_task_needs_may_hold_anything(tmp_path: Path, name: str) -> None:
    loaded = load(tmp_path, question=["p", "q"], answer=["7", "8"], extra=NO_TEXTS[name][0])
    assert [task.answer for task in loaded] == ["7", "8"]


def test_text_that_is_not_utf8_is_an_error_of_its_own_row(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2], pa.int32()).buffers()[1]
    cells = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"7\xff")])
    with pytest.raises(DataError, match=r"row 2: the field 'answer' is unreadable \('utf-8' codec"):
        load(tmp_path, question=["p", "q"], answer=cells)
    assert [task.answer for task in load(tmp_path, question=["p", "q"], answer=["7", "8"], note=cells)] == ["7", "8"]


def test_small_floats_inside_lists_and_structs_keep_their_digits(tmp_path: Path) -> None:
    kind = pa.struct([("text", pa.list_(pa.float32())), ("label", pa.list_(pa.string()))])
    choices = pa.array([{"text": [0.1, 2.7], "label": ["A", "B"]}], kind)
    (task,) = load(tmp_path, question=["p"], choices=choices, answerKey=["B"], level=pa.array([3], pa.float32()))
    assert (task.problem, task.answer, task.level) == ("p\nA. 0.1\nB. 2.7", "B", 3)


def test_levels_of_every_number(tmp_path: Path) -> None:
    for cells in (pa.array([4], pa.int8()), pa.array([4], pa.float32()), pa.array([decimal.Decimal("4.00")])):
        assert load(tmp_path, problem=["p"], level=cells)[0].level == 4


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    parquet.write_table(pa.table([["p"], ["1"], ["2"]], names=["problem", "answer", "answer"]), path)
    with pytest.raises(DataError, match=r"set.parquet: the column 'answer' is given twice"):
        tasks.load(path)


def test_rows_of_datasets_keep_their_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    table = pa.table({"question": ["p", "q"], "answer": pa.array([0.1, 145], pa.float32())})
    monkeypatch.setattr(library, "load_dataset", lambda *_, **__: library.Dataset(table))
    assert [task.answer for task in known.load("set", Known("o/set", splits={}), "test")] == ["0.1", "145"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (numpy.int64(5), "5"),
        (numpy.float64(0.25), "0.25"),
        (numpy.float32(0.1), "0.1"),
        (numpy.str_("x"), "x"),
        (decimal.Decimal("1E+3"), "1000"),
        (Fraction(1, 3), "1/3"),
    ],
)
def test_python_values_are_texts(value: object, expected: str) -> None:
    assert values.text_of({"answer": value}, "answer") == expected


@pytest.mark.parametrize(
    "value",
    [
        True,
        numpy.bool_(True),
        numpy.float64("nan"),
        decimal.Decimal("NaN"),
        b"7",
        {7},
        numpy.datetime64("2024-02-29"),
        1j,
    ],
)
def test_other_python_values_are_errors(value: object) -> None:
    with pytest.raises(DataError, match=r"the field .answer. is .*; expected text or a number"):
        values.text_of({"answer": value}, "answer")
