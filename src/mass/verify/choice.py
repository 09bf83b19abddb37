"""(Task, answer text) -> Verdict, for multiple choice: the letter that the text settles on."""

from __future__ import annotations

import re

from mass.types import Task, Verdict
from mass.verify.exact import shorten
from mass.verify.extract import find
from mass.verify.likelihood import listed

# "A" and "I" are also words: followed by a small word they count only where a reason follows.
_LEAD = r"(?:\\(?:text|textbf|mathrm|mathbf|mathsf|rm)\s?\{?|(?:option|choice|letter|answer)\b|[\s(\[{*_`$\"':])"
_AFTER = r"(?![\w'’^=])(?!(?<=[AI])\s+(?!because\b|since\b|as\b|is\b)[a-z])"
_FIRST = re.compile(rf"(?:{_LEAD}){{0,12}}([A-Z]){_AFTER}", re.I)
_STANDING = re.compile(r"\(([A-Z])\)|^[\s*_(]{0,8}([A-Z])(?:[.):*_]{1,4}(?=\s|$)|[ \t]{0,8}$)", re.M)


def check(task: Task, text: str) -> Verdict:
    """Whether the letter chosen in `text` is `task.answer`."""
    gold = task.answer.strip().strip("().").upper()
    last = max("J", *listed(task.problem))
    if not ("A" <= gold <= last and len(gold) == 1):
        return Verdict(None, f"the task's answer {shorten(task.answer)!r} is no letter A to {last}")
    letter, note = _letter(text, last)
    if letter is None:
        return Verdict(False, f"no letter A to {last} found in the text")
    return Verdict(letter == gold, f"{letter} is {'' if letter == gold else 'not '}{gold}{note}", letter)


def _letter(text: str, most: str) -> tuple[str | None, str]:
    """The letter, `most` at most, of the marked answer; without one, the last in brackets or alone at the start of a
    line."""
    marked = find(text, numbers=False)
    if marked and (letter := _leading(marked.text[:200])) and letter <= most:
        return letter, ""
    last = None
    for match in _STANDING.finditer(text):
        letter = match[1] or match[2]
        last = letter if letter <= most else last
    return last, "; no marked answer, the last letter standing alone was taken"


def _leading(answer: str) -> str | None:
    match = _FIRST.match(answer)
    if match is None:
        return None
    # A small letter counts only alone: "a" opens many sentences.
    alone = not answer[match.end() :].strip(" .)]}*_`$\"'")
    return match[1].upper() if alone or match[1].isupper() else None
