r"""Find the formulas in a text, and the value that a formula ends with: `x &= 2 + 3 \\ &= 5` -> `5`."""

from __future__ import annotations

import re

_ENVIRONMENT = r"(?:align(?:ed|at)?|equation|gather(?:ed)?|eqnarray|multline|flalign|split|displaymath|math)\*?"
FORMULA = re.compile(
    r"\$\$((?:[^$\\]|\\.)+)\$\$"
    # As in pandoc: a closing dollar has no space before it and no digit after it, so "$5 or $6" stays money.
    r"|(?<!\\)\$((?:[^\s$\\]|\\.)(?:(?:[^$\\]|\\.)*(?:[^\s$\\]|\\.))?)\$(?![0-9])"
    # With spaces next to the dollars, it is a formula only if no word is in it.
    r"|(?<!\\)\$\s((?:[^$\\A-Za-z]|\\[A-Za-z]+|\\.|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))+)\s\$(?![0-9])"
    r"|\\\((.+?)\\\)|\\\[(.+?)\\\]"
    rf"|(\\begin\{{{_ENVIRONMENT}\}}.+?\\end\{{{_ENVIRONMENT}\}})",
    re.S,
)
"""A formula with its delimiters. Only for texts of bounded length: after an opening delimiter it may search to the
end."""

_FRAME = re.compile(
    rf"\\(?:begin|end)\{{{_ENVIRONMENT}\}}(?:\{{[0-9]*\}})?|\\(?:label|tag)\{{[^{{}}]*\}}|\\(?:nonumber|notag)\b"
)
_ARROW = re.compile(r"\\(?:implies|Rightarrow|Longrightarrow)(?![A-Za-z])|[⇒⟹]")
_JOINT = re.compile(
    r"(?P<open>\\begin|\\?[{(\[])|(?P<close>\\end|\\?[})\]])"
    rf"|(?P<row>\\\\(?:\[[^\]\n]{{0,20}}\])?)|(?P<arrow>{_ARROW.pattern})"
    r"|(?P<about>\\approx(?![A-Za-z])|≈)|\\[A-Za-z]+|\\.|(?<![<>:])(?<![A-Za-z ]!)(?P<equals>=)",
    re.S,
)
_NAME = re.compile(r"[\s&]*[A-Za-z](?:_\{?\w\}?)?[\s.,;]*")
_EXACT = re.compile(r"\\(?:d?frac|sqrt|pi)|[√π]")
_SENTENCE_SIGNS = re.compile(r"(?<![.])[.,;]\Z")
_END = re.compile(r"(?:\s|\\\\|[,.;])+\Z")


def content(match: re.Match[str]) -> str:
    """Return the formula of a match of `FORMULA` without its delimiters; of several rows, the value they end with."""
    inner = next(group for group in match.groups() if group is not None)
    framed = _FRAME.sub(" ", inner)
    if framed != inner:
        framed = _END.sub("", framed)
        return right_side(framed) if "\\\\" in framed else _without_columns(framed)
    return _SENTENCE_SIGNS.sub("", _ARROW.split(inner)[-1].strip())


def right_side(formula: str) -> str:
    r"""Return the right side of the last equation in the last row: for `2x = 4 \implies x = 2` it is `2`.

    A rounded value after an exact one does not count: for `\frac{1}{3} \approx 0.33` it is `\frac{1}{3}`.
    """
    formula = _END.sub("", formula) if "\\\\" in formula else formula
    depth, before, start, end = 0, 0, 0, len(formula)
    for joint in _JOINT.finditer(formula):
        if joint["open"]:
            depth += 1
        elif joint["close"]:
            depth = max(0, depth - 1)
        elif depth == 0 and (joint["row"] or joint["arrow"] or joint["equals"] or joint["about"]):
            if joint["about"] and _is_exact(formula[start : joint.start()]):
                return _without_columns(formula[start : joint.start()])
            if formula[joint.end() :].strip():
                before, start, end = start, joint.end(), joint.start()
    if _NAME.fullmatch(formula, start):  # the equation is written the other way round, as in 20 = x
        start, formula = before, formula[:end]
    return _without_columns(formula[start:])


def _is_exact(value: str) -> bool:
    """Return True for a number that a decimal can only round."""
    return bool(_EXACT.search(value)) and not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", value))


def _without_columns(formula: str) -> str:
    """Return the formula without the `&` of its columns, which have a meaning only in a matrix or in cases."""
    plain = formula if r"\begin" in formula else formula.replace("&", " ")
    return plain.strip().rstrip(",;").rstrip()
