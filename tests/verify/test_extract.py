"""Answer text -> final answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass.verify.extract import final_answer, find


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so $\boxed{5}$.", "5"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed 7.", "7"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{ $x^2$ }", "x^2"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{5} is right, not \boxed{6", "5"),
        (r"\boxed{x}. Put it in \boxed{}.", "x"),
        (r"\boxed{x}. Put it in \boxed{\boxed{ }}.", "x"),
        (r"{ { \boxed{5} } } }", "5"),
        ("#### 18", "18"),
        ("#### 3\nno\n#### 1,200 ", "1,200"),
        ("Answer: 7", "7"),
        ("**Answer:** 7.", "7"),
        ("The final answer is $\\frac{1}{2}$ of the cake.", r"\frac{1}{2}"),
        ("The answer is: \\(x^2\\).", "x^2"),
        ("The answer is $5 per day. So $6 is wrong.", "$5 per day"),
        ("The answer is $5 or $6", "$5 or $6"),
        ("The answer is 3.5. Then 4.", "3.5"),
        ("the answer is 5 because 2+3=5", "5"),
        ("Answer: 3\nAnswer:\n", "3"),
        ("Answer:\n12", "12"),
        ("Answer: 5!", "5!"),
        ("Answer: 1\n#### 2", "2"),
        ("#### 2\n\\boxed{3}", "3"),
        ("It costs 3 + 4 = 7 dollars", r"7\text{ dollars}"),
        ("from 10 to -4", "-4"),
        ("between 3-4", r"\text{between }3-4"),
        ("3-4", "3-4"),
        ("3 + 4 = 7", "7"),
        ("x = 5", "x = 5"),
        ("p - q", "p - q"),
        (r"  $(3,4]$.", "(3,4]"),
        (r"\text{Evelyn}", r"\text{Evelyn}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        ("even", "even"),
        (r"The chance is $\frac{3}{4}$.", r"\frac{3}{4}"),
        (r"so $x = \frac{3}{4}$ of all", r"\frac{3}{4}"),
        ("a cost of $3 and $4", "$3 and $4"),
        ("about $1,234.50 in all", "$1,234.50"),
        ("a share of 3/4, I think", "3/4"),
        ("H2O is water", None),
        ("no number", None),
        ("", None),
        (r"\boxed{}", None),
        ("#### ", None),
    ],
)
def test_final_answer(text: str, expected: str | None) -> None:
    assert final_answer(text) == expected


def test_the_last_resort_is_named() -> None:
    found = find("it is 7")
    assert found is not None
    assert found.how == "last number"


@given(st.text())
def test_any_text_gives_an_answer_without_empty_ends_or_none(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or (answer and answer == answer.strip())


@given(st.lists(st.sampled_from(["\\boxed{", "}", "{", "\\", "####", "answer is", "$", "\n", "7", " ", "\\(", "."])))
def test_any_mixture_of_marks_is_read(pieces: list[str]) -> None:
    answer = final_answer("".join(pieces))
    assert answer is None or answer


@given(
    st.recursive(st.sampled_from(["x", "7", r"\}", ""]), lambda s: st.tuples(s, s).map(lambda p: f"{p[0]}{{{p[1]}}}"))
)
def test_what_is_boxed_is_found(content: str) -> None:
    assert final_answer(rf"so \boxed{{{content}}} it is") == (content or None)


@pytest.mark.parametrize(
    "unit",
    [
        "\\boxed{",
        "\\boxed{}",
        "\\boxed{\\boxed{}",
        "}",
        "{",
        "\\",
        "1",
        "1,111",
        ",111",
        "####",
        "#### ",
        "answer is ",
        "answer: . ",
        "Answer:\n",
        "answer ",
        "*",
        " ",
        "$",
        "$x",
        "\\(",
        "1/",
        "-",
        "\x00\ufffd",
        "\ud800",
        ".",
        "because ",
    ],
)
def test_time_is_linear_in_the_text(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    begin = time.process_time()
    final_answer(text)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("text", ["exp(2)", "ln(2)", "x²", "x² + 1", "2sqrt(2)", "arctan(1)", "y = log(3)"])
def test_a_formula_alone_is_the_answer_with_its_functions_and_powers(text: str) -> None:
    found = find(text)
    assert found is not None
    assert (found.text, found.how) == (text, "whole text")


@pytest.mark.parametrize(("text", "value"), [("3² = 9", "9"), ("the logs 5", "5"), ("5 minutes", "5")])
def test_words_are_no_functions(text: str, value: str) -> None:
    found = find(text)
    assert found is not None
    assert found.number == value or found.text == value
