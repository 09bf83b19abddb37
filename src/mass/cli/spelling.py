"""Spell out what the command line may abbreviate: `--model X` is `--model.name X`, `a=b,c=d` is a mapping."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from mass.errors import ConfigError

SHORT = {name: f"{name}.source" for name in ("tasks", "validation", "train_tasks")} | {
    "model": "model.name",
    "examples": "examples.source",
    "budget_s": "learn.budget_s",
}
"""Short forms on the command line: `--model X` is `--model.name X`."""
MAPPINGS = ("examples.fields", "tasks.fields", "validation.fields", "train_tasks.fields", "checkpoints")
"""Options that take a mapping, which the command line may write as `a=b,c=d`."""


def spelled_out(arguments: Iterable[str], known: Collection[str]) -> list[str]:
    """Return the arguments with short forms at full length and with mappings as JSON.

    `known` holds the names of the command's options: `--examples` is short for `--examples.source` only where the
    latter is one, and an option of its own elsewhere. Raises ConfigError.
    """
    found: list[str] = []
    mapping = ""  # the option that the next argument is the value of, if that is a mapping
    for argument in arguments:
        if mapping:
            found.append(_as_json(mapping, argument))
            mapping = ""
            continue
        option, equals, value = argument.partition("=")
        name = SHORT.get(option.removeprefix("--"), "") if option.startswith("--") else ""
        option = f"--{name}" if name in known else option
        if option.removeprefix("--") in MAPPINGS:
            mapping, value = ("", _as_json(option, value)) if equals else (option, "")
        found.append(f"{option}{equals}{value}")
    return found


def _as_json(option: str, value: str) -> str:
    return value if value.lstrip().startswith("{") else json.dumps(pairs(option, value))


def pairs(option: str, text: str) -> dict[str, str]:
    """Parse `a=b,c=d` into a dict. Raises ConfigError."""
    found: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise ConfigError(f"{option} has {part!r}; expected name=value, several with commas between")
        found[name] = value
    return found
