"""The harness's filters, on what they accept and what they do not."""

from __future__ import annotations

import pytest

from mass.types import Task
from mass.verify import check


@pytest.mark.parametrize(
    ("verifier", "gold", "text", "expected"),
    [
        ("gsm8k-strict", "18", "so 9 * 2 = 18\n#### 18", True),
        ("gsm8k-strict", "1,800", "#### 1800.", True),
        ("gsm8k-strict", "18", "#### 18\nQuestion: more?\n#### 19", True),
        ("gsm8k-strict", "18", "The answer is 18.", False),
        ("gsm8k-strict", "18", "#### $18", False),
        ("gsm8k-strict", "18", "#### 18.00", False),
        ("gsm8k-flexible", "18", "The answer is $18.", True),
        ("gsm8k-flexible", "18", "18 eggs, then 19", False),
        ("gsm8k-flexible", "7", "it is 7", True),
        ("gsm8k-flexible", "7", "none", False),
        ("minerva", r"\frac{1}{2}", r"so. Final Answer: The final answer is $\frac12$. I hope it is correct.", True),
        ("minerva", r"\frac{1}{2}", r"Final Answer: The final answer is $\frac13$. I hope it is correct.", False),
        ("minerva", "24", r"so \boxed{24}", False),
        ("minerva", "24", "Final Answer: The final answer is $24$. ", True),
    ],
)
def test_as_the_harness_reads(verifier: str, gold: str, text: str, expected: bool) -> None:
    verdict = check(Task("p", answer=gold, verifier=verifier), text)
    assert verdict.correct is expected, verdict
