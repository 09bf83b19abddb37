"""Answers in words and in brackets: the same in other dress, others, and texts that say neither."""

from __future__ import annotations

import pytest

from mass.types import Task
from mass.verify import check
from mass.verify.words import ballot

SORTED = "aisle bead won't"
ACCEPTED = [
    ("Yes", "Yes"),
    ("Yes", "yes."),
    ("Yes", "**Yes**"),
    ("Yes", "- Yes"),
    ("Yes", "Yes, because both turns cancel."),
    ("No", "No. There is a way back, yes, but it is longer."),
    ("No", "The final answer is: No"),
    ("No", "The answer is **No**, since yes would need four turns."),
    ("No", "Answer: No, they do not."),
    ("no", r"So $\boxed{\text{No}}$."),
    ("yes", "Is there no way? Let us see.\nSo, yes."),
    ("yes", "#### YES"),
    ("True", "not ( False ) = True"),
    ("False", "The expression is not true."),
    ("invalid", "The argument is deductively invalid."),
    ("invalid", "So the argument isn't necessarily valid."),
    ("valid", "Answer: the argument is valid, as its premises imply it."),
    ("valid", "- valid"),
    (SORTED, "aisle, bead, won’t"),
    (SORTED, "The sorted words are: aisle, bead, and won't."),
    (SORTED, "Here they are:\n\n1. aisle\n2. bead\n3. won't"),
    (SORTED, "**Answer:**\n- aisle\n- bead\n- won't"),
    (SORTED, "I look at the first letters.\n\naisle bead won't"),
    (SORTED, r"\boxed{\text{Aisle bead won't}}"),
    (SORTED, "Answer: $aisle bead won't$"),
    ("ant because zoo", "The answer is ant because zoo."),
    ("Fire & Ice", "fire and ice"),
    ("Fire, Ltd", "The answer is Fire, Ltd."),
    ("] ) >", "] ) >"),
    ("] ) >", "Answer: ] ) >"),
    ("] ) >", "So the answer is ] ) >."),
    ("] ) >", "We need:\n])>"),
    ("] }", r"So $\boxed{] }}$ closes {[}."),
    ("} ]", r"\boxed{} ]}"),
    ("} ]", r"\boxed{\} ]}"),
    ("}", "**Answer:** $}$"),
    (">", "`>`"),
]
REJECTED = [
    ("Yes", "No"),
    ("Yes", "The answer is No. Yes would need more."),
    ("Yes", "It has no end, and I cannot say."),
    ("Yes", ""),
    ("valid", "invalid"),
    ("valid", "It is not valid."),
    ("True", r"\boxed{False} and True"),
    ("no", "Answer: nothing"),
    (SORTED, "bead aisle won't"),
    (SORTED, "aisle bead"),
    (SORTED, "aisle bead won't zoo"),
    (SORTED, "I do not know aisle bead won't"),
    ("] ) >", "] )"),
    ("] ) >", "Answer: ] ) > >"),
    ("] ) >", "Answer: ] > )"),
    ("] ) >", "Answer: ] ) > or ] )"),
    (") )", r"So $\boxed{) ) }}$."),
    ("]", "[ ( ) ]"),
    ("]", "none"),
]


@pytest.mark.parametrize(("gold", "text"), ACCEPTED)
def test_the_same_words_are_accepted(gold: str, text: str) -> None:
    verdict = check(Task("p", answer=gold, verifier="words"), text)
    assert verdict.correct is True, verdict
    assert verdict.extracted


@pytest.mark.parametrize(("gold", "text"), REJECTED)
def test_other_words_are_rejected(gold: str, text: str) -> None:
    verdict = check(Task("p", answer=gold, verifier="words"), text)
    assert verdict.correct is False, verdict
    assert "\n" not in verdict.reason


@pytest.mark.parametrize("gold", sorted({gold for gold, _ in ACCEPTED}))
def test_accepted_texts_are_one_ballot_and_rejected_ones_another(gold: str) -> None:
    mine = {ballot(text) for other, text in ACCEPTED if other == gold}
    assert mine == {ballot(f"Answer: {gold}")}
    assert mine.isdisjoint({ballot(text) for other, text in REJECTED if other == gold})


def test_a_gold_without_words_or_brackets_gives_no_verdict() -> None:
    assert check(Task("p", answer="...", verifier="words"), "yes").correct is None


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "\\text{", "not ", "answer is ", "Answer: yes ", "n't ", "yes", "{", "}", "1. a\n", "#### ", "* "],
)
@pytest.mark.parametrize("gold", ["yes", "] ) }", SORTED])
def test_long_texts_take_little_time(piece: str, gold: str) -> None:
    assert check(Task("p", answer=gold, verifier="words"), piece * (200_000 // len(piece))).reason
