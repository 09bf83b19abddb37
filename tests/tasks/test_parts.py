"""Parts of one set, by the hash of each problem's text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mass import tasks
from mass.config import TasksConfig
from mass.errors import ConfigError, DataError


def rows(file: Path, numbers: list[int], form: str = "Compute {} + 1.") -> Path:
    file.write_text("".join(json.dumps({"problem": form.format(i), "answer": str(i + 1)}) + "\n" for i in numbers))
    return file


def problems(file: Path, part: tuple[float, float] | None, size: int | None = None) -> list[str]:
    return [task.problem for task in tasks.load(file, part=part, size=size)]


def test_parts_divide_a_set_whatever_the_order_of_its_rows(tmp_path: Path) -> None:
    numbers = list(range(1000))
    file, turned = rows(tmp_path / "a.jsonl", numbers), rows(tmp_path / "b.jsonl", numbers[::-1])
    most, rest = problems(file, (0, 0.9)), problems(file, (0.9, 1))
    assert sorted([*most, *rest]) == sorted(problems(file, None))
    assert 60 < len(rest) < 140
    assert set(problems(turned, (0.9, 1))) == set(rest)
    assert set(problems(file, (0.9, 1), size=20)) < set(rest)


def test_the_same_problem_is_in_the_same_part_however_it_is_spaced(tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", list(range(200)))
    spaced = rows(tmp_path / "b.jsonl", list(range(200)), "compute  {} +\n1.")
    part = (0.5, 1.0)
    assert [" ".join(p.lower().split()) for p in problems(spaced, part)] == [p.lower() for p in problems(file, part)]


def test_parts_that_cannot_be_taken(tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", [1])
    assert len([1 for part in ((0, 0.5), (0.5, 1)) if _empty(file, part)]) == 1
    for part in ((0.5, 0.5), (0.9, 0.1), (-0.1, 1), (0, 1.1)):
        with pytest.raises(DataError, match="expected two rising numbers between 0 and 1"):
            tasks.load(file, part=part)
        with pytest.raises(ConfigError, match=r"tasks\.part is"):
            TasksConfig(part=part)
    with pytest.raises(DataError, match="minimath is built in; leave part out"):
        tasks.load("minimath", part=(0, 0.5))


def _empty(file: Path, part: tuple[float, float]) -> bool:
    try:
        return not problems(file, part)
    except DataError as error:
        return "no task of" in str(error)
