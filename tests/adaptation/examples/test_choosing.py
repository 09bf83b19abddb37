"""The choice among the ways to use examples: what decides, what is said, and what fits a budget."""

from __future__ import annotations

import pytest

from mass.adaptation.examples.choosing import Grid, affordable, best, said, sign_test
from mass.types import Candidate

FOLDS = [[0, 5], [1, 6], [2, 7], [3], [4]]
WHOLE = Grid(FOLDS, (5e-4, 1e-3), (4, 8))


def tried(method: str, right: int, loss: float, count: int = 10) -> Candidate:
    rate, epochs = (5e-4, 8) if method.startswith("adapted") else (None, None)
    return Candidate(method, rate, epochs, (True,) * right + (False,) * (count - right), loss)


def test_accuracy_decides_then_the_likelihood_and_a_prompt_wins_a_tie() -> None:
    shown, learned = tried("in-context", 5, 0.5), tried("adapted", 6, 2.0)
    assert best([tried("zero-shot", 0, 9.0), shown, learned]) is learned
    assert best([shown, tried("adapted", 5, 0.4)]).method == "adapted"
    assert best([shown, tried("adapted", 5, 0.5)]) is shown
    assert best([shown, tried("adapted", 4, 0.1)]) is shown


def test_a_loss_that_is_no_number_is_never_the_better_one() -> None:
    shown = tried("in-context", 5, 3.0)
    assert best([tried("zero-shot", 5, float("nan")), shown]) is shown


def test_examples_without_a_verdict_do_not_count() -> None:
    some = Candidate("adapted", 1e-3, 4, (True, None, None), 1.0)
    assert (some.correct, some.judged) == (1, 1)
    assert best([tried("in-context", 9, 0.1), some]) is some


def test_what_is_said_names_the_numbers_and_their_uncertainty() -> None:
    shown, learned = tried("in-context", 5, 0.5), tried("adapted", 7, 0.4)
    text = said(learned, [shown, learned])
    assert "adapted, rate 0.0005, 8 epochs: 7 of 10 [40%, 89%] right, against 5 of 10 [24%, 76%] in context" in text
    assert "may be chance" in text
    clear = tried("adapted", 10, 0.4)
    assert "chance" not in said(clear, [tried("in-context", 0, 0.5), clear])
    assert "likelihood of the outputs decided" in said(shown, [shown, tried("adapted", 5, 0.9)])


def test_the_sign_test_is_that_of_the_examples_that_differ() -> None:
    one, other = tried("adapted", 8, 0.0), tried("in-context", 3, 0.0)
    assert sign_test(one, other) == pytest.approx(2 / 2**5)
    assert sign_test(one, one) == 1.0


@pytest.mark.parametrize(
    ("left_s", "rates", "epochs", "folds"),
    [(1000.0, 2, (4, 8), 5), (45.0, 1, (4, 8), 5), (25.0, 1, (4,), 5), (12.5, 1, (4,), 2)],
)
def test_less_is_tried_where_time_is_short(left_s: float, rates: int, epochs: tuple[int, ...], folds: int) -> None:
    found = affordable(WHOLE, 1.0, left_s, 1.0)
    assert found is not None
    assert (len(found.rates), found.epochs, len(found.folds)) == (rates, epochs, folds)
    assert sorted(i for fold in found.folds for i in fold) == list(range(8))


def test_nothing_is_learned_where_not_even_the_least_fits() -> None:
    assert affordable(WHOLE, 1.0, 5.0, 1.0) is None
