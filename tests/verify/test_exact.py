"""Exact comparison of rationals."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass.types import Task
from mass.verify import check
from mass.verify.exact import number


def judge(gold: str, text: str) -> bool | None:
    return check(Task("p", answer=gold, verifier="exact"), text).correct


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7),
        ("-3/4", Fraction(-3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        ("2.50", Fraction(5, 2)),
        (".5", Fraction(1, 2)),
        ("1,200", 1200),
        ("$1,234,567.5", Fraction(2469135, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac34", Fraction(-3, 4)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        (r"\frac{-1}{2}", Fraction(-1, 2)),
        ("−5", -5),
        (r"10,\!080", 10080),
        ("6/-3", -2),
        ("0.1", Fraction(1, 10)),
        (" 7. ", 7),
        ("1/0", None),
        ("1,20", None),
        ("x", None),
        ("", None),
        ("1 2", None),
        ("1e5", None),
        ("3,14", None),
        ("9" * 10_000, None),
        ("٣", None),
        ("1/2/3", None),
    ],
)
def test_number(text: str, expected: Fraction | int | None) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("7", "Answer: 7", True),
        ("7", "2 + 5 = 7", True),
        ("7", "Answer: 8", False),
        ("7", "I do not know", False),
        ("3/4", "#### 6/8", True),
        ("3/4", "#### 0.75", True),
        ("1/3", "#### 0.333333", False),
        ("7", "Answer: x=7", False),
        ("(2, 3)", "Answer: (2,  3)", True),
        ("even", "Answer: odd", False),
        ("1" * 5000, "#### " + "1" * 5000, False),
        ("", "Answer: 7", None),
        (" ", "Answer: 7", None),
    ],
)
def test_verdict(gold: str, text: str, expected: bool | None) -> None:
    assert judge(gold, text) is expected


def test_the_reason_names_both_answers_and_the_last_resort() -> None:
    verdict = check(Task("p", answer="7", verifier="exact"), "I get 1, then 8")
    assert (verdict.correct, verdict.extracted) == (False, "8")
    assert verdict.reason == "8 is not 7; no marked answer, the last number was taken"


rationals = st.fractions(max_denominator=10**6)


@given(rationals, st.integers(1, 1000))
def test_equal_rationals_are_accepted_however_written(value: Fraction, scale: int) -> None:
    top, bottom = value.numerator * scale, value.denominator * scale
    sign = "-" if top < 0 else ""
    for written in (
        f"{top}/{bottom}",
        f"{top} / {bottom}",
        rf"{sign}\frac{{{abs(top)}}}{{{bottom}}}",
        f"{top:,}/{bottom}",
    ):
        assert judge(str(value), f"Answer: {written}") is True


@given(rationals, rationals)
def test_verdict_is_rational_equality(gold: Fraction, answer: Fraction) -> None:
    assert judge(str(gold), rf"\boxed{{{answer}}}") is (gold == answer)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
def test_decimals_are_exact(value: object) -> None:
    assert judge(str(Fraction(str(value))), f"#### {value}") is True
    assert judge(str(Fraction(str(value)) + Fraction(1, 10**5)), f"#### {value}") is False


@given(st.text(), st.text(min_size=1))
def test_no_text_crashes(text: str, gold: str) -> None:
    verdict = check(Task("p", answer=gold, verifier="exact"), text)
    assert "crashed" not in verdict.reason
    assert "\n" not in verdict.reason


def test_neither_sympy_nor_a_worker_is_needed() -> None:
    program = (
        "import sys; from mass.types import Task; from mass.verify import check, math;"
        "assert check(Task('p', answer='3/4', verifier='exact'), 'Answer: 6/8').correct;"
        "assert check(Task('p', answer='18'), '#### $18.00').correct;"
        "assert not [m for m in sys.modules if m.startswith(('math_verify', 'latex2sympy'))], 'imported';"
        "assert not math.POOL._workers, 'started'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
