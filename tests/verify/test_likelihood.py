"""Multiple choice by likelihood, with a model whose probabilities are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mass.errors import DataError
from mass.types import Batch, Params, Task
from mass.verify import check_by_likelihood
from mass.verify.likelihood import choose, letters

PROBLEM = "Which?\nA. one\nB. two\nC. three"


class Known:
    """Token ids are code points; the log-probability of a letter is looked up."""

    def __init__(self, **logprobs: float) -> None:
        self.logprobs = {ord(letter): value for letter, value in logprobs.items()}
        self.rows: list[tuple[list[int], list[int]]] = []

    def solve_prompt(self, problem: str) -> list[int]:
        return [ord(c) for c in problem]

    def target_ids(self, solution: str) -> list[int]:
        return [ord(" "), *(ord(c) for c in solution), 0]

    def batch(self, rows: Sequence[tuple[list[int], list[int]]]) -> Any:
        self.rows = list(rows)
        ids = torch.tensor([target for _, target in rows])
        return Batch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))

    def token_logprobs(self, batch: Batch, adapter: Params | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        assert adapter is None or set(adapter) == {"a"}
        each = [[-1.0, self.logprobs[int(letter)]] for _, letter in batch.input_ids.tolist()]
        return torch.tensor(each, dtype=torch.float64), batch.target_mask


def test_the_likeliest_letter_is_chosen() -> None:
    lm = Known(A=-3.0, B=-0.5, C=-2.0)
    choice = choose(lm, PROBLEM)
    assert (choice.letter, choice.logprobs) == ("B", {"A": -4.0, "B": -1.5, "C": -3.0})
    assert lm.rows[0] == ([ord(c) for c in PROBLEM], [ord(" "), ord("A")])
    assert choose(Known(A=-1.0, B=-1.0, C=-2.0), PROBLEM, {"a": torch.zeros(1)}).letter == "A"


def test_verdicts() -> None:
    verdicts = check_by_likelihood(Known(A=-3.0, B=-0.5, C=-2.0), [Task(PROBLEM, answer=a) for a in "ABZ"])
    assert [v.correct for v in verdicts] == [False, True, None]
    assert verdicts[0].reason == "B is not A (likelier by 2.5 nats)"
    assert {v.extracted for v in verdicts} == {"B"}


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (PROBLEM, "ABC"),
        ("A. Smith said\nWhich?\nA. x\nB. y", "AB"),
        ("Q\nA. x\nB. y\nD. z", "AB"),
        ("Q\n" + "\n".join(f"{c}. x" for c in "ABCDEFGHIJKL"), "ABCDEFGHIJKL"),
        ("Q\nOptions:\n(A) x\n(B) y\n(C) z", "ABC"),
    ],
)
def test_letters_are_those_of_the_list(problem: str, expected: str) -> None:
    assert "".join(letters(problem)) == expected


def test_a_problem_without_choices() -> None:
    with pytest.raises(DataError, match="lists no choices"):
        letters("What is 2 + 2?")
