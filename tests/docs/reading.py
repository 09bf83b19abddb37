"""The public pages, read: their code blocks, commands and links. Shared by the tests of this folder."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOOKS = ROOT / "docs" / "hooks"
sys.path.append(str(HOOKS))

import repository as repository  # noqa: E402 (for the tests of links)

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence)\s*$",
    re.M | re.S,
)
SHELLS = ("", "bash", "console", "sh")
SEPARATORS = ("|", ";", "&&", "||", "&")
PROGRAMS = {
    "mass": (("mass",), ("torchrun", "...", "-m", "mass")),
    "research": (("python", "-m", "research"),),
}
"""Our programs, and how a line that calls one begins."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    not_run: str | None
    """Why a Python block is compiled but not run: what `<!-- not run: ... -->` above it says."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    block: Block
    program: str
    """`mass` or `research`."""
    arguments: tuple[str, ...]
    """After the program."""

    def __str__(self) -> str:
        return f"{self.block} {self.program} {shlex.join(self.arguments)}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start("text")) + 1, found["language"], found["text"], found["reason"])
        for found in FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[Command]:
    """The calls of our programs in a block of shell lines; what a command prints, below it, is no call."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = _words(line.removeprefix("$ "))
        while words:
            end = next((i for i, word in enumerate(words) if word in SEPARATORS), len(words))
            yield from _call(block, words[:end])
            words = words[end + 1 :]


def _words(line: str) -> list[str]:
    """The words of a shell line, operators apart; none where it is no shell line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return []


def _call(block: Block, words: list[str]) -> Iterator[Command]:
    program = next((name for name, starts in PROGRAMS.items() if any(_begins(words, start) for start in starts)), None)
    if program is None or words[-1:] == [program]:
        return
    rest = words[words.index(program) + 1 :]
    if not re.match(r"-*[a-z]", rest[0]):  # the row of mass in a table of results
        return
    cut = next((i for i, word in enumerate(rest) if re.fullmatch(r"[<>]+", word)), len(rest))
    yield Command(block, program, tuple(rest[:cut]))


def _begins(words: list[str], start: tuple[str, ...]) -> bool:
    """Whether a line begins so; `...` stands for any words."""
    if "..." not in start:
        return tuple(words[: len(start)]) == start
    gap = start.index("...")
    return _begins(words, start[:gap]) and start[gap + 1 :] in list(itertools.pairwise(words))
