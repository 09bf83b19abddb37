r"""Read the problem and solution from JSON in a text: from its first object that has both.

Models write LaTeX into JSON without doubling the backslashes, and `\frac` would then be read as a form feed and "rac".
Such commands are recognised by their names, and their backslashes doubled, before the JSON is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

from mass.adaptation.synthesis.result import Reading

_PROBLEM = (
    "problem",
    "new_problem",
    "practice_problem",
    "question",
    "new_question",
    "exercise",
    "task",
    "problem_statement",
)
_SOLUTION = ("solution", "worked_solution", "explanation", "reasoning", "steps", "response")
_ANSWER = ("answer", "final_answer", "result")
_LATEX = (
    "frac|forall|flat|boxed|beta|bar|binom|begin|big[a-z]*|bmod|bot|bullet|backslash|times|text[a-z]*|theta|tan|tfrac|to|"
    "triangle|tau|top|tilde|right[a-z]*|rho|rceil|rfloor|rangle|root|neq|ne|nu|nabla|not|neg|newline|nmid|ni"
)
_COMMAND = re.compile(rf"(?<!\\)((?:\\\\)*)\\(?=(?:{_LATEX})(?![A-Za-z]))")
_INVALID = re.compile(r"(?<!\\)((?:\\\\)*)\\(?![\"\\/bfnrtu])|(?<!\\)((?:\\\\)*)\\(?=u(?![0-9a-fA-F]{4}))")
_START = re.compile(r"\{\s*\"")
_ATTEMPTS = 8
"""Most places in a text at which an object is tried to be read."""


def read(text: str) -> Reading | None:
    """Read the first complete example; None for a text without the beginning of an object or a name of a problem."""
    starts = [match.start() for match in _START.finditer(text)][:_ATTEMPTS]
    if not starts or not any(f'"{name}"' in text.lower().replace(" ", "_") for name in _PROBLEM):
        return None
    body = _COMMAND.sub(r"\1\\\\", text)
    found = [pair for value in _values(body) for pair in _pairs(value)]
    whole = next((pair for pair in found if pair[0] and pair[1]), None)
    if whole is not None:
        return Reading(*whole, also=len(found) - 1, closed=True)
    if found:
        return Reading(reason="JSON with a problem and no solution" if found[0][0] else "JSON without a problem")
    return Reading(reason="JSON that is cut off or malformed")


def _values(text: str) -> Iterator[Any]:
    """Yield the JSON objects of a text, after escaping backslashes that are invalid in JSON."""
    decoder, at = json.JSONDecoder(strict=False), 0
    repaired = _INVALID.sub(lambda match: f"{match[1] or match[2] or ''}\\\\", text)
    for _ in range(_ATTEMPTS):
        start = _START.search(repaired, at)
        if start is None:
            return
        try:
            value, at = decoder.raw_decode(repaired, start.start())
        except (ValueError, RecursionError):
            at = start.end()
            continue
        yield value


def _pairs(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (problem, solution) of an object, or of the objects nested in it; a missing part is empty."""
    if not isinstance(value, dict):
        return
    items = {
        str(k).lower().strip().replace(" ", "_").replace("-", "_"): v for k, v in cast("dict[Any, Any]", value).items()
    }
    problem, solution, answer = (_first(items, names) for names in (_PROBLEM, _SOLUTION, _ANSWER))
    if problem or solution:
        if answer and answer not in solution:
            solution = f"{solution}\nAnswer: {answer}" if solution else answer
        yield problem, solution
        return
    for inner in items.values():
        for one in cast("list[Any]", inner) if isinstance(inner, list) else [inner]:
            yield from _pairs(one) if isinstance(one, dict) else ()


def _first(items: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((text for name in names if (text := _text(items.get(name)))), "")


def _text(value: Any) -> str:
    """Return a value as text: strings and numbers as they are, lists as lines, anything else as an empty text."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return "\n".join(filter(None, (_text(one) for one in cast("list[Any]", value))))
    if isinstance(value, bool) or value is None or isinstance(value, dict):
        return ""
    return str(value)
