"""(Task, answer text) -> Verdict, for multiple choice: the letter A to J that the text settles on."""

from __future__ import annotations

import re

from mass.types import Task, Verdict
from mass.verify.exact import shorten
from mass.verify.extract import find

# "A" and "I" are also words: followed by a small word they count only where a reason follows.
_LEAD = r"(?:\\(?:text|textbf|mathrm|mathbf|mathsf|rm)\s?\{?|(?:option|choice|letter|answer)\b|[\s(\[{*_`$\"':])"
_AFTER = r"(?![\w'’^=])(?!(?<=[AI])\s+(?!because\b|since\b|as\b|is\b)[a-z])"
_FIRST = re.compile(rf"(?:{_LEAD}){{0,12}}([A-J]){_AFTER}", re.I)
_STANDING = re.compile(r"\(([A-J])\)|^[\s*_(]{0,8}([A-J])(?:[.):*_]{1,4}(?=\s|$)|[ \t]{0,8}$)", re.M)


def check(task: Task, text: str) -> Verdict:
    """Whether the letter chosen in `text` is `task.answer`."""
    gold = task.answer.strip().strip("().").upper()
    if not re.fullmatch(r"[A-J]", gold):
        return Verdict(None, f"the task's answer {shorten(task.answer)!r} is no letter A to J")
    letter, note = _letter(text)
    if letter is None:
        return Verdict(False, "no letter A to J found in the text")
    return Verdict(letter == gold, f"{letter} is {'' if letter == gold else 'not '}{gold}{note}", letter)


def _letter(text: str) -> tuple[str | None, str]:
    """The letter of the marked answer; without one, the last letter in brackets or alone at the start of a line."""
    marked = find(text)
    if marked and (letter := _leading(marked.text[:200])):
        return letter, ""
    last = None
    for match in _STANDING.finditer(text):
        last = match[1] or match[2]
    return last, "; no marked answer, the last letter standing alone was taken"


def _leading(answer: str) -> str | None:
    match = _FIRST.match(answer)
    if match is None:
        return None
    # A small letter counts only alone: "a" opens many sentences.
    alone = not answer[match.end() :].strip(" .)]}*_`$\"'")
    return match[1].upper() if alone or match[1].isupper() else None
