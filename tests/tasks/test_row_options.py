"""Rows with options: every layout becomes a multiple choice, and no option is lost without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mass import tasks
from mass.errors import DataError
from mass.types import Task
from mass.verify import check
from mass.verify.choice import listed as letters

Row = dict[str, Any]


def one(folder: Path, row: Row, **options: Any) -> Task:
    path = folder / "set.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (task,) = tasks.load(path, **options)
    return task


TREES = ["oak", "elm", "fig"]
LISTED = "Which bears fruit?\nA. oak\nB. elm\nC. fig"
ASKED: Row = {"question": "Which bears fruit?"}
LAYOUTS: dict[str, Row] = {
    "MMLU": ASKED | {"choices": TREES, "answer": 2},
    "MMLU-Pro": ASKED | {"options": TREES, "answer": "C", "answer_index": 2, "cot_content": "", "src": "x"},
    "MMLU-Pro, the index alone": ASKED | {"options": TREES, "answer_index": 2},
    "MMLU-Pro, the letter alone": ASKED | {"options": TREES, "answer": "C"},
    "AQuA-RAT": ASKED | {"options": ["A)oak", "B)elm", "C)fig"], "correct": "C", "rationale": ""},
    "ARC": ASKED | {"choices": {"text": TREES, "label": ["A", "B", "C"]}, "answerKey": "C"},
    "ARC, numbered": ASKED | {"choices": {"text": TREES, "label": ["1", "2", "3"]}, "answerKey": "3"},
    "QASC": ASKED | {"choices": [{"text": t, "label": c} for t, c in zip(TREES, "ABC", strict=True)], "answerKey": "C"},
    "OpenBookQA": {
        "question_stem": "Which bears fruit?",
        "choices": {"text": TREES, "label": ["A", "B", "C"]},
        "answerKey": "C",
    },
    "MedQA": ASKED | {"options": {"A": "oak", "B": "elm", "C": "fig"}, "answer": "fig", "answer_idx": "C"},
    "CMMLU": {"Question": "Which bears fruit?", "A": "oak", "B": "elm", "C": "fig", "D": None, "Answer": "C"},
    "the text of the option": ASKED | {"choices": TREES, "answer": " fig"},
    "a bracketed letter": ASKED | {"options": TREES, "answer": "(c)"},
    "nulls beside": ASKED | {"options": TREES, "choices": None, "answer": "C", "endings": []},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_a_choice_whose_gold_is_accepted(tmp_path: Path, name: str) -> None:
    task = one(tmp_path, LAYOUTS[name])
    assert (task.problem, task.answer, task.solution, task.verifier) == (LISTED, "C", "Answer: C", "choice")
    assert [check(task, f"Answer: {letter}").correct for letter in "ABC"] == [False, False, True]
    assert letters(task.problem) == ["A", "B", "C"]


GPQA: Row = {
    "Question": "Which bears fruit?\n",
    "Correct Answer": "fig\n",
    "Incorrect Answer 1": "oak",
    "Incorrect Answer 2": "elm",
    "Incorrect Answer 3": "ash",
    "Pre-Revision Incorrect Answer 1": "larch",
    "Explanation": "Figs grow on it.",
    "High-level domain": "Biology",
    "Record ID": "rec7",
}
SCIQ = ASKED | {"distractor1": "oak", "distractor2": "elm", "distractor3": "ash", "correct_answer": "fig"}


def options_of(task: Task) -> dict[str, str]:
    return dict(line.split(". ") for line in task.problem.splitlines() if line[1:2] == ".")


@pytest.mark.parametrize("row", [GPQA, SCIQ, ASKED | {"incorrect_answers": ["oak", "elm", "ash"], "answer": "fig"}])
def test_a_right_answer_among_wrong_ones_is_a_choice(tmp_path: Path, row: Row) -> None:
    task = one(tmp_path, row)
    options = options_of(task)
    assert sorted(options.values()) == ["ash", "elm", "fig", "oak"]
    assert options[task.answer] == "fig"
    assert one(tmp_path, row) == task, "its order is the same at each reading"
    assert check(task, task.solution).correct is True


def test_what_else_a_row_says_is_kept(tmp_path: Path) -> None:
    task = one(tmp_path, GPQA)
    assert (task.subject, task.id, task.solution) == ("Biology", "rec7", f"Figs grow on it.\nAnswer: {task.answer}")
    row = LAYOUTS["MMLU-Pro"] | {
        "cot_content": "A: Figs do. The answer is (C).",
        "category": "botany",
        "question_id": 5,
    }
    task = one(tmp_path, row)
    assert (task.subject, task.id, task.solution) == ("botany", "5", "Figs do. The answer is (C).")
    assert one(tmp_path, row | {"subject": "trees", "solution": "s"}).subject == "trees"


def test_the_right_one_stands_in_every_place(tmp_path: Path) -> None:
    rows = [SCIQ | {"correct_answer": f"fig {i}"} for i in range(60)]
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [task.answer for task in tasks.load(path)]
    assert all(5 < found.count(letter) < 30 for letter in "ABCD"), found


def test_more_than_ten_options(tmp_path: Path) -> None:
    row = ASKED | {"options": [f"tree {i}" for i in range(18)], "answer_index": 17}
    task = one(tmp_path, row)
    assert (task.answer, task.problem.splitlines()[-1]) == ("R", "R. tree 17")
    assert check(task, "The answer is R.").correct is True
    assert check(task, "The answer is B.").correct is False
    assert check(one(tmp_path, row | {"answer_index": 1}), "The answer is R.").correct is False


def test_a_row_without_its_answer_is_a_task_without_gold(tmp_path: Path) -> None:
    for row in (ASKED | {"options": TREES}, LAYOUTS["ARC"] | {"answerKey": ""}):
        task = one(tmp_path, row)
        assert (task.problem, task.answer, task.solution, task.verifier) == (LISTED, "", "", "choice")


def test_options_are_listed_after_a_problem_that_is_mapped(tmp_path: Path) -> None:
    row = {"stem": "Which bears fruit?", "options": TREES, "gold": "C", "answer": "nothing"}
    assert one(tmp_path, row, fields={"problem": "stem", "answer": "gold"}).problem == LISTED


BAD: list[tuple[Row, str]] = [
    ({"options": TREES, "answer": "B", "answer_index": 2}, "several right options: 'answer_index' C, 'answer' B"),
    ({"options": {"A": "oak", "B": "fig"}, "answer": "oak", "answer_idx": "B"}, "'answer_idx' B, 'answer' A"),
    ({"options": TREES, "answer": "D"}, "the answer is 'D'; expected an index from 0 to 2, a letter from A to C, or"),
    ({"options": TREES, "answer_index": 3}, "the answer is '3'"),
    ({"options": TREES, "answer": "ash"}, "the answer is 'ash'"),
    ({"choices": ["1", "0", "2"], "answer": "1"}, "the answer is '1'"),
    ({"choices": {"text": TREES, "label": ["1", "2", "3"]}, "answerKey": "0"}, "the answer is '0'"),
    ({"choices": {"text": TREES, "label": ["A"]}, "answerKey": "A"}, "'choices' is a list of 3"),
    ({"options": {"temperature": 1, "seed": 2}}, "'options' is an object; expected a list of 2 to 26 texts"),
    ({"options": "oak, elm, fig", "answer": "C"}, "'options' is text; expected a list"),
    ({"distractor1": "oak", "distractor2": "elm"}, "'distractor1' is a wrong answer, and there is no right one"),
    ({"endings": TREES, "label": 2}, "'endings' holds options in a layout that is not known; expected a list of texts"),
    ({"opa": "oak", "opb": "elm", "opc": "fig", "cop": 2}, "'opa' holds options"),
    ({"option1": "oak", "option2": "fig", "answer": "2"}, "'option1' holds options"),
    ({"Option A": "oak", "Option B": "fig", "answer": "B"}, "'Option A' holds options"),
    ({"answerA": "oak", "answerB": "fig", "label": "2"}, "'answerA' holds options"),
    ({"sol1": "oak", "sol2": "fig", "label": 1}, "'sol1' holds options"),
    ({"mc1_targets": {"choices": TREES, "labels": [0, 0, 1]}}, "'mc1_targets' holds options"),
    ({"answer_choices": TREES, "answer": "C"}, "'answer_choices' holds options"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_options_that_cannot_be_read_are_named(tmp_path: Path, row: Row, message: str) -> None:
    with pytest.raises(DataError) as caught:
        one(tmp_path, ASKED | row)
    assert str(caught.value).startswith(f"{tmp_path / 'set.jsonl'}, line 1: the ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_fields_are_no_options(tmp_path: Path) -> None:
    assert one(tmp_path, {"problem": "p", "answer": "7", "incorrect_answer": "8"}).verifier == "math"
    row = {"problem": "p", "answer": "7", "answers": ["7"], "adoption": 1, "choice": "x", "optional": True, "sol": "s"}
    assert one(tmp_path, row) == Task("p", "", "7", id="set-1")
