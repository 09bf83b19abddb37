"""Rows as examples: outputs word for word, chats, questions without outputs, and few-shot tasks by seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mass.errors import DataError
from mass.tasks import few_shot
from mass.types import Task


def write(folder: Path, rows: list[dict[str, Any]], name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_pair_is_kept_word_for_word_and_judged_as_text(tmp_path: Path) -> None:
    path = write(tmp_path, [{"input": "a", "output": '{"b": 1}\n'}, {"prompt": "c", "completion": "d"}])
    one, other = few_shot.load(path).tasks
    assert (one.problem, one.solution, one.verifier) == ("a", '{"b": 1}\n', "text")
    assert (other.problem, other.solution, other.id) == ("c", "d", "mine-2")


def test_a_chat_is_an_example_and_its_system_message_the_instruction(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Sort."}, {"role": "user", "content": "b a"}]
    path = write(tmp_path, [{"messages": [*turns, {"role": "assistant", "content": "a b"}]}])
    found = few_shot.load(path)
    assert (found.instruction, found.tasks[0].problem, found.tasks[0].solution) == ("Sort.", "b a", "a b")


def test_rows_of_big_bench_hard_have_their_verifier_and_their_own_output() -> None:
    rows = [
        {"input": "Which?\nOptions:\n(A) x\n(B) y", "target": "(B)"},
        {"input": "Is it?", "target": "yes"},
        {"input": "Write it", "target": '{"a": 3}'},
    ]
    choice, word, structure = few_shot.of(rows).tasks
    assert (choice.solution, choice.answer, choice.verifier) == ("(B)", "B", "choice")
    assert (word.solution, word.verifier) == ("yes", "words")
    assert (structure.solution, structure.verifier) == ('{"a": 3}', "text")


def test_rows_of_a_known_data_set_have_their_worked_solution() -> None:
    (one,) = few_shot.of([{"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2"}]).tasks
    assert (one.problem, one.answer, one.verifier) == ("1 + 1?", "2", "math")
    assert one.solution == "It is 2.\n#### 2"


def test_fields_and_an_instruction_of_each_row(tmp_path: Path) -> None:
    path = write(tmp_path, [{"review": "good film", "stars": 5}])
    (one,) = few_shot.load(path, {"problem": "review", "solution": "stars"}, "math").tasks
    assert (one.problem, one.solution, one.verifier) == ("good film", "5", "math")
    (two,) = few_shot.of([{"instruction": "Sort.", "input": "b a", "output": "a b"}]).tasks
    assert two.problem == "Sort.\n\nb a"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no examples are given"),
        ([("a", "x"), ("b",)], "example 2 is a list of 1; expected a pair"),
        ([("a", "x"), 3], "example 2 is 3"),
        ([("a", " ")], "example 1: the output is empty"),
        ([(" ", "x")], "example 1: the input is empty"),
        ([Task("a")], "example 1: the output is empty"),
        ([{"messages": "hello"}], "'messages' is text"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "the conversation is of user; expected"),
        ([{"name": "x"}], "example 1: no problem among the fields 'name'"),
    ],
)
def test_what_is_no_example_is_one_line(given: list[Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        few_shot.of(given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_system_messages_that_differ_are_an_error() -> None:
    def chat(system: str) -> dict[str, Any]:
        roles = zip(("system", "user", "assistant"), (system, "a", "b"), strict=True)
        return {"messages": [{"role": role, "content": text} for role, text in roles]}

    with pytest.raises(DataError, match="system messages of example differ"):
        few_shot.of([chat("one"), chat("two")])


def test_questions_need_no_output_and_errors_name_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, [{"input": "a"}, {"input": "b", "output": "x"}])
    one, two = few_shot.questions(path)
    assert (one.problem, one.answer, two.answer) == ("a", "", "x")
    with pytest.raises(DataError, match="line 1: no problem among"):
        few_shot.questions(write(tmp_path, [{"name": "a"}]))


def test_the_same_examples_are_given_with_all_others_and_another_seed_draws_others() -> None:
    rows = few_shot.of([(f"input {i}", str(i)) for i in range(12)]).tasks
    asked = few_shot.draw(rows, 4, 0)
    assert (len(asked), len({task.examples for task in asked}), len(asked[0].examples)) == (8, 1, 4)
    given = {question for question, _ in asked[0].examples}
    assert not given & {task.problem for task in asked}
    assert few_shot.draw(rows, 4, 0) == asked
    assert few_shot.draw(rows, 4, 1)[0].examples != asked[0].examples


def test_a_row_whose_input_is_among_the_examples_is_not_asked() -> None:
    rows = few_shot.of([("same", "x"), ("same", "y"), ("other", "z")]).tasks
    for seed in range(6):
        for task in few_shot.draw(rows, 1, seed):
            assert task.problem not in {question for question, _ in task.examples}


def test_a_folder_is_a_task_for_each_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path, [{"input": f"{name} {i}", "output": str(i)} for i in range(5)], f"{name}.jsonl")
    found = few_shot.load_sets(tmp_path, 2, 0, size=2)
    assert [task.subject for task in found] == ["one", "one", "two", "two"]
    with pytest.raises(DataError, match="5 examples of 5 rows; expected 1 to 4"):
        few_shot.load_sets(tmp_path, 5, 0)
