"""Which texts are one ballot, for every verifier, and what a vote costs."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from mass.evaluation.votes import majority
from mass.types import Task
from mass.verify import check, math, votes
from mass.verify.pool import NoVerdict
from mass.verify.votes import ballots

ONE = {
    "math": [
        [r"\boxed{3\sqrt3}", r"\boxed{3\sqrt{3}}", r"\boxed{\sqrt{27}}", "Answer: 3*sqrt(3)"],
        ["Answer: 25%", r"Answer: 25\%", "Answer: 0.25", r"\boxed{\frac14}"],
        ["Answer: 4,9", "Answer: 9,4", r"\boxed{\{4, 9\}}"],
        ["Answer: y=6", "Answer: 6 pears", "#### 6", r"\boxed{6\text{ cm}}"],
        ["Answer: Even", "Answer: even"],
        [r"\boxed{(B)}", "Answer: B"],
        [r"\boxed{(x+1)^2}", r"\boxed{x^2+2x+1}", "Answer: 1 + x*(x + 2)"],
        ["Answer: 7:05 pm", "Answer: 19:05"],
        [r"\boxed{x<2 \text{ or } x>3}", r"\boxed{(-\infty,2)\cup(3,\infty)}"],
    ],
    "choice": [["(B)", "Answer: B", "The answer is B because it moves.", "**B**"]],
    "exact": [["Answer: 1/2", "#### 0.5", r"\boxed{\frac{1}{2}}"], ["Answer: red  car", "Answer: red car"]],
    "gsm8k-strict": [["#### 1,200", "So #### 1200", "#### 1200."]],
    "gsm8k-flexible": [["It is $1,200", "1200"]],
    "minerva": [
        [
            rf"Final Answer: The final answer is ${answer}$. I hope it is correct."
            for answer in (r"\sqrt{8}", r"2\sqrt2", r"2\sqrt{2}")
        ]
    ],
}
OTHERS = [
    ("math", ["Answer: 50%", "Answer: 0.5", "Answer: 50"], [0, 0, 1]),
    ("math", ["Answer: x=5", "Answer: 5", "Answer: y=5"], [0, 0, 1]),
    ("math", [r"\boxed{10^{-20}}", r"\boxed{10^{-21}}", r"\boxed{0}"], [0, 1, 2]),
    ("math", [r"\boxed{(1,2)}", r"\boxed{\{1,2\}}"], [0, 1]),
    ("math", ["I do not know.", "Answer: 6"], [None, 0]),
    ("exact", ["Answer: 50%", "Answer: 0.5"], [0, 1]),
    ("choice", ["(A)", "(B)", "no idea"], [0, 1, None]),
    ("module:function", ["Answer: 2,1", "Answer: 1,2", "Answer: 2,1"], [0, 1, 0]),
]


def places(texts: list[str], verifier: str) -> list[int | None]:
    """The ballots by number, in order of appearance."""
    given = ballots(texts, verifier)
    order = list(dict.fromkeys(answer for answer in given if answer is not None))
    return [None if answer is None else order.index(answer) for answer in given]


@pytest.mark.parametrize(("verifier", "texts"), [(name, texts) for name, groups in ONE.items() for texts in groups])
def test_answers_that_the_verifier_finds_equal_are_one_ballot(verifier: str, texts: list[str]) -> None:
    for order in itertools.islice(itertools.permutations(texts), 6):
        assert set(places(list(order), verifier)) == {0}


@pytest.mark.parametrize(("verifier", "texts", "expected"), OTHERS)
def test_others_are_not(verifier: str, texts: list[str], expected: list[int | None]) -> None:
    assert places(texts, verifier) == expected


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (r"3\sqrt{3}", ONE["math"][0][:3], "Answer: 5"),
        (r"\frac14", ONE["math"][1][:3], "Answer: 4"),
        ("6", ONE["math"][3][:3], "Answer: 8"),
    ],
)
def test_the_elected_text_is_right_where_most_are(gold: str, right: list[str], wrong: str) -> None:
    texts = [wrong, right[0], wrong, *right[1:]]
    chosen, tally = majority(texts)
    assert check(Task("p", answer=gold), texts[chosen]).correct is True
    assert sorted(tally.values()) == [2, 3]


def test_the_cost_is_near_linear_and_algebra_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    equal = math.POOL.equal
    monkeypatch.setattr(math.POOL, "equal", lambda one, other: asked.append((one, other)) or equal(one, other))
    forms = [r"\boxed{2\sqrt{2}}", r"\boxed{\sqrt8}", r"\boxed{\frac{4}{\sqrt{2}}}", "Answer: 3", r"\boxed{\pi}"]
    rng = random.Random(0)
    texts = [f"step {n}: {rng.choice(forms)}" for n in range(1000)]
    assert len(set(ballots(texts))) == 3
    assert len(asked) <= 10


def test_a_thousand_different_answers_take_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(math.POOL, "equal", lambda *pair: bool(asked.append(pair[0])))
    texts = [rf"\boxed{{\sqrt{{{n}}}+{n}}}" for n in range(500)] + [rf"\boxed{{{n}}}" for n in range(500)]
    start = time.process_time()
    assert len(set(ballots(texts))) == 1000
    assert time.process_time() - start < 10
    assert len(asked) <= votes.MAX_ALGEBRA


def test_what_times_out_ends_the_algebra_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def hangs(one: str, other: str) -> bool:
        asked.append(one + other)
        raise NoVerdict("timed out")

    monkeypatch.setattr(math.POOL, "equal", hangs)
    texts = [rf"\boxed{{9^{{9^{{{n}}}}}+x}}" for n in range(50)]
    assert len(set(ballots(texts))) == 50
    assert len(asked) <= votes.MAX_ALGEBRA // votes.TIMEOUT_COST + 1
