"""Answer text, beginning of a program -> the programs it can be read as, the likeliest first.

Models write a whole function in a fenced block, with prose around it or without, or just go on where the prompt ended.
Which of them compiles is found out in the sandbox: parsing what a model wrote is already work for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MAX_PROGRAM_CHARS = 200_000

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""What ends a continued function, as in lm-evaluation-harness (tasks/humaneval/humaneval.yaml)."""

_FENCE = re.compile(r"[ \t]{0,8}(`{3,}|~{3,})[^\n`]{0,80}$")
_CODE_LINE = re.compile(r"(?:def|class|import|from|@|async def)\b|@")
_NAME = re.compile(r"[A-Za-z_]\w*")


def blocks(text: str) -> list[str]:
    """Contents of the fenced blocks of `text`; one that is never closed goes to the end."""
    found: list[str] = []
    inside: list[str] | None = None
    for line in text.split("\n"):
        if not _FENCE.match(line.rstrip("\r")):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside = []
        else:
            found.append("\n".join(inside))
            inside = None
    return found if inside is None else [*found, "\n".join(inside)]


def defines(source: str, names: Iterable[str]) -> bool:
    """Whether a function or class of one of these names begins at the margin."""
    wanted = set(names)
    return any(match[1] in wanted for match in re.finditer(r"^(?:async )?(?:def|class)\s+(\w+)", source, re.M))


def whole(text: str, tests: str) -> list[str]:
    """Readings of `text` as a program of its own, for tests that call what it defines."""
    text = text.partition("[DONE]")[0].rpartition("[BEGIN]")[2]
    found = blocks(text)
    called = set(_NAME.findall(tests))
    defining = [block for block in found if defines(block, called)]
    if found:
        return _distinct([(defining or found)[-1], *_joined(defining)])
    return _distinct([text, _without_prose(text)])


def continued(text: str, prompt: str, entry: str) -> list[str]:
    """Readings of `text` as what follows `prompt`, or as a new version of the function it begins."""
    found = blocks(text)
    defining = [block for block in found if defines(block, [entry])]
    if defining:
        block = defining[-1]
        return _distinct([f"{prompt}\n\n{block}", block, *(f"{prompt}\n\n{joined}" for joined in _joined(found))])
    if not found and defines(text, [entry]):
        code = _without_prose(text)
        return _distinct([f"{prompt}\n\n{text}", text, f"{prompt}\n\n{code}", code])
    body = found[0] if found else text
    return _distinct(prompt + reading for part in (body, _cut(body)) for reading in (part, _indented(part)))


def _joined(parts: Sequence[str]) -> list[str]:
    return ["\n\n".join(parts)] if len(parts) > 1 else []


def _cut(text: str) -> str:
    """Up to the first stop."""
    ends = [position for stop in STOPS if (position := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _indented(text: str) -> str:
    """With the indentation of the first line, which is lost where a text was stripped."""
    return f"    {text.lstrip()}"


def _without_prose(text: str) -> str:
    """From the first line that begins code to the last that is indented or code."""
    lines = text.split("\n")
    code = [i for i, line in enumerate(lines) if _CODE_LINE.match(line)]
    if not code:
        return text
    last = max(i for i, line in enumerate(lines) if i >= code[0] and (_CODE_LINE.match(line) or line[:1] in " \t"))
    return "\n".join(lines[code[0] : last + 1])


def _distinct(programs: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(programs))
