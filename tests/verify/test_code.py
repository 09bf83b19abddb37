"""Programs in what models write: whole, fenced, continued, stripped; the two forms of tests."""

from __future__ import annotations

import textwrap
import time

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


LOOP = "s = 0\nfor n in numbers:\n    s += n\nreturn s"
BODIES = {
    "at the margin": LOOP,
    "at the margin, then prose": f"{LOOP}\n\nThis sums them.",
    "at the margin, then a test": f"{LOOP}\n\nprint(total([1]))",
    "at the margin, with a branch": "if not numbers:\n    return 0\nreturn sum(numbers)",
    "indented by two": textwrap.indent(LOOP, "  "),
    "indented by five": textwrap.indent(LOOP, "     "),
    "indented by eight": textwrap.indent(LOOP, "        "),
    "indented by tabs": textwrap.indent(LOOP.replace("    ", "\t"), "\t"),
    "indented, then prose": f"{textwrap.indent(LOOP, '    ')}\n\nThe sum is returned.",
    "then a closing fence": f"{textwrap.indent(LOOP, '    ')}\n```\n\nDone",
    "at the margin, then a closing fence": f"{LOOP}\n```\nDone",
    "at the margin in a fence": f"```python\n{LOOP}\n```",
    "indented by five in a fence": f"```python\n{textwrap.indent(LOOP, '     ')}\n```",
    "in a fence after prose": f"Here is the body:\n```\n{LOOP}\n```\nIt sums.",
    "after a byte-order mark": f"\ufeff{textwrap.indent(LOOP, '    ')}",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_moved_to_its_function(name: str) -> None:
    assert check(HUMANEVAL, BODIES[name]).correct is True
    assert check(HUMANEVAL, BODIES[name].replace("+= n", "-= n").replace("sum(", "max(")).correct is False


FENCED = f"```python\n{OWN}```"
WINDOWS = OWN.replace("\n", "\r\n")
COMMENTED = OWN.replace("return", "# ~~~\n    return")
PROGRAMS = {
    "in a numbered list": f"1. Code:\n\n{textwrap.indent(FENCED, '   ')}\n",
    "in a numbered list, on its line": f"1. ```python\n{textwrap.indent(OWN, '   ')}   ```\n2. Done.",
    "in a list, with tabs": f"- Code:\n\n{textwrap.indent(FENCED, chr(9))}\n",
    "in a list, deeply": f"1. a\n    - b\n{textwrap.indent(FENCED, ' ' * 8)}\n",
    "in a list, its lines at the margin": f"1. Code:\n   ```python\n{OWN}   ```\n",
    "a closing fence alone": f"{OWN}```",
    "a closing fence and prose": f"import heapq\n\n{OWN}```\nDone",
    "a language's name and a closing fence": f"python\n{OWN}```\n",
    "a byte-order mark": f"\ufeff{OWN}",
    "a byte-order mark in a fence": f"```python\n\ufeff{OWN}```",
    "tildes": f"~~~python\n{OWN}~~~\nIt sums.",
    "four backticks": f"````python\n{OWN}````",
    "tildes within backticks": f"```python\n{COMMENTED}```",
    "a fence that is never closed, then another": f"```python\n{OWN}```python\nprint(total([2]))\n```",
    "a fence that begins in a line": f"Code: ```python\n{OWN}```",
    "a fence that ends in a line": f"```python\n{OWN.strip()}```\nThat is all.",
    "code on the line of the fence": f"```{OWN}```",
    "Windows line ends in a fence": f"Here:\r\n```python\r\n{WINDOWS}```\r\n",
    "indented as Markdown's code": f"Sure:\n\n{textwrap.indent(OWN, '    ')}\nDone.",
    "indented as a whole": textwrap.indent(OWN, "  "),
    "an interpreter's prompts": "```\n>>> def total(n):\n...     return sum(n)\n...\n>>> total([1])\n1\n```",
    "a variable": "```python\ntotal = lambda n: sum(n)\n```\nUse it:\n```python\nprint(total([1]))\n```",
    "an import in a block of its own": "```python\nimport math\n```\nand\n"
    "```python\ndef total(n):\n    return int(math.fsum(n))\n```",
    "a helper in a block of its own": "```python\ndef add(a, b):\n    return a + b\n```\nand\n```python\n"
    "def total(n):\n    s = 0\n    for x in n:\n        s = add(s, x)\n    return s\n```\nUse it:\n"
    "```\ntotal([1])\n```",
}


@pytest.mark.parametrize("task", [HUMANEVAL, MBPP], ids=["humaneval", "mbpp"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_found(name: str, task: Task) -> None:
    assert check(task, PROGRAMS[name]).correct is True


@pytest.mark.parametrize("task", [HUMANEVAL, MBPP], ids=["humaneval", "mbpp"])
@pytest.mark.parametrize(
    "text", ["```\n```", "Done.\n```", "\ufeff", "1. ```python\n   pass\n   ```", ">>> total([1, 2])\n3"]
)
def test_no_program_is_found(text: str, task: Task) -> None:
    assert check(task, text).correct is False


@pytest.mark.parametrize(
    "unit", ["```\n", "x = ", "    ", "def total():\n", ">>> x\n", "\t", "1. ", "```python ", "a\n"]
)
def test_time_is_linear_in_the_text(unit: str) -> None:
    text = unit * (programs.MAX_PROGRAM_CHARS // len(unit))
    begin = time.process_time()
    programs.continued(text, PROMPT, "total")
    programs.whole(text, MBPP.answer)
    assert time.process_time() - begin < 5


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
