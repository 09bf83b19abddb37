"""The verifier of outputs whose form is their own: the whole text, but for white space."""

from __future__ import annotations

import pytest

from mass.types import Task
from mass.verify import check

GOLD = Task("", answer='{"name": "Ann",\n "age": 3}', verifier="text")


@pytest.mark.parametrize("text", ['{"name": "Ann", "age": 3}', ' {"name": "Ann",\n\n "age":\t3}\n'])
def test_white_space_does_not_count(text: str) -> None:
    assert check(GOLD, text).correct is True


@pytest.mark.parametrize("text", ["", '{"name": "ann", "age": 3}', 'Sure: {"name": "Ann", "age": 3}', '{"age": 3}'])
def test_every_other_sign_counts(text: str) -> None:
    assert check(GOLD, text).correct is False


def test_accents_are_equal_however_they_are_written() -> None:
    assert check(Task("", answer="caf\u00e9", verifier="text"), "cafe\u0301").correct is True
