"""Find the labels in a text that begin a problem or a solution, in any markup; labels inside code do not count."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mass.adaptation.synthesis.fences import fences

_PROBLEMS = ("practice problem", "problem statement", "problem", "question", "exercise", "task", "q")
_SOLUTIONS = ("solution", "explanation", "proof", "answer", "response", "a")
_ALONE = ("problem", "question", "exercise", "solution", "answer", "explanation")
"""Words that are labels where they stand alone on a line."""
_BLANK = r"[ \t]{0,12}"
_BULLET = r"(?:[-+•][ \t]{1,4}|\d{1,3}[.)][ \t]{1,4})?"
_DRESS = rf"{_BLANK}(?:>{_BLANK})?{_BULLET}\#{{0,6}}{_BLANK}(?P<open>[*_]{{0,3}})[\[(]?"
_KIND = (
    r"(?:(?:new|similar|practice|sample|example|another|next|generated|modified|related|different|original|"
    r"math(?:s|ematical)?|programming|coding|multiple[- ]choice|step[- ]by[- ]step|worked|detailed|full|complete|model|"
    r"correct|proposed)[ \t]+){0,3}"
)
_NUMBER = r"(?:[ \t]?(?:\#|no\.?[ \t]?)?(?P<number>\d{1,3})\b)?(?:[ \t]?\([^()\n]{0,40}\))?"
_ALONE_ON_LINE = rf"(?P<alone>\#{{0,6}}{_BLANK}(?=\n|\Z))"
_CLOSE = rf"[\])]?[ \t]?(?P<shut>[*_]{{0,3}})[ \t]?(?:[:：]|(?P<mark>[.)–—-])(?=[ \t])|{_ALONE_ON_LINE})"
_CHOICES = re.compile(r"^[ \t]{0,12}[*_(]{0,3}B[:.)]", re.MULTILINE)


@dataclass(frozen=True)
class Label:
    """A label found in a text."""

    part: Literal["problem", "solution"]
    word: str
    """The word of the label, in lower case."""
    number: str
    """The number after the word ("Problem 2"); empty without one."""
    start: int
    """Offset of the label in the text."""
    end: int
    """Offset of the text after the label."""


def find_labels(text: str, form: str) -> list[Label]:
    """Return the labels in their order. `form` is the example form of the prompts, whose own labels count too."""
    code = [(fence.start, fence.end) for fence in fences(text) if fence.code]
    found: list[Label] = []
    for match in _pattern(form).finditer(text):
        while code and code[0][1] <= match.start():
            code.pop(0)
        if (code and code[0][0] <= match.start()) or not _is_label(match, found, text):
            continue
        end = match.end()
        if match["open"] and not match["shut"]:  # "**Problem:**", where the emphasis closes after the colon
            end += len(text[end : end + 3]) - len(text[end : end + 3].lstrip("*_"))
        part: Literal["problem", "solution"] = "problem" if match["problem"] else "solution"
        found.append(Label(part, _word(match), match["number"] or "", match.start(), end))
    return found


def _word(match: re.Match[str]) -> str:
    return " ".join((match["problem"] or match["solution"]).lower().split())


def _is_label(match: re.Match[str], before: Sequence[Label], text: str) -> bool:
    """Return True where a match is a label, and not a word that merely looks like one."""
    word = _word(match)
    if word == "a":  # the "A:" of "Q: … A: …", and not the first of several choices
        return match["mark"] is None and match["alone"] is None and _answers_q(match, before, text)
    if match["mark"] is not None:  # a dot or dash for a colon: "Problem 1." is a label, "Answer." may be text
        return bool(match["number"] or match["open"])
    if match["alone"] is not None:
        return word in _ALONE or bool(match["open"] or "#" in match[0])
    return True


def _answers_q(match: re.Match[str], before: Sequence[Label], text: str) -> bool:
    """Return True for an "A:" after a "Q:" that no choice "B:" follows."""
    choices = _CHOICES.search(text, match.end(), match.end() + 400)
    return choices is None and any(label.word == "q" for label in before)


@functools.lru_cache(maxsize=32)
def _pattern(form: str) -> re.Pattern[str]:
    own = _own_labels(form)
    either = f"(?P<problem>{_either(own[0], _PROBLEMS)})|(?P<solution>{_either(own[1], _SOLUTIONS)})"
    return re.compile(f"^{_DRESS}{_KIND}(?:{either}){_NUMBER}{_CLOSE}", re.IGNORECASE | re.MULTILINE)


def _own_labels(form: str) -> tuple[str, str]:
    """Return the words before {problem} and {solution} in the prompt's form, without their markup."""
    before, _, after = form.partition("{problem}")
    lines = (before.rpartition("\n")[2], after.partition("{solution}")[0].rpartition("\n")[2])
    first, second = (line.strip().strip("*#_ ").rstrip(":").strip("*#_ ").lower() for line in lines)
    return first, second


def _either(own: str, words: Sequence[str]) -> str:
    known = {*words, *([own] if own else [])}
    return "|".join(re.escape(word).replace("\\ ", r"[ \t]+") for word in sorted(known, key=len, reverse=True))
