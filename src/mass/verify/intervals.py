r"""`2 \le x < 5` -> `[2,5)`: an inequality in one variable, as the interval that the other side writes."""

from __future__ import annotations

import re

_SPACING = re.compile(r"\\left|\\right|\\[!,;: ]|\s+")
_SIGNS = {
    **{rf"\{name}": "≥" for name in ("geqslant", "geq", "ge")},
    **{rf"\{name}": "≤" for name in ("leqslant", "leq", "le")},
    **{r"\gt": ">", r"\lt": "<", ">=": "≥", "<=": "≤"},
}
_SIGN = re.compile(r"[<>≤≥]")
_VARIABLE = re.compile(r"[A-Za-z](?:_\{?\w\}?)?")
_INTERVAL = re.compile(r"(?:[A-Za-z]\s*\\in\s*)?[(\[].+,.+[)\]]", re.S)


def alike(gold: str, answer: str) -> tuple[str, str]:
    """The two, where one is an interval and the other an inequality both as intervals."""
    for one, other in ((gold, answer), (answer, gold)):
        if _INTERVAL.fullmatch(_spaceless(one)) and (interval := from_inequality(other)):
            return (gold, interval) if one is gold else (interval, answer)
    return gold, answer


def from_inequality(text: str) -> str | None:
    """The interval of `x > 2`, `2 >= x` or `2 < x <= 5`; None for anything else."""
    for name, sign in _SIGNS.items():
        text = re.sub(re.escape(name) + (r"(?![A-Za-z])" if name.startswith("\\") else ""), sign, text)
    plain = _spaceless(text)
    sides, signs = _SIGN.split(plain), _SIGN.findall(plain)
    if not all(sides) or len(signs) not in (1, 2):
        return None
    if ">" in signs or "≥" in signs:
        sides, signs = sides[::-1], [sign.translate(str.maketrans("<>≤≥", "><≥≤")) for sign in signs[::-1]]
    if any(sign not in "<≤" for sign in signs):
        return None
    if len(signs) == 1:
        left, right = sides
        if _VARIABLE.fullmatch(left):
            sides, signs = [r"-\infty", left, right], ["<", *signs]
        else:
            sides, signs = [left, right, r"\infty"], [*signs, "<"]
    low, variable, high = sides
    if not _VARIABLE.fullmatch(variable):
        return None
    return f"{'[' if signs[0] == '≤' else '('}{low},{high}{']' if signs[1] == '≤' else ')'}"


def _spaceless(text: str) -> str:
    return _SPACING.sub("", text.strip().strip("$"))
