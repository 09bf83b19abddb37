"""Judge an answer by its whole text: it must be the task's answer, but for white space.

This is the verifier of examples whose outputs have a form of their own (labels, JSON, a signature), where other words
around the right ones are a mistake.
"""

from __future__ import annotations

import unicodedata

from mass.types import Task, Verdict
from mass.verify.exact import shorten


def plain(text: str) -> str:
    """Return the text in Unicode's composed form, with single spaces for white space of any length."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def check(task: Task, text: str) -> Verdict:
    """Judge the whole of `text`. Capitals and punctuation count, white space and line breaks do not."""
    correct = plain(text) == plain(task.answer)
    sign = "is" if correct else "is not"
    return Verdict(correct, f"{shorten(text) or 'nothing'} {sign} {shorten(task.answer)}", plain(text) or None)
