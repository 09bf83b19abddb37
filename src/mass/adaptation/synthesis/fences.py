"""Find the fenced code blocks of a text, by the rules of CommonMark: an unclosed block extends to the end."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"[ \t]{0,12}(?P<ticks>`{3,}|~{3,})[ \t]*(?P<kind>[\w+-]*)[^`\n]*")
_CODE = re.compile(r"py\w*|python\w*|c|cpp|c\+\+|java\w*|js|ts|rust|go|bash|sh|sql|ruby|r", re.IGNORECASE)


@dataclass(frozen=True)
class Fence:
    """A fenced block of a text."""

    start: int
    """Offset of its first line in the text."""
    end: int
    """Offset of the end of its last line, without the line end."""
    text: str
    """The text between the two fences."""
    kind: str
    """The word after the opening fence: a language, or empty."""

    @property
    def code(self) -> bool:
        """True if the block names a programming language."""
        return bool(_CODE.fullmatch(self.kind))


def fences(text: str) -> list[Fence]:
    """Return the fenced blocks in their order; no block lies in another."""
    found: list[Fence] = []
    opened: tuple[int, int, str, str] | None = None
    at = 0
    for line in text.split("\n"):
        match = _LINE.fullmatch(line) if "```" in line or "~~~" in line else None
        if match and opened is None:
            opened = at, at + len(line) + 1, match["ticks"], match["kind"]
        elif match and opened and match["ticks"].startswith(opened[2]) and line.strip() == match["ticks"]:
            found.append(Fence(opened[0], at + len(line), text[opened[1] : at], opened[3]))
            opened = None
        at += len(line) + 1
    if opened is not None:
        found.append(Fence(opened[0], len(text), text[opened[1] :], opened[3]))
    return found
