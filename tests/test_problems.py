"""Which problems a run sees, by their number."""

from __future__ import annotations

from pathlib import Path

from mass.config import TasksConfig
from mass.problems import task_stream
from small_lms import small_sums


def test_a_file_is_read_in_a_new_order_each_epoch(sums: Path) -> None:
    stream = task_stream(TasksConfig(source=str(sums)), 0)
    epochs = [[stream(9 * e + i).problem for i in range(9)] for e in range(3)]
    assert all(sorted(epoch) == sorted(t.problem for t in small_sums()) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert stream(4) == task_stream(TasksConfig(source=str(sums)), 0)(4)
    assert [task_stream(TasksConfig(source=str(sums)), 1)(i).problem for i in range(9)] != epochs[0]


def test_minimath_is_endless() -> None:
    stream = task_stream(TasksConfig(), 0)
    assert stream(10**9).id == "minimath-train-0-1000000000"
    few = task_stream(TasksConfig(size=5), 0)
    assert len({few(i).problem for i in range(50)}) == 5
