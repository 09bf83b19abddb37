r"""Find the content of the last `\boxed{...}` in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"(?P<box>\\f?boxed\s{0,4}\{|\\fbox\s{0,4}\{)"
    r"|\\(?:f?boxed|fbox)\s{0,4}(?P<bare>[-+]?(?:[0-9][^\s${}\\]{0,200}|\\[dt]?frac\s?(?:[0-9]{2}|\{[^{}]{1,50}\}\{[^{}]{1,50}\})"
    r"|[A-Za-z](?![A-Za-z])))"
    r"|\\.|[{}]",
    re.S,
)
_BETWEEN = re.compile(r"[\s$]{0,4}(?:,|;|and\b|or\b|, and\b|, or\b)[\s$]{0,4}(?:[A-Za-z](?:_\{?\w\}?)?\s?=\s?)?")


def boxed(text: str) -> str:
    r"""Return the content of the last closed box, or an empty text: `\boxed{7}`, `\fbox{7}`, `\boxed 7`.

    Of nested boxes the innermost counts. Boxes with nothing but "or", "and" or a comma between them are one list: a
    text that boxes two answers has not settled on one. An empty box is the prompt repeated ("put it in \boxed{}"), not
    an answer.
    """
    boxes = [(a, b, c) for a, b, c in _boxes(text) if text[b:c].strip()] if "box" in text else []
    if not boxes:
        return ""
    begin, *span = boxes.pop()
    contents = [text[slice(*span)].strip()]
    while boxes and _BETWEEN.fullmatch(text, boxes[-1][2] + (text[boxes[-1][2]] == "}"), begin):
        begin, *span = boxes.pop()
        contents.append(text[slice(*span)].strip())
    return ", ".join(dict.fromkeys(reversed(contents)))


def _boxes(text: str) -> Iterator[tuple[int, int, int]]:
    """Yield (start of the box, start of its content, end of its content) for each box that holds no other. Escaped
    braces do not count."""
    open_braces: list[tuple[int, int]] = []
    innermost = -1
    for token in _TOKEN.finditer(text):
        if token["bare"]:
            innermost = token.start("bare")
            yield token.start(), innermost, innermost + len(token["bare"].rstrip(".,;:)"))
        elif token["box"] or token[0] == "{":
            open_braces.append((token.start() if token["box"] else -1, token.end()))
        elif token[0] == "}" and open_braces:
            start, begin = open_braces.pop()
            # A box that began before the last one found encloses it, so it is not an innermost box.
            if start >= 0 and begin > innermost:
                innermost = begin
                yield start, begin, token.start()
