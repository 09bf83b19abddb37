"""Files of tasks: every layout, every kind of bad file."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass import tasks
from mass.errors import DataError
from mass.tasks import content_hash, rows
from mass.types import Task
from mass.verify import check

Row = dict[str, Any]


def write(folder: Path, *rows: Row, name: str = "set.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def one(folder: Path, row: Row, **options: Any) -> Task:
    (task,) = tasks.load(write(folder, row), **options)
    return task


def test_gsm8k(tmp_path: Path) -> None:
    answer = "He has 2*3=<<2*3=6>>6 eggs.\n#### 1,006"
    assert one(tmp_path, {"question": "How many?", "answer": answer}) == Task(
        "How many?", "He has 2*3=6 eggs.\n#### 1,006", "1,006", id="set-1"
    )


@pytest.mark.parametrize(
    ("level", "expected"), [(5, 5), ("Level 5", 5), ("5", 5), (5.0, 5), ("Level ?", None), (None, None)]
)
def test_math(tmp_path: Path, level: object, expected: int | None) -> None:
    row = {"problem": "p", "solution": r"so \boxed{1}, at last \boxed{\frac{1}{2}}", "type": "Algebra", "level": level}
    task = one(tmp_path, row)
    assert (task.answer, task.subject, task.level, task.verifier) == (r"\frac{1}{2}", "Algebra", expected, "math")
    assert one(tmp_path, row | {"answer": "7", "subject": "Geometry"}).answer == "7"


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        (r"Hence $\boxed 9$.", "9"),
        (r"Hence $\boxed{ 9 }$.", "9"),
        (r"Hence $\fbox{\frac{1}{9}}$.", r"\frac{1}{9}"),
        (r"First \boxed{3}, then \fbox{4}.", "4"),
        (r"\boxed{\text{so }\boxed{x^{2}}}", "x^{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{5} is what \boxed{ would", "5"),
        ("no box at all", ""),
        (r"\boxed{7}" + "\n#### 8", "8"),
    ],
)
def test_a_gold_is_read_out_of_its_box_as_an_answer_is(tmp_path: Path, solution: str, expected: str) -> None:
    assert one(tmp_path, {"problem": "p", "solution": solution}).answer == expected


def test_svamp(tmp_path: Path) -> None:
    row = {
        "Body": "He has 3 eggs",
        "Question": "How many?",
        "Answer": 145.0,
        "Type": "Sum",
        "ID": "chal-1",
        "Equation": "( 290.0 / 2.0 )",
    }
    solution = "290 / 2 = 145\n#### 145"
    assert one(tmp_path, row) == Task("He has 3 eggs. How many?", solution, "145", "Sum", id="chal-1")
    assert one(tmp_path, row | {"Body": "He has 3 eggs.", "Answer": 0.1}).problem == "He has 3 eggs. How many?"
    assert one(tmp_path, row | {"Answer": 1e-7}).answer == "0.0000001"


@pytest.mark.parametrize("answer", [1, "1", "B"])
def test_mmlu(tmp_path: Path, answer: object) -> None:
    row = {"question": "Which?", "subject": "physics", "choices": ["x", "y", 3], "answer": answer}
    assert one(tmp_path, row) == Task(
        "Which?\nA. x\nB. y\nC. 3", "Answer: B", "B", "physics", id="set-1", verifier="choice"
    )


HUMANEVAL: Row = {
    "task_id": "HumanEval/7",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "canonical_solution": "    return x\n",
    "test": "def check(candidate):\n    assert candidate(1) == 1\n",
}
MBPP: Row = {
    "task_id": 601,
    "text": "Write a function.",
    "code": "def f(x):\r\n  return x",
    "test_setup_code": "a = 1",
    "test_list": ["assert f(a) == 1", "assert f(2) == 2"],
}


def test_humaneval(tmp_path: Path) -> None:
    tests = "def check(candidate):\n    assert candidate(1) == 1\n\n\ncheck(f)\n"
    assert one(tmp_path, HUMANEVAL) == Task("def f(x):\n", "    return x\n", tests, id="HumanEval/7", verifier="code")


def test_mbpp(tmp_path: Path) -> None:
    problem = "Write a function. Your code should pass these tests:\n\nassert f(a) == 1\nassert f(2) == 2"
    tests = "a = 1\nassert f(a) == 1\nassert f(2) == 2\n"
    expected = Task(problem, "def f(x):\r\n  return x", tests, id="601", verifier="code")
    assert one(tmp_path, MBPP) == expected
    sanitized = {"prompt" if name == "text" else name: value for name, value in MBPP.items()}
    sanitized = sanitized | {"test_imports": ["a = 1"], "test_setup_code": None}
    assert one(tmp_path, sanitized) == expected


@pytest.mark.parametrize("row", [{"ID": "2024-I-1", "Problem": "p", "Solution": "s", "Answer": 204}])
def test_aime(tmp_path: Path, row: Row) -> None:
    assert one(tmp_path, row) == Task("p", "s", "204", id="2024-I-1")
    assert one(tmp_path, {"Question": "p", "Answer": "33", "ID": "x"}) == Task("p", "", "33", id="x")


def test_an_answer_for_another_verifier_is_kept_as_it_is(tmp_path: Path) -> None:
    row = {"ask": "Write f.", "tests": "# #### 1\nassert f(1) == 1\n"}
    task = one(tmp_path, row, fields={"problem": "ask", "answer": "tests"}, verifier="code")
    assert (task.answer, task.verifier) == (row["tests"], "code")


LISTED = "Which is a fruit?\nOptions:\n(A) oak\n(B) fig"


@pytest.mark.parametrize(
    ("problem", "target", "answer", "verifier"),
    [
        (LISTED, "(B)", "B", "choice"),
        (LISTED, "fig", "fig", "words"),
        ("Which is it?", "(B)", "(B)", "words"),
        ("not ( True ) is", "False", "False", "words"),
        ("Close: ( [ <", "> ] )", "> ] )", "words"),
        ("Sort: b a", "a b", "a b", "words"),
        ("(3 - 9) * 2 =", "-12", "-12", "math"),
        ("How many?", 4, "4", "math"),
        ("Solve.", r"\frac{1}{2}", r"\frac{1}{2}", "math"),
    ],
)
def test_big_bench_hard(tmp_path: Path, problem: str, target: object, answer: str, verifier: str) -> None:
    task = one(tmp_path, {"input": problem, "target": target})
    assert task == Task(problem, f"Answer: {answer}", answer, id="set-1", verifier=verifier)
    assert check(task, task.solution).correct is True


def test_input_is_no_problem_where_another_field_is(tmp_path: Path) -> None:
    assert one(tmp_path, {"question": "q", "input": "context", "target": "t", "answer": "7"}).problem == "q"
    assert one(tmp_path, {"input": "p", "target": None}).answer == ""


def test_plain(tmp_path: Path) -> None:
    assert one(tmp_path, {"problem": "p"}) == Task("p", id="set-1")
    full = {"problem": "p", "solution": "s", "answer": 3, "subject": "a", "level": 2, "id": 9}
    assert one(tmp_path, full | {"other": [1]}) == Task("p", "s", "3", "a", 2, "9")
    assert one(tmp_path, {"problem": "p", "solution": "7\n#### 7"}).answer == "7"
    assert one(tmp_path, {"problem": "p", "solution": None, "answer": None}) == Task("p", id="set-1")
    assert one(tmp_path, {"question": "p", "answer": "7"}).answer == "7"
    assert one(tmp_path, {"problem": "p", "answer": "7"}, verifier="exact").verifier == "exact"


def test_mapped_fields(tmp_path: Path) -> None:
    row = {"my_q": "p", "my_a": "1+1=<<1+1=2>>2\n#### 2", "problem": "other", "subject": "s"}
    task = one(tmp_path, row, fields={"problem": "my_q", "answer": "my_a"})
    assert (task.problem, task.solution, task.answer, task.subject) == ("p", "1+1=2\n#### 2", "2", "s")


def test_blank_lines_bom_and_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes('\ufeff{"problem": "é\u2028"}\r\n\r\n  \n{"problem": "b"}'.encode())
    assert [(t.problem, t.id) for t in tasks.load(path)] == [("é\u2028", "set-1"), ("b", "set-4")]


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"problem": "p"}\n'))
    assert tasks.load(path) == [Task("p", id="set-1")]


def test_equal_ids_are_told_apart(tmp_path: Path) -> None:
    rows = [{"problem": "p", "id": name} for name in ("a", "a", "a-2", "a", "set-6")] + [{"problem": "p"}]
    loaded = tasks.load(write(tmp_path, *rows))
    assert [t.id for t in loaded] == ["a", "a-2", "a-2-2", "a-3", "set-6", "set-6-2"]


@given(size=st.integers(1, 30), seed=st.integers(0, 9))
def test_a_size_takes_a_random_subset_in_file_order(
    tmp_path_factory: pytest.TempPathFactory, size: int, seed: int
) -> None:
    path = write(tmp_path_factory.getbasetemp(), *({"problem": str(i)} for i in range(20)))
    random.seed(seed + size)
    picked = [int(t.problem) for t in tasks.load(path, size=size, seed=seed)]
    assert len(picked) == min(size, 20)
    assert picked == sorted(set(picked))
    assert picked == [int(t.problem) for t in tasks.load(path, size=size, seed=seed)]


def test_the_seed_decides_the_subset(tmp_path: Path) -> None:
    path = write(tmp_path, *({"problem": str(i)} for i in range(100)))
    assert [t.problem for t in tasks.load(path)] == [str(i) for i in range(100)]
    first, second = (tasks.load(path, size=10, seed=seed) for seed in (0, 1))
    assert content_hash(first) != content_hash(second)
    assert content_hash(first) == content_hash(tasks.load(path, size=10, seed=0))


BAD_ROWS: list[tuple[Row, str]] = [
    ({"my_q": "p", "b": 1}, r"no problem among the fields 'my_q', 'b'; .*fields=\{\"problem\": \"my_q\"\}"),
    ({}, "empty object"),
    ({"problem": ""}, "the problem is empty"),
    ({"problem": None}, "the problem is null"),
    ({"problem": 5}, "the problem is 5; expected text"),
    ({"problem": ["p"]}, "the problem is a list of 1"),
    ({"problem": "p", "answer": [1, 2]}, "'answer' is a list of 2; expected text or a number"),
    ({"problem": "p", "answer": True}, "'answer' is true"),
    ({"problem": "p", "answer": float("nan")}, "'answer' is NaN"),
    ({"problem": "p", "answer": {"x": 1}}, "'answer' is an object"),
    ({"problem": "p", "solution": {}}, "'solution' is an object"),
    ({"problem": "p", "level": "hard"}, "the level is 'hard'; expected a number"),
    ({"problem": "p\ud800"}, "'problem' holds half a surrogate pair"),
    ({"question": "p", "answer": "a\nb"}, "several lines .*'#### x'"),
    ({"question": "p", "choices": ["a", "b"], "answer": 2}, "the answer is '2'; expected an index from 0 to 1"),
    ({"question": "p", "choices": ["a", "b"], "answer": "AB"}, "the answer is 'AB'"),
    ({"question": "p", "choices": ["a"], "answer": 0}, "'choices' is a list of 1; expected a list of 2 to 26"),
    ({"question": "p", "choices": "ab", "answer": 0}, "'choices' is text"),
    ({"question": "p", "choices": [["a"], "b"], "answer": 0}, "'choices' is a list of 1; expected text"),
    (HUMANEVAL | {"entry_point": "f()"}, r"the entry point is 'f\(\)'"),
    (HUMANEVAL | {"test": ["a"]}, "'test' is a list of 1"),
    (MBPP | {"test_list": []}, "'test_list' is a list of 0; expected a list of assertions"),
    (MBPP | {"test_list": [1.5, ["a"]]}, "'test_list' is a list of 1; expected text"),
    (MBPP | {"text": " "}, "'text' is empty"),
    ({"Body": 3, "Question": [], "Answer": 1}, "'Question' is a list of 0"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: Row, message: str) -> None:
    path = write(tmp_path, {"problem": "good"}, row)
    with pytest.raises(DataError, match=message) as caught:
        tasks.load(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"\n \n", "has no rows"),
        (b'{"problem": "p"}\n{"problem": \n', "line 2 is not JSON"),
        (b'{"problem": "p"}\n[1]\n', "line 2 is a list of 1; expected one JSON object"),
        (b'"p"\n', "line 1 is text"),
        (b"3\n", "line 1 is 3"),
        (b"[\n{}]\n", "line 1 is not JSON"),
        (b'{"problem": "p"}\n{"problem": "\xe9"}\n', r"line 2 is not UTF-8 \(byte 0xe9 at 13\)"),
        ('{"problem": "p"}'.encode("utf-16"), "line 1 is not UTF-8 but UTF-16; save the file as UTF-8"),
        ('{"problem": "p"}'.encode("utf-16-be"), "line 1 is not UTF-8 but UTF-16-BE"),
        (b'{"problem": "p", "answer": 1, "id": 2, "answer": 3}', "line 1: the field 'answer' is given twice"),
        (b'{"problem": "p", "meta": {"a": 1, "a": 2}}', "line 1: the field 'a' is given twice"),
        (b"[" * 200_000, "line 1 is not JSON"),
        (b'{"level": ' + b"9" * 10_000 + b"}", "line 1 is not JSON"),
        (b"\x00\x01\x02", "line 1 is not JSON"),
    ],
)
def test_a_bad_file_is_named_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        tasks.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b'{"problem": "p"}\n' * 1000, mtime=0)[:-20], b"\x1f\x8b\x08\x00"]
)
def test_a_bad_archive_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        tasks.load(path)


def test_a_source_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b")
    (tmp_path / "folder.jsonl").mkdir()
    for source, message in [
        (tmp_path / "none.jsonl", "none.jsonl is not a file"),
        (tmp_path / "folder.jsonl", "is a folder"),
        (tmp_path / "rows.csv", "is not a .jsonl or .jsonl.gz or .parquet file"),
        (tmp_path, "is not a .jsonl or .jsonl.gz or .parquet file"),
        ("minimth", "did you mean 'minimath'"),
    ]:
        with pytest.raises(DataError, match=message):
            tasks.load(source)


def test_wrong_arguments(tmp_path: Path) -> None:
    path = write(tmp_path, {"problem": "p"})
    with pytest.raises(DataError, match="size is 0"):
        tasks.load(path, size=0)
    with pytest.raises(DataError, match=r"'problm', .* did you mean 'problem'"):
        tasks.load(path, fields={"problm": "problem"})
    with pytest.raises(
        DataError, match="line 1: the field 'q', mapped to 'problem', is missing; the row has 'problem'"
    ):
        tasks.load(path, fields={"problem": "q"})
    with pytest.raises(DataError, match="minimath is built in"):
        tasks.load("minimath", fields={"problem": "q"})


def test_minimath() -> None:
    loaded = tasks.load("minimath", split="train", size=5, seed=3, verifier="math")
    assert len(loaded) == 5
    assert {task.verifier for task in loaded} == {"math"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
NAMES = [
    *(*rows.FIELDS, "question", "choices", "Body", "Question", "Answer", "Equation", "type", "Type", "ID"),
    *("input", "target", "options", "answer_index", "answerKey", "A", "B", "Correct Answer", "Incorrect Answer 1"),
    *("prompt", "entry_point", "test", "canonical_solution", "text", "code", "test_list", "test_imports"),
]


@given(st.dictionaries(st.sampled_from(NAMES), json_values))
def test_any_row_is_a_task_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, row: Row) -> None:
    path = write(tmp_path_factory.getbasetemp(), row)
    try:
        (task,) = tasks.load(path)
    except DataError as error:
        message = str(error)
    else:
        assert task.problem.strip()
        assert task.id
        return
    assert message.startswith(f"{path}, line 1: ")
    assert "\n" not in message
