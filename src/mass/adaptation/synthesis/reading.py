r"""Parse a generated text into the first complete problem with its solution, or the reason why there is none.

Accepted forms are: labels in any markup ("Problem:", "**New Problem 1**", "### Question", "Q:"; "Solution:", "Answer:",
"A:"), labels of the prompt's own form, numbered lists, JSON, `<problem>` tags, and any of these in a fenced block,
after a preamble, or before small talk. Thinking (`<think>…</think>`) is removed. Labels inside code do not count. Of
several problems the first complete one is taken, and the number of the others is reported. Every pass is linear in the
text.

Nothing is invented: problem and solution are pieces of the text. In JSON they are its values, and an answer that the
solution leaves out is added to it as a line "Answer: x".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mass.adaptation.synthesis import objects
from mass.adaptation.synthesis.fences import fences
from mass.adaptation.synthesis.labels import Label, find_labels
from mass.adaptation.synthesis.result import Reading

FORM = "Problem: {problem}\nSolution: {solution}"

NO_SOLUTION = "a problem without a marked solution"
"""Reason for a text with a problem and no solution."""

_SAID = re.compile(
    r"\s*(?:sure|certainly|of course|ok(?:ay)?|absolutely|great|alright|here(?:'s|’s| is| are)|below is|i will|i'll|"
    r"i’ll|let me|as requested)\b[^\n]{0,300}(?:\n|\Z)",
    re.IGNORECASE,
)
_ABOUT = re.compile(r"[:!]\s*\Z|\b(?:problem|question|exercise|example|task)s?\b", re.IGNORECASE)
_TALK = re.compile(
    r"\n[ \t]*\n[ \t>*_]*(?:let me know|i hope|hope this|feel free|would you like|do you want|is there anything|"
    r"if you (?:have|need|would)|this (?:new |practice )?(?:problem|question|exercise) (?:trains|tests|requires|uses|"
    r"involves|practi[cs]es))[^\n]*\s*\Z",
    re.IGNORECASE,
)
_TALK_CHARS = 600
_RULE = re.compile(r"[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*")
_THOUGHT = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_TAG = re.compile(r"<(/?)(problem|question|solution|answer)>", re.IGNORECASE)
_INLINE = re.compile(
    r"(?<=\S)[ \t]{1,20}(?=\*\*[ \t]?(?:problem|question|solution|answer)\b[^\n*:]{0,20}(?::[ \t]?\*\*|\*\*[ \t]?:))",
    re.IGNORECASE,
)
_BULLET = re.compile(r"[\s>+•*\d.)-]*")
_QUESTION = re.compile(r"\s*([^\n]{1,2000}\?)[ \t]*\n")
_WORKED = re.compile(r"\\boxed\s?\{|\banswer\b[^\n]{0,20}(?:\bis\b|:)|=", re.IGNORECASE)
"""One of these occurs in the lines after a question if they answer it."""
_ITEM = re.compile(r"^[ \t]{0,12}(\d{1,3})[.)][ \t]+", re.MULTILINE)
_PLACE = re.compile(
    r"[<\[{(]?\s{0,4}(?:the new problem|its solution|(?:your|the) (?:new |worked )?(?:problem|question|solution|"
    r"answer)|new problem|\.{3}|…)\s{0,4}[>\]})]?\.?",
    re.IGNORECASE,
)
"""A placeholder of the form that the model repeated instead of filling it in."""


def read(text: str, form: str = FORM, *, opening: str = "") -> Reading:
    """Parse a text that a model wrote. Never raises: a text without an example gives a `Reading` with a reason.

    Args:
        form: the example form of the prompts, whose own labels are accepted too.
        opening: words that the prompt already gave as the beginning of the answer. The text then begins with a problem,
            and if no solution is marked, the lines after the question are the solution.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        return Reading(reason="the text is empty")
    text, thinking = _without_thinking(text)
    if not text.strip():
        return Reading(reason="the thinking never ends" if thinking else "nothing but thinking")
    # From the strictest form to the loosest, so that a strict form is not misread as a loose one.
    found = objects.read(text)
    if found is not None and not found.reason:
        return _checked(found)
    if (tagged := _tagged(text)) is not None:
        return _checked(tagged)
    labelled = _labelled(_in_lines(_unfenced(opening + text, form)), form)
    if labelled.reason and opening and (asked := _asked_and_answered(text, form)) is not None:
        return _checked(asked)
    return found if found is not None and labelled.reason else labelled


def _without_thinking(text: str) -> tuple[str, bool]:
    """Return the text without the model's thinking, and True if the last thinking block never ends."""
    kept: list[str] = []
    at, thinking = 0, False
    for tag in _THOUGHT.finditer(text):
        if tag[1] and not thinking:  # a closing tag alone: the prompt had opened the block
            kept.clear()
        elif not thinking:
            kept.append(text[at : tag.start()])
        thinking, at = not tag[1], tag.end()
    return "".join([*kept, *([] if thinking else [text[at:]])]), thinking


def _tagged(text: str) -> Reading | None:
    """Read `<problem>…</problem> <solution>…</solution>`; None unless both are there."""
    parts: dict[str, str] = {}
    opened: dict[str, int] = {}
    also = 0
    for tag in _TAG.finditer(text):
        part = "problem" if tag[2].lower() in ("problem", "question") else "solution"
        if not tag[1]:
            opened[part] = tag.end()
        elif part in opened:
            also += part == "problem" and part in parts
            parts.setdefault(part, text[opened.pop(part) : tag.start()])
    return Reading(parts["problem"], parts["solution"], "", also, True) if len(parts) == 2 else None


def _unfenced(text: str, form: str) -> str:
    """Return the content of the first fenced block that holds the labels; the whole text where there is none."""
    for fence in fences(text):
        if not fence.code:
            parts = {label.part for label in find_labels(fence.text, form)}
            if "solution" in parts and ("problem" in parts or not text[: fence.start].strip()):
                return fence.text
    return text


def _in_lines(text: str) -> str:
    """Return the text with a line end before each bold label that stands within a line."""

    def broken(match: re.Match[str]) -> str:
        line = text[max(text.rfind("\n", 0, match.start()) + 1, match.start() - 12) : match.start()]
        return match[0] if _BULLET.fullmatch(line) else "\n"

    return _INLINE.sub(broken, text)


def _asked_and_answered(text: str, form: str) -> Reading | None:
    """Read a text that begins with a problem and has no labels.

    Its first line, which ends with a question mark, is the problem, and the rest is the solution. None where there is
    no such line, where the text has labels, or where the rest does not look like an answer.
    """
    match = _QUESTION.match(text)
    if match is None or find_labels(text, form) or not _WORKED.search(text, match.end()):
        return None
    return Reading(_tidy(match[1]), _tidy(_without_talk(text[match.end() :])))


# --- the parts between labels


def _labelled(text: str, form: str) -> Reading:
    """Read the first complete pair of a labelled problem and solution; else the reason of the first incomplete one."""
    labels = find_labels(text, form)
    solutions = [i for i, label in enumerate(labels) if label.part == "solution"]
    if not solutions:
        asked = any(label.part == "problem" for label in labels)
        return Reading(reason=NO_SOLUTION if asked else "no solution is marked")
    readings: list[Reading] = []
    for i in solutions:
        # A second solution label ("Explanation: … Answer: …") continues the solution instead of starting another.
        goes_on = i > 0 and labels[i - 1].part == "solution" and not _ends(labels[i], labels[i - 1])
        if not goes_on:
            readings.append(_checked(_pair(text, labels, i)))
            if not readings[-1].reason:
                return readings[-1]
    return readings[0]


def _pair(text: str, labels: Sequence[Label], at: int) -> Reading:
    """Read the problem that belongs to the solution label `labels[at]`, and the solution up to the next problem."""
    label = labels[at]
    problem, numbered = _problem_before(text, labels, at)
    end = next((other for other in labels[at + 1 :] if _ends(other, label)), None)
    stop = len(text) if end is None else end.start
    solution = text[label.end : stop]
    item = _next_item(solution, labels[at + 1 :]) if numbered else None
    if item is not None:
        stop, solution = label.end + item, solution[:item]
    asked = [other for other in labels if other.part == "problem"]
    also = sum(other.start >= stop for other in asked) + (item is not None)
    if label.number:
        also += sum(other.start < label.start and other.number not in ("", label.number) for other in asked)
    return Reading(_tidy(problem), _tidy(_without_talk(solution)), "", also, stop < len(text))


def _ends(other: Label, label: Label) -> bool:
    """Return True where the label `other` ends the solution that `label` began."""
    if other.part == "problem":
        return True
    return bool(other.number) and other.number != label.number and other.word == label.word


def _problem_before(text: str, labels: Sequence[Label], at: int) -> tuple[str, bool]:
    """Return the text of the problem, and True if it is an item of a numbered list without labels."""
    label = labels[at]
    places = [i for i in range(at) if labels[i].part == "problem"]
    same = [i for i in places if label.number and labels[i].number == label.number]
    if not places:
        head = _without_preamble(text[: label.start]).lstrip()
        item = _ITEM.match(head)
        return (head[item.end() :], True) if item else (head, False)
    place = (same or places)[-1]
    if _asks_within(labels, place):
        return text[labels[place - 1].end : label.start], False
    return text[labels[place].end : labels[place + 1].start], False


def _asks_within(labels: Sequence[Label], place: int) -> bool:
    """Return True where a label "Question:" is a part of the problem that the label before it began."""
    if place == 0 or labels[place].word not in ("question", "task"):
        return False
    before = labels[place - 1]
    return before.part == "problem" and before.word not in ("question", "task", "q")


def _next_item(solution: str, later: Sequence[Label]) -> int | None:
    """Return the offset at which item 2 of a numbered list begins, if a solution is marked after it; else None."""
    if not any(label.part == "solution" for label in later):
        return None
    return next((item.start() for item in _ITEM.finditer(solution) if item[1] == "2"), None)


# --- text around the example


def _without_preamble(text: str) -> str:
    """Return the text without a beginning such as "Sure! Here is a new problem:"."""
    for _ in range(3):
        said = _SAID.match(text)
        if said is None or not _ABOUT.search(said[0]) or not text[said.end() :].strip():
            break
        text = text[said.end() :]
    return text


def _without_talk(text: str) -> str:
    """Return the text without an ending such as "Let me know if..."."""
    for _ in range(3):
        start = max(0, len(text) - _TALK_CHARS)
        talk = _TALK.search(text, start)
        if talk is None:
            break
        text = text[: talk.start()]
    return text


def _tidy(text: str) -> str:
    """Return the text without rules, fences or brackets around it, and without emphasis that only its label opened."""
    lines = text.strip().split("\n")
    while lines and (_RULE.fullmatch(lines[0]) or not lines[0].strip()):
        lines.pop(0)
    while lines and (_RULE.fullmatch(lines[-1]) or not lines[-1].strip()):
        lines.pop()
    if lines and lines[0].count("**") % 2 and lines[0].rstrip().endswith("**"):
        lines[0] = lines[0].rstrip().removesuffix("**")
    text = "\n".join(lines).strip()
    inside = fences(text)
    if len(inside) == 1 and inside[0].start == 0 and inside[0].end == len(text) and not inside[0].code:
        text = inside[0].text.strip()
    if text.startswith("<") and text.endswith(">") and text.count("<") == text.count(">") == 1:
        text = text[1:-1].strip()
    return text if text.strip("*_#>` \t\n") else ""


def _checked(found: Reading) -> Reading:
    """Return the reading if both parts have content of their own, else one with the reason."""
    problem, solution = found.problem.strip(), found.solution.strip()
    if found.reason:
        return Reading(reason=found.reason)
    if not problem:
        return Reading(reason="no problem before the solution")
    if not solution:
        return Reading(reason="the solution is empty")
    if _PLACE.fullmatch(problem) or _PLACE.fullmatch(solution):
        return Reading(reason="the form is repeated, not filled in")
    return Reading(problem, solution, "", found.also, found.closed)
