r"""Find the final answer in an answer text.

In order of trust: the last `\boxed{...}`, the last `#### x`, the last "Answer: x", "answer is x" or "x is the answer",
a text that is nothing but a formula or a word, and as a last resort the value stated by the last sentence that has one
(`mass.verify.prose`). A sentence may also follow a mark. Every pass is linear in the length of the text: a model's text
can be huge, deeply nested or noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mass.verify import prose
from mass.verify.boxes import boxed
from mass.verify.formulas import FORMULA, content

MAX_ANSWER_CHARS = 1000
"""At most this many characters are read after a mark; anything longer is no final answer."""

MAX_BARE_CHARS = 200

MAX_MARKS = 40
"""At most this many marks are read, from the last one back: a text with no answer after any of them has none."""

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Full-width letters, digits and signs, as in "答案：Ｃ", with the ASCII ones that they stand for."""

_FULL = re.compile("[\uff01-\uff5e]")
_HASHES = re.compile(r"####[ \t]*([^\n]{1,1000})")
_HEADING = re.compile(
    r"[\s*_\d.)]*(?:step|part|case|solution|conclusion|verification|explanation|calculation|approach|method|summary"
    r"|reasoning|result|note|(?:the )?(?:final |correct )?answer)\b",
    re.I,
)
_NOUNS = (
    *("answer", "respuesta", "resposta", "risposta", "réponse", "reponse", "antwort", "antwoord", "svar", "odpowiedź"),
    *("odpověď", "ответ", "cevap", "yanıt", "jawaban", "đáp án", "答案", "答え", "正解", "回答", "정답", "답", "उत्तर"),
    *("الجواب", "الإجابة"),
)
_ASCII_NOUNS = tuple(noun for noun in _NOUNS if noun.isascii())
_SIGN = r"[:=→⇒]|[-=]>|[—–-](?=\s)|应该?是|應該是|是|应?为|為|は|은|는|\s?\n"
_VERB = (
    r"(?:(?:is|are|was)(?![^\W\d_])|(?:(?:w|sh|c)ould|must|will|may|might|has to|have to"
    r"|(?:seems?|appears?|turns? out) to) be"
    r"|comes? (?:out )?(?:to be|to|as)|equals?|becomes|es|est|ist|è|é|jest|adalah|là)(?![^\W\d_])"
)
_BETWEEN = r"[\s*_`\"')\]]{0,8}(?:\([^()\n]{0,40}\)[\s*_]{0,4})?"
_MARK = re.compile(
    rf"<answer>|(?<![A-Za-z/])(?:{'|'.join(_NOUNS)})s?(?![A-Za-z])"
    rf"(?:{_BETWEEN}(?:{_SIGN})|(?!\s(?:choice|option|key)s?\b)[^\n.:;!?$=]{{0,60}}?(?<![^\W\d_]){_VERB})",
    re.I,
)
_IS_THE_ANSWER = re.compile(
    r"\b(?:is|are|must be|will be|would be)\s(?:therefore\s|thus\s|then\s)?(?:the|our|my|your)"
    r"\s(?:[a-z]+\s){0,2}answer\b",
    re.I,
)
_PAUSE = re.compile(r"[.!?;:,]\s")
_PRONOUN = re.compile(r"\b(?:that|this|it|which|what|here|there)\b", re.I)
_OPENING = re.compile(
    r"\A(?:[\s*_`:}]|=(?!=)|(?:therefore|thus|hence|so|then|now|indeed|simply|just|exactly|precisely|clearly|again|also|still"
    r"|definitely|approximately|approx\.?|about|around|roughly|nearly|probably|likely|equal to|that)\b[,:]?(?=\s)"
    r"|[~≈](?=\s?[0-9$]))*",
    re.I,
)
_NO_ANSWER = re.compile(
    r"(?:not\s)?(?:correct|incorrect|wrong|right[.,;!\s]*$|reasonable|consistent|verified|(?:as )?follows|given|shown"
    r"|stated|below|above|found|obtained|derived|in the (?:form|box)|let['’]?s|let us|to (?:find|solve|determine)|we\b"
    r"|you\b|first,)",
    re.I,
)
_NOT = re.compile(r"n['’]t\b|not\b", re.I)
_BUT = re.compile(r"\b(?:but(?: rather)?|it['’]s|it is|rather)\b[\s:,]*", re.I)
_SENTENCE_END = re.compile(
    r"(?<!\b(?:Mr|Ms|Dr|Rs|No|St|vs|sq|cu))(?<!\bMrs)(?<!\b[ap]\.m)(?<!\bapprox)\.(?=\s)|\?(?=\s)|[。！？]"
    r"|<\||</|\s(?:because|since)\b|,\s(?:which|so|not|as|where)\b|\s(?:out of|rather than|instead of)\b"
)
_REMARK = re.compile(r"\s\((?!mod|base)([^()\n]{1,300})\)")
_REMARKED = re.compile(r"(?:[0-9$*%!°]|(?<![\\A-Za-z])[A-Za-z]{2,20})\Z")
_LATEX_WORD = re.compile(
    r"\\(?:begin|end|text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname)\s?\{[^{}]*\}|\\[A-Za-z]+"
)
_FUNCTION = re.compile(r"\b(?:sqrt|cbrt|sin|cos|tan|log|ln|exp|pi|mod|base|and|or|infinity|max|min)\b")
_MEANT = re.compile(
    r"\\|[=<>^]|\b(?:and|or|than|times|by|minus|plus|over|to|per|divided|squared|cubed|factorial|of|base|mod|mol|power|root)\b"
)
"""Words and signs after a number that may make another value of it."""
_LABEL = re.compile(
    r"[\s*]*(?:[A-Za-z][\w ']{0,40}[:=]"
    r"|(?:USD|EUR|GBP|INR|CAD|AUD|US|Rs\.?|only|it['’]s|that['’]s|there['’]s)(?=[\s$]))"
)
_ALPHANUMERIC = re.compile(r"[^\W_]|\\[A-Za-z{]")
_UNREAD = re.compile(r"####|box|answer", re.I)
"""Marks: a text that has one, but no answer at it that could be read, is not a bare answer."""
_A_LETTER = r"[^\W\d_²³¹⁰-ₜ¼-¾⅐-↋]"
"""A letter. Raised and lowered digits and one-character fractions count as letters in Unicode, but not here."""
_WORD = re.compile(rf"{_A_LETTER}{{2,}}")
_CALLED = re.compile(
    r"(?<![A-Za-z])(?:sqrt|cbrt|exp|ln|lo?g|(?:a|arc)?(?:sin|cos|tan|cot|sec|csc)h?|pi|inf(?:inity)?|max|min|gcd|lcm|abs|"
    r"floor|ceil|binom|mod)(?![A-Za-z])"
)
"""Names of functions and constants that stand in a formula without a backslash."""
_TWO_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s(?:[A-Za-z]{2,}|[0-9$])")
_LETTER = re.compile(_A_LETTER)
_TEXT = re.compile(r"\\(?:text|textbf|mbox|mathrm)\s?\{([^{}]*)\}")
_EMPHASIS = re.compile(r"(\*{1,3}|__|`)(?=\S)(.*\S)\1", re.S)
_STRAY = re.compile(r"\*\*(?![\w(])|(?<![\w)])\*\*|`")
_VALUE_ENDS = (*"0123456789π∞√½⅓⅔¼¾$", r"\)", r"\]", r"\end{")
_DISPLAY = re.compile(r"\$\$|\\\[|\\begin")
_AFTER = ".,;:。 ✅✔☑\ufe0f"
_ITEM = re.compile(r"\A([\s>#*]{0,8})(?:[-•+*]|[0-9]{1,3}[.)])\s+(?=\S)")
_ASIDE = re.compile(r"[\s*_(]*(?:note|check|to (?:check|verify)|verification|this is (?:because|since)|i hope)\b", re.I)
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z*$]|\\[(\[])|(?<=[.!?]\$)\s+(?=[A-Z])|(?<=\\\))\s*(?=[A-Z])")


@dataclass(frozen=True)
class FoundAnswer:
    """A final answer and where it was found."""

    text: str
    how: str
    """The place where it was found: 'boxed', '####', 'answer is', 'whole text', 'last formula' or 'last number'."""
    number: str = ""
    """The number alone, where the answer is a number with a unit that was read out of a sentence; else empty."""


def final_answer(text: str) -> str | None:
    """Return the final answer in `text`, or None."""
    found = find(text)
    return found.text if found else None


def find(text: str) -> FoundAnswer | None:
    """Return the final answer in `text` with the place where it was found, or None."""
    text = settled(text)
    if box := boxed(text):
        return _in_box(box)
    for how, search in (("####", after_hashes), ("answer is", after_marks)):
        for phrase in search(text):
            if found := _in_mark(phrase, how):
                return found
    if whole := _whole(text):
        return FoundAnswer(whole, "whole text")
    return _last(text)


def settled(text: str) -> str:
    """Return the text after the model's thinking, where that is marked, with full-width characters as ASCII."""
    text = text.rpartition("</think>")[2] or text
    return text.translate(_FULL_WIDTH) if not text.isascii() and _FULL.search(text) else text


def after_hashes(text: str) -> Iterator[str]:
    """Yield the text after each `####`, from the last one back. Headings are skipped."""
    for match in reversed(list(_HASHES.finditer(text))[-MAX_MARKS:]):
        if not _HEADING.match(match[1]):
            yield match[1]


def after_marks(text: str) -> Iterator[str]:
    """Yield the text at each mark, from the last one back.

    It is the text after "Answer:" or "the answer is", or before "is the answer": to the end of its line, or a whole
    formula.
    """
    lowered = text.lower()
    nouns = _ASCII_NOUNS if text.isascii() else _NOUNS
    places = [place for noun in nouns if (place := lowered.find(noun)) >= 0]
    if not places:
        return
    # Finding the first noun first is many times faster than searching for marks from the beginning.
    first = max(0, min(places) - 1) if len(lowered) == len(text) else 0
    marks = [*_MARK.finditer(text, first)]
    # The second search is needed only where a noun is left that no mark has explained.
    if lowered.count("answer") > len(marks):
        marks += _IS_THE_ANSWER.finditer(text, max(0, first - 60))
    for mark in sorted(marks, key=lambda match: match.start(), reverse=True)[:MAX_MARKS]:
        if mark.re is _IS_THE_ANSWER:
            before = text[max(0, mark.start() - MAX_BARE_CHARS) : mark.start()].rpartition("\n")[2]
            before = _PAUSE.split(before)[-1]
            # "That is the answer" names no value.
            if not _PRONOUN.search(before):
                yield _OPENING.sub("", before, count=1)
            continue
        after = text[mark.end() : mark.end() + MAX_ANSWER_CHARS].lstrip()
        after = _affirmed(_OPENING.sub("", after, count=1))
        formula = FORMULA.match(after)
        line = (
            after[: formula.end() if formula else 0]
            + after[formula.end() if formula else 0 :].partition("\n")[0].partition("</")[0]
        )
        if not _NO_ANSWER.match(line):
            yield line


def _affirmed(after: str) -> str:
    """Return "6" for "not 5 but 6", and all of the text where nothing replaces what is denied."""
    if _NOT.match(after) and (but := _BUT.search(after, 0, MAX_BARE_CHARS)):
        return after[but.end() :]
    return after


def _in_mark(phrase: str, how: str) -> FoundAnswer | None:
    """Return the answer at a mark: its formula, its value where it is a sentence, else all of it."""
    # The quick way for most answers: a value without words needs no reading.
    if not _LETTER.search(phrase) and "$" not in phrase and "(" not in phrase and ";" not in phrase:
        answer = _tidy(_STRAY.sub("", phrase))
        return FoundAnswer(answer, how) if answer else None
    formula = FORMULA.match(phrase)
    if formula and not (_LETTER.search(phrase, formula.end()) or "$" in phrase[formula.end() :]):
        return FoundAnswer(content(formula), how)
    phrase = _clause(phrase)
    if value := prose.leading(phrase) if formula else _in_sentence(phrase):
        return FoundAnswer(value.text, how, value.number)
    answer = content(formula) if formula else _tidy(phrase)
    return FoundAnswer(answer, how) if answer else None


def _in_box(box: str) -> FoundAnswer:
    r"""Return the content of a box, without emphasis and dollar signs; of a sentence, the value it states.

    Examples: `\boxed{**7**}`, `\boxed{\text{There are 7 apples}}`.
    """
    if emphasised := _EMPHASIS.fullmatch(box):
        box = emphasised[2]
    box = _without_dollars(box)
    words = _TEXT.fullmatch(box)
    value = _in_sentence(words[1] if words else box) if _TWO_WORDS.search(box) else None
    return FoundAnswer(value.text, "boxed", value.number) if value else FoundAnswer(box, "boxed")


def _clause(phrase: str) -> str:
    """Return the phrase up to the end of its sentence, or to the reason or the remark after the answer."""
    phrase = _STRAY.sub("", _SENTENCE_END.split(phrase, maxsplit=1)[0])
    for remark in _REMARK.finditer(phrase):
        worded = _WORD.search(remark[1]) and "\\" not in remark[1]
        if _REMARKED.search(phrase, 0, remark.start()) and (worded or not _LETTER.search(remark[1])):
            phrase = phrase[: remark.start()]
            break
    head, _, tail = phrase.partition("; ")
    return head if "=" not in head and ("=" in tail or _WORD.search(tail)) else phrase


def _in_sentence(phrase: str) -> prose.Value | None:
    """Return the value stated among the words of a sentence; None where the phrase is itself a value (`3 apples`) or
    a name (`Team 3`)."""
    if not _WORD.search(phrase):
        return None
    if value := prose.leading(phrase):
        after = phrase[value.end :]
        # One word after a number is its unit ("3 apples"); several, with no other value among them, tell a story.
        told = len(_WORD.findall(after)) > 1 and not _MEANT.search(after) and len(prose.values(phrase)) == 1
        return value if told else None
    value = prose.stated(phrase)
    words = _WORD.findall(_FUNCTION.sub(" ", _LATEX_WORD.sub(" ", phrase[: value.start]))) if value else []
    return value if len(words) > 1 or (words and _LABEL.match(phrase)) else None


def _whole(text: str) -> str:
    r"""Return all of a text that is one short line without words (except in `\text{}`), or one word alone; else
    nothing."""
    value = _tidy(text.strip()[: MAX_BARE_CHARS + 1])
    if len(value) > MAX_BARE_CHARS or "\n" in value or not _ALPHANUMERIC.search(value) or _UNREAD.search(value):
        return ""
    if _WORD.search(_CALLED.sub(" ", _LATEX_WORD.sub(" ", value))) and not value.isalpha():
        return ""
    left, equals, right = value.rpartition("=")
    return right.strip() if equals and not _LETTER.search(_LATEX_WORD.sub(" ", left)) else value


def _last(text: str) -> FoundAnswer | None:
    """Return the value stated by the last line that has one; notes and checks come after all other lines."""
    end = max(text.rfind(sign) for sign in _VALUE_ENDS) + 2
    # A bounded window before the last sign that can end a value keeps the work linear in a huge text.
    window = text[max(0, end - prose.MAX_CHARS) : end + MAX_BARE_CHARS]
    if _DISPLAY.search(window):
        window = FORMULA.sub(lambda formula: rf"\({content(formula)}\)".replace("\n", " "), window)
    value = next(filter(None, map(_in_line, _latest(window.split("\n")))), None)
    if value is None:
        return None
    return FoundAnswer(value.text, "last number" if value.number[:1].isdigit() else "last formula", value.number)


def _latest(parts: Sequence[str]) -> list[str]:
    """Return the parts from the last one back, with notes and checks after the rest."""
    return sorted(parts, key=lambda part: not _ASIDE.match(part))[::-1]


def _in_line(line: str) -> prose.Value | None:
    """Return the emphasised value in `line`, else the value of its last sentence that states one."""
    line = _ITEM.sub(r"\1", line)
    if "**" in line:
        return prose.stated(line)
    last = None
    for value in map(prose.stated, _latest(_SENTENCES.split(line))):
        if value and not value.side:
            return value
        last = last or value
    return last


def _tidy(value: str) -> str:
    """Return the value without emphasis, surrounding dollar signs and final punctuation ("!" stays: it may be a
    factorial)."""
    value = value.rstrip().removesuffix("$") if value.count("$") == 1 else value
    return _without_dollars(value.strip().strip("*_` ").rstrip(_AFTER).strip("*_` "))


def _without_dollars(value: str) -> str:
    formula = FORMULA.fullmatch(value) if len(value) <= MAX_ANSWER_CHARS else None
    return content(formula) if formula else value
