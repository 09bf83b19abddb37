"""Tasks of chosen levels and subjects: of public rows, of the built-in sets, and what is said where there are none."""

from __future__ import annotations

import json
import os
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mass import tasks
from mass.config import TasksConfig
from mass.errors import ConfigError, DataError
from mass.tasks import content_hash, minimath


def _data() -> Path:
    """The folder of public rows: MASS_DATA, or `shared/data` beside the repository or a folder above it."""
    if named := os.environ.get("MASS_DATA"):
        return Path(named)
    places = [parent / "shared" / "data" for parent in Path(__file__).resolve().parents[3:]]
    return next((place for place in places if place.is_dir()), places[0])


MATH500, GSM8K = _data() / "math500.jsonl", _data() / "gsm8k_test.jsonl"
real_rows = pytest.mark.skipif(not (MATH500.exists() and GSM8K.exists()), reason="the public rows are not here")


def made(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps({"problem": f"p{i}", **row}) + "\n" for i, row in enumerate(rows)))
    return file


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Two subjects, levels 1 and 5; no geometry of level 5."""
    cells = [("Algebra", 1), ("Algebra", 5), ("Geometry", 1), ("Algebra", 5)]
    return made(tmp_path / "few.jsonl", *({"subject": subject, "level": level} for subject, level in cells))


# --- files and data sets


@real_rows
def test_levels_and_subjects_choose_among_the_rows_of_math() -> None:
    whole = tasks.load(MATH500)
    easy, hard = tasks.load(MATH500, levels=[1, 2, 3, 4]), tasks.load(MATH500, levels=[5])
    assert {task.level for task in hard} == {5}
    assert {task.level for task in easy} == {1, 2, 3, 4}
    assert [task for task in whole if task in easy or task in hard] == whole
    assert len(easy) + len(hard) == len(whole)
    algebra = tasks.load(MATH500, levels=[5], subjects=["Algebra", "Precalculus"])
    assert algebra == [task for task in hard if task.subject in ("Algebra", "Precalculus")]


@real_rows
def test_part_and_size_choose_among_what_is_chosen() -> None:
    hard = tasks.load(MATH500, levels=[5])
    most, rest = (tasks.load(MATH500, levels=[5], part=part) for part in ((0, 0.5), (0.5, 1)))
    assert most + rest != hard
    assert sorted(t.id for t in [*most, *rest]) == sorted(t.id for t in hard)
    some = tasks.load(MATH500, levels=[5], part=(0, 0.5), size=5, seed=3)
    assert len(some) == 5
    assert set(some) < set(most)
    assert len(tasks.load(MATH500, levels=[5], size=10**6)) == len(hard)


@real_rows
def test_rows_that_name_no_level_are_not_chosen_among() -> None:
    expected = r"levels is \[5\], and no task of .*gsm8k_test.jsonl names a level; leave levels out, or map the set's"
    with pytest.raises(DataError, match=expected):
        tasks.load(GSM8K, levels=[5])
    with pytest.raises(DataError, match="names a subject; leave subjects out"):
        tasks.load(GSM8K, subjects=["Algebra"])


def test_a_mapped_field_is_a_level(tmp_path: Path) -> None:
    file = made(tmp_path / "t.jsonl", {"hardness": "Level 2"}, {"hardness": 3}, {"hardness": None})
    fields = {"level": "hardness"}
    assert [task.problem for task in tasks.load(file, fields=fields, levels=[2])] == ["p0"]
    assert [task.problem for task in tasks.load(file, fields=fields, levels=[3, 2])] == ["p0", "p1"]


def test_rows_of_the_hub_are_chosen_among(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"problem": f"p{i}", "solution": r"\boxed{1}", "level": f"Level {i}", "type": "Algebra"} for i in (1, 5, 5)]
    library = types.ModuleType("datasets")
    library.load_dataset = lambda *_, **__: rows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert len(tasks.load("math", levels=[5])) == 2 * 7, "of each of its seven configurations"
    with pytest.raises(DataError, match="no task of math has the subject 'algebra'; did you mean 'Algebra'"):
        tasks.load("math", subjects=["algebra"])


# --- built-in sets


@pytest.mark.parametrize("source", minimath.SOURCES)
def test_a_built_in_set_makes_as_many_as_asked_for(source: str) -> None:
    found = tasks.load(source, size=24, levels=[4, 5], subjects=["Algebra", "Geometry"])
    cells = {(subject, level): 6 for subject in ("Algebra", "Geometry") for level in (4, 5)}
    assert Counter((task.subject, task.level) for task in found) == cells


@pytest.mark.parametrize("source", minimath.SOURCES)
def test_choosing_nothing_changes_no_set(source: str) -> None:
    usual = content_hash(minimath.load("test", 70, 3, source=source))
    everything = {"levels": list(minimath.LEVELS), "subjects": list(minimath.SUBJECTS)}
    for chosen in ({}, {"levels": None, "subjects": None}, everything):
        assert content_hash(tasks.load(source, size=70, seed=3, **chosen)) == usual


# --- what cannot be chosen


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"levels": [1, 6]}, "levels is [1, 6], and no task of few has the level 6; known: 1, 5"),
        ({"subjects": ["Algebar"]}, "has the subject 'Algebar'; did you mean 'Algebra'?"),
        ({"subjects": ["Sums", "Algebra"]}, "has the subject 'Sums'; known: Algebra, Geometry"),
        (
            {"levels": [5], "subjects": ["Geometry"]},
            "no task of few has both a level of [5] and a subject of ['Geometry']; expected some; take more of either",
        ),
        ({"levels": []}, "levels is []; expected some, each once, as in [1, 2], or none for all"),
        ({"levels": [5, 5]}, "levels is [5, 5]; expected some, each once"),
        ({"subjects": "Algebra"}, "subjects is 'Algebra'; expected some, each once, as in ['Algebra']"),
        ({"levels": [1], "subjects": ["Geometry"], "part": (0, 1e-9)}, "no task of few is in part"),
    ],
)
def test_what_is_not_there_is_a_one_line_error(few: Path, chosen: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as error:
        tasks.load(few, **chosen)
    message = str(error.value).replace(str(few), "few")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("chosen", [{"levels": [1]}, {"subjects": ["chain_sum"]}])
def test_reasoning_gym_has_options_of_its_own(chosen: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"makes them by options of its own; leave (levels|subjects) out"):
        tasks.load("reasoning_gym:chain_sum", **chosen)


@pytest.mark.parametrize(("name", "values"), [("levels", []), ("levels", [1, 1]), ("subjects", [])])
def test_a_configuration_that_chooses_nothing_is_refused(name: str, values: list[Any]) -> None:
    with pytest.raises(ConfigError, match=rf"tasks\.{name} is .*; expected some, each once, or null for all"):
        TasksConfig(**{name: values})
