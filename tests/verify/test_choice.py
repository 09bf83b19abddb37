"""Multiple choice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass.errors import DataError
from mass.types import Task
from mass.verify import check


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B. 12 m/s", "B"),
        ("b", None),
        ("Answer: B", "B"),
        ("Answer: b", "B"),
        ("**Answer: B**", "B"),
        ("**Answer:** **B**", "B"),
        ("The answer is (B).", "B"),
        ("the correct answer is: B) 12", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\textbf{(B)}}", "B"),
        (r"$\boxed{\mathrm{B}}$", "B"),
        ("#### B", "B"),
        ("The answer is option B because 2 + 2 = 4", "B"),
        ("The answer is A because of friction.", "A"),
        ("The answer is A gene.", None),
        ("Answer: c is the speed of light", None),
        ("The answer is I think unclear", None),
        ("A. no\nB. yes\nSo it is (B)", "B"),
        ("It is 4, so (B) holds and not (C)? No: (B)", "B"),
        ("Answer: Because", None),
        ("nothing here", None),
        ("", None),
        ("Answer: B\nAnswer: C", "C"),
        ("The answer is J", "J"),
        ("The answer is K", None),
        ("I'd say (D)", "D"),
        ("42", None),
    ],
)
def test_letter(text: str, letter: str | None) -> None:
    verdict = check(Task("p", answer=letter or "E", verifier="choice"), text)
    assert verdict.extracted == letter
    assert verdict.correct is (letter is not None)
    wrong = "A" if letter != "A" else "C"
    assert check(Task("p", answer=wrong, verifier="choice"), text).correct is False


@pytest.mark.parametrize(("gold", "expected"), [("(b)", True), ("12 m/s", None), ("", None), ("K", None)])
def test_gold(gold: str, expected: bool | None) -> None:
    assert check(Task("p", answer=gold, verifier="choice"), "Answer: B").correct is expected


MANY = "Which?\nOptions:\n" + "\n".join(f"({letter}) option {letter}" for letter in "ABCDEFGHIJKLMNOPQR")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(R)", "R"),
        ("Answer: K", "K"),
        (r"\boxed{(Q)}", "Q"),
        ("The answer is M, as seen.", "M"),
        ("(B)", "B"),
        ("(S)", None),
    ],
)
def test_letters_go_as_far_as_the_problem_lists(text: str, letter: str | None) -> None:
    assert check(Task(MANY, answer=letter or "L", verifier="choice"), text).extracted == letter
    assert check(Task(MANY, answer=letter or "L", verifier="choice"), text).correct is (letter is not None)
    assert check(Task(MANY, answer="A", verifier="choice"), text).correct is False
    assert check(Task(MANY, answer="S", verifier="choice"), text).correct is None


@given(st.text())
def test_any_text_has_a_verdict(text: str) -> None:
    verdict = check(Task("p", answer="B", verifier="choice"), text)
    assert verdict.correct is not None
    assert verdict.extracted is None or verdict.extracted in "ABCDEFGHIJ"


def test_an_unknown_verifier_is_the_users_error() -> None:
    with pytest.raises(DataError, match=r"'choise'; did you mean 'choice'\?"):
        check(Task("p", answer="B", verifier="choise"), "B")
