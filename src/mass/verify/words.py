"""Judge answers that are words or brackets: yes, invalid, a list of words, `] ) >`.

Two answers are equal when they have the same words in the same order. Capitals, emphasis and punctuation do not count,
nor does "and" in a list. For answers of brackets alone, the brackets count and nothing else may stand among them.

The answer is the content of the last box, or the text after the last `####` or the last "answer is". Without such a
mark it is all of the text, its last paragraph or line, or the text after its last colon. For yes and no, true and
false, valid and invalid, an answer may be a sentence: the word that it begins with counts, else the last one in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from mass.types import Task, Verdict
from mass.verify.exact import verdict
from mass.verify.extract import FoundAnswer, boxed

MAX_DRESS_CHARS = 1000
"""A text that is longer than the gold by this much is not the gold in other formatting."""

_OPPOSITES = (("yes", "no"), ("true", "false"), ("valid", "invalid"))
_WORD = re.compile(r"(?:(?<!\S)-(?=[0-9]))?[^\W_]+(?:['./-][^\W_]+)*")
_COMMAND = re.compile(r"\\[a-z]+")
_SIGN = re.compile(r"[^\W_]+|[^\w\s\\*`$.,;:'\"]")
_BOX_OF_SIGNS = re.compile(r"\\f?box(?:ed)?\s{0,4}\{([^\w$\n]{1,1000})\}")
r"""A box whose braces need not pair: `\boxed{} )}` holds a brace and a bracket."""
_MARK = re.compile(r"\banswer\b[\s*_]{0,8}(?:is\b|:)[\s*_:]{0,8}([^\n]{1,1000})", re.I)
_HASHES = re.compile(r"####[ \t]*([^\n]{1,1000})")
_DRESS = re.compile(r"\\(?:text\w*|math(?:rm|bf|tt)|operatorname)\s?\{(.{0,1000})\}", re.S)
_ITEM = re.compile(r"^[ \t]*(?:[0-9]{1,3}[.)]|[-*•])[ \t]+", re.M)
_SOMETHING = re.compile(r"[^\s\\*_`$.,;:'\"]")
_SENTENCE_END = re.compile(r"\.\s|\s(?:because|since)\b")
_BEFORE_NOT = r"(?:\bnot|n't)\s+(?:[a-z]+ly\s+)?"


def check(task: Task, text: str) -> Verdict:
    """Judge the final answer of `text`: it must have the words of the task's answer, or its brackets."""
    gold = _tokens(task.answer, signs=False)
    signs = not gold
    gold = gold or _tokens(task.answer, signs=True)
    if not gold:
        return Verdict(None, f"the task's answer {task.answer[:40]!r} has neither words nor brackets")
    pair = next((pair for pair in _OPPOSITES if gold[0] in pair), None) if len(gold) == 1 else None
    readings = [found for found in _readings(text, signs=signs) if _SOMETHING.search(found.text)]
    if not readings:
        return Verdict(False, "no answer found in the text")
    if pair:
        return _settled(readings[0], pair, gold[0])
    short = [found for found in readings if len(found.text) <= MAX_DRESS_CHARS + 4 * len(task.answer)]
    equal = next((found for found in short if _same(_tokens(found.text, signs=signs), gold)), None)
    return verdict(equal is not None, equal or readings[0], task.answer)


def _readings(text: str, *, signs: bool) -> Iterator[FoundAnswer]:
    """Yield the places where the answer may stand, all of them behind the most trusted mark."""
    box = next(reversed(_BOX_OF_SIGNS.findall(text)), "") if signs else ""
    if box := box or boxed(text):
        yield FoundAnswer(box, "boxed")
        return
    for how, mark in (("####", _HASHES), ("answer is", _MARK)):
        last = None
        for last in mark.finditer(text):  # noqa: B007
            pass
        if last:
            yield FoundAnswer(last[1], how)
            yield FoundAnswer(_SENTENCE_END.split(last[1], maxsplit=1)[0], how)
            yield FoundAnswer(_ITEM.sub("", text[last.start(1) :]), how)  # a list, one to a line
            return
    text = _ITEM.sub("", text.strip())
    yield FoundAnswer(text, "whole text")
    yield FoundAnswer(text.rpartition("\n\n")[2], "last paragraph")
    yield FoundAnswer(text.rpartition("\n")[2], "last line")
    yield FoundAnswer(text.rpartition(":")[2], "last part")


def _tokens(text: str, *, signs: bool) -> list[str]:
    """Return the words of a text in lower case; with `signs`, also brackets and all other signs that count."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    text = _DRESS.sub(r" \1 ", text)
    return _SIGN.findall(text) if signs else _WORD.findall(_COMMAND.sub(" ", text).replace("&", " and "))


def _same(tokens: list[str], gold: list[str]) -> bool:
    return tokens == gold or ("and" not in gold and [token for token in tokens if token != "and"] == gold)


def _settled(found: FoundAnswer, pair: tuple[str, str], gold: str) -> Verdict:
    side = _side(found.text, pair)
    if side is None:
        return Verdict(False, f"neither {pair[0]} nor {pair[1]} found in the answer", found.text[:200])
    return verdict(side == gold, FoundAnswer(side, found.how), gold)


def _side(text: str, pair: tuple[str, str]) -> str | None:
    """Return the word of the pair that a text settles on: the one it begins with, else the last one in it, which
    "not" reverses."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'").split())
    one, other = pair
    first = re.match(rf"(?:[^\w\\]|\\text\w*|\\math\w+)*({one}|{other})(?=\W*$|\s*[^\w\s])", text)
    if first:
        return first[1]
    # "no" counts only before punctuation or at the end: it begins many phrases.
    stop = r"\b(?=\W*$|\s*[^\w\s])" if "no" in pair else r"\b"
    last = re.findall(rf"({_BEFORE_NOT})?\b({one}|{other}){stop}", text)
    if not last:
        return None
    denied, word = last[-1]
    return word if not denied else one if word == other else other


def ballot(text: str) -> str | None:
    """Return the final answer for a vote, where no gold is known; None where there is none.

    Two texts give the same answer if their ballots are equal.
    """
    found = [one for one in _readings(text, signs=True) if _SOMETHING.search(one.text)]
    if not found:
        return None
    answer = found[0].text
    if found[0].how == "whole text":
        last = answer.rpartition("\n\n")[2].strip(" :*")
        answer = last.rpartition(":")[2]
    elif len(found) > 1:  # a list, one to a line, or the sentence
        answer = found[-1 if _ITEM.match(answer) else 1].text
    sides = [side for pair in _OPPOSITES if (side := _side(answer, pair))]
    words = [word for word in _tokens(answer, signs=False) if word != "and"]
    return sides[0] if len(sides) == 1 else " ".join(words or _tokens(answer, signs=True))
