"""A text -> its fenced blocks, by the rules of CommonMark: a block that is never closed goes on to the end."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"[ \t]{0,12}(?P<ticks>`{3,}|~{3,})[ \t]*(?P<kind>[\w+-]*)[^`\n]*")
_CODE = re.compile(r"py\w*|python\w*|c|cpp|c\+\+|java\w*|js|ts|rust|go|bash|sh|sql|ruby|r", re.IGNORECASE)


@dataclass(frozen=True)
class Fence:
    start: int
    """Of its first line."""
    end: int
    """After its last line, the line end not among it."""
    text: str
    kind: str

    @property
    def code(self) -> bool:
        """Whether it names a programming language."""
        return bool(_CODE.fullmatch(self.kind))


def fences(text: str) -> list[Fence]:
    """In their order; none lies in another."""
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
