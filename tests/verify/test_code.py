"""Programs in what models write: whole, fenced, continued, stripped; the two forms of tests."""

from __future__ import annotations

import pytest

from mass.types import Task
from mass.verify import check, check_all, programs

PROMPT = 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """Their sum."""\n'
HUMANEVAL = Task(
    PROMPT,
    "    return sum(numbers)\n",
    "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n\n\ncheck(total)\n",
    verifier="code",
)
MBPP = Task("Sum numbers.", answer="assert total([1, 2]) == 3\nassert total([]) == 0\n", verifier="code")
BODY = "    return sum(numbers)\n"
WHOLE = "def total(numbers: List[int]) -> int:\n    return sum(numbers)\n"
OWN = "def total(numbers):\n    return sum(numbers)\n"

RIGHT = {
    "a continuation": BODY,
    "a continuation whose indentation was stripped": BODY.strip(),
    "two lines, the first stripped": "s = 0\n    for n in numbers: s += n\n    return s",
    "a continuation and what comes after": f"{BODY}\n\nprint(total([1]))\n\ndef other(:\n",
    "a continuation and prose": f"{BODY}\n# That is it.\nIt sums the numbers.",
    "the whole function": WHOLE,
    "a fenced function": f"Here it is:\n\n```python\n{WHOLE}```\nIt sums.",
    "a fenced body": f"```\n{BODY}```",
    "a fence that is never closed": f"```python\n{WHOLE}",
    "the last of several": f"```python\n{OWN.replace('sum', 'max')}```\nNo:\n```python\n{OWN}```\n```\ntotal([1])\n```",
    "a function in prose": f"Sure!\n\n{OWN}\nThis works because sum does.",
    "a future import": f"```python\nfrom __future__ import annotations\n{OWN}```",
    "Windows line ends": OWN.replace("\n", "\r\n"),
    "a helper": f"```python\ndef helper(n): return sum(n)\n\n{OWN.replace('sum', 'helper')}```",
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_function_is_found(name: str) -> None:
    verdict = check(HUMANEVAL, RIGHT[name])
    assert verdict.correct is True, verdict
    assert verdict.extracted


@pytest.mark.parametrize("text", ["    return max(numbers)\n", WHOLE.replace("sum", "len"), "```python\n```", "", "x"])
def test_a_wrong_one_is_rejected(text: str) -> None:
    assert check(HUMANEVAL, text).correct is False


def test_mbpp_form() -> None:
    texts = {
        OWN: True,
        f"```python\n{OWN}```\nUse it:\n```python\nprint(total([1]))\n```": True,
        f"[BEGIN]\n{OWN}\n[DONE]\nand more": True,
        f"The function:\n{OWN}": True,
        OWN.replace("sum", "max"): False,
        OWN.replace("total", "summe"): False,
        "no code": False,
    }
    assert [v.correct for v in check_all([(MBPP, text) for text in texts])] == list(texts.values())


def test_a_task_without_tests_has_no_verdict() -> None:
    assert check(Task("p", verifier="code"), OWN).correct is None
    assert check(Task("p", answer="assert total([1]) ==", verifier="code"), OWN).correct is None


def test_a_prompt_within_instructions() -> None:
    task = Task(f"Complete this:\n```python\n{PROMPT}```\n", answer=HUMANEVAL.answer, verifier="code")
    assert check(task, f"```python\n{OWN}```").correct is True
    assert check(task, BODY).correct is True


def test_readings_are_few_and_distinct() -> None:
    for text in RIGHT.values():
        found = programs.continued(text, PROMPT, "total")
        assert 1 <= len(found) == len(set(found)) <= 9
