"""List the programs that an answer text can be read as, the most likely one first.

Models write a whole function in a fenced block, with or without prose around it, or just continue where the prompt
ended. Which reading compiles is found out in the sandbox: parsing what a model wrote already needs isolation.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

MAX_PROGRAM_CHARS = 200_000

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Texts that end a continued function, as in lm-evaluation-harness (tasks/humaneval/humaneval.yaml)."""

# A fence as in CommonMark, also in an item of a list; the columns before the fence are not part of its lines.
_FENCE = re.compile(
    r"(?P<before>(?:[ \t]|[-*+][ \t]|[0-9]{1,3}[.)][ \t]){0,12})(?P<marks>`{3,}|~{3,})(?P<info>[^\n`]{0,80})$"
)
_CODE_LINE = re.compile(r"\s*(?:(?:def|class|import|from|async def)\b|@)")
_NAME = re.compile(r"[A-Za-z_]\w*")
_BEFORE_CODE = re.compile(r"^([ \t]{0,8}```)(?=(?:def|class|import|from|async def)\b)", re.M)
_AFTER_CODE = re.compile(r"(?:(?<=[\w:\]}\"',;])|(?<=[^0-9]\)))[ \t]{0,8}(```(?:python3?|py)?)[ \t]*$", re.M)
_LANGUAGE = re.compile(r"\A\s*(?:python3?|py)[ \t]*\r?\n", re.I)
_DEFINITION = re.compile(r"^(?:(?:async )?(?:def|class)[ \t]+(\w+)|(\w+)[ \t]*=(?!=))", re.M)
_PROMPTED = re.compile(r"\s*>>> ")
_STATEMENT = re.compile(
    r"[ \t]+\S|(?:return|yield|if|for|while|with|try|import|from|raise|assert|pass)\b"
    r"|[A-Za-z_][\w.,\[\] ]{0,80}[-+*/|&]?=(?!=)"
)


def blocks(text: str) -> list[str]:
    """Return the contents of the fenced blocks of `text`, without the indentation of their fences. A block that is
    never closed goes to the end of the text."""
    return _divided(text)[1]


def _divided(text: str) -> tuple[str, list[str]]:
    """Return (the text before the first fence, the contents of the blocks)."""
    found: list[list[str]] = []
    before: list[str] = []
    opening: re.Match[str] | None = None
    for line in text.split("\n"):
        fence = _FENCE.match(line.rstrip("\r"))
        if fence is None or (opening and fence["marks"][0] != opening["marks"][0]):
            (found[-1] if opening else before if not found else []).append(_outdented(line, opening))
        # A fence that names Python inside an open block starts a new block: the model forgot to close the first.
        elif opening and not fence["info"].strip().lower().startswith("py"):
            opening = None
        else:
            opening = fence
            found.append([])
    return "\n".join(before), ["\n".join(lines) for lines in found]


def _outdented(line: str, fence: re.Match[str] | None) -> str:
    """Return `line` without the columns that stand before the fence."""
    columns = len(fence["before"].expandtabs(4)) if fence else 0
    if not columns:
        return line
    code = line.lstrip(" \t")
    return line[: len(line) - len(code)].expandtabs(4)[columns:] + code


def defines(source: str, names: Iterable[str]) -> bool:
    """Return True if a function, class or variable of one of these names is defined at the left margin."""
    return not _defined(source).isdisjoint(names)


def _defined(source: str) -> set[str]:
    return {match[1] or match[2] for match in _DEFINITION.finditer(source)}


def whole(text: str, tests: str) -> list[str]:
    """Return the readings of `text` as a complete program, for tests that call what it defines."""
    # The few-shot prompts of MBPP put programs between [BEGIN] and [DONE].
    text = _cleaned(text).partition("[DONE]")[0].rpartition("[BEGIN]")[2]
    called = set(_NAME.findall(tests))
    before, found = _divided(text)
    found = [_code(block) for block in found]
    defining = [block for block in found if defines(block, called)]
    if found and (defining or not defines(before, called)):
        return _distinct([_with_help((defining or found)[-1], found), *_joined(defining)])
    # There is no fence, or only a closing one.
    return _distinct([before, _without_prose(before)])


def continued(text: str, prompt: str, entry: str) -> list[str]:
    """Return the readings of `text` as the continuation of `prompt`, or as a new version of the function that it
    begins."""
    text = _cleaned(text)
    before, found = _divided(text)
    found = [_code(block) for block in found]
    defining = [block for block in found if defines(block, [entry])]
    if defining:
        block = _with_help(defining[-1], found)
        # With the prompt first: a rewritten function often uses the prompt's imports and helpers. The later definition
        # wins.
        return _distinct([f"{prompt}\n\n{block}", block, *(f"{prompt}\n\n{joined}" for joined in _joined(found))])
    if defines(before, [entry]) or (not found and defines(_without_prose(before), [entry])):
        code = _without_prose(before)
        return _distinct([f"{prompt}\n\n{before}", before, f"{prompt}\n\n{code}", code])
    # The answer continues the prompt: a first block counts as the body unless statements already stand before it.
    body = found[0] if found and not _STATEMENT.match(before.lstrip("\r\n")) else before
    parts = (body, _cut(body), _body(body))
    margin = _margin(prompt)
    return _distinct(prompt + reading for part in parts for reading in (part, *_indented(part, margin)))


def _cleaned(text: str) -> str:
    """Remove byte-order marks and a language name left over from a fence, and put each fence on its own line."""
    text = _LANGUAGE.sub("", text.replace("\ufeff", ""), count=1)
    return _AFTER_CODE.sub(r"\n\1", _BEFORE_CODE.sub(r"\1\n", text)) if "```" in text else text


def _code(block: str) -> str:
    """Remove the prompts of an interpreter session from a block, and the output between them."""
    if not _PROMPTED.match(block):
        return block
    lines = [line.lstrip() for line in block.split("\n")]
    return "\n".join(line[4:] for line in lines if line.startswith((">>> ", "... ")))


def _with_help(block: str, found: Sequence[str]) -> str:
    """Return the block, preceded by earlier blocks that define or import names which it uses but does not define."""
    used = set(_NAME.findall(block)) - _defined(block)
    before = found[: found.index(block)]
    return "\n\n".join([*(part for part in before if defines(part, used) or _imports(part, used)), block])


def _imports(source: str, names: set[str]) -> bool:
    lines = re.findall(r"^(?:import|from)\b[^\n]{0,300}", source, re.M)
    return len(lines) == len(source.strip().split("\n")) and not names.isdisjoint(_NAME.findall(" ".join(lines)))


def _joined(parts: Sequence[str]) -> list[str]:
    return ["\n\n".join(parts)] if len(parts) > 1 else []


def _cut(text: str) -> str:
    """Return the text up to the first of `STOPS`."""
    ends = [position for stop in STOPS if (position := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _body(text: str) -> str:
    """Remove the prose after a function body.

    An indented body ends before the first line at the margin. A body that is itself at the margin ends with the last
    line that returns or is indented.
    """
    lines = text.split("\n")
    at_margin = [not (line[:1].isspace() or not line.strip()) for line in lines]
    if text.lstrip("\r\n")[:1].isspace():
        return "\n".join(lines[: at_margin.index(True)] if True in at_margin else lines)
    kept = [i for i, line in enumerate(lines) if line.startswith("return") or (line.strip() and not at_margin[i])]
    return "\n".join(lines[: kept[-1] + 1] if kept else lines)


def _margin(prompt: str) -> str:
    """Return the indentation of the function body that `prompt` begins."""
    last = prompt.rstrip().rpartition("\n")[2]
    return last[: len(last) - len(last.lstrip())] or "    "


def _indented(text: str, margin: str) -> tuple[str, str]:
    """Return the text at the indentation `margin` in two ways.

    First all of it moved there, for a body that was written at another indentation; then only its first line, whose
    indentation is lost where a text was stripped.
    """
    return textwrap.indent(textwrap.dedent(text.lstrip("\r\n")), margin), margin + text.lstrip()


def _without_prose(text: str) -> str:
    """Return the lines from the first that begins code to the last that is indented or code, moved to the margin."""
    lines = text.split("\n")
    code = [i for i, line in enumerate(lines) if _CODE_LINE.match(line)]
    if not code:
        return text
    first = lines[code[0]]
    columns = len(first) - len(first.lstrip())
    inside = [i for i in range(code[0], len(lines)) if _CODE_LINE.match(lines[i]) or lines[i][: columns + 1].isspace()]
    return textwrap.dedent("\n".join(lines[code[0] : max(inside, default=code[0]) + 1]))


def _distinct(programs: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(programs))
