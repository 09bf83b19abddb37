r"""Write an answer in one LaTeX notation: `x² + ½`, `x**2 + 1/2` and `\textcolor{red}{x^2}+\tfrac12` come out the same.

It reads Unicode's signs, letters, powers and fractions; what people write without LaTeX (`sqrt(3)/2`, `2*pi`, `1e6`);
and commands that only change how a formula looks. It does not parse: its output goes to math-verify, which does.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata

_ROOT = "√"
"""Marks a root whose argument is not in braces yet."""

_SIGNS = {
    **dict.fromkeys("−‐‑﹣", "-"),
    **dict.fromkeys("×✕⨯", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("∕⁄", "/"),
    **dict.fromkeys("≤⩽≦", r"\le "),
    **dict.fromkeys("≥⩾≧", r"\ge "),
    **dict.fromkeys("°º˚", r"^\circ "),
    **dict.fromkeys("′’‘ʹ", "'"),
    **dict.fromkeys("″“”„", '"'),
    **{"∛": f"{_ROOT}[3]", "∜": f"{_ROOT}[4]", _ROOT: _ROOT},
    **{"÷": r"\div ", "∶": ":", "±": r"\pm ", "∓": r"\mp ", "≠": r"\neq ", "≈": r"\approx ", "∞": r"\infty "},
    **{"∈": r"\in ", "∉": r"\notin ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "∅": r"\emptyset "},
    **{"∧": r"\land ", "∨": r"\lor ", "⟨": r"\langle ", "⟩": r"\rangle ", "∠": r"\angle ", "△": r"\triangle "},
    **{letter: rf"\mathbb{{{plain}}} " for letter, plain in zip("ℝℤℕℚℂ", "RZNQC", strict=True)},
    **{"ℯ": "e", "ⅇ": "e", "ⅈ": "i", "。": ".", "،": ","},
}
_GREEK = {
    chr(code): "\\" + (name.capitalize() if "CAPITAL" in unicodedata.name(chr(code)) else name) + " "
    for code in (*range(0x391, 0x3AA), *range(0x3B1, 0x3CA))
    if (name := unicodedata.name(chr(code), "").rpartition(" ")[2].lower().replace("lamda", "lambda"))
    and code != 0x3C2  # the sigma at the end of a word
}
_SCRIPTS = {"<super>": "^", "<sub>": "_"}
_EN_DASH = re.compile(r"(?<![0-9A-Za-z)])–(?=\s?[0-9A-Za-z(.\\√∞])|(?<=\s)–(?=\s)|(?<=[A-Za-z)}])–(?=[A-Za-z0-9])")
"""A minus sign; between two numbers it would be a range."""

_SPACING = re.compile(
    r"(?<!\\)\\[!,;:> ]|~|\\\\$|\\(?:left|right)\s?\.|\\(?:math(?:rm|bf|it|sf|tt)|bm|boldsymbol)(?=\s+[0-9A-Za-z\\])"
    r"|\\(?:q?quad|left|right|middle|[bB]igg?[lrm]?|displaystyle|(?:script|text)style|limits"
    r"|nonumber|strut|(?:foot|normal)size|tiny|small|large|Large|LARGE|huge|Huge|bf|rm|it|sf|tt|cal|therefore)(?![A-Za-z])"
    r"|\\(?:[hv]space\*?|[hv]?phantom|tag\*?|label|color)\s?\{[^{}]*\}|(?<!\\)\\[()\[\]]"
    r"|<<[^<>]*>>|<\|[^|<>]*\|>"
)
_DRESS = re.compile(
    r"\\(?:(?:textcolor|colorbox|mathcolor|fcolorbox\s?\{[^{}]*\})\s?\{[^{}]*\}|text(?:bf|it|rm|sf|tt|sc|sl|up|md|normal)?|[mf]box|boxed"
    r"|math(?:rm|bf|it|sf|tt|cal|normal|ord|op|rel)|boldsymbol|bm|bold|pmb|emph|underline|uline|operatorname\*?"
    r"|ensuremath)\s?\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_MARKDOWN = re.compile(r"(\*{1,2}|__|`{1,3}|[\"])(.+)\1", re.S)
_THOUSANDS = re.compile(r",\s*\\!\s*|\{,\}")
_APOSTROPHES = re.compile(r"(?<=[0-9])'(?=[0-9]{3}(?![0-9]))")
_PRIMES = re.compile(r"\^\s?\{?\s?((?:\\prime\s?)+)\}?")
_COMMANDS = (
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])\s*|<="), r"\\le "),
    (re.compile(r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])\s*|>="), r"\\ge "),
    (re.compile(r"\\(?:neq|ne)(?![A-Za-z])\s*|!=|\\not\s?="), r"\\neq "),
    (re.compile(r"\\lt(?![A-Za-z])\s*"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])\s*"), ">"),
    (re.compile(r"\\(?:lor|vee)(?![A-Za-z])"), " or "),
    (re.compile(r"\\(?:land|wedge)(?![A-Za-z])"), " and "),
    (re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}"), r"\\frac{\1}{\2}"),
    (re.compile(r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}"), r"\\binom{\1}{\2}"),
)
_BARE_POWER = re.compile(r"\^\s?([+-]?[0-9]+(?:\.[0-9]+)?|-[A-Za-z])")
_SCIENTIFIC = re.compile(r"(?<![\w.\\^{])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE]([+-]?[0-9]{1,9})(?![\w^{]|\.[0-9])")
_TIMES_TEN = re.compile(r"(?<=[0-9])\s*[xX]\s*(?=10\s?\^)")
_WORD = r"(?<![A-Za-z\\])"
_CONSTANTS = re.compile(
    _WORD + r"(?:([Pp]i|theta|alpha|beta|gamma|delta|lambda|phi|omega|sigma|mu)|[Ii]nfinity|infty|inf|oo)(?![A-Za-z])"
)
_FUNCTIONS = re.compile(
    _WORD + r"(?:a|arc)?((?:sin|cos|tan|sec|csc|cot)h?|ln|log|exp)(?=\s*(?:[({\\^_0-9]|[A-Za-z](?![A-Za-z])))"
)
_SQRT = re.compile(_WORD + r"(?:sqrt|(cbrt))(?=\s*[({0-9A-Za-z\\])|\\sqrt(?=\s?[^\s{\[])")
_ABS = re.compile(_WORD + r"abs\(([^()]*)\)")
_ROOT_INDEX = re.compile(rf"(?<![\w)}}])\^\{{([0-9]+)\}}{_ROOT}")
_ROOT_OF = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|[A-Za-z]|\\[A-Za-z]+)")
_FRACTION = re.compile(r"\\[dtc]?frac(?![A-Za-z])\s?")
_TOPS = re.compile(r"([0-9A-Za-z])\s?([0-9A-Za-z]|(?=\{))|(\{[^{}]*\})\s?([0-9A-Za-z])")


@functools.lru_cache(maxsize=1024)
def plain(text: str) -> str:
    r"""Return `text` in one notation: LaTeX without dollar signs, spacing or styling, every fraction as `\frac{}{}`
    and every power as `^{}`."""
    if not text.isascii():
        text = _from_unicode(text)
    text = _undressed(text)
    text = _braced_fractions(" ".join(_from_plain(text).split()))
    return text if text.endswith("..") else text.rstrip(" .,;:")


def _from_unicode(text: str) -> str:
    text = _EN_DASH.sub("-", text)
    pieces = [_in_latex(kind, "".join(run)) for kind, run in itertools.groupby(text, _kind)]
    return _ROOT_INDEX.sub(rf"{_ROOT}[\1]", "".join(pieces))


def _kind(char: str) -> str:
    """Return `^` or `_` for a character that Unicode defines as a power or an index, else an empty text."""
    if char.isascii() or char in _SIGNS:
        return ""
    return _SCRIPTS.get(unicodedata.decomposition(char).partition(" ")[0], "")


def _in_latex(script: str, run: str) -> str:
    letters = "".join(_letter(char) for char in run)
    return f"{script}{{{letters}}}" if script else letters


def _letter(char: str) -> str:
    if char.isascii():
        return char
    if char in _SIGNS or char in _GREEK:
        return _SIGNS.get(char) or _GREEK[char]
    flat = unicodedata.normalize("NFKC", char)
    top, slash, bottom = flat.partition("⁄")
    if slash:
        return rf"\frac{{{top}}}{{{bottom}}}" if bottom else f"{top}/"
    return "".join(_SIGNS.get(c) or _GREEK.get(c, c) for c in flat)


def _undressed(text: str) -> str:
    text = text.replace(r"\$", "").replace("$", "").strip()
    if markdown := _MARKDOWN.fullmatch(text):
        text = markdown[2].strip()
    text = _APOSTROPHES.sub("", text) if "'" in text else text
    if "\\" in text or "<" in text or "~" in text or "{" in text:
        text = _THOUSANDS.sub(",", text)
        text = _PRIMES.sub(lambda match: "'" * match[1].count("prime"), text)
        text = _SPACING.sub(" ", text)
        # From the inside out; four levels are more than answers have, and a hostile text cannot ask for more.
        for _ in range(4):
            bare = _DRESS.sub(r" \1 ", text)
            if bare == text:
                break
            text = bare
    for pattern, written in _COMMANDS:
        text = pattern.sub(written, text)
    text = text.strip()
    while text.startswith("{") and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _from_plain(text: str) -> str:
    text = text.replace("**", "^")
    text = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
    text = _TIMES_TEN.sub(r" \\times ", text)
    text = _CONSTANTS.sub(lambda match: f"\\{match[1].lower()} " if match[1] else r"\infty ", text)
    text = _FUNCTIONS.sub(_function, text)
    text = _SQRT.sub(lambda match: f"{_ROOT}[3]" if match[1] else _ROOT, text)
    text = _ABS.sub(r"|\1|", text)
    text = _BARE_POWER.sub(r"^{\1}", text)
    text = _braced(text, "^", "^") if "^(" in text else text
    return _braced(text, _ROOT, r"\sqrt") if _ROOT in text else text


def _function(match: re.Match[str]) -> str:
    return rf"\arc{match[1]}" if match[0].startswith("a") else rf"\{match[1]}"


def _braced(text: str, mark: str, command: str) -> str:
    """Return the text with every `mark` and its argument, `(x+1)` or `12`, written as `command{x+1}`."""
    pieces: list[str] = []
    position = 0
    while (at := text.find(mark, position)) >= 0:
        pieces.append(text[position:at] + command)
        position = at + len(mark)
        if index := re.compile(r"\[[0-9]+\]").match(text, position):
            pieces.append(index[0])
            position = index.end()
        start = position + len(text[position:]) - len(text[position:].lstrip())
        if text.startswith("(", start) and (end := _closing(text, start)) > 0:
            text = f"{text[:start]}{{{text[start + 1 : end]}}}{text[end + 1 :]}"
        elif of := _ROOT_OF.match(text, position):
            pieces.append(f"{{{of[1]}}}")
            position = of.end()
    return "".join(pieces) + text[position:]


def _closing(text: str, start: int) -> int:
    """Return the position of the bracket that closes the one at `start`; -1 where there is none."""
    depth, close = 0, {"(": ")", "{": "}"}[text[start]]
    for place in range(start, len(text)):
        if text[place] in (text[start], close) and text[place - 1 : place] != "\\":
            depth += 1 if text[place] == text[start] else -1
            if depth == 0:
                return place
    return -1


def _braced_fractions(text: str) -> str:
    r"""Write `\dfrac12` and `\frac{1}2` as `\frac{1}{2}`."""
    pieces: list[str] = []
    position = 0
    for match in _FRACTION.finditer(text):
        pieces.append(text[position : match.start()] + r"\frac")
        position = match.end()
        if tops := _TOPS.match(text, position):
            top, bottom = (f"{{{tops[1]}}}", tops[2]) if tops[1] else (tops[3], tops[4])
            pieces.append(top + (f"{{{bottom}}}" if bottom else ""))
            position = tops.end()
    return "".join(pieces) + text[position:]
