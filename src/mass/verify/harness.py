"""Judge answers by the rules of lm-evaluation-harness, for numbers that can be compared with its own.

Our verifiers (`math`, `choice`) accept more ways of writing an answer, and so give other numbers. The verifiers here
are the harness's filters and comparisons, no better:

- `gsm8k-strict`, `gsm8k-flexible`: the filters `strict-match` and `flexible-extract` of gsm8k.yaml. Texts are then
  compared without case, commas, dollar signs, what stands before `#### ` and a full stop at the end.
- `minerva`: the text between "Final Answer: The final answer is" and ". I hope it is correct." (minerva_math; its
  metric `math_verify` compares the whole text), compared by `mass.verify.math`.

References: lm-evaluation-harness 0.4.13, lm_eval/tasks/gsm8k/gsm8k.yaml, lm_eval/tasks/minerva_math/utils.py.
"""

from __future__ import annotations

import re

from mass.types import Task, Verdict
from mass.verify import math
from mass.verify.exact import shorten

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_FINAL = re.compile(r"Final Answer: The final answer is(.{0,1000}?). I hope it is correct.")
_HASHES = re.compile(r"(?s).*#### ")


def gsm8k_strict(task: Task, text: str) -> Verdict:
    """Judge the number after the first `#### ` of the text."""
    found = _STRICT.search(text)
    return _compared(task.answer, found[1] if found else None)


def gsm8k_flexible(task: Task, text: str) -> Verdict:
    """Judge the last number of the text."""
    last = None
    for match in _FLEXIBLE.finditer(text):
        last = match
    return _compared(task.answer, (last[1] or last[2]) if last else None)


def minerva(task: Task, text: str) -> Verdict:
    """Judge the answer in the sentence that the prompts of minerva_math ask for."""
    answer = minerva_answer(text)
    if answer is None:
        return Verdict(False, "no 'Final Answer: The final answer is … I hope it is correct.' in the text")
    return math.check(task, rf"\boxed{{{answer}}}")


def minerva_answer(text: str) -> str | None:
    """Return the answer that `minerva` reads in a text, or None."""
    # As the harness does: a text that stops right after the answer then has the end of the sentence too.
    found = _FINAL.search(f"{text}I hope it is correct.")
    return found[1].strip().strip("$") if found else None


def _compared(gold: str, answer: str | None) -> Verdict:
    if answer is None:
        return Verdict(False, "the harness's pattern is not in the text")
    correct = comparable(gold) == comparable(answer)
    return Verdict(correct, f"{shorten(answer)} {'is' if correct else 'is not'} {shorten(gold)}", answer)


def comparable(text: str) -> str:
    """Return an answer in the form in which the two gsm8k verifiers compare it."""
    plain = _HASHES.sub("", text.strip()).replace(",", "").replace("$", "")
    return plain.removesuffix(".").lower()
