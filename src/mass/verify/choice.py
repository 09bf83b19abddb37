r"""Judge a multiple-choice answer by the letter that the text settles on.

In order of trust: the content of a mark (`\boxed{C}`, `#### C`, "Answer: C"), as a letter or in the words of one
option; a short text that is nothing else; the last sentence that chooses ("Option C is correct", "so C.", "I would pick
C"); the last letter in brackets or at the start of a line that is not part of a list of options. Two letters ("A or C")
choose nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

from mass.types import Task, Verdict
from mass.verify.boxes import boxed
from mass.verify.exact import shorten
from mass.verify.extract import after_hashes, after_marks, settled

MAX_MENTIONS = 200
"""At most this many letters are examined, from the last one back."""

MAX_PHRASE_CHARS = 300

# Signs and words that may stand around a letter.
_OPEN = r"(?:\\(?:text|textbf|mathrm|mathbf|mathsf|rm)\s?\{?|[\s(\[{<*_`$\"'“:]){0,12}"
_NAMED = rf"(?:(?P<named>option|choice|letter|alternative|statement|answer)\b{_OPEN})?"
_CLOSE = r"[)\]}>*_`$\"'”]{0,8}"
# The letter does not begin a word and is not a name in a formula.
# (In Chinese and Japanese a word may follow at once.)
_ALONE = r"(?![A-Za-z0-9_\u00c0-\u024f\u0400-\u04ff'’^])(?!\s?[=+*/^<>≤≥×])"
# "A" and "I" are also words: followed by a small word they count only where a reason follows.
_NO_WORD = r"(?!(?<=[AI])\s+(?!because\b|since\b|as\b|is\b)[a-z])"
_LEADING = re.compile(rf"{_OPEN}{_NAMED}([A-Z]){_CLOSE}{_ALONE}{_NO_WORD}", re.I)
_MENTION = re.compile(rf"(?<![A-Za-z0-9\u00c0-\u024f])([A-Z]|(?:(?<=[Oo]ption )|(?<=[Cc]hoice ))[a-z]){_CLOSE}{_ALONE}")
_JOINT = r"\s?(?:,\s?(?:and|or)\b|,|/|&|\band\b|\bor\b)\s?"
_MORE = re.compile(rf"{_JOINT}(?:both\s)?{_OPEN}(?:option|choice)?{_OPEN}[A-Z]{_CLOSE}(?![\w'’])")
_MORE_BEFORE = re.compile(rf"(?<![^\W_])[A-Z]{_CLOSE}{_JOINT}(?:option|choice)?{_OPEN}\Z")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm)\s?\{([^{}]*)\}")
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")
_STANDING = re.compile(r"\(([A-Z])\)|^[\s*_(]{0,8}([A-Z])(?:[.):*_]{1,4}(?=\s|$)|[ \t]{0,8}$)", re.M)
_LISTED = re.compile(r"^(?:([A-Z])\.|\(([A-Z])\)) ", re.M)
_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]+(\S.*)$", re.M)

_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|if|whether|unless|suppose|assum(?:e|ing)|except|instead of|rather than|than"
    rf"|rule out|eliminate)|n['’]t)(?:\s(?:be|that|the|is|it))*{_OPEN}{_NAMED}\Z",
    re.I,
)
_DENIED_AFTER = re.compile(
    r"\s(?:(?:is|are|was|were|seems|looks|can|could|would|does|must)(?:\s(?:clearly|obviously|also|simply|therefore))*"
    r"(?:\snot\b|n['’]t\b|\s(?:wrong|incorrect|false|invalid|impossible|out|eliminated)\b)|cannot\b)",
    re.I,
)
_GOOD_AFTER = re.compile(
    r"\s(?:is|must be|would be|should be|has to be|seems|looks|appears)"
    r"(?:\s(?:to be|the|my|our|an?|most|only|best|single|clearly|indeed|definitely|therefore|thus))*"
    r"\s(?:correct|right|true|best|answer|appropriate|likely|accurate|valid|suitable|choice)(?![\w'’])",
    re.I,
)
_CHOSEN_BEFORE = re.compile(
    r"(?:\b(?:correct|right|best|true|final|appropriate|accurate|likely|suitable|my|our|chosen)"
    r"\s(?:option|choice|statement|letter|one|alternative|selection|pick|guess)(?:\s(?:here|is|would|must|should|be))*"
    r"|\bthe (?:option|choice|letter) (?:is|would be|must be)"
    r"|\b(?:pick|picking|choose|choosing|select|selecting|(?:go|going|stick) with|(?:go|vote|opt) for"
    r"|settle on|say|guess)"
    r"|\b(?:therefore|thus|hence|so|then|consequently|accordingly|in conclusion|finally|leaves|leaving)[,:]?"
    r"(?: it is| it must be| it['’]s| we (?:get|have)| us with| only)?"
    r"|\bit(?:['’]s| is| must be| has to be| should be)|选择?|[选是]项?|故)"
    rf"(?:\sthe)?{_OPEN}{_NAMED}\Z",
    re.I,
)
_ENDED = re.compile(r"\s{0,4}(?:[.!?;,:。，—–-]|\Z|\n|(?:because|since|as|it is|here|for|from|based|due)\b)")
_REASON = re.compile(r"\s(?:because|since)\b")


def check(task: Task, text: str) -> Verdict:
    """Judge the letter chosen in `text` against `task.answer`."""
    gold = task.answer.strip().strip("().").upper()
    options = _options(task.problem)
    last = max("J", *options)
    if not ("A" <= gold <= last and len(gold) == 1):
        return Verdict(None, f"the task's answer {shorten(task.answer)!r} is not a letter A to {last}")
    letter, note = _letter(settled(text), options)
    if not "A" <= letter <= last:
        return Verdict(False, f"no letter A to {last} found in the text")
    return Verdict(letter == gold, f"{letter} is {'' if letter == gold else 'not '}{gold}{note}", letter)


@lru_cache(maxsize=1024)
def _options(problem: str) -> Mapping[str, str]:
    """Return the options that `problem` lists, letter -> text."""
    texts = {match[1]: match[2] for match in _OPTION.finditer(problem)}
    return {letter: texts.get(letter, "") for letter in listed(problem)}


def _letter(text: str, options: Mapping[str, str]) -> tuple[str, str]:
    """Return the letter that the text settles on, empty where there is none, and a note on where it was found."""
    for phrase in _phrases(text):
        if (letter := _read(phrase, options)) is not None:
            return letter, ""
    note = "; no marked answer, the last letter "
    if letter := _chosen(text):
        return letter, f"{note}that is chosen was taken"
    return _standing(text), f"{note}standing alone was taken"


def _phrases(text: str) -> Iterator[str]:
    """Yield the contents of the marks, the most trusted first, then a text of one line."""
    if box := boxed(text):
        yield box
    yield from after_hashes(text)
    yield from after_marks(text)
    line = text.strip()
    letter = _LEADING.match(line)
    if "\n" not in line and len(line) <= MAX_PHRASE_CHARS and not (letter and not _ENDED.match(line, letter.end())):
        yield line


def _read(phrase: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that `phrase` begins with, or that it names in brackets or in the words of an option.

    Returns:
        An empty text where it names two letters, None where it names none.
    """
    phrase = phrase[:MAX_PHRASE_CHARS]
    match = _LEADING.match(phrase)
    # A small letter counts only alone, or as "option b": "a" opens many sentences.
    if match and (match[2].isupper() or match["named"] or not phrase[match.end() :].strip(" .)]}*_`$\"'")):
        return "" if _MORE.match(phrase, match.end()) else match[2].upper()
    same = [letter for letter, words in options.items() if _plain(words) == _plain(phrase)]
    named = same or list(dict.fromkeys(_IN_BRACKETS.findall(phrase)))
    return named[0] if len(named) == 1 else None


def _plain(words: str) -> str:
    """Return the words without case, surrounding signs, and an article at the beginning."""
    plain = " ".join(_TEXT.sub(r"\1", words).casefold().split()).strip(" .,;:*_`$\"'“”")
    return re.sub(r"\A(?:the|an?) ", "", plain)


def _chosen(text: str) -> str:
    """Return the last letter that a sentence chooses."""
    for mention in reversed(list(_MENTION.finditer(text))[-MAX_MENTIONS:]):
        before = text[max(0, mention.start() - 80) : mention.start()]
        if _is_denied(text, mention, before):
            continue
        # "A or C" settles on nothing, so neither of the two counts.
        if _MORE.match(text, mention.end()) or _MORE_BEFORE.search(before):
            continue
        reasoned = not before.rpartition("\n")[2].strip() and _REASON.match(text, mention.end())
        chosen = _CHOSEN_BEFORE.search(before) and _ENDED.match(text, mention.end())
        if reasoned or chosen or _GOOD_AFTER.match(text, mention.end()):
            return mention[1].upper()
    return ""


def _is_denied(text: str, mention: re.Match[str], before: str) -> bool:
    return bool(_DENIED_BEFORE.search(before) or _DENIED_AFTER.match(text, mention.end()))


def _standing(text: str) -> str:
    """Return the last letter in brackets or at the start of a line, except in lists of options and where it is
    denied."""
    found = list(_STANDING.finditer(text))[-MAX_MENTIONS:]
    while found:
        match = found.pop()
        letter = match[1] or match[2]
        before = text[max(0, match.start() - 80) : match.start()]
        # Lines A, B, C, … are the options again: skip the whole run.
        if match[2] and found and found[-1][2] == chr(ord(letter) - 1):
            while found and found[-1][2] == chr(ord(letter) - 1):
                letter = found.pop()[2]
        elif not _is_denied(text, match, before):
            return letter
    return ""


def listed(problem: str) -> list[str]:
    """Return the letters of the choices that the problem lists: its last run of lines that begin with A, B and so
    on."""
    found: list[str] = []
    for letter in (dotted or bracketed for dotted, bracketed in _LISTED.findall(problem)):
        if letter == "A":
            found = []
        if letter == chr(ord("A") + len(found)):
            found.append(letter)
    return found
