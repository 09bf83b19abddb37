r"""Read and write a user's text file of prompts by kind of problem.

    # Lines before the first heading are a comment.
    === solve
    {problem}

    Think in steps. Put the answer in \boxed{}.

    === solve code
    Write this in Python: {problem}

A heading names a field of `Prompts`, followed by a kind of problem if the text is for that kind alone. The text extends
to the next heading; empty lines around it do not count. A text in double quotes on one line is a JSON string, which may
have spaces and line ends at its edges. `stop` has one text on each line; `chat` and `thinking` are yes or no. Fields
that the file leaves out keep their defaults.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from mass import encoding
from mass.errors import ConfigError, nearest
from mass.lm.prompts import KINDS, Prompts, PromptSet, defaults

Sections = Mapping[tuple[str, str], Any]
"""Values by (field, kind), with "" as the kind of a value for all kinds."""

_HEADING = re.compile(r"===[ \t]+([^\s=].*?)[ \t]*=*[ \t]*")
_NEEDS = {"solve": ("{problem}",), "synthesis": ("{problem}",), "example": ("{problem}", "{solution}")}
_OF_ALL = ("chat",)
"""Fields that cannot differ between kinds."""
HEAD = """\
# Prompts of MASS: change what follows and give the file as model.prompts (--model.prompts), or to mass.load.
# A heading '=== solve' holds for all kinds of problems, '=== solve code' for one of: {kinds}.
# {{problem}} and {{solution}} stand for the texts themselves. "Double quotes" keep spaces and line ends at the edges.
"""


def read(path: str | Path) -> Sections:
    """Read and check the sections of a file. Raises ConfigError with file and line where they cannot be used."""
    try:
        text = encoding.read(path)
    except OSError as error:
        why = error.strerror
        raise ConfigError(f"prompts file {str(path)!r} cannot be read ({why}); `mass prompts` prints one") from error
    return parse(text, str(path))


def parse(text: str, where: str = "prompts") -> Sections:
    """Read and check the sections of a text; `where` names it in errors. Raises ConfigError."""
    sections = dict[tuple[str, str], Any]()
    for line, heading, lines in _blocks(text, where):
        key = _key(heading, f"{where}, line {line}")
        if key in sections:
            raise ConfigError(f"{where}, line {line}: {heading!r} stands there twice; leave one")
        sections[key] = _value(key[0], lines, f"{where}, line {line}: {heading!r}")
    if not sections:
        raise ConfigError(f"{where} has no heading; expected lines like '=== solve'; `mass prompts` prints an example")
    return sections


def complete(sections: Sections, *, chat: bool) -> PromptSet:
    """Return prompts of every kind from the sections, with the package's own for what they leave out.

    `chat` is True for a model with a chat template; a section `chat` overrides it.
    """
    base = defaults(chat=sections.get(("chat", ""), chat))
    found: dict[str, Prompts] = {}
    for kind in KINDS:
        of_all = {name: value for (name, of), value in sections.items() if not of}
        of_kind = {name: value for (name, of), value in sections.items() if of == kind}
        own = of_all | of_kind
        # The package's opening and shown example fit only its own form of practice.
        suits = "synthesis" not in own and "example" not in own
        found[kind] = dataclasses.replace(base[kind] if suits else base[kind].without_form(), **own)
    return found


def write(prompts: PromptSet) -> str:
    """Return the text of a file that reads back as `prompts`, for any model."""
    parts = [HEAD.format(kinds=", ".join(KINDS))]
    for field in dataclasses.fields(Prompts):
        values = {kind: getattr(prompts[kind], field.name) for kind in KINDS}
        first = values[KINDS[0]]
        parts.append(_section(field.name, first))
        parts += [_section(f"{field.name} {kind}", values[kind]) for kind in KINDS[1:] if values[kind] != first]
    return "\n".join(parts)


def _blocks(text: str, where: str) -> list[tuple[int, str, list[str]]]:
    """Return (line number, heading, lines of text) of each section. Raises ConfigError."""
    found: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if match := _HEADING.fullmatch(line):
            found.append((number, match[1], []))
        elif found:
            found[-1][2].append(line)
        elif line.strip() and not line.startswith("#"):
            raise ConfigError(f"{where}, line {number}: text before the first heading; begin it with '#', or a heading")
    return found


def _key(heading: str, where: str) -> tuple[str, str]:
    name, *kinds = heading.split()[:3] or [""]
    names = [field.name for field in dataclasses.fields(Prompts)]
    if name not in names:
        raise ConfigError(f"{where}: {name!r} is not a part of the prompts{nearest(name, names)}")
    kind = kinds[0] if kinds else ""
    if len(kinds) > 1 or (kind and kind not in KINDS):
        raise ConfigError(f"{where}: {heading!r} names no kind of problem; expected one of {', '.join(KINDS)}, or none")
    if kind and name in _OF_ALL:
        raise ConfigError(f"{where}: {name!r} holds for all kinds of problems; leave {kind!r} out")
    return name, kind


def _value(name: str, lines: list[str], where: str) -> Any:
    if name in ("stop", "synthesis_stop"):
        return tuple(_text([line], where) for line in lines if line.strip())
    text = _text(lines, where)
    if name in ("chat", "thinking"):
        if text.lower() not in ("yes", "no"):
            raise ConfigError(f"{where} is {text[:40]!r}; expected yes or no")
        return text.lower() == "yes"
    if name == "date":
        return _day(text, where)
    for place in _NEEDS.get(name, ()):
        if place not in text or (name == "example" and text.count(place) != 1):
            once = " once" if name == "example" else ""
            raise ConfigError(f"{where} has no {place}; expected it{once}, where that text goes")
    if name == "example" and text.index("{problem}") > text.index("{solution}"):
        raise ConfigError(f"{where} has {{solution}} before {{problem}}; expected the problem first")
    return text


def _text(lines: list[str], where: str) -> str:
    text = "\n".join(lines).strip("\n")
    stripped = text.strip()
    if "\n" in stripped or len(stripped) < 2 or not (stripped[0] == stripped[-1] == '"'):
        return text if stripped else ""
    try:
        return json.loads(stripped)
    except ValueError as error:
        raise ConfigError(f'{where} is not text in double quotes ({error}); expected JSON, as in "a\\n"') from error


def _day(text: str, where: str) -> str:
    try:
        return date.fromisoformat(text.strip()).isoformat()
    except ValueError as error:
        raise ConfigError(f"{where} is {text[:40]!r}; expected a day, as in 2024-07-26") from error


def _section(heading: str, value: Any) -> str:
    shown: Callable[[str], str] = lambda text: text if _plain(text) else json.dumps(text, ensure_ascii=False)  # noqa: E731
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, tuple):
        text = "\n".join(json.dumps(one, ensure_ascii=False) for one in value)  # pyright: ignore[reportUnknownVariableType]
    else:
        text = shown(value)
    return f"=== {heading}\n{text}\n"


def _plain(text: str) -> bool:
    """Return True for a text that reads back unchanged when it is written without quotes."""
    headings = any(_HEADING.fullmatch(line) for line in text.split("\n"))
    edges = text == text.strip() and not (text.startswith('"') and text.endswith('"'))
    return bool(text) and edges and not headings and "\r" not in text
