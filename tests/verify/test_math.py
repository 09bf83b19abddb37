"""Mathematical equality: numbers, normalised text, math-verify."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass import verify
from mass.types import Task, Verdict
from mass.verify import check, check_all
from mass.verify.math import compare

SAME = [
    ("18", "18.00"),
    ("18", "$18"),
    ("18", "18 dollars"),
    ("1200", "1,200"),
    ("50", "50%"),
    (r"50\%", "0.5"),
    ("0.5", r"50\%"),
    ("x=5", "5"),
    ("5", "x = 5"),
    (r"5\text{ cm}", "5"),
    ("5", r"5\text{ cm}^2"),
    ("1/3", "0.333333"),
    (r"1\frac{1}{2}", "3/2"),
    (r"\text{(C)}", "C"),
    (r"\text{even}", "Even"),
    (r"\frac43", "4/3"),
    (r"\dfrac{3}{4}", r"\frac 34"),
    (r"90^\circ", "90"),
    (r"2\sqrt2", r"2\sqrt{2}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    (r"10,\!080", "10080"),
    (r"\$32,\!348", "32348"),
    ("52_8", "52_{8}"),
    (r"\frac{270}7\text{ degrees}", "270/7"),
    ("60", "60 miles per hour"),
    ("1,-2", "-2,1"),
]
SAME_BY_ALGEBRA = [
    ("(x+1)^2", "x^2+2x+1"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("6+9i", "9i+6"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    ("120", "5!"),
    ("2k+2", "2(k+1)"),
    ("10", r"\int_0^{10} 1 dx"),
]
DIFFERENT = [
    ("18", "19"),
    ("1%", "100%"),
    ("x=5", "y=5"),
    ("5 cm", "5 mm"),
    ("1/3", "0.333"),
    ("1/3", "0.333334"),
    ("52_8", "52_9"),
    ("11/2", "1 1/2"),
    (".0000672", ".0000673"),
    ("9876543210", "9876543211"),
    ("5", "5.0000000000000001"),
    ("3", "3\\pi"),
    ("3", "3 pi"),
    ("6", "6 million"),
    ("(1,2)", "(2,1)"),
    ("(3,4]", "[3,4]"),
    (r"\text{even}", "odd"),
    ("x^2+1", "y^2+1"),
    (r"\infty", r"-\infty"),
    ("p-q", "q-p"),
    ("16", r"16\text{ or }17"),
    ("3", "2, 3"),
    ("12", r"\frac{12}{0}"),
    ("9!", "10!"),
    ("6+9i", "9+6i"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
    ("12", "12" * 1000),
    ("C", "D"),
]


def judge(gold: str, answer: str) -> Verdict:
    return check(Task("p", answer=gold), rf"It is $\boxed{{{answer}}}$.")


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_same_without_algebra(gold: str, answer: str) -> None:
    assert compare(gold, answer) is True


@pytest.mark.parametrize(("gold", "answer"), SAME_BY_ALGEBRA)
def test_same_by_algebra(gold: str, answer: str) -> None:
    verdict = judge(gold, answer)
    assert verdict.correct is True
    assert "math-verify" in verdict.reason


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different(gold: str, answer: str) -> None:
    verdict = judge(gold, answer)
    assert verdict.correct is False
    assert verdict.extracted == answer


@pytest.mark.parametrize(
    ("text", "reason"), [("I do not know.", "no answer found"), ("maybe 7?", "last number was taken")]
)
def test_false_has_its_reason(text: str, reason: str) -> None:
    verdict = check(Task("p", answer="8"), text)
    assert verdict.correct is False
    assert reason in verdict.reason


def test_many_threads_get_the_right_verdicts() -> None:
    pairs = [(Task("p", answer=f"x^2+{2 * i}x"), rf"\boxed{{x(x+{2 * i + i % 2})}}") for i in range(1, 25)]
    assert [v.correct for v in check_all(pairs)] == [i % 2 == 0 for i in range(1, 25)]
    assert check_all([]) == []


def test_a_verdict_in_a_thread_is_the_one_outside() -> None:
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(judge("(x+1)^2", "x^2+2x+1")))
    thread.start()
    thread.join()
    assert verdicts == [judge("(x+1)^2", "x^2+2x+1")]


@given(st.integers())
def test_integers_equal_themselves_and_no_neighbour(n: int) -> None:
    for written in (f"{n:,}", f"{n}.00", f"${n}", f" {n} ", rf"\text{{{n}}}", f"{n} apples"):
        assert compare(str(n), written) is True
        assert compare(str(n + 1), written) is False


PIECES = [*"0123456789abcxyz{}\\()[],.^_$%+-=/ \n", r"\frac", r"\text{", r"\sqrt", r"\left", r"^\circ", " cm", r"\%"]


@given(st.lists(st.sampled_from(PIECES)).map("".join) | st.text())
def test_comparison_is_reflexive_and_never_raises(text: str) -> None:
    assert compare(text, text) is True
    compare(text, "5")
    compare("5", text)


def test_only_math_is_judged_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[int] = []
    right = verify.ThreadPoolExecutor
    monkeypatch.setattr(
        verify, "ThreadPoolExecutor", lambda max_workers: pools.append(max_workers) or right(max_workers)
    )
    exact = Task("Compute 1 + 1.", answer="2", verifier="exact")
    assert [v.correct for v in check_all([(exact, "Answer: 2"), (exact, "Answer: 3")])] == [True, False]
    assert pools == []
    judged = Task("Compute 1 + 1.", answer="2", verifier="math")
    assert [v.correct for v in check_all([(judged, "Answer: 2"), (judged, "Answer: 3")])] == [True, False]
    assert len(pools) == 1
