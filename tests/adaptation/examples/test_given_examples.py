"""What is found in a set of given examples: repeated, contradictory, long and uneven ones."""

from __future__ import annotations

import pytest

from mass.adaptation.examples.asking import asking_as_is, prompt
from mass.adaptation.examples.given import clean, divide
from mass.config import ExamplesConfig
from mass.errors import DataError
from mass.lm import LM
from mass.tasks import few_shot
from mass.types import Task
from small_lms import make_lm


@pytest.fixture(scope="module")
def lm() -> LM:
    return asking_as_is(make_lm(chat=True))


def tasks(*pairs: tuple[str, str]) -> tuple[Task, ...]:
    return few_shot.of(pairs).tasks


def test_repeated_examples_count_once_and_are_said(lm: LM) -> None:
    found = clean(lm, tasks(("a", "x"), ("b", "y"), (" a ", "x")), ExamplesConfig())
    assert found.pairs == (("a", "x"), ("b", "y"))
    assert found.notes == ("1 example is repeated; each counts once",)


def test_contradictory_outputs_are_kept_in_one_fold_and_said(lm: LM) -> None:
    found = clean(lm, tasks(("a", "x"), ("b", "y"), ("a", "z")), ExamplesConfig())
    assert "1 input has contradictory outputs ('a' has 'x' and 'z')" in found.notes[0]
    assert sorted(map(sorted, divide(found, 5, 0))) == [[0, 2], [1]]


def test_labels_that_are_uneven_weigh_the_same_together(lm: LM) -> None:
    given = [(f"input {i}", "yes" if i < 6 else "no") for i in range(8)]
    found = clean(lm, tasks(*given), ExamplesConfig())
    assert found.labels == ("no", "yes")
    assert sum(found.weights[:6]) == pytest.approx(sum(found.weights[6:]))
    assert sum(found.weights) == pytest.approx(8)
    assert "'yes' 6, 'no' 2" in found.notes[0]
    assert set(clean(lm, tasks(*given), ExamplesConfig(balance=False)).weights) == {1.0}


def test_labels_are_spread_over_the_folds(lm: LM) -> None:
    found = clean(lm, tasks(*[(f"input {i}", "yes" if i % 2 else "no") for i in range(8)]), ExamplesConfig())
    for fold in divide(found, 4, 3):
        assert sorted(found.pairs[i][1] for i in fold) == ["no", "yes"]


def test_long_examples_are_left_out_and_none_left_is_an_error(lm: LM) -> None:
    long = ("a " * 100, "x")
    found = clean(lm, tasks(("a", "x"), long), ExamplesConfig(max_example_tokens=60))
    assert found.pairs == (("a", "x"),)
    assert "1 example is longer than 60 tokens" in found.notes[0]
    with pytest.raises(DataError, match=r"the only example is longer than 60 tokens.* raise learn\.max_example_tokens"):
        clean(lm, tasks(long), ExamplesConfig(max_example_tokens=60))


def test_one_example_has_no_folds(lm: LM) -> None:
    assert divide(clean(lm, tasks(("a", "x")), ExamplesConfig()), 5, 0) == []


@pytest.mark.parametrize("chat", [True, False])
def test_a_question_is_asked_as_it_is(chat: bool) -> None:
    lm = asking_as_is(make_lm(chat=chat), "Sort.")
    text = lm.tokenizer.decode(prompt(lm, [("b a", "a b")], "d c", 8))
    before = (
        "<system>Sort.</system><user>b a</user><assistant>a b</assistant><user>d c</user><assistant>" if chat else None
    )
    plain = "Sort.\n\nInput: b a\nOutput: a b\n\nSort.\n\nInput: d c\nOutput:"
    assert text.endswith(before or plain)
    assert "step by step" not in text


def test_examples_that_do_not_fit_are_left_out_of_a_prompt(lm: LM) -> None:
    shots = [("a " * 40, "x")] * 9
    found = prompt(lm, shots, "d c", 32)
    assert len(found) + 32 <= lm.context
    assert len(found) > len(lm.solve_prompt("d c"))
