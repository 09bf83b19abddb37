r"""Answer text -> its final answer.

In order of trust: the last `\boxed{...}`, the last `#### x`, the last "Answer: x" or "answer is x", a text that is
nothing but a formula or a word, and as a last resort the last number, as the flexible extraction of the field's
harnesses does, with the formula that it stands in. Every pass is linear in the text:
what a model writes can be huge, deeply nested or noise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_ANSWER_CHARS = 1000
"""An answer after a mark is read this far at most; what is longer is no final answer."""

MAX_BARE_CHARS = 200

_BRACES = re.compile(
    r"(?P<box>\\f?boxed\s{0,4}\{|\\fbox\s{0,4}\{)|(?P<bare>\\boxed\s{1,4}[-+]?[0-9][^\s${}\\]{0,200})|\\.|[{}]", re.S
)
_HASHES = re.compile(r"####[ \t]*([^\n]{1,1000})")
_MARK = re.compile(r"\banswer\b[\s*_]{0,8}(?:is\b[\s*_]{0,8}:?|:)[\s*_]{0,8}", re.I)
_NUMBER = re.compile(
    r"(?<![\w.])[-\u2212]?\$?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?%?"
)
# As in pandoc: a closing dollar has no space before it and no digit after it, so "$5 or $6" stays money.
_INLINE = re.compile(r"\$\$?([^\s$](?:[^$]*[^\s$])?)\$\$?(?![0-9])|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_LATEX_WORD = re.compile(
    r"\\(?:begin|end|text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname)\s?\{[^{}]*\}|\\[A-Za-z]+"
)
_ALPHANUMERIC = re.compile(r"[^\W_]|\\[A-Za-z{]")
_UNREAD = re.compile(r"####|box|answer", re.I)
"""Marks without an answer that could be read."""
_WORD = re.compile(r"[^\W\d_]{2}")
_LETTER = re.compile(r"[^\W\d_]")
_SENTENCE_END = re.compile(r"\.\s|\s(?:because|since)\b")


@dataclass(frozen=True)
class Found:
    """A final answer and where it was found."""

    text: str
    how: str
    """'boxed', '####', 'answer is', 'whole text', 'last formula' or 'last number'."""


def final_answer(text: str) -> str | None:
    """The final answer in `text`, or None."""
    found = find(text)
    return found.text if found else None


def find(text: str, *, numbers: bool = True) -> Found | None:
    """The final answer and where it was found; `numbers` allows the last resort."""
    for how, search in (("boxed", boxed), ("####", _hashes), ("answer is", _marked)):
        if answer := search(text):
            return Found(answer, how)
    if not numbers:
        return None
    if whole := _whole(text):
        return Found(whole, "whole text")
    return _last_number(text)


def boxed(text: str) -> str:
    """Content of the last closed box, empty where there is none; of nested ones the innermost. Escaped braces do not
    count."""
    if "box" not in text:
        return ""
    open_braces: list[tuple[int, bool]] = []
    start, content = -1, ""
    span = (0, 0)
    for token in _BRACES.finditer(text):
        if token["box"]:
            open_braces.append((token.end(), True))
        elif token["bare"]:
            start, span = token.end(), (token.start() + len(r"\boxed"), token.end())
        elif token[0] == "{":
            open_braces.append((token.end(), False))
        elif token[0] == "}" and open_braces:
            begin, is_box = open_braces.pop()
            if is_box and begin > start:
                start = begin
                # An empty box is a prompt repeated ("put it in \boxed{}"), not an answer.
                span = (begin, token.start()) if text[begin : token.start()].strip() else span
    content = text[slice(*span)].strip()
    return content if text[span[1] : span[1] + 1] == "}" and "$" not in content else _tidy(content)


def _hashes(text: str) -> str:
    for match in reversed(list(_HASHES.finditer(text))):
        if value := _tidy(match[1]):
            return value
    return ""


def _marked(text: str) -> str:
    for match in reversed(list(_MARK.finditer(text))):
        line = text[match.end() : match.end() + MAX_ANSWER_CHARS]
        if formula := _INLINE.match(line):
            return _tidy(formula[1] or formula[2] or formula[3])
        line = line.partition("\n")[0]
        if value := _tidy(_SENTENCE_END.split(line, maxsplit=1)[0]):
            return value
    return ""


def _whole(text: str) -> str:
    """All of a text that is one short line without words (but for those in `\\text{}`), or one word alone."""
    value = _tidy(text.strip()[: MAX_BARE_CHARS + 1])
    if len(value) > MAX_BARE_CHARS or "\n" in value or not _ALPHANUMERIC.search(value) or _UNREAD.search(value):
        return ""
    if _WORD.search(_LATEX_WORD.sub(" ", value)) and not value.isalpha():
        return ""
    left, equals, right = value.rpartition("=")
    return right.strip() if equals and not _LETTER.search(left) else value


def _last_number(text: str) -> Found | None:
    last = None
    for match in _NUMBER.finditer(text):
        last = match
    if last is None:
        return None
    start = max(0, last.start() - MAX_BARE_CHARS)
    for formula in _INLINE.finditer(text[start : last.end() + MAX_BARE_CHARS]):
        if formula.start() + start <= last.start() < formula.end() + start:
            content = (formula[1] or formula[2] or formula[3]).rpartition("=")[2]
            return Found(_tidy(content) or last[0], "last formula")
    return Found(last[0], "last number")


def _tidy(value: str) -> str:
    """Without emphasis, dollars around it and punctuation after it ("!" stays: it may be a factorial)."""
    return _without_dollars(value.strip().strip("*_` ").rstrip(".,;: ").strip("*_` "))


def _without_dollars(value: str) -> str:
    formula = _INLINE.fullmatch(value) if len(value) <= MAX_ANSWER_CHARS else None
    return (formula[1] or formula[2] or formula[3]).strip() if formula else value
